"""Write the demo data set: `python -m classquery.data.demo OUTPUT_DIR`."""

from classquery.data.demo.movies import main


if __name__ == "__main__":
    main()
