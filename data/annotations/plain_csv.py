"""A csv of one's own: a row is an action of somebody at a moment, or in one frame.

video,timestamp,x1,y1,x2,y2,label,track_id
kitchen.mp4,2.5,0.10,0.20,0.45,0.95,walk,0

video,frame,x1,y1,x2,y2,label,track_id
kitchen.mp4,62,0.10,0.20,0.45,0.95,walk,0
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from classquery.data.annotations.csv_columns import CsvColumns, Names, header_of, parse_csv, read_bytes
from classquery.data.annotations.entries import NOBODY, BoxTable, Content, Context, Format, Source, VideoClaim
from classquery.data.annotations.json_lines import parse_row
from classquery.data.annotations.schema import AnnotationError, parse_box, quote
from classquery.data.annotations.values import MAX_WHOLE_NUMBER, in_splits


_CORNERS = ("x1", "y1", "x2", "y2")
_TEXTS = ("video", "file_name", "label", "split", "group")
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
            table, groups = _read(source, context)
            content.tables.append(table)
            for video in table.videos:
                claim = content.videos.setdefault(video, VideoClaim())
                claim.group = claim.group or groups.get(video)
    return content


def _read(source: Source, context: Context) -> tuple[BoxTable, dict[str, str]]:
    """Return the rows, and the group of each video that has one."""
    csv, columns = _parse(source)
    asked_for = _of_splits(source, csv, context)
    right = _are_right(csv)

    def why_odd(cells: list[str]) -> str:
        return f"a row needs {len(columns)} cells, as the header has"

    csv.note_wrong(right | ~asked_for, context.problems, lambda row: _why_wrong(csv.cells(row)), why_odd, source.place)
    return _table(source, csv, np.flatnonzero(right & asked_for)), _groups(csv)


def _groups(csv: CsvColumns) -> dict[str, str]:
    if "group" not in csv.texts:
        return {}
    videos, groups = _videos(csv), csv.texts["group"]
    rows = np.flatnonzero((videos.codes != NOBODY) & (groups.codes != NOBODY))
    rows = rows[np.unique(videos.codes[rows], return_index=True)[1]]
    return {videos.values[videos.codes[row]]: groups.values[groups.codes[row]] for row in rows}


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
    return right & (_videos(csv).codes != NOBODY) & (csv.texts["label"].codes != NOBODY)


def _why_wrong(cells: dict[str, Any]) -> str:
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
    label, labels = _used(csv.texts["label"], rows)
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
        label,
        np.nan_to_num(track, nan=NOBODY).astype(np.int32),
        np.arange(len(rows), dtype=np.int32),
        csv.row[rows],
    )


def _used(column: Names, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the codes of some rows, which all have one, and the values that these rows use, in their order."""
    codes = column.codes[rows]
    used = pd.unique(codes)
    renumbered = np.zeros(len(column.values), np.int32)
    renumbered[used] = np.arange(len(used))
    return renumbered[codes], [column.values[code] for code in used]


CSV = Format("csv", "csv of classquery", sniff_csv, read_csv, suffixes=(".csv",))
