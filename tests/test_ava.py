"""The reader of AVA: what it makes of good files, and what it says about bad ones."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classquery.data.annotations.ava import AVA_LABELS, load_ava, load_ava_labels
from classquery.data.annotations.schema import ACTION_FEATURES, AnnotationError, ProblemCollector, parse_box
from classquery.data.clips import KeyframeClips


# Ids that start with a digit, '_' or '-', a person with several actions, and person ids from 0, as in the real files.
ROWS = """\
1a2b3c4d5e6,0902,0.031,0.162,0.670,0.995,12,0
1a2b3c4d5e6,0902,0.031,0.162,0.670,0.995,79,0
1a2b3c4d5e6,0902,0.500,0.100,0.750,0.900,80,1
1a2b3c4d5e6,0903,0.034,0.189,0.669,0.980,12,0
_-ab_cd-efg,0902,0.063,0.049,0.524,0.996,74,0
-0123456789,1798,0.000,0.000,1.000,1.000,1,7
"""
VIDEOS = ["1a2b3c4d5e6.mkv", "_-ab_cd-efg.mp4", "train/-0123456789.webm"]
GOOD_ROW = "1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,12,0"


def write_ava(folder: Path, rows: str, *, excluded: str | None = "", videos=tuple(VIDEOS), split="train") -> Path:
    """Write the files of one split in the official layout; the videos are empty, for nobody opens them."""
    annotations = folder / "annotations"
    annotations.mkdir(exist_ok=True)
    (annotations / f"ava_{split}_v2.2.csv").write_text(rows)
    if excluded is not None:
        (annotations / f"ava_{split}_excluded_timestamps_v2.2.csv").write_text(excluded)
    for name in videos:
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_load_ava_groups_rows_into_keyframes_and_actors(tmp_path):
    dataset = load_ava(write_ava(tmp_path, ROWS), "train")

    first = dataset[0]
    assert dataset.features == ACTION_FEATURES
    assert dataset["clip_id"][:] == ["1a2b3c4d5e6_0902", "1a2b3c4d5e6_0903", "_-ab_cd-efg_0902", "-0123456789_1798"]
    assert [tube["labels"] for tube in first["tubes"]] == [[11, 78], [79]]
    assert [tube["track_id"] for tube in first["tubes"]] == [0, 1]
    assert first["tubes"][0]["boxes"] == [pytest.approx([0.031, 0.162, 0.670, 0.995])]


def test_load_ava_places_keyframes_by_time_and_leaves_the_rest_to_the_video(tmp_path):
    row = load_ava(write_ava(tmp_path, ROWS), "train")[0]

    assert (row["timestamp"], row["video_seconds"]) == (902, 2)
    assert row["source"] == "video"
    assert {row[name] for name in ("fps", "num_frames", "height", "width", "center_frame")} == {None}
    assert row["tubes"][0]["frames"] is None


def test_load_ava_reads_whole_movies(tmp_path):
    dataset = load_ava(write_ava(tmp_path, ROWS), "train", movie_start_seconds=0)

    assert dataset["video_seconds"][:] == dataset["timestamp"][:] == [902, 903, 902, 1798]


def test_load_ava_finds_videos_of_all_kinds_and_in_subfolders(tmp_path):
    dataset = load_ava(write_ava(tmp_path, ROWS), "train")

    expected = [VIDEOS[0], VIDEOS[0], VIDEOS[1], VIDEOS[2]]
    assert dataset["video"][:] == [str(tmp_path / "videos" / name) for name in expected]


def test_videos_of_one_name_are_told_apart_by_suffix_or_folder_and_never_confused(tmp_path):
    names = ("a/1.mp4", "b/1.mp4", "x.mkv", "x.mp4")
    ids = ("b_1", "a_1", "x.mp4", "x.mkv")
    rows = "".join(GOOD_ROW.replace("1a2b3c4d5e6", name) + "\n" for name in ids)

    dataset = load_ava(write_ava(tmp_path, rows, videos=names), "train")

    expected = [str(tmp_path / "videos" / name) for name in ("b/1.mp4", "a/1.mp4", "x.mp4", "x.mkv")]
    assert dataset["video"][:] == expected
    for name in ("1", "x"):
        with pytest.raises(AnnotationError, match=rf"'{name}' may be .* or .*keep one"):
            load_ava(write_ava(tmp_path, GOOD_ROW.replace("1a2b3c4d5e6", name) + "\n", videos=names), "train")


def test_load_ava_keeps_two_people_with_the_same_box(tmp_path):
    rows = "1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,12,0\n1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,14,1\n"

    tubes = load_ava(write_ava(tmp_path, rows), "train")[0]["tubes"]

    assert [(tube["track_id"], tube["labels"]) for tube in tubes] == [(0, [11]), (1, [13])]


def test_load_ava_keeps_two_boxes_with_the_same_person_id(tmp_path):
    rows = "1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,12,0\n1a2b3c4d5e6,0902,0.5,0.2,0.7,0.4,14,0\n"

    assert len(load_ava(write_ava(tmp_path, rows), "train")[0]["tubes"]) == 2


def test_load_ava_counts_a_repeated_row_once(tmp_path):
    tubes = load_ava(write_ava(tmp_path, f"{GOOD_ROW}\n{GOOD_ROW}\n"), "train")[0]["tubes"]

    assert [tube["labels"] for tube in tubes] == [[11]]


def test_load_ava_drops_excluded_keyframes(tmp_path):
    folder = write_ava(tmp_path, ROWS, excluded="1a2b3c4d5e6,0903\n_-ab_cd-efg,0902\n", videos=VIDEOS[::2])

    assert load_ava(folder, "train")["clip_id"][:] == ["1a2b3c4d5e6_0902", "-0123456789_1798"]


def test_load_ava_takes_the_older_list_of_excluded_keyframes(tmp_path):
    folder = write_ava(tmp_path, ROWS, excluded=None)
    (folder / "annotations" / "ava_train_excluded_timestamps_v2.1.csv").write_text("1a2b3c4d5e6,0903\n")

    assert len(load_ava(folder, "train")) == 3


def test_load_ava_warns_when_nothing_says_what_is_excluded(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = load_ava(write_ava(tmp_path, ROWS, excluded=None), "train")

    assert len(dataset) == 4
    assert "ava_train_excluded_timestamps_v2.2.csv" in caplog.text


@pytest.mark.parametrize("split", ["validation", "val"])
def test_load_ava_knows_both_names_of_the_validation_split(tmp_path, split):
    assert len(load_ava(write_ava(tmp_path, ROWS, split="val"), split)) == 4


def test_load_ava_takes_annotations_without_a_folder_of_their_own(tmp_path):
    write_ava(tmp_path, ROWS)
    for path in (tmp_path / "annotations").iterdir():
        path.rename(tmp_path / path.name)

    assert len(load_ava(tmp_path, "train")) == 4


def test_load_ava_raises_on_an_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        load_ava(write_ava(tmp_path, ROWS), "test")


def test_load_ava_says_which_annotation_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ava_val_v2\.2\.csv.*https://"):
        load_ava(write_ava(tmp_path, ROWS), "validation")


def test_load_ava_lists_missing_videos(tmp_path):
    folder = write_ava(tmp_path, ROWS, videos=VIDEOS[:1])

    with pytest.raises(FileNotFoundError) as error:
        load_ava(folder, "train")

    assert "2 of 3 videos" in str(error.value)
    assert "-0123456789, _-ab_cd-efg" in str(error.value)
    assert str(folder / "videos") in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,12", "8 columns .* got 7"),
        ("1a2b3c4d5e6,9:02,0.1,0.2,0.3,0.4,12,0", "timestamp .* whole number, got '9:02'"),
        ("1a2b3c4d5e6,0899,0.1,0.2,0.3,0.4,12,0", "before the start of the movie"),
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,x,12,0", "not a number"),
        ("1a2b3c4d5e6,0902,0.1,0.2,nan,0.4,12,0", "finite"),
        ("1a2b3c4d5e6,0902,0.1,0.2,1.01,0.4,12,0", r"\[0, 1\], got \(0.1, 0.2, 1.01, 0.4\)$"),
        ("1a2b3c4d5e6,0902,-0.1,0.2,0.3,0.4,12,0", r"\[0, 1\]"),
        ("1a2b3c4d5e6,0902,10,20,30,40,12,0", "look like pixels"),
        ("1a2b3c4d5e6,0902,0.3,0.2,0.3,0.4,12,0", "x2 must be larger than x1"),
        ("1a2b3c4d5e6,0902,0.1,0.5,0.3,0.4,12,0", "y2 must be larger than y1"),
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,81,0", "unknown action_id 81, the label map has 1 to 80"),
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,0,0", "unknown action_id 0"),
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,,0", "action_id must be a whole number, got ''"),
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,12,Bob", "person_id must be a whole number, got 'Bob'"),
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,,0.993", "needs the annotations, not a file of predicted boxes"),
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,12,0.93", "person_id '0.93' look like a detected person"),
    ],
)
def test_load_ava_names_the_row_of_a_problem(tmp_path, row, message):
    folder = write_ava(tmp_path, f"{GOOD_ROW}\n{row}\n{GOOD_ROW}\n")

    with pytest.raises(AnnotationError, match=rf"(?s)1 problem in .*ava_train_v2\.2\.csv:\n  row 2: .*{message}"):
        load_ava(folder, "train")


@pytest.mark.parametrize(
    "rows",
    [ROWS.replace(",0902", ", 902"), ROWS.replace("1a2b3c4d5e6", '"1a2b3c4d5e6"'), ROWS.replace("\n", "\r\n\r\n")],
)
def test_load_ava_reads_rows_however_they_are_written(tmp_path, rows):
    expected = list(load_ava(write_ava(tmp_path, ROWS), "train"))

    (tmp_path / "annotations" / "ava_train_v2.2.csv").write_text(rows, newline="")

    assert list(load_ava(tmp_path, "train")) == expected


def test_load_ava_moves_corners_just_outside_to_the_edge(tmp_path):
    rows = load_ava(write_ava(tmp_path, GOOD_ROW.replace("0.4", "1.0005") + "\n"), "train")

    assert max(rows[0]["tubes"][0]["boxes"][0]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{}\n"{}\n{}\n', "row 2: a quote is not closed"),
        ("{}\n\0{}\n{}\n", "NUL byte in line 2"),
        ("{}\n{}9999999999999999999999\n{}\n", "row 2: person_id must be a whole number, got .1e.22"),
    ],
)
def test_load_ava_names_the_row_of_what_no_csv_may_hold(tmp_path, text, message):
    folder = write_ava(tmp_path, text.format(GOOD_ROW, GOOD_ROW, GOOD_ROW))

    with pytest.raises(AnnotationError, match=message):
        load_ava(folder, "train")


def test_load_ava_takes_rows_in_any_order(tmp_path):
    lines = ROWS.splitlines(keepends=True)
    mixed = "".join(lines[i] for i in (5, 0, 4, 2, 3, 1))

    rows = load_ava(write_ava(tmp_path, mixed), "train")

    assert rows["clip_id"][:] == ["-0123456789_1798", "1a2b3c4d5e6_0902", "_-ab_cd-efg_0902", "1a2b3c4d5e6_0903"]
    assert [tube["labels"] for tube in rows[1]["tubes"]] == [[11, 78], [79]]


# The published JSON


def write_json(folder: Path, keyframes: dict[str, Any], **other: Any) -> Path:
    """Write the published JSON in place of the csv."""
    write_ava(folder, "")
    (folder / "annotations" / "ava_train_v2.2.csv").unlink()
    path = folder / "annotations" / "ava_train_v22_updated.json"
    path.write_text(json.dumps({"video_frame_bbox": keyframes} | other))
    return folder


BOX = [0.1, 0.2, 0.3, 0.4]
KEYFRAMES = {
    "1a2b3c4d5e6,0902": {"bboxes": [[0.031, 0.162, 0.67, 0.995], [0.5, 0.1, 0.75, 0.9]], "acts": [[11, 78], [79]]},
    "1a2b3c4d5e6,0903": {"bboxes": [[0.034, 0.189, 0.669, 0.98]], "acts": [[11]]},
    "_-ab_cd-efg,0902": {"bboxes": [[0.063, 0.049, 0.524, 0.996]], "acts": [[73]]},
    "-0123456789,1798": {"bboxes": [[0, 0, 1, 1]], "acts": [[0]]},
}


def test_json_holds_the_same_as_the_csv_but_for_who_is_who(tmp_path):
    for name in ("json", "csv"):
        (tmp_path / name).mkdir()
    from_csv = list(load_ava(write_ava(tmp_path / "csv", ROWS), "train"))
    for row in from_csv:
        row["video"] = row["video"].replace("csv", "json")
        row["tubes"] = [tube | {"track_id": None} for tube in row["tubes"]]

    assert list(load_ava(write_json(tmp_path / "json", KEYFRAMES), "train")) == from_csv


def test_csv_counts_before_the_json(tmp_path):
    write_json(tmp_path, {})
    write_ava(tmp_path, ROWS)

    assert len(load_ava(tmp_path, "train")) == 4


def test_json_may_list_the_keyframes_that_count(tmp_path):
    folder = write_json(tmp_path, KEYFRAMES, frame_keys_list=["_-ab_cd-efg,0902", "1a2b3c4d5e6,0903"])

    assert load_ava(folder, "train")["clip_id"][:] == ["_-ab_cd-efg_0902", "1a2b3c4d5e6_0903"]


def test_json_keeps_two_people_with_the_same_box_and_nobody_without_an_action(tmp_path):
    folder = write_json(tmp_path, {"1a2b3c4d5e6,0902": {"bboxes": [BOX, BOX, BOX], "acts": [[11], [], [13, 11]]}})

    assert [tube["labels"] for tube in load_ava(folder, "train")[0]["tubes"]] == [[11], [11, 13]]


@pytest.mark.parametrize(
    ("keyframes", "message"),
    [
        ({"1a2b3c4d5e6,0902": {"bboxes": [BOX], "acts": [[80]]}}, "box 0: unknown action_id 80, .* 0 to 79"),
        ({"1a2b3c4d5e6,0902": {"bboxes": [BOX], "acts": [[1.5]]}}, "whole number, got 1.5"),
        ({"1a2b3c4d5e6,0902": {"bboxes": [BOX], "acts": [["12", None]]}}, "whole number, got None"),
        ({"1a2b3c4d5e6,0902": {"bboxes": [BOX[:3]], "acts": [[1]]}}, "four corners"),
        ({"1a2b3c4d5e6,0902": {"bboxes": [[64, 48, 128, 96]], "acts": [[1]]}}, "look like pixels"),
        ({"1a2b3c4d5e6,0902": {"bboxes": [BOX], "acts": []}}, "for each of them"),
        ({"1a2b3c4d5e6,0902": [BOX]}, "for each of them"),
        ({"1a2b3c4d5e6,0899": {"bboxes": [BOX], "acts": [[1]]}}, "before the start"),
        ({"1a2b3c4d5e6": {"bboxes": [BOX], "acts": [[1]]}}, "<video_id>,<timestamp>"),
    ],
)
def test_json_names_the_keyframe_of_a_problem(tmp_path, keyframes, message):
    with pytest.raises(AnnotationError, match=rf"(?s)1 problem in .*json:\n  1a2b3c4d5e6.*{message}"):
        load_ava(write_json(tmp_path, keyframes), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"video_frame_bbox": {', "no valid JSON"),
        ("[]", "'video_frame_bbox'"),
        ('{"video_frame_bbox": {}, "frame_keys_list": [1]}', "frame_keys_list"),
    ],
)
def test_json_of_another_kind_is_refused(tmp_path, text, message):
    folder = write_json(tmp_path, {})
    (folder / "annotations" / "ava_train_v22_updated.json").write_text(text)

    with pytest.raises(AnnotationError, match=message):
        load_ava(folder, "train")


# Folders of frames


@pytest.mark.parametrize("style", ["frames/{0}/{0}_{1:06d}.png", "rawframes/{0}/img_{1:05d}.png"])
def test_folders_of_frames_take_the_place_of_videos(tmp_path, style):
    """The keyframe of second 902 is number 60, counted from 0, at 30 frames per second from 900 on."""
    folder = write_ava(tmp_path, f"{GOOD_ROW}\n", videos=())
    for index in range(70):
        path = folder / style.format("1a2b3c4d5e6", index + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), index, np.uint8)).save(path)

    rows = load_ava(folder, "train")
    clip = KeyframeClips(rows, num_labels=80, num_frames=16, frame_stride=2)[0]

    assert (rows[0]["source"], rows[0]["fps"]) == ("frames", 30)
    assert clip["frames"][:, 0, 0, 0].tolist() == [min(60 - 16 + 2 * k, 69) for k in range(16)]


def test_videos_count_before_folders_of_frames(tmp_path):
    folder = write_ava(tmp_path, ROWS, videos=VIDEOS[1:])
    for name in ("1a2b3c4d5e6", "-0123456789"):
        (folder / "frames" / name).mkdir(parents=True)

    assert load_ava(folder, "train")["source"][:] == ["frames", "frames", "video", "video"]


def test_load_ava_shows_the_first_twenty_problems_and_counts_all(tmp_path):
    folder = write_ava(tmp_path, f"{GOOD_ROW}\n" + "1a2b3c4d5e6,soon\n" * 25)

    with pytest.raises(AnnotationError) as error:
        load_ava(folder, "train")

    lines = str(error.value).splitlines()
    assert lines[0].startswith("25 problems in ")
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"  row {number}" for number in range(2, 22)]
    assert lines[-1] == "  ... and 5 more"


def test_load_ava_reports_problems_of_the_excluded_keyframes(tmp_path):
    folder = write_ava(tmp_path, ROWS, excluded="1a2b3c4d5e6,0902\n1a2b3c4d5e6\n")

    with pytest.raises(AnnotationError, match=r"(?s)excluded_timestamps.*row 2: a row needs 2 columns"):
        load_ava(folder, "train")


def test_problem_collector_is_silent_without_problems():
    ProblemCollector("boxes.csv").raise_if_any()


def test_problem_collector_does_not_hide_other_errors():
    with pytest.raises(KeyError), ProblemCollector("boxes.csv").in_row(1):
        raise KeyError


def test_parse_box_moves_rounded_corners_to_the_edge():
    assert parse_box(("-0.0005", "0.25", "1.001", "1")) == (0.0, 0.25, 1.0, 1.0)


def test_there_are_eighty_official_names():
    assert len(AVA_LABELS) == len(set(AVA_LABELS)) == 80
    assert (AVA_LABELS[0], AVA_LABELS[11], AVA_LABELS[79]) == ("bend/bow (at the waist)", "stand", "watch (a person)")


def test_load_ava_labels_returns_the_official_names_without_a_label_map(tmp_path):
    assert load_ava_labels(tmp_path) == dict(enumerate(AVA_LABELS))


@pytest.mark.parametrize(
    "text",
    [
        'item {\n  name: "carry/hold (an object)"\n  id: 1\n}\nitem {\n  name: "sing to (e.g., self)"\n  id: 2\n}\n',
        'label {\n  name: "carry/hold (an object)"\n  label_id: 1\n  label_type: OBJECT_MANIPULATION\n}\n'
        'label { name: "sing to (e.g., self)" label_id: 2 label_type: PERSON_INTERACTION }\n',
    ],
)
def test_load_ava_labels_reads_both_syntaxes(tmp_path, text):
    (tmp_path / "labels.pbtxt").write_text(text)

    assert load_ava_labels(tmp_path) == {0: "carry/hold (an object)", 1: "sing to (e.g., self)"}


def test_load_ava_labels_fills_the_gaps_of_the_challenge_label_map(tmp_path):
    (tmp_path / "challenge.pbtxt").write_text('item { name: "bend" id: 1 }\nitem { name: "crouch" id: 3 }\n')

    assert load_ava_labels(tmp_path) == {0: "bend", 1: "crawl", 2: "crouch"}


def test_load_ava_labels_prefers_the_full_label_map(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name in ("ava_action_list_v2.2.pbtxt", "ava_action_list_v2.2_for_activitynet_2019.pbtxt"):
        (tmp_path / "annotations" / name).write_text(f'item {{ name: "{name}" id: 1 }}')

    assert load_ava_labels(tmp_path) == {0: "ava_action_list_v2.2.pbtxt"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no"),
        ('item { name: "a" }', "needs a name and an id"),
        ('item { name: "a" id: 0 }', "from 1"),
        ('item { name: "a" id: 1 } item { name: "b" id: 1 }', "of its own"),
        ('item { name: "a" id: 82 }', "81 is missing"),
    ],
)
def test_load_ava_labels_raises_on_a_broken_label_map(tmp_path, text, message):
    (tmp_path / "labels.pbtxt").write_text(text)

    with pytest.raises(AnnotationError, match=message):
        load_ava_labels(tmp_path)
