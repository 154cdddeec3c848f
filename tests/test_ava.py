"""The reader of AVA: what it makes of good files, and what it says about bad ones."""

import logging
from pathlib import Path

import pytest

from classquery.data.ava import AVA_LABELS, load_ava, load_ava_labels
from classquery.data.schema import ACTION_FEATURES, AnnotationError, ProblemCollector, parse_box


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
        ("1a2b3c4d5e6,0902,0.1,0.2,0.3,0.4,12,0.93", "person_id must be a whole number, got '0.93'"),
    ],
)
def test_load_ava_names_the_row_of_a_problem(tmp_path, row, message):
    folder = write_ava(tmp_path, f"{GOOD_ROW}\n{row}\n{GOOD_ROW}\n")

    with pytest.raises(AnnotationError, match=rf"(?s)1 problem in .*ava_train_v2\.2\.csv:\n  row 2: .*{message}"):
        load_ava(folder, "train")


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
