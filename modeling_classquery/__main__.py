"""`python -m classquery`, and what `accelerate launch -m classquery` runs."""

import sys

from classquery.cli import main


if __name__ == "__main__":
    sys.exit(main())
