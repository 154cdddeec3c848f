"""A video that is annotated in part."""

from pathlib import Path

from datasets import Dataset
from PIL import Image

from classquery.data.annotations.schema import to_dataset


def partial_rows(folder: Path) -> Dataset:
    """Ten frames: one actor who is labelled until frame 5, one who never is, and a region where nobody looked.

    Class 1 was not looked for.
    """
    (folder / "video").mkdir()
    for number in range(10):
        Image.new("RGB", (48, 32), (9 * number, 9, 9)).save(folder / "video" / f"{number}.png")
    box, other, region = [0.125, 0.25, 0.5, 0.75], [0.5, 0.0, 0.75, 1.0], [0.0, 0.5, 0.25, 1.0]
    tubes = [
        {"track_id": 1, "labels": [2], "frames": list(range(5)), "boxes": [box] * 5},
        {"track_id": 1, "labels": None, "frames": list(range(5, 10)), "boxes": [box] * 5},
        {"track_id": None, "labels": None, "frames": [2, 3], "boxes": [other] * 2},
    ]
    row = {"clip_id": "video", "video": str(folder / "video"), "source": "frames", "fps": 10.0, "num_frames": 10}
    row |= {"height": 32, "width": 48, "ignored": [{"frames": [3, 4], "boxes": [region] * 2}]}
    return to_dataset([row | {"tubes": tubes, "annotated_labels": [0, 2]}])
