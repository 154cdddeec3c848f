"""JSON lines of one's own: in every line somebody, at a moment or through frames.

{"video": "kitchen.mp4", "timestamp": 2.5, "box": [0.1, 0.2, 0.45, 0.95], "labels": ["walk", "carry"]}
{"video": "kitchen.mp4", "frames": [62, 63], "boxes": [[0.1, 0.2, 0.4, 0.9], [0.1, 0.2, 0.5, 0.9]], "label": "sit"}

Of somebody with `"labels": null`, nobody said what they do. With `"ignored": true`, the boxes are a region in which
nobody looked. `"annotated_labels": ["walk"]` names the classes that were looked for in the video.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from classquery.data.annotations.entries import Content, Context, Entry, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, parsing, quote
from classquery.data.annotations.values import flag, in_splits, join_labels, number, whole_number


_NAMES_OF_VIDEO = ("video", "file_name")  # The latter as in `datasets`' folders of videos.
_CORNERS = ("x1", "y1", "x2", "y2")


def sniff_json_lines(source: Source) -> bool:
    """Whether the first line that is not empty is an object that names a video."""
    line = source.head.lstrip().partition("\n")[0]
    try:
        row = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and any(isinstance(row.get(name), str) for name in _NAMES_OF_VIDEO)


def read_json_lines(sources: Sequence[Source], context: Context) -> Content:
    """Read all lines; what is wrong with one is told by its number, counted from 1."""
    content = Content()
    for source in sources:
        for line_number, line in enumerate(source.text().split("\n"), start=1):
            place = source.place(f"row {line_number}")
            with context.problems.at(place):
                row = _parse_line(line)
                if row is not None and in_splits(row.get("split"), context.splits):
                    entry = parse_row(place, row)
                    content.entries.append(entry)
                    claim = content.videos.setdefault(entry.video, VideoClaim())
                    claim.annotated_labels = join_labels(claim.annotated_labels, _annotated_labels(row))
                    claim.group = claim.group or (str(row["group"]) if row.get("group") is not None else None)
    return content


def _parse_line(line: str) -> dict[str, Any] | None:
    """Parse one line; None if it is empty."""
    with parsing("no valid JSON", "a line must be an object by itself"):
        row = json.loads(line) if line.strip() else None
    if not isinstance(row, dict | None):
        raise AnnotationError(f"must be an object, got {quote(row)}")
    return row


def _annotated_labels(row: Mapping[str, Any]) -> list[str] | None:
    labels = row.get("annotated_labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
        raise AnnotationError(f"`annotated_labels` must be a list of names of classes, got {quote(labels)}")
    return labels


def parse_row(place: str, row: Mapping[str, Any]) -> Entry:
    """Parse what one line says.

    Raises:
        AnnotationError: If something that it must say is missing, or is none of its kind.
    """
    video = next((row[name] for name in _NAMES_OF_VIDEO if row.get(name)), None)
    if not isinstance(video, str):
        raise AnnotationError(f"`video` must name a video, got {quote(video)}")
    is_keyframe = row.get("timestamp") is not None
    if is_keyframe == (row.get("frames", row.get("frame")) is not None):
        raise AnnotationError("needs either a timestamp, or frames")
    timestamp = number(row["timestamp"], "timestamp") if is_keyframe else None
    frames = None if is_keyframe else [whole_number(frame, "frame") for frame in _listed(row, "frames", "frame")]
    repeated = [frame for frame, times in Counter(frames).items() if times > 1]
    if repeated:
        raise AnnotationError(f"frame {repeated[0]} is listed twice")
    track_id = None if row.get("track_id") is None else whole_number(row["track_id"], "track_id")
    if "frame" in row and track_id is None:
        raise AnnotationError("with `frame`, `track_id` must say which boxes belong together")
    boxes = [[row.get(name) for name in _CORNERS]] if "x1" in row else _listed(row, "boxes", "box")
    if not all(isinstance(box, list) and len(box) == len(_CORNERS) for box in boxes):
        raise AnnotationError(f"a box has four corners x1, y1, x2, y2, got {quote(boxes)}")
    is_ignored = flag(row.get("ignored"), "ignored")
    is_unknown = row.get("labels", "") is None or not flag(row.get("labelled"), "labelled", True)
    labels = None if is_unknown or is_ignored else _listed(row, "labels", "label")
    if labels is not None and not (labels and all(isinstance(label, str) and label for label in labels)):
        raise AnnotationError(f"`label` must be the name of a class, got {quote(labels)}")
    return Entry(place, video, boxes, labels, frames, timestamp, track_id, is_ignored)


def _listed(row: Mapping[str, Any], several: str, one: str) -> list[Any]:
    """Return what is given as a list, or by itself under another name; what is missing is an empty list."""
    values = row.get(several, [row[one]] if row.get(one) is not None else [])
    if not isinstance(values, list):
        raise AnnotationError(f"`{several}` must be a list, got {quote(values)}")
    return values


JSON_LINES = Format("json_lines", "JSON lines of classquery", sniff_json_lines, read_json_lines, suffixes=(".jsonl",))
