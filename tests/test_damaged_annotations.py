"""Damaged annotations are refused with a message of their place, or read; nothing else ever leaves a reader."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from mutations import try_mutations
from test_cvat import box, document, project, track

from classquery.data.annotations.ava import load_ava, load_ava_labels
from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.data.annotations.parquet import load_parquet, save_action_dataset
from classquery.data.annotations.schema import AnnotationError
from classquery.data.metrics.files import FrameNames, read_detections, read_ground_truth


COUNT = 160
VIDEO = "demo_val_000.mp4"
CSV = "video,timestamp,x1,y1,x2,y2,label,track_id\n" + "".join(
    f'{VIDEO},{0.25 * row},0.1,0.2,0.3,{0.4 + 0.01 * row:.2f},"walk, slowly",{row}\n' for row in range(6)
)
LINES = "".join(
    json.dumps({"video": VIDEO, "frames": [1, 2], "boxes": [[0, 0, 1, 1]] * 2, "labels": ["a", "ü"], "track_id": row})
    + "\n"
    for row in range(4)
)
CVAT = document(
    track(box(0, action="walk"), box(9, "5 5 20 20", action="sit"), box(12, outside=1)),
    track(box(3).replace("z_order", 'rotation="30" z_order'), box(5, outside=1), number=1),
)
AVA = "".join(f"demo_val_000,{902 + row:04d},0.1,0.2,0.3,0.4,{1 + row},{row}\n" for row in range(6))
DETECTIONS = "".join(f"v,{902 + row},0.1,0.2,0.3,0.4,{1 + row},0.{row}1\n" for row in range(6))


@pytest.fixture
def folder(tmp_path, two_movies):
    shutil.copytree(two_movies, tmp_path / "videos", symlinks=True)
    return tmp_path


def check_rows(rows) -> None:
    """Boxes lie in the frame and frames in the video, whatever was damaged."""
    for row in rows:
        for tube in row["tubes"]:
            assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in tube["boxes"])
            assert tube["frames"] is None or all(0 <= frame < row["num_frames"] for frame in tube["frames"])
            assert tube["frames"] is None or sorted(set(tube["frames"])) == tube["frames"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("train.csv", CSV), ("train.jsonl", LINES), ("train.xml", CVAT), ("classes.txt", "walk, slowly\nsit\n")],
)
def test_custom(folder, name, text):
    (folder / "train.csv").write_text(CSV)
    if name != "classes.txt":
        (folder / "train.csv").unlink()
    (folder / name).write_text(text)

    def read(_: Path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_custom_labels(folder)
            return load_custom(folder, "train")

    check_rows(read(folder))
    outcomes = try_mutations(read, folder / name, (AnnotationError, FileNotFoundError), count=COUNT, check=check_rows)
    assert outcomes["refused"] > 10


def test_projects_of_cvat(folder):
    (folder / "train.xml").write_text(project(track(box(3), box(5, outside=1))))

    def read(_: Path):
        return load_custom(folder, "train", require_videos=False)

    try_mutations(read, folder / "train.xml", AnnotationError, count=COUNT // 2)


@pytest.mark.parametrize(
    "name", ["ava_train_v2.2.csv", "ava_train_excluded_timestamps_v2.2.csv", "ava_action_list.pbtxt"]
)
def test_ava(folder, name):
    (folder / "ava_train_v2.2.csv").write_text(AVA)
    (folder / "ava_train_excluded_timestamps_v2.2.csv").write_text("demo_val_000,0903\ndemo_val_000,0904\n")
    labels = "".join(f'label {{\n  name: "action {label}"\n  label_id: {label}\n}}\n' for label in range(1, 9))
    (folder / "ava_action_list.pbtxt").write_text(labels)

    def read(_: Path):
        load_ava_labels(folder)
        return load_ava(folder, "train", require_videos=False)

    check_rows(read(folder))
    try_mutations(read, folder / name, AnnotationError, count=COUNT, check=check_rows)


def test_json_of_ava(folder):
    keyframe = {"bboxes": [[0.1, 0.2, 0.3, 0.4]], "acts": [[0, 3]]}
    content = {"video_frame_bbox": {f"a,{seconds:04d}": keyframe for seconds in range(902, 906)}}
    path = folder / "ava_train_v22_updated.json"
    path.write_text(json.dumps(content))

    def read(_: Path):
        return load_ava(folder, "train", require_videos=False)

    try_mutations(read, path, AnnotationError, count=COUNT, check=check_rows)


def test_parquet(folder):
    (folder / "train.csv").write_text(CSV)
    path = save_action_dataset(load_custom(folder, "train"), load_custom_labels(folder), folder, "train")

    def read(_: Path):
        return load_parquet(folder, "train", require_videos=False)

    # Checksums tell what is damaged from what was written so.
    rows = list(read(path))

    def check(found) -> None:
        assert list(found) == rows

    outcomes = try_mutations(read, path, AnnotationError, count=COUNT, check=check)
    assert outcomes["refused"] > 10


@pytest.mark.parametrize("read", [read_detections, read_ground_truth])
def test_files_of_metrics(tmp_path, read):
    path = tmp_path / "boxes.csv"
    path.write_text(DETECTIONS)

    try_mutations(lambda path: read(path, FrameNames()), path, AnnotationError, count=COUNT)


@pytest.mark.parametrize(
    "line",
    [
        '{"video": "\\ud800", "timestamp": 1, "box": [0, 0, 1, 1], "label": "a"}',
        '{"video": "demo_val_000.mp4", "timestamp": 1, "box": [0, 0, 1, 1], "label": "\\ud800"}',
        '{"video": "demo_val_000.mp4", "timestamp": 1, "box": [0, 0, 1, 1], "label": "a\\u0000"}',
        '{"video": "demo_val_000.mp4", "timestamp": 1, "box": [0, 0, 1, 1e400], "label": "a"}',
        '{"video": "demo_val_000.mp4", "timestamp": 1, "box": [0, 0, 1, ' + "9" * 400 + '], "label": "a"}',
        '{"video": "demo_val_000.mp4", "frames": [' + "9" * 30 + '], "boxes": [[0, 0, 1, 1]], "label": "a"}',
        '{"video": "demo_val_000.mp4", "timestamp": 1, "box": ' + "[" * 100_000 + "]" * 100_000 + ', "label": "a"}',
        '{"images": [' + ",".join(['{"id": 1}'] * 50_000) + "]}",
        '{"video": "demo_val_000.mp4", "timestamp": 1, "box": [true, 0, 1, {"a": "'
        + "b" * 10_000
        + '"}], "label": "a"}',
    ],
)
def test_json_that_means_nothing_is_told_in_short(folder, line):
    good = json.dumps({"video": "demo_val_000.mp4", "timestamp": 0, "box": [0, 0, 1, 1], "label": "a"})
    (folder / "train.jsonl").write_text(f"{good}\n{line}\n")

    with pytest.raises(AnnotationError, match="row 2: ") as error:
        load_custom(folder, "train")
    assert len(str(error.value)) < 500
