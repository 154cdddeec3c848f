"""The reader of anyone's own videos: csv, JSON lines and CVAT, and what it says about bad ones."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classquery.data import load_action_dataset, load_action_labels, make_clips
from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.data.annotations.schema import ACTION_FEATURES, AnnotationError, AnnotationWarning
from classquery.data.transforms import ClipTransform


KEYFRAMES = """\
video,timestamp,x1,y1,x2,y2,label,track_id
demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,walk,3
demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,carry,3
demo_val_000.mp4,0.5,0.6,0.2,0.8,0.4,stand,
demo_val_001.mp4,1.25,0.1,0.2,0.3,0.4,stand,0
"""
TUBES = """\
video,frame,x1,y1,x2,y2,label,track_id
demo_val_000.mp4,4,0.1,0.2,0.3,0.4,walk,7
demo_val_000.mp4,3,0.1,0.2,0.25,0.4,walk,7
demo_val_000.mp4,4,0.1,0.2,0.3,0.4,carry,7
demo_val_001.mp4,0,0.5,0.5,1,1,stand,0
"""
HEADER = "video,timestamp,x1,y1,x2,y2,label\n"
GOOD = "demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,walk\n"


@pytest.fixture
def folder(tmp_path, two_movies):
    (tmp_path / "videos").symlink_to(two_movies)
    return tmp_path


def write(folder: Path, name: str, content: str | list[dict]) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return folder


def tubes_of(row: dict) -> list[tuple]:
    return [(tube["track_id"], tube["labels"], tube["frames"]) for tube in row["tubes"]]


def test_rows_of_a_csv_with_timestamps_are_keyframes(folder):
    rows = load_custom(write(folder, "train.csv", KEYFRAMES), "train")

    assert rows.features == ACTION_FEATURES
    assert rows["clip_id"][:] == ["demo_val_000_0.500", "demo_val_001_1.250"]
    assert rows["video"][0] == str(folder / "videos" / "demo_val_000.mp4")
    assert (rows[0]["timestamp"], rows[0]["video_seconds"]) == (0.5, 0.5)
    assert (rows[0]["fps"], rows[0]["num_frames"], rows[0]["height"], rows[0]["width"]) == (15, 30, 96, 128)
    assert load_custom_labels(folder) == {0: "carry", 1: "stand", 2: "walk"}
    assert tubes_of(rows[0]) == [(3, [0, 2], None), (None, [1], None)]
    assert rows[0]["tubes"][0]["boxes"] == [pytest.approx([0.1, 0.2, 0.3, 0.4])]


def test_rows_of_a_csv_with_frames_are_tubes(folder):
    rows = load_custom(write(folder, "train.csv", TUBES), "train")

    assert rows["clip_id"][:] == ["demo_val_000", "demo_val_001"]
    assert (rows[0]["timestamp"], rows[0]["num_frames"]) == (None, 30)
    assert tubes_of(rows[0]) == [(7, [2], [3, 4]), (7, [0], [4])]
    np.testing.assert_allclose(rows[0]["tubes"][0]["boxes"], [[0.1, 0.2, 0.25, 0.4], [0.1, 0.2, 0.3, 0.4]], atol=1e-7)


def test_json_lines_say_the_same_as_the_csv(folder, tmp_path_factory):
    keyframes = [
        {"video": "demo_val_000.mp4", "timestamp": 0.5, "box": [0.1, 0.2, 0.3, 0.4], "labels": ["walk", "carry"]},
        {"video": "demo_val_000.mp4", "timestamp": 0.5, "box": [0.6, 0.2, 0.8, 0.4], "label": "stand"},
        {"file_name": "demo_val_001.mp4", "timestamp": 1.25, "box": [0.1, 0.2, 0.3, 0.4], "label": "stand"},
    ]
    keyframes[0]["track_id"], keyframes[2]["track_id"] = 3, 0
    boxes = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.25, 0.4]]
    tubes = [
        {"video": "demo_val_000.mp4", "frames": [4, 3], "boxes": boxes, "label": "walk", "track_id": 7},
        {"video": "demo_val_000.mp4", "frames": [4], "boxes": boxes[:1], "label": "carry", "track_id": 7},
        {"video": "demo_val_001.mp4", "frames": [0], "boxes": [[0.5, 0.5, 1, 1]], "label": "stand", "track_id": 0},
    ]
    for table, lines in ((KEYFRAMES, keyframes), (TUBES, tubes)):
        write(folder, "train.csv", table)
        from_csv = list(load_custom(folder, "train"))
        (folder / "train.csv").unlink()
        write(folder, "train.jsonl", lines)
        assert list(load_custom(folder, "train")) == from_csv
        (folder / "train.jsonl").unlink()


def test_tubes_of_nobody_in_particular_stay_apart(folder):
    line = {"video": "demo_val_000", "frames": [1, 2], "boxes": [[0, 0, 1, 1]] * 2, "labels": ["a", "b"]}

    (row,) = load_custom(write(folder, "train.jsonl", [line, line]), "train")

    assert tubes_of(row) == [(None, [0, 1], [1, 2])] * 2


@pytest.mark.parametrize(
    "files",
    [
        ["train.csv", "validation.csv"],
        ["train.csv", "val.csv"],
        ["train/a.csv", "validation/a.csv"],
    ],
)
def test_splits_are_told_by_the_names_of_files_or_folders(folder, files):
    for name, video in zip(files, ("demo_val_000", "demo_val_001"), strict=True):
        write(folder, name, f"{HEADER}{video},0.5,0.1,0.2,0.3,0.4,{video}\n")

    loaded = [load_custom(folder, split) for split in ("train", "validation")]

    assert [rows["clip_id"][:] for rows in loaded] == [["demo_val_000_0.500"], ["demo_val_001_0.500"]]
    assert [rows[0]["tubes"][0]["labels"] for rows in loaded] == [[0], [1]]


@pytest.mark.parametrize("name", ["annotations.csv", "metadata.csv"])
def test_splits_are_told_by_a_column(folder, name):
    rows = [GOOD.strip() + f",{split}" for split in ("train", "val", "test", "train")]
    rows[3] = rows[3].replace("0.5", "1.5")
    write(folder, name, "\n".join([HEADER.strip() + ",split", *rows]))

    assert [len(load_custom(folder, split)) for split in ("train", "validation")] == [2, 1]


def test_unknown_split_in_the_column_is_a_problem(folder):
    write(folder, "annotations.csv", f"{HEADER.strip()},split\n{GOOD.strip()},trian\n")

    with pytest.raises(
        AnnotationError, match="row 2: `split` must be one of train, validation, val, test, got 'trian'"
    ):
        load_custom(folder, "train")


def test_classes_are_those_of_their_file_in_its_order(folder):
    write(folder, "classes.txt", "walk\nstand\n\ncarry\nnever seen\n")

    rows = load_custom(write(folder, "train.csv", KEYFRAMES), "train")

    assert load_custom_labels(folder) == {0: "walk", 1: "stand", 2: "carry", 3: "never seen"}
    assert [labels for _, labels, _ in tubes_of(rows[0])] == [[0, 2], [1]]


def test_boxes_in_pixels(folder):
    rows = "demo_val_000.mp4,0.5,12.8,-0.5,128,48,walk\n"

    row = load_custom(write(folder, "train.csv", HEADER + rows), "train", box_format="pixel")[0]

    np.testing.assert_allclose(row["tubes"][0]["boxes"], [[0.1, 0, 1, 0.5]], atol=1e-6)


def test_clock_of_the_annotations_may_start_elsewhere(folder):
    write(folder, "train.csv", HEADER + GOOD.replace("0.5", "100.5"))

    (row,) = load_custom(folder, "train", timestamp_offset=100.0)

    assert (row["timestamp"], row["video_seconds"], row["clip_id"]) == (100.5, 0.5, "demo_val_000_100.500")


def test_video_may_be_a_folder_of_frames(folder):
    for number in range(1, 6):
        path = folder / "more" / f"{number:05d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 24), (number,) * 3).save(path)

    rows = load_custom(write(folder, "train.csv", f"{HEADER}more,0.4,0.1,0.2,0.3,0.4,walk\n"), "train", frames_fps=5.0)
    clip = make_clips(rows, num_labels=1, num_frames=2, frame_stride=1, frames_per_second=5.0)[0]

    assert (rows[0]["source"], rows[0]["num_frames"], rows[0]["width"]) == ("frames", 5, 32)
    assert clip["frames"][:, 0, 0, 0].tolist() == [2, 3]


def test_boxes_just_outside_of_the_frame_are_cut_off(folder):
    row = load_custom(write(folder, "train.csv", HEADER + GOOD.replace("0.4", "1.0009")), "train")[0]

    assert row["tubes"][0]["boxes"][0][3] == 1


# What can be wrong


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("demo_val_000.mp4,0.5,0.1,0.2,0.3,1.002,walk", r"must lie in \[0, 1\], got .*1.002\)$"),
        ("demo_val_000.mp4,0.5,12,20,30,40,walk", 'look like pixels: say so with box_format="pixel"'),
        ("demo_val_000.mp4,0.5,0.3,0.2,0.3,0.4,walk", "x2 must be larger than x1"),
        ("demo_val_000.mp4,0.5,0.1,0.4,0.3,0.2,walk", "y2 must be larger than y1"),
        ("demo_val_000.mp4,0.5,0.1,nan,0.3,0.4,walk", "finite"),
        ("demo_val_000.mp4,0.5,0.1,x,0.3,0.4,walk", "not a number"),
        ("demo_val_000.mp4,0.5,0.1,,0.3,0.4,walk", "not a number"),
        ("demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,wlak", "unknown class 'wlak', did you mean 'walk'"),
        ("demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,", "`label` must be the name of a class"),
        ("demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,  ", "`label` must be the name of a class"),
        ("demo_val_000.mp4,2.5,0.1,0.2,0.3,0.4,walk", "2.5 is not in the video, .* 0 to 2.00 s; timestamp_offset"),
        ("demo_val_000.mp4,-1,0.1,0.2,0.3,0.4,walk", "-1 is not in the video"),
        ("demo_val_000.mp4,soon,0.1,0.2,0.3,0.4,walk", "timestamp must be a number, got 'soon'"),
        ("demo_val_000.mp4,,0.1,0.2,0.3,0.4,walk", "either a timestamp, or frames"),
        (",0.5,0.1,0.2,0.3,0.4,walk", "`video` must name a video"),
        ("demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4", "needs 7 cells"),
        ("demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,walk,8", "needs 7 cells"),
        ("demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,walk\n" * 2, "repeats row 3"),
    ],
)
def test_problems_are_told_by_row(folder, row, message):
    write(folder, "classes.txt", "walk\nstand\n")
    write(folder, "train.csv", f"{HEADER}{GOOD.replace('000', '001')}{row}\n")

    with pytest.raises(AnnotationError, match=rf"1 problem in .*train.csv:\n  row [34]: (?s:.*){message}"):
        load_custom(folder, "train")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"frames": [1, 2], "boxes": [[0, 0, 1, 1]]}, "one box for each frame, got 1 for 2"),
        ({"frames": [1, 1], "boxes": [[0, 0, 1, 1]] * 2}, "frame 1 is listed twice"),
        ({"frames": [30], "boxes": [[0, 0, 1, 1]]}, "frame 30 is not in the video, which has frames 0 to 29"),
        ({"frames": [-1], "boxes": [[0, 0, 1, 1]]}, "frame must be a whole number from 0 on, got -1"),
        ({"frames": [1.5], "boxes": [[0, 0, 1, 1]]}, "whole number from 0 on, got 1.5"),
        ({"frames": [], "boxes": []}, "one box for each frame"),
        ({"frames": 1, "boxes": [[0, 0, 1, 1]]}, "`frames` must be a list"),
        ({"frames": [1], "boxes": [[0, 0, 1]]}, "four corners"),
        ({"frames": [1], "boxes": [None]}, "four corners"),
        ({"frames": [1], "boxes": [[0, 0, 1, 1]], "track_id": "me"}, "track_id must be a number"),
        ({"frames": [1], "boxes": [[0, 0, 1, 1]], "labels": "walk"}, "`labels` must be a list"),
        ({"frames": [1], "boxes": [[0, 0, 1, 1]], "labels": []}, "name of a class"),
        ({"frames": [1], "boxes": [[0, 0, 1, 1]], "timestamp": 1.0}, "either a timestamp, or frames"),
        ({"timestamp": True, "box": [0, 0, 1, 1]}, "timestamp must be a number, got True"),
        ({"timestamp": 1.0, "box": [0, 0, 1, 1]}, "must all have a timestamp, or all frames"),
    ],
)
def test_problems_of_json_lines(folder, lines, message):
    good = {"video": "demo_val_001", "frames": [0], "boxes": [[0, 0, 1, 1]], "label": "walk"}
    bad = {"video": "demo_val_000", **lines} | ({} if "labels" in lines else {"label": "walk"})

    with pytest.raises(AnnotationError, match=rf"1 problem in .*\n  row 2: {message}|row 2: .*{message}"):
        load_custom(write(folder, "train.jsonl", [good, bad]), "train")


def test_fractions_are_not_taken_for_pixels(folder):
    write(folder, "train.csv", HEADER + GOOD + GOOD.replace("0.4,walk", "1,sit"))

    with pytest.raises(AnnotationError, match='2 problems in .*\n  boxes: .*fractions.*box_format="normalized"'):
        load_custom(folder, "train", box_format="pixel")
    write(folder, "train.csv", HEADER + GOOD + GOOD.replace("0.3,0.4,walk", "30,40,sit"))
    assert len(load_custom(folder, "train", box_format="pixel")) == 1


def test_other_shape_than_boxes_are_drawn_in_is_asked_about(folder):
    write(folder, "train.csv", HEADER + GOOD.replace("0.1,0.2,0.3,0.4", "100,200,300,400"))

    with pytest.warns(AnnotationWarning, match=r"drawn in 1920x1080, .*: demo_val_000\.mp4 \(128x96\)"):
        load_custom(folder, "train", box_format="1920x1080")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_custom(folder, "train", box_format="1280x960")


@pytest.mark.parametrize("option", [{"timestamp_offset": float("nan")}, {"frames_fps": 0.0}, {"frames_fps": -1.0}])
def test_clock_that_cannot_be_is_refused(folder, option):
    with pytest.raises(ValueError, match="timestamp_offset must be finite and frames_fps more than 0"):
        load_custom(write(folder, "train.csv", HEADER + GOOD), "train", **option)


@pytest.mark.parametrize("line", ['{"video": ', "[1, 2]"])
def test_lines_that_are_no_objects_are_problems(folder, line):
    good = json.dumps({"video": "demo_val_001", "frames": [0], "boxes": [[0, 0, 1, 1]], "label": "walk"})

    with pytest.raises(AnnotationError, match=r"row 3: (no valid JSON|must be an object)"):
        load_custom(write(folder, "train.jsonl", f"{good}\n\n{line}\n"), "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1,0,0,1,1,walk,5", "1,0,0,1,1,walk,5"], "row 3: repeats row 2 in frame 1"),
        (["1,0,0,1,1,walk,5", "1,0,0,1,0.5,sit,5"], "row 3: track 5 has another box in frame 1 in row 2"),
        (["1,0,0,1,1,walk,"], "`track_id` must say which boxes belong together"),
    ],
)
def test_tracks_must_agree(folder, rows, message):
    table = "".join(f"demo_val_000,{row}\n" for row in rows)

    with pytest.raises(AnnotationError, match=message):
        load_custom(write(folder, "train.csv", TUBES.splitlines()[0] + f"\n{table}"), "train")


def test_first_twenty_problems_are_shown_and_all_counted(folder):
    with pytest.raises(AnnotationError) as error:
        load_custom(write(folder, "train.csv", HEADER + GOOD.replace("0.5", "9") * 25), "train")

    lines = str(error.value).splitlines()
    assert lines[0].startswith("25 problems in ")
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"  row {number}" for number in range(2, 22)]
    assert lines[-1] == "  ... and 5 more"


def test_missing_videos_are_listed_with_the_folders_searched(folder):
    rows = GOOD + GOOD.replace("000.mp4", "008") + GOOD.replace("000.mp4", "009.mp4")

    with pytest.raises(FileNotFoundError) as error:
        load_custom(write(folder, "train.csv", HEADER + rows), "train")

    assert "2 of 3 videos are not in" in str(error.value)
    assert "demo_val_008, demo_val_009.mp4" in str(error.value)
    assert str(folder / "videos") in str(error.value)


def test_unreadable_video_is_a_problem(folder):
    (folder / "broken.mp4").write_text("not a video")

    with pytest.raises(AnnotationError, match=r"broken.mp4: cannot read .*not a video"):
        load_custom(write(folder, "train.csv", f"{HEADER}broken.mp4,0.5,0,0,1,1,walk\n"), "train")


def test_videos_that_differ_in_their_suffix_only_keep_it(folder, two_movies):
    shutil.copy(two_movies / "demo_val_001.mp4", folder / "demo_val_000.mkv")

    rows = load_custom(write(folder, "train.csv", HEADER + GOOD + GOOD.replace("mp4", "mkv")), "train")

    assert rows["clip_id"][:] == ["demo_val_000.mp4_0.500", "demo_val_000.mkv_0.500"]
    assert rows["video"][:] == [str(folder / "videos/demo_val_000.mp4"), str(folder / "demo_val_000.mkv")]


def test_streamed_rows_say_how_they_were_understood(folder):
    write(folder, "train.csv", KEYFRAMES)

    read, streamed = (load_action_dataset("custom", folder, "train", streaming=flag) for flag in (False, True))

    assert streamed.info.description == read.info.description != ""


def test_two_names_of_one_file_are_a_problem(folder):
    with pytest.raises(AnnotationError, match="demo_val_000: is the same file as demo_val_000.mp4"):
        load_custom(write(folder, "train.csv", HEADER + GOOD + GOOD.replace(".mp4", "")), "train")


def test_two_videos_are_not_taken_for_one_by_the_last_part_of_their_names(folder):
    rows = "".join(GOOD.replace("demo", f"{room}/demo") for room in ("room_a", "room_b"))

    with pytest.raises(AnnotationError, match=r"room_b/demo_.*room_a/demo_.* would both be demo_val_000"):
        load_custom(write(folder, "train.csv", HEADER + rows), "train")


def test_a_video_in_any_folder_is_found_by_the_end_of_its_path(tmp_path, two_movies):
    for name in ("a/1.mp4", "b/1.mp4", "b/2.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(two_movies / "demo_val_000.mp4", tmp_path / "videos" / name)
    names = ("b/1.mp4", "a/1.mp4", "2.mp4")

    rows = load_custom(
        write(tmp_path, "train.csv", HEADER + "".join(GOOD.replace("demo_val_000.mp4", name) for name in names)),
        "train",
    )

    assert rows["video"][:] == [str(tmp_path / "videos" / name) for name in ("b/1.mp4", "a/1.mp4", "b/2.mp4")]
    with pytest.raises(FileNotFoundError, match="or in several folders there: 1.mp4"):
        load_custom(write(tmp_path, "train.csv", HEADER + GOOD.replace("demo_val_000.mp4", "1.mp4")), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video;timestamp;x1;y1;x2;y2;label\n", "separated by commas"),
        ("video,timestamp,x1,y1,x2,y2\n", "no column label"),
        ("", "no column video or file_name"),
    ],
)
def test_wrong_header_is_an_error(folder, content, message):
    with pytest.raises(AnnotationError, match=message):
        load_custom(write(folder, "train.csv", content), "train")


def test_text_in_another_encoding_is_an_error(folder):
    (folder / "train.csv").write_bytes((HEADER + GOOD.replace("walk", "gehört")).encode("latin-1"))

    with pytest.raises(AnnotationError, match="no text in UTF-8"):
        load_custom(folder, "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,"walk\n', "row 3: a quote is not closed, or a name has a line break"),
        ('"demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,walk\n', "row 3: a quote is not closed: "),
        ("demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,wa\0lk\n", "NUL byte in line 3"),
        ("demo_val_000.mp4,0.5,1e999,0.2,0.3,0.4,walk\n", "row 3: the corners of a box must be finite"),
        (
            f"demo_val_000.mp4,{'9' * 400},0.1,0.2,0.3,0.4,walk\n",
            "row 3: timestamp must be a number, got inf",
        ),
        (f"{'v' * 5000},soon,0.1,0.2,0.3,0.4,walk\n", "row 3: timestamp must be a number, got 'soon'"),
    ],
)
def test_what_no_csv_may_hold(folder, rows, message):
    with pytest.raises(AnnotationError, match=message) as error:
        load_custom(write(folder, "train.csv", HEADER + GOOD + rows + GOOD.replace("0.5", "1")), "train")
    assert len(str(error.value)) < 500


def test_names_too_long_for_a_file_are_missing_videos(folder):
    with pytest.raises(FileNotFoundError, match="1 of 1 videos are not in"):
        load_custom(write(folder, "train.csv", HEADER + GOOD.replace("demo_val_000", "v" * 5000)), "train")


def test_classes_are_numbered_with_sixteen_bits(folder):
    rows = "".join(GOOD.replace("walk", f"frame {number}") for number in range(33_000))

    with pytest.raises(AnnotationError, match="33,000 classes, and there may be 32,767.* starts with 'frame 0'"):
        load_custom(write(folder, "train.csv", HEADER + rows), "train")


def test_row_numbers_count_empty_lines_and_odd_rows(folder):
    rows = f"{GOOD}\n , \ndemo_val_000.mp4,soon,0.1,0.2,0.3,0.4,walk\na,b\n{GOOD.replace('0.1', '0.7')}"

    with pytest.raises(AnnotationError) as error:
        load_custom(write(folder, "train.csv", HEADER + rows), "train")

    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == ["  row 5", "  row 6", "  row 7"]


def test_missing_annotations_say_what_to_give(folder):
    with pytest.raises(FileNotFoundError, match="'validation' in .*: give validation.csv, .*annotations.csv"):
        load_custom(write(folder, "train.csv", KEYFRAMES), "validation")
    with pytest.raises(FileNotFoundError, match="train.csv"):
        load_custom_labels(folder / "videos")


@pytest.mark.parametrize(("classes", "message"), [("a\nb\na\n", "every class once, got a$"), ("\n", "got none")])
def test_classes_must_have_names_of_their_own(folder, classes, message):
    with pytest.raises(AnnotationError, match=message):
        load_custom_labels(write(folder, "classes.txt", classes))


def test_unknown_split_or_format_is_refused(folder):
    with pytest.raises(ValueError, match="'test'"):
        load_custom(folder, "test")
    with pytest.raises(ValueError, match="'pixels'"):
        load_custom(folder, "train", box_format="pixels")


# Clips


def test_clips_of_tubes_join_what_a_track_does(folder):
    rows = load_action_dataset("custom", write(folder, "train.csv", TUBES), "train")
    labels = load_action_labels("custom", folder)

    clips = make_clips(rows, num_labels=len(labels), num_frames=8, frame_stride=1, frames_per_second=15.0)
    clip = clips[0]

    # 30 frames make 4 clips of 8 with 1 frame of padding before.
    assert clip["frame_numbers"].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert clip["valid"].tolist() == [[False] * 4 + [True, True] + [False] * 2]
    assert clip["class_labels"][0, 4:6].tolist() == [[0, 0, 1], [1, 0, 1]]


def test_tubes_become_keyframes_for_a_model_of_keyframes(folder):
    rows = load_action_dataset("custom", write(folder, "train.csv", TUBES), "train")
    sampling = {"num_labels": 3, "num_frames": 4, "frame_stride": 1, "frames_per_second": 15.0}

    clips = make_clips(rows, output_frames="keyframe", keyframes_per_second=3.75, **sampling)

    # Of frames 0, 4, 8, ... those with actors; the keyframe is the third of four.
    assert clips.clip_ids == ["demo_val_000_000004", "demo_val_001_000000"]
    assert clips[0]["class_labels"].tolist() == [[[1, 0, 1]]]
    np.testing.assert_array_equal(clips[0]["boxes"], np.float32([[[0.1, 0.2, 0.3, 0.4]]]))
    reader = clips.reader
    assert np.array_equal(clips[0]["frames"][2].permute(1, 2, 0), reader.read(rows[0]["video"], [4])[0])
    with pytest.raises(ValueError, match="only keyframes are annotated"):
        make_clips(clips.rows, output_frames="all", **sampling)


def test_classes_of_mirrored_clips_change_places(folder):
    rows = load_action_dataset("custom", write(folder, "train.csv", TUBES), "train")
    sampling = {"num_labels": 3, "num_frames": 8, "frame_stride": 1, "frames_per_second": 15.0}

    plain, mirrored = (
        make_clips(rows, transform=ClipTransform(32, 32, flip_probability=1.0, mirrored_labels=labels), **sampling)[0]
        for labels in ((), (2, 1, 0))
    )

    # "carry" and "walk", of which the actor does the latter first and then both.
    assert plain["class_labels"][0, 4:6].tolist() == [[0, 0, 1], [1, 0, 1]]
    assert mirrored["class_labels"][0, 4:6].tolist() == [[1, 0, 0], [1, 0, 1]]
    assert torch.equal(plain["boxes"], mirrored["boxes"])
