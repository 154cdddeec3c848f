"""Detections and ground truth in csv files, as the official AVA evaluation reads them and alike for tubes.

A row is one box with one label. There is no header. Columns of detections:

    video, timestamp, x1, y1, x2, y2, label_id, score                 of AVA
    video, frame, x1, y1, x2, y2, label_id, score[, actor_score]      of videos with tubes

`timestamp` is in seconds, `frame` counts from 1, boxes are fractions of the width and height of the frame, `label_id`
counts from 1. Ground truth of AVA has a person id, or nothing, in place of the score. A row of a video and a timestamp
alone is a keyframe without boxes. Files may be compressed (`.csv.gz`).
"""

import csv
import heapq
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classquery.data.annotations.csv_columns import Names, parse_csv, read_bytes
from classquery.data.annotations.schema import AnnotationError, ProblemCollector, abbreviate, parsing, quote
from classquery.data.metrics.arrays import first_of_each, groups_of_equal_rows, occurrences


_MICROSECONDS_PER_VIDEO = 10**12  # At most, see `FrameNames`.


class FrameNames:
    """Numbers frames, by the name of their video and their time in it, alike for several files."""

    def __init__(self):
        self._videos: dict[str, int] = {}

    @property
    def videos(self) -> list[str]:
        """Names of the videos, by number."""
        return list(self._videos)

    def video_codes(self, names: Sequence[str]) -> np.ndarray:
        """Numbers of videos, the same for the same name."""
        return np.array([self._videos.setdefault(name, len(self._videos)) for name in names], dtype=np.int64)

    def codes(self, videos: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Numbers of frames, from numbers of videos (N,) and times (N,), which count to the microsecond."""
        return videos * _MICROSECONDS_PER_VIDEO + np.rint(times * 1e6).astype(np.int64)

    def name(self, code: int) -> str:
        """The frame as in the files: `video,0902`."""
        video, microseconds = divmod(int(code), _MICROSECONDS_PER_VIDEO)
        return f"{self.videos[video]},{microseconds / 1e6:04g}"


class BoxRows(NamedTuple):
    """The N rows of a csv."""

    frame: np.ndarray  # (N,) from `FrameNames`.
    video: np.ndarray  # (N,) from `FrameNames`.
    time: np.ndarray  # (N,) timestamps or numbers of frames.
    boxes: np.ndarray  # (N, 4)
    label_id: np.ndarray  # (N,)
    values: np.ndarray  # (N, 0 to 2): scores, and actor scores or not; person ids of ground truth.
    empty_frames: np.ndarray  # (M,) of rows without boxes.

    def take(self, rows: np.ndarray) -> "BoxRows":
        return BoxRows(*(column[rows] for column in self[:-1]), self.empty_frames)


class _Check(NamedTuple):
    """What the values of a row, or whole columns of them, must be."""

    column: str
    is_right: Callable[[Mapping[str, Any]], Any]
    expected: str


class _Layout(NamedTuple):
    """What the rows of a kind of file hold; a row of the first two columns alone is a frame without boxes."""

    columns: tuple[str, ...]
    num_optional: int
    checks: tuple[_Check, ...]


_CORNERS = ("x1", "y1", "x2", "y2")
_NUM_KEY_COLUMNS, _NUM_REQUIRED = 2, 7
_AT_A_TIME = _Check("timestamp", lambda row: (row["timestamp"] >= 0) & (row["timestamp"] < 1e6), "a time in seconds")
_IN_A_FRAME, _LABEL_IS_AN_ID = (
    _Check(name, lambda row, name=name: (row[name] >= 1) & (row[name] % 1 == 0), "a whole number from 1")
    for name in ("frame", "label_id")
)
_ARE_SCORES = tuple(
    _Check(name, lambda row, name=name: (row[name] >= 0) & (row[name] <= 1), "in [0, 1]; turn logits into it first")
    for name in ("score", "actor_score")
)
_ARE_CORNERS = (
    _Check("x2", lambda row: row["x1"] <= row["x2"], "at least x1"),
    _Check("y2", lambda row: row["y1"] <= row["y2"], "at least y1"),
)
_LABELLED_BOX = (*_CORNERS, "label_id")
_DETECTIONS = _Layout(("video", "timestamp", *_LABELLED_BOX, "score"), 0, (_AT_A_TIME, _LABEL_IS_AN_ID, *_ARE_SCORES))
_TUBE_DETECTIONS = _Layout(
    ("video", "frame", *_LABELLED_BOX, "score", "actor_score"), 1, (_IN_A_FRAME, _LABEL_IS_AN_ID, *_ARE_SCORES)
)
_GROUND_TRUTH = _Layout(
    ("video", "timestamp", *_LABELLED_BOX, "person_id"), 1, (_AT_A_TIME, _LABEL_IS_AN_ID, *_ARE_CORNERS)
)
_FRAMES = _Layout(("video", "timestamp"), 0, (_AT_A_TIME,))


def read_detections(path: str | Path, names: FrameNames, *, of_tubes: bool = False) -> BoxRows:
    """Read a csv of detections.

    Args:
        path: The file.
        names: Numbers the frames.
        of_tubes: Whether rows have the number of a frame instead of a timestamp, and may have an actor score.

    Raises:
        AnnotationError: With the problems of the file, by row: wrong number of columns, values that are no numbers or
            not finite, label ids below 1, scores outside of [0, 1].
        OSError: If the file cannot be read.
    """
    return _read(path, _TUBE_DETECTIONS if of_tubes else _DETECTIONS, names)


def read_ground_truth(path: str | Path, names: FrameNames) -> BoxRows:
    """Read a csv of the ground truth of AVA; errors as of `read_detections`, and boxes with x2 < x1 or y2 < y1."""
    return _read(path, _GROUND_TRUTH, names)


def read_frames(path: str | Path, names: FrameNames) -> np.ndarray:
    """Read a csv of a video and a timestamp per row, such as the keyframes that AVA excludes: (M,)."""
    values, videos, _ = _parse(Path(path), _FRAMES)
    return names.codes(names.video_codes(videos.values)[videos.codes], values["timestamp"])


def cap_per_frame(rows: BoxRows, max_rows: int = 50) -> BoxRows:
    """Keep the rows with the highest scores of each frame, as the official script of AVA does with detections.

    It goes through the file with a heap: in a full one, a row takes the place of the lowest score, if its own is
    higher; of equal lowest ones that with the lowest label id, then the lowest y1, x1, y2, x2.

    Args:
        rows: Rows of labels that count, in the order of the file.
        max_rows: Rows to keep in a frame.
    """
    score = rows.values[:, 0]
    order = np.lexsort((-score, rows.frame))
    _, start, count = np.unique(rows.frame[order], return_index=True, return_counts=True)
    kept = np.arange(len(order)) - np.repeat(start, count) < max_rows
    is_full = count > max_rows
    lowest, next_one = (score[order[start[is_full] + place]] for place in (max_rows - 1, max_rows))
    for first, size in zip(start[is_full][lowest == next_one], count[is_full][lowest == next_one], strict=True):
        # Which of the equal ones stay depends on the order of the file, but not on lower ones, which all go before.
        of_frame = order[first : first + size]
        of_frame = of_frame[score[of_frame] >= score[of_frame[max_rows - 1]]]
        kept[first : first + len(of_frame)] = np.isin(of_frame, _survivors_of_heap(rows, np.sort(of_frame), max_rows))
    return rows.take(np.sort(order[kept]))


def _survivors_of_heap(rows: BoxRows, of_frame: np.ndarray, max_rows: int) -> list[int]:
    heap = []
    entries = zip(rows.values[of_frame, 0], rows.label_id[of_frame], *rows.boxes[of_frame].T, of_frame, strict=True)
    for score, label_id, x1, y1, x2, y2, row in entries:
        entry = (score, label_id, y1, x1, y2, x2, row)
        if len(heap) < max_rows:
            heapq.heappush(heap, entry)
        elif score > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return [entry[-1] for entry in heap]


def merged_boxes(rows: BoxRows, *, with_values: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that describe the same box with several labels.

    Args:
        rows: Rows of a csv.
        with_values: Whether boxes with other values, such as person ids, are others.

    Returns:
        For each box the first row that has it, (B,), in the order of the file; and the box of each row, (N,). Rows
        with the same box and the same label stay apart: they are two that look alike.
    """
    columns = [*rows.boxes.T, rows.frame, *(rows.values.T if with_values else ())]
    twins = occurrences(groups_of_equal_rows(*columns, rows.label_id))
    box = groups_of_equal_rows(*columns, twins)
    return first_of_each(box), box


def multi_hot(rows: BoxRows, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Collect the labels of each box of a ground truth.

    Returns:
        For each box the first row that has it, (B,); and its labels, boolean (B, num_labels).
    """
    first, box = merged_boxes(rows, with_values=True)
    labels = np.zeros((len(first), num_labels), dtype=bool)
    labels[box, rows.label_id - 1] = True
    return first, labels


def dense_scores(rows: BoxRows, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Collect the scores of each detected box; a label that it has no row for gets 0.

    Returns:
        For each box the first row that has it, (B,); and its scores, (B, num_labels).
    """
    first, box = merged_boxes(rows)
    scores = np.zeros((len(first), num_labels))
    scores[box, rows.label_id - 1] = rows.values[:, 0]
    return first, scores


# Reading


def _read(path: str | Path, layout: _Layout, names: FrameNames) -> BoxRows:
    values, videos, short_rows = _parse(Path(path), layout)
    video = names.video_codes(videos.values)[videos.codes]
    time = values[layout.columns[1]]
    others = [values[column] for column in layout.columns[_NUM_REQUIRED:] if column in values]
    return BoxRows(
        frame=names.codes(video, time),
        video=video,
        time=time,
        boxes=np.stack([values[corner] for corner in _CORNERS], axis=1),
        label_id=values["label_id"].astype(np.int64),
        values=np.stack(others, axis=1) if others else np.zeros((len(time), 0)),
        empty_frames=names.codes(
            names.video_codes([cells[0] for cells in short_rows]), np.array([float(cells[1]) for cells in short_rows])
        ),
    )


def _parse(path: Path, layout: _Layout) -> tuple[dict[str, np.ndarray], Names, list[list[str]]]:
    """Parse a file into columns of numbers, the names of the videos, and rows of a video and a time alone."""
    content = read_bytes(path)
    if not content.strip():
        raise AnnotationError(f"{path} is empty: a row is {','.join(layout.columns)}")
    with parsing(path, "it is no table of values separated by commas"):
        columns = _columns_of(content, layout)
    rows = parse_csv(path, content, columns, texts=("video",), numbers=columns[1:])
    values, videos = rows.numbers, rows.texts["video"]
    right = (videos.codes >= 0) & np.logical_and.reduce([np.isfinite(column) for column in values.values()])
    right &= np.logical_and.reduce([check.is_right(values) for check in layout.checks if check.column in values])
    short_rows, odd_rows = [], []
    for row in rows.odd_rows:
        is_short = len(row.cells) == _NUM_KEY_COLUMNS and not _why_wrong(row.cells, layout)
        short_rows.append(row.cells) if is_short else odd_rows.append(row)
    problems = ProblemCollector(path)
    rows._replace(odd_rows=odd_rows).note_wrong(
        right,
        problems,
        lambda row: _why_wrong(rows.list_cells(row), layout) or "must name a video",
        lambda cells: _why_wrong(cells, layout),
    )
    problems.raise_if_any()
    return values, videos, short_rows


def _columns_of(content: bytes, layout: _Layout) -> tuple[str, ...]:
    """The columns that a file has: some layouts have optional ones at the end."""
    fewest = len(layout.columns) - layout.num_optional
    widths = (len(next(csv.reader([line.decode("utf-8")]), [])) for line in io.BytesIO(content))
    return layout.columns[: max(next((width for width in widths if width > _NUM_KEY_COLUMNS), fewest), fewest)]


def _why_wrong(cells: Sequence[str], layout: _Layout) -> str:
    """Say what is wrong with a row; nothing if nothing is."""
    try:
        _check_row(cells, layout)
    except AnnotationError as problem:
        return str(problem)
    return ""


def _check_row(cells: Sequence[str], layout: _Layout) -> None:
    counts = {_NUM_KEY_COLUMNS, *range(len(layout.columns) - layout.num_optional, len(layout.columns) + 1)}
    if len(cells) not in counts:
        raise AnnotationError(
            f"a row needs {' or '.join(map(str, sorted(counts)))} columns ({', '.join(layout.columns)}), "
            f"got {len(cells)}: {abbreviate(','.join(cells))}"
        )
    values = {}
    for name, cell in zip(layout.columns[1:], cells[1:], strict=False):
        try:
            values[name] = float(cell)
        except ValueError:
            raise AnnotationError(f"{name} must be a number, got {quote(cell)}") from None
        if not math.isfinite(values[name]):
            raise AnnotationError(f"{name} must be finite, got {abbreviate(cell)}")
    for check in layout.checks:
        if check.column in values and not check.is_right(values):
            raise AnnotationError(f"{check.column} is {values[check.column]:g} but must be {check.expected}")
