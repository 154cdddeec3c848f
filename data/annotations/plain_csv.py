"""A csv of one's own: a row is an action of somebody at a moment, or in one frame.

video,timestamp,x1,y1,x2,y2,label,track_id
kitchen.mp4,2.5,0.10,0.20,0.45,0.95,walk,0

video,frame,x1,y1,x2,y2,label,track_id
kitchen.mp4,62,0.10,0.20,0.45,0.95,walk,0

Where `labelled` is 0, nobody said what somebody does; where `ignored` is 1, the box is a region in which nobody
looked. `annotated_labels`, "walk;sit", names the classes that were looked for in the video.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from classquery.data.annotations.csv_columns import CsvColumns, Names, header_of, parse_csv, read_bytes
from classquery.data.annotations.entries import (
    IGNORED,
    NOBODY,
    UNKNOWN,
    BoxTable,
    Content,
    Context,
    Format,
    Source,
    VideoClaim,
)
from classquery.data.annotations.json_lines import parse_row
from classquery.data.annotations.schema import AnnotationError, parse_box, quote
from classquery.data.annotations.values import MAX_WHOLE_NUMBER, flag, in_splits, join_labels


_CORNERS = ("x1", "y1", "x2", "y2")
_FLAGS = {"labelled": True, "ignored": False}  # And what they are where the cell is empty.
_TEXTS = ("video", "file_name", "label", "split", "group", "annotated_labels", *_FLAGS)
_NUMBERS = ("timestamp", "frame", *_CORNERS, "track_id")
_NEEDED = (("video", "file_name"), ("timestamp", "frame"), *((name,) for name in (*_CORNERS, "label")))


def sniff_csv(source: Source) -> bool:
    """Whether the first line names columns as above."""
    columns = {name.strip().strip('"') for name in source.head.partition("\n")[0].split(",")}
    return all(set(names) & columns for names in _NEEDED[:3])


def read_csv(sources: Sequence[Source], context: Context) -> Content:
    """Read all rows; what is wrong with one is told by its number, the header being 1."""
    content = Content()
    for source in sources:
        with context.problems.at(source.place()):
            csv, columns = _parse(source)
            table = _read(source, csv, columns, context)
            content.tables.append(table)
            groups, annotated = _of_videos(csv, "group"), _of_videos(csv, "annotated_labels")
            for video in table.videos:
                claim = content.videos.setdefault(video, VideoClaim())
                claim.group = claim.group or next(iter(groups.get(video, ())), None)
                for names in annotated.get(video, ()):
                    listed = [name.strip() for name in names.split(";") if name.strip()]
                    claim.annotated_labels = join_labels(claim.annotated_labels, listed)
    return content


def _read(source: Source, csv: CsvColumns, columns: Sequence[str], context: Context) -> BoxTable:
    asked_for = _of_splits(source, csv, context)
    right = _are_right(csv)

    def why_odd(cells: list[str]) -> str:
        return f"a row needs {len(columns)} cells, as the header has"

    csv.note_wrong(right | ~asked_for, context.problems, lambda row: _why_wrong(csv.cells(row)), why_odd, source.place)
    return _table(source, csv, np.flatnonzero(right & asked_for))


def _of_videos(csv: CsvColumns, column: str) -> dict[str, list[str]]:
    """Return the values of a column that the rows of each video have, in their order."""
    if column not in csv.texts:
        return {}
    videos, values = _videos(csv), csv.texts[column]
    given = (videos.codes != NOBODY) & (values.codes != NOBODY)
    pairs = pd.DataFrame({"video": videos.codes[given], "value": values.codes[given]}).drop_duplicates()
    found: dict[str, list[str]] = {}
    for video, value in pairs.itertuples(index=False):
        found.setdefault(videos.values[video], []).append(values.values[value])
    return found


def _parse(source: Source) -> tuple[CsvColumns, list[str]]:
    text = read_bytes(source.path)
    columns = header_of(text)
    _check_header(source, columns)
    return parse_csv(source.path, text, columns, texts=_TEXTS, numbers=_NUMBERS, has_header=True), columns


def _check_header(source: Source, columns: Sequence[str]) -> None:
    for names in _NEEDED:
        if not set(names) & set(columns):
            raise AnnotationError(
                f"{source.path} has no column {' or '.join(names)}; the header must be "
                "video,timestamp,x1,y1,x2,y2,label or video,frame,x1,y1,x2,y2,label,track_id, separated by commas, "
                f"got {quote(','.join(columns))}"
            )


def _of_splits(source: Source, csv: CsvColumns, context: Context) -> np.ndarray:
    """Return the rows of the splits that are asked for, (n,)."""
    if context.splits is None:
        return np.ones(len(csv.row), bool)
    split = csv.texts.get("split", Names(np.full(len(csv.row), NOBODY), []))
    is_asked_for = np.zeros(len(split.values) + 1, bool)
    for code, value in enumerate([*split.values, None]):
        rows = csv.row[split.codes == (code if value is not None else NOBODY)]
        if len(rows):
            with context.problems.at(source.place(f"row {rows[0]}")):
                is_asked_for[code] = in_splits(value, context.splits)
    return is_asked_for[split.codes]


def _are_right(csv: CsvColumns) -> np.ndarray:
    """Check what each row says by itself, (n,)."""
    nothing = np.zeros(len(csv.row), bool)
    is_given = {name: csv.written[name].is_valid().to_numpy() for name in _NUMBERS if name in csv.written}
    at_moment, in_frame, has_track = (is_given.get(name, nothing) for name in ("timestamp", "frame", "track_id"))
    right = (at_moment ^ in_frame) & (has_track | ~in_frame)
    for name in _CORNERS:
        right &= np.isfinite(csv.numbers[name])
    right &= ~at_moment | np.isfinite(csv.numbers.get("timestamp", nothing))
    for name, given in (("frame", in_frame), ("track_id", has_track)):
        values = csv.numbers.get(name, nothing)
        right &= ~given | ((values >= 0) & (values <= MAX_WHOLE_NUMBER) & (values % 1 == 0))
    labelled, is_labelled = _flag(csv, "labelled")
    ignored, is_ignored = _flag(csv, "ignored")
    has_label = (csv.texts["label"].codes != NOBODY) | ~labelled | ignored
    return right & (_videos(csv).codes != NOBODY) & has_label & is_labelled & is_ignored


def _flag(csv: CsvColumns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of truth values (n,), and where it has one (n,)."""
    if name not in csv.texts:
        return np.full(len(csv.row), _FLAGS[name]), np.ones(len(csv.row), bool)
    column = csv.texts[name]
    values, are_right = [], []
    for value in [*column.values, ""]:
        try:
            values.append(flag(value, name, _FLAGS[name]))
            are_right.append(True)
        except AnnotationError:
            values.append(False)
            are_right.append(False)
    return np.array(values)[column.codes], np.array(are_right)[column.codes]


def _why_wrong(cells: dict[str, Any]) -> str:
    cells = {name: cell.strip() if isinstance(cell, str) else cell for name, cell in cells.items()}
    try:
        parse_box(parse_row("", cells).boxes[0])
    except AnnotationError as problem:
        return str(problem)
    return f"has a cell that is no number: {quote(list(cells.values()))}"


def _videos(csv: CsvColumns) -> Names:
    """Return the column `video`, or where that is empty, `file_name`."""
    nothing = Names(np.full(len(csv.row), NOBODY, np.int32), [])
    video, other = (csv.texts.get(name, nothing) for name in ("video", "file_name"))
    numbers = {name: number for number, name in enumerate(dict.fromkeys((*video.values, *other.values)))}
    of_other = np.array([*(numbers[name] for name in other.values), NOBODY], np.int32)[other.codes]
    return Names(np.where(video.codes == NOBODY, of_other, video.codes), list(numbers))


def _table(source: Source, csv: CsvColumns, rows: np.ndarray) -> BoxTable:
    nothing = np.full(len(csv.row), np.nan)
    video, videos = _used(_videos(csv), rows)
    says, labels = _labels(csv, rows)
    timestamp, frame, track = (csv.numbers.get(name, nothing)[rows] for name in ("timestamp", "frame", "track_id"))
    is_moment = ~np.isnan(timestamp)
    return BoxTable(
        videos,
        labels,
        lambda number: source.place(f"row {number}"),
        is_moment,
        video,
        np.where(is_moment, timestamp, frame),
        np.stack([csv.numbers[name][rows] for name in _CORNERS], 1),
        says,
        np.nan_to_num(track, nan=NOBODY).astype(np.int32),
        np.arange(len(rows), dtype=np.int32),
        csv.row[rows],
    )


def _labels(csv: CsvColumns, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the code of the label of some rows, and the names."""
    (labelled, _), (ignored, _) = _flag(csv, "labelled"), _flag(csv, "ignored")
    code = np.where(ignored, IGNORED, UNKNOWN)[rows].astype(np.int32)
    said = (labelled & ~ignored)[rows]
    code[said], labels = _used(csv.texts["label"], rows[said])
    return code, labels


def _used(column: Names, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the codes of some rows, which all have one, and the values that these rows use, in their order."""
    codes = column.codes[rows]
    used = pd.unique(codes)
    renumbered = np.zeros(len(column.values), np.int32)
    renumbered[used] = np.arange(len(used))
    return renumbered[codes], [column.values[code] for code in used]


CSV = Format("csv", "csv of classquery", sniff_csv, read_csv, suffixes=(".csv",))
