"""A csv of one's own: a row is an action of somebody at a moment, or in one frame.

video,timestamp,x1,y1,x2,y2,label,track_id
kitchen.mp4,2.5,0.10,0.20,0.45,0.95,walk,0

video,frame,x1,y1,x2,y2,label,track_id
kitchen.mp4,62,0.10,0.20,0.45,0.95,walk,0
"""

import csv
from collections.abc import Sequence

from classquery.data.annotations.entries import Content, Context, Format, Source, VideoClaim
from classquery.data.annotations.json_lines import parse_row
from classquery.data.annotations.schema import AnnotationError, parsing
from classquery.data.annotations.values import in_splits


_NEEDED = (("video", "file_name"), ("timestamp", "frame"), ("x1",), ("y1",), ("x2",), ("y2",), ("label",))


def sniff_csv(source: Source) -> bool:
    """Whether the first line names columns as above."""
    columns = set(source.head.partition("\n")[0].strip().split(","))
    return all(set(names) & columns for names in _NEEDED[:3])


def read_csv(sources: Sequence[Source], context: Context) -> Content:
    """Read all rows; what is wrong with one is told by its number, the header being 1."""
    content = Content()
    for source in sources:
        with parsing(source.path, "close every quote, and save it as text in UTF-8"):
            _read(source, context, content)
    return content


def _read(source: Source, context: Context, content: Content) -> None:
    with source.path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        _check_header(source, reader.fieldnames or [])
        for cells in reader:
            place = source.place(f"row {reader.line_num}")
            with context.problems.at(place):
                if None in cells or None in cells.values():
                    raise AnnotationError(f"a row needs {len(reader.fieldnames)} cells, as the header has")
                row = {name: cell.strip() for name, cell in cells.items() if cell.strip()}
                if in_splits(row.get("split"), context.splits):
                    entry = parse_row(place, row)
                    content.entries.append(entry)
                    content.videos.setdefault(entry.video, VideoClaim())


def _check_header(source: Source, columns: Sequence[str]) -> None:
    for names in _NEEDED:
        if not set(names) & set(columns):
            raise AnnotationError(
                f"{source.path} has no column {' or '.join(names)}; the header must be "
                "video,timestamp,x1,y1,x2,y2,label or video,frame,x1,y1,x2,y2,label,track_id, separated by commas, "
                f"got {','.join(columns)!r}"
            )


CSV = Format("csv", "csv of classquery", sniff_csv, read_csv, suffixes=(".csv",))
