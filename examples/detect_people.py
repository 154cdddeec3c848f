"""Who does what in a video: a table of all detections, and a picture of the first moment.

python examples/detect_people.py video.mp4 [MODEL]
"""

import sys

from classquery import detect
from classquery.engine.detection.results import to_dataframe


def main(video: str, model: str = "demo") -> None:
    """Print the table and write `first_moment.png`."""
    frames = list(detect(video, model))
    print(to_dataframe(frames).to_string(index=False))
    frames[0].save("first_moment.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
