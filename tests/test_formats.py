"""Formats are found by content, named, and what they leave out is said."""

import json
from pathlib import Path

import pytest
from test_cvat import box, document, track

from classquery.data.annotations.custom import load_custom
from classquery.data.annotations.schema import AnnotationError, abbreviate, parsing, quote


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
