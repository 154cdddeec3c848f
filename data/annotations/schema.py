"""The rows that every annotation reader returns, and how a reader reports problems in annotation files."""

import csv
import gzip
import math
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, List, Value
from datasets.table import InMemoryTable


# One row per keyframe (AVA), or per whole video with all its tubes (UCF101-24, JHMDB-21, MultiSports); custom data may
# be either. Whatever a reader would have to open the videos for may be null.
ACTION_FEATURES = Features(
    {
        "clip_id": Value("string"),  # Unique; the key of predictions at a keyframe, or the name of the whole video.
        "video": Value("string"),  # Path of the video file, or of the folder of its frames.
        "source": Value("string"),  # "video" or "frames".
        "fps": Value("float32"),
        "num_frames": Value("int32"),
        "height": Value("int32"),
        "width": Value("int32"),
        "timestamp": Value("float32"),  # Seconds, on the clock of the annotations; null for tubes.
        "video_seconds": Value("float32"),  # The same moment in seconds since the start of `video`; null for tubes.
        "center_frame": Value("int32"),  # 0-based index in `video`.
        # Ranges (start, stop, step) of frames in which everybody was looked for; null for all. Nobody knows who is in
        # the other frames.
        "annotated_frames": List(List(Value("int32"), length=3)),
        "tubes": List(
            {
                # Who it is, within the video; tubes of one id are actions of one actor, with the same box in a frame
                # that both have. Null if nobody knows.
                "track_id": Value("int32"),
                # 0-based classes, ascending; null if nobody looked what the actor does, who is there all the same.
                "labels": List(Value("int16")),
                # 0-based index in `video` of each box, ascending; null for the one box of a keyframe.
                "frames": List(Value("int32")),
                "boxes": List(List(Value("float32"), length=4)),  # (x1, y1, x2, y2) in [0, 1] of the frame.
            }
        ),
        # Regions where nobody looked for actors, with frames and boxes as of tubes. Null for none.
        "ignored": List({"frames": List(Value("int32")), "boxes": List(List(Value("float32"), length=4))}),
        # 0-based classes that were looked for, ascending: whether there are others is unknown. Null for all.
        "annotated_labels": List(Value("int16")),
    }
)

# Columns that most annotations lack.
PARTIAL_COLUMNS = {"annotated_frames", "ignored", "annotated_labels"}

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
MAX_SHOWN = 20
BOX_TOLERANCE = 1e-3
_LOOKS_LIKE_PIXELS = 2.0


_MAX_QUOTED = 200
# What parsers of text, numbers, XML, JSON, csv, Arrow and pickles raise when they are given something else.
PARSER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    ET.ParseError,
    csv.Error,
    gzip.BadGzipFile,
    pa.ArrowException,
    struct.error,
    zlib.error,
)


class AnnotationError(ValueError):
    """Raised when the annotations say something that cannot be true."""


class AnnotationWarning(UserWarning):
    """Given where annotations say something that their author may not mean: a problem in `check`."""


@contextmanager
def parsing(place: str | PathLike, remedy: str) -> Iterator[None]:
    """Turn whatever a parser raises in the block into an `AnnotationError` with the place and what to do.

    This is the one border between bytes from outside and Python objects.

    Raises:
        AnnotationError: Those of the block as they are, other `PARSER_ERRORS` in short.
    """
    try:
        yield
    except AnnotationError:
        raise
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{place} is no text in UTF-8, save it as such: {abbreviate(str(error))}") from error
    except PARSER_ERRORS as error:
        reason = abbreviate(str(error))
        raise AnnotationError(f"{place}: {remedy} ({type(error).__name__}: {reason})") from error


def abbreviate(text: str) -> str:
    """Return a text, or the beginning of a long one: no message quotes more than 200 characters of input."""
    text = text.encode("utf-8", errors="backslashreplace").decode()
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 4]} ..."


def quote(value: Any) -> str:
    """Return how a message shows a value of the input."""
    # What is long in itself is not written out first.
    shown = value[:_MAX_QUOTED] if isinstance(value, str | list | tuple) else value
    return abbreviate(repr(shown) if shown == value else f"{shown!r} ...")


class ProblemCollector:
    """Collect the problems of an annotation file, to report them all at once.

    Args:
        source: The file, as named in the report.

    Example:
        >>> problems = ProblemCollector("boxes.csv")
        >>> for number, row in enumerate(rows, start=1):
        ...     with problems.in_row(number):
        ...         boxes.append(parse_box(row))
        >>> problems.raise_if_any()
        AnnotationError: 1 problem in boxes.csv:
          row 7: x2 must be larger than x1, got (0.5, 0.1, 0.4, 0.9)
    """

    def __init__(self, source: str | PathLike):
        self.source = source
        self.num_problems = 0
        self._shown: list[str] = []

    def in_row(self, number: int) -> AbstractContextManager[None]:
        """Note an `AnnotationError` of the block as a problem of this row, counted from 1, and go on after it."""
        return self.at(f"row {number}")

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Note an `AnnotationError` of the block as a problem of this place in the file, and go on after it."""
        try:
            yield
        except AnnotationError as problem:
            self.note(1, [(place, str(problem))])

    def note(self, num_problems: int, described: Iterable[tuple[str, str]]) -> None:
        """Note so many problems; their places and what is wrong are asked for as far as they are shown."""
        self.num_problems += num_problems
        shown = islice(described, min(num_problems, MAX_SHOWN - len(self._shown)))
        self._shown.extend(f"  {place}: {problem}" for place, problem in shown)

    def raise_if_any(self) -> None:
        """Raise one `AnnotationError` with the report, if there are any problems."""
        if self.num_problems:
            raise AnnotationError(self.report())

    def report(self) -> str:
        """Return the first problems, one per line, and the number of the others."""
        noun = "problem" if self.num_problems == 1 else "problems"
        lines = [f"{self.num_problems} {noun} in {self.source}:", *self._shown]
        if self.num_problems > len(self._shown):
            lines.append(f"  ... and {self.num_problems - len(self._shown)} more")
        return "\n".join(lines)


def shorten(names: Sequence[str]) -> str:
    """Join the first names with commas and say how many more there are."""
    more = f", ... and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(map(abbreviate, names[:MAX_SHOWN])) + more


def and_others(count: int) -> str:
    """How a list ends that leaves out so many; nothing if it leaves out none."""
    return f", and {count} other{'s' if count > 1 else ''}" if count > 0 else ""


def parse_box(
    corners: Sequence[str | float], *, pixel_hint: str = "divide by width and height"
) -> tuple[float, float, float, float]:
    """Check one box and move corners that rounding put just outside the frame back to its edge.

    Args:
        corners: x1, y1, x2, y2 as fractions of the width and height of the frame, numbers or text.
        pixel_hint: What to do about corners that look like pixels.

    Returns:
        (x1, y1, x2, y2) in [0, 1].

    Raises:
        AnnotationError: If there are not four, a corner is not a finite number or further than `BOX_TOLERANCE` outside
            [0, 1], or the box is empty.
    """
    try:
        box = tuple(float(corner) for corner in corners)
    except (TypeError, ValueError):
        raise AnnotationError(f"a corner of the box is not a number, got {tuple(corners)}") from None
    if len(box) != 4:
        raise AnnotationError(f"a box has four corners x1, y1, x2, y2, got {box}")
    if not all(math.isfinite(corner) for corner in box):
        raise AnnotationError(f"the corners of a box must be finite, got {box}")
    if min(box) < -BOX_TOLERANCE or max(box) > 1 + BOX_TOLERANCE:
        hint = f"; these look like pixels: {pixel_hint}" if max(box) > _LOOKS_LIKE_PIXELS else ""
        raise AnnotationError(f"the corners of a box must lie in [0, 1], got {box}{hint}")
    x1, y1, x2, y2 = (min(max(corner, 0.0), 1.0) for corner in box)
    for low, high, axis in ((x1, x2, "x"), (y1, y2, "y")):
        if not low < high:
            raise AnnotationError(f"{axis}2 must be larger than {axis}1, got {box}")
    return x1, y1, x2, y2


def unit_boxes(corners: np.ndarray, size: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Check boxes all at once as `parse_box` does, and turn them into fractions of the frame.

    Args:
        corners: (n, 4), x1, y1, x2, y2.
        size: (n, 2), or (1, 2) for all, width and height of the frame in the same unit.
        tolerance: How far outside of the frame corners are moved to its edge, in the same unit.

    Returns:
        The boxes (n, 4) in [0, 1], and which of them are boxes (n,).
    """
    limit = np.tile(size, 2)
    are_boxes = ((corners >= -tolerance) & (corners <= limit + tolerance)).all(1)
    boxes = corners / limit
    np.clip(boxes, 0, 1, out=boxes)
    return boxes, are_boxes & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])


def explain_box(corners: Sequence[float], size: Sequence[float] | None) -> str:
    """Say what is wrong with a box that `unit_boxes` refuses; `size` is that of the frame if corners are pixels."""
    corners = tuple(float(corner) for corner in corners)
    try:
        if size is None:
            parse_box(corners, pixel_hint='say so with box_format="pixel"')
        else:
            width, height = map(float, size)
            parse_box([corner / side for corner, side in zip(corners, (width, height) * 2, strict=True)])
    except AnnotationError as problem:
        is_outside = "lie in [0, 1]" in str(problem)
        if size is None or not is_outside:
            return str(problem)
    return (
        f"a box x1, y1, x2, y2 must lie in the {width:g} x {height:g} pixels of the frame, got {corners}; "
        'box_format="3840x2160" says that it was drawn in frames of this size'
    )


def as_ranges(frames: range | np.ndarray) -> list[tuple[int, int, int]]:
    """Return ascending frames as ranges (start, stop, step)."""
    if isinstance(frames, range):
        return [(frames.start, frames.stop, frames.step)]
    steps = np.diff(frames)
    ends = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(frames)] if len(frames) else []
    ranges, first = [], 0
    for end in ends[1:]:
        # A frame at which the step changes ends the range before it.
        part = frames[first : end + 1]
        if len(part):
            step = int(part[1] - part[0]) if len(part) > 1 else 1
            ranges.append((int(part[0]), int(part[-1]) + 1, step))
        first = end + 1
    return ranges


def are_annotated(ranges: Sequence[Sequence[int]] | None, frames: np.ndarray) -> np.ndarray:
    """Return which frames are in some ranges (start, stop, step); all for None."""
    if ranges is None:
        return np.ones(len(frames), bool)
    found = np.zeros(len(frames), bool)
    for start, stop, step in ranges:
        found |= (frames >= start) & (frames < stop) & ((frames - start) % step == 0)
    return found


def nest_tubes(
    tubes_per_row: np.ndarray,
    track_ids: pa.Array,
    labels: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    boxes: tuple[np.ndarray, np.ndarray],
    frames: tuple[np.ndarray, np.ndarray] | None = None,
) -> pa.Array:
    """Return the column `tubes` of some rows.

    Args:
        tubes_per_row: How many tubes each row has, (num_rows,).
        track_ids: (num_tubes,), may be null.
        labels: How many labels each tube has, (num_tubes,), all of them, ascending in each, and which tubes have none
            because nobody looked, boolean (num_tubes,), None for no tube.
        boxes: How many boxes each tube has, (num_tubes,), and all of them, float32 (num_boxes, 4).
        frames: Which tubes have frames, boolean (num_tubes,), and these frames, one for each of their boxes. None at
            keyframes.
    """
    has_frames, numbers = frames or (np.zeros(len(track_ids), bool), np.zeros(0))
    corners = pa.FixedSizeListArray.from_arrays(pa.array(boxes[1].ravel()), 4)
    tubes = pa.StructArray.from_arrays(
        [
            track_ids.cast(pa.int32()),
            pa.ListArray.from_arrays(
                _offsets(labels[0]),
                pa.array(labels[1].astype(np.int16)),
                mask=None if labels[2] is None else pa.array(labels[2]),
            ),
            pa.ListArray.from_arrays(
                _offsets(np.where(has_frames, boxes[0], 0)),
                pa.array(numbers.astype(np.int32)),
                mask=pa.array(~has_frames),
            ),
            pa.ListArray.from_arrays(_offsets(boxes[0]), corners),
        ],
        ["track_id", "labels", "frames", "boxes"],
    )
    return pa.ListArray.from_arrays(_offsets(tubes_per_row), tubes)


def _offsets(lengths: np.ndarray) -> pa.Array:
    """Return where each list begins, and where the last one ends."""
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def to_dataset(rows: Sequence[Mapping[str, Any]], description: str = "") -> Dataset:
    """Return the rows as a data set with `ACTION_FEATURES`; columns that a row lacks are null there."""
    columns = {name: [row.get(name) for row in rows] for name in ACTION_FEATURES}
    return columns_to_dataset(columns, len(rows), description)


def columns_to_dataset(columns: Mapping[str, Any], num_rows: int, description: str = "") -> Dataset:
    """Return columns, lists or Arrow arrays, as a data set with `ACTION_FEATURES`; those that are missing are null.

    Args:
        columns: By name.
        num_rows: Length of each.
        description: How the annotations were understood; kept as `info.description` of the data set.
    """
    schema = ACTION_FEATURES.arrow_schema
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        arrays.append(pa.nulls(num_rows, field.type) if values is None else pa.array(values, field.type))
    info = DatasetInfo(features=ACTION_FEATURES, description=description)
    return Dataset(InMemoryTable(pa.table(arrays, schema=schema)), info=info)
