"""Formats are found by content, named, and what they leave out is said."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_cvat import box, document, track

from classquery.data.annotations.custom import load_custom, load_custom_labels
from classquery.data.annotations.entries import VideoClaim
from classquery.data.annotations.schema import AnnotationError, ProblemCollector, abbreviate, parsing, quote
from classquery.data.annotations.videos import look_into


ROWS = "video,timestamp,x1,y1,x2,y2,label\ndemo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,walk\n"
LINE = {"video": "demo_val_000.mp4", "timestamp": 0.5, "box": [0.1, 0.2, 0.3, 0.4], "label": "walk"}


@pytest.fixture
def folder(tmp_path, two_movies):
    (tmp_path / "videos").symlink_to(two_movies)
    (tmp_path / "train").mkdir()
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    (folder / "train" / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (ROWS, "csv of classquery"),
        (json.dumps(LINE), "JSON lines of classquery"),
        (document(track(box(0), label="walk")), "CVAT for video 1.1"),
    ],
)
def test_content_tells_the_format_whatever_the_name(folder, text, title):
    rows = load_custom(write(folder, "labels.txt", text), "train")

    assert [tube["labels"] for tube in rows[0]["tubes"]] == [[0]]
    assert rows.info.description.splitlines()[0] == f"{folder / 'train' / 'labels.txt'}: {title}"


def test_files_of_no_format_are_ignored_and_counted(folder):
    write(folder, "readme.md", "How we labelled.")

    rows = load_custom(write(folder, "a.csv", ROWS), "train")

    assert "ignored: 1 x files of no known format (readme.md)" in rows.info.description


def test_two_formats_in_one_split_are_refused(folder):
    write(folder, "a.csv", ROWS)

    with pytest.raises(AnnotationError, match=r"more than one format .* csv of .*: a.csv; JSON lines .*: b.txt"):
        load_custom(write(folder, "b.txt", json.dumps(LINE)), "train")


def test_unknown_format_lists_the_known_ones(folder):
    with pytest.raises(AnnotationError, match=r"no format of annotations that is known \(.*cvat.*\): a.txt"):
        load_custom(write(folder, "a.txt", "hello"), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "a.json is empty: export it again"),
        ("a.txt", b"\n \n", "a.txt is empty: export it again"),
        ("a.json", b'{"samples": [{"filepath": "a', "no valid JSON, perhaps cut off: export it again"),
        ("a.json", '{"a": 1}'.encode("utf-16"), "no text in UTF-8, save it as such"),
        ("a.xlsx", b"PK\x03\x04\x00\x00\xff", "no text in UTF-8, save it as such"),
    ],
)
def test_damaged_file_of_no_format_says_what_is_wrong_with_it(folder, name, content, message):
    (write(folder, name, "") / "train" / name).write_bytes(content)

    with pytest.raises(AnnotationError, match=message):
        load_custom(folder, "train")


def test_border_turns_what_parsers_raise_into_one_error():
    for error in (
        KeyError("z"),
        RecursionError("deep"),
        OverflowError("big"),
        UnicodeEncodeError("a", "b", 0, 1, "c"),
    ):
        with (
            pytest.raises(AnnotationError, match=r"^a.json, row 3: export it again \("),
            parsing("a.json, row 3", "export it again"),
        ):
            raise error


def test_messages_quote_two_hundred_characters_at_most():
    assert len(quote("x" * 10**6)) <= 200
    assert len(quote(["x" * 10**6])) <= 200
    assert quote("walk") == "'walk'"
    assert abbreviate("a\ud800") == "a\\ud800"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (VideoClaim(size=(128, 96), fps=15.0, num_frames=30), None),
        (VideoClaim(size=(640, 480)), None),  # Drawn in larger frames of the same shape.
        (VideoClaim(size=(96, 128)), "was annotated in frames of 96x128, and has 128x96: give the video"),
        (
            VideoClaim(fps=25.0),
            r"has 15.000 frames per second and 30 frames, and the annotations say 25.000: give the",
        ),
        (VideoClaim(fps=25.0, num_frames=50), "say 25.000 and 50: give the video"),
        (VideoClaim(fps=25.0, num_frames=30), None),  # The rate is a slip; the frames are the same.
    ],
)
def test_what_a_file_claims_of_a_video_is_compared_with_it(two_movies, claim, message):
    problems = ProblemCollector("a.json")

    look_into({"a.mp4": two_movies / "demo_val_000.mp4"}, {"a.mp4": claim}, 30.0, problems)

    assert problems.num_problems == bool(message)
    assert not message or re.search(f"a.mp4: .*{message}", problems.report())


def test_videos_are_found_by_the_last_part_of_a_path_on_a_server(folder):
    rows = load_custom(write(folder, "a.csv", ROWS.replace("demo", "/home/django/data/7/demo")), "train")

    assert rows["clip_id"][:] == ["demo_val_000_0.500"]


def test_a_file_that_names_no_video_needs_its_name(folder):
    text = document(track(box(0)))
    text = text.replace("<source>demo_val_000.mp4</source>", "")

    with pytest.raises(AnnotationError, match="names no video, and there are 2 in .*: give the file the name of its"):
        load_custom(write(folder, "annotations.xml", text), "train")

    (folder / "train" / "annotations.xml").unlink()
    assert load_custom(write(folder, "demo_val_001.xml", text), "train")["clip_id"][:] == ["demo_val_001"]


def test_actors_may_have_no_labels_in_json_lines(folder):
    lines = [LINE, LINE | {"box": [0.5, 0.5, 1, 1], "label": None, "labels": None}]

    rows = load_custom(write(folder, "a.jsonl", "\n".join(map(json.dumps, lines))), "train")

    assert [tube["labels"] for tube in rows[0]["tubes"]] == [[0], None]


PARTIAL = """\
video,timestamp,x1,y1,x2,y2,label,labelled,ignored,annotated_labels
demo_val_000.mp4,0.5,0.1,0.2,0.3,0.4,walk,,,walk;sit
demo_val_000.mp4,0.5,0.5,0.2,0.7,0.4,,0,,
demo_val_000.mp4,0.5,0.5,0.5,0.7,0.7,,,1,
demo_val_000.mp4,1.0,0.5,0.5,0.7,0.7,,,true,
demo_val_001.mp4,0.5,0.1,0.2,0.3,0.4,run,,,
"""


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_what_nobody_looked_for_can_be_said(folder, kind):
    """Somebody without labels, regions in which nobody looked, and the classes that were looked for in a video."""
    text = PARTIAL
    if kind == "jsonl":
        lines = []
        for row in csv.DictReader(PARTIAL.splitlines()):
            line = {"video": row["video"], "timestamp": float(row["timestamp"])}
            line["box"] = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
            line["labels"] = [row["label"]] if row["label"] else None
            line["ignored"] = bool(row["ignored"])
            line["annotated_labels"] = row["annotated_labels"].split(";") if row["annotated_labels"] else None
            lines.append(json.dumps(line))
        text = "\n".join(lines)

    rows = load_custom(write(folder, f"a.{kind}", text), "train")

    assert load_custom_labels(folder) == {0: "run", 1: "sit", 2: "walk"}
    found = {row["clip_id"]: row for row in rows}
    assert set(found) == {"demo_val_000_0.500", "demo_val_000_1.000", "demo_val_001_0.500"}
    first = found["demo_val_000_0.500"]
    assert [tube["labels"] for tube in first["tubes"]] == [[2], None]
    assert [(region["frames"], np.round(region["boxes"], 3).tolist()) for region in first["ignored"]] == [
        (None, [[0.5, 0.5, 0.7, 0.7]])
    ]
    assert found["demo_val_000_1.000"]["tubes"] == []
    assert len(found["demo_val_000_1.000"]["ignored"]) == 1
    assert [row["annotated_labels"] for row in rows if "000" in row["clip_id"]] == [[1, 2], [1, 2]]
    assert found["demo_val_001_0.500"]["annotated_labels"] is None
    assert "boxes of regions in which nobody looked: 2" in rows.info.description


def test_labels_that_are_named_like_ignored_regions_are_none_unless_listed(folder):
    text = document(track(box(0), label="walk"), track(box(0), box(1), label="Ignore_Regions"))
    rows = load_custom(write(folder, "a.xml", text), "train")

    assert [tube["labels"] for tube in rows[0]["tubes"]] == [[0]]
    assert [region["frames"] for region in rows[0]["ignored"]] == [[0, 1]]
    (folder / "classes.txt").write_text("walk\nIgnore_Regions\n")
    rows = load_custom(folder, "train")
    assert [tube["labels"] for tube in rows[0]["tubes"]] == [[0], [1]]
    assert rows[0]["ignored"] is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE | {"ignored": "perhaps"}, "`ignored` must be true or false, got 'perhaps'"),
        (LINE | {"annotated_labels": "walk"}, "`annotated_labels` must be a list"),
    ],
)
def test_wrong_values_of_what_nobody_looked_for_are_told(folder, line, message):
    with pytest.raises(AnnotationError, match=message):
        load_custom(write(folder, "a.jsonl", json.dumps(line)), "train")
