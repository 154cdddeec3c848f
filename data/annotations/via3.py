"""Reader of VIA 3, the video annotator of the Visual Geometry Group: its csv export and its project JSON.

# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata
"1_kT3vQ8aB","[""clip_a.mp4""]",0,"[0]","[2,16,24,32,60]","{""1"":""0"",""2"":""1""}"

{"attribute": {"1": {"aname": "action", "type": 2, "options": {"1": "stand"}}}, "file": {"1": {"fname": "clip_a.mp4"}},
 "metadata": {"1_Qm2xV5tN": {"vid": "1", "z": [0.5], "xy": [2, 8, 12, 40, 96], "av": {"1": "1"}}},
 "view": {"1": {"fid_list": ["1"]}}, "project": {...}, "config": {...}}

A region is a rectangle [2, x, y, width, height] in pixels at a moment z = [seconds], rounded to milliseconds; nothing
is interpolated. Segments, z = [from, to], have no regions. Values of a checkbox are ids of options joined by commas,
those of radio buttons and lists one id. The attribute that is named like an action is the class, the one that is
named like a person or track says who it is. Source: via-3.x.y/src/js of ox-vgg/via@aa9b87f.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classquery.data.annotations.collecting import (
    CLASS_ATTRIBUTES,
    NO_ACTION,
    TRACK_ATTRIBUTES,
    as_labels,
    as_track,
    corners_of,
    find_attributes,
    in_file,
    reading,
    video_names,
)
from classquery.data.annotations.entries import Content, Context, Entry, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, parsing, quote, shorten
from classquery.data.annotations.values import number
from classquery.data.annotations.writing import IGNORE, WrittenVideo, videos_of
from classquery.data.whole_files import write_json


_HEADER, _ATTRIBUTES = "# CSV_HEADER = ", "# ATTRIBUTE = "
_COLUMNS = ("metadata_id", "file_list", "temporal_coordinates", "spatial_coordinates", "metadata")
_PROJECT_KEYS = {"project", "attribute", "file", "metadata", "view"}
_VERSION_2_KEYS = ("_via_settings", "_via_img_metadata")
_TEXT, _CHECKBOX = 1, 2
_RECTANGLE = 2
_SHAPES = {1: "point", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon"}
_SHAPES |= {8: "extreme rectangle", 9: "extreme circle"}


class _Region(NamedTuple):
    name: str
    files: Sequence[Sequence[str]]
    """Of each file of the view the names that it may have."""
    times: Sequence[Any]
    shape: Sequence[Any]
    values: Mapping[str, Any]


class _Attribute(NamedTuple):
    number: str
    name: str
    kind: int
    options: Mapping[str, str]

    def read(self, values: Mapping[str, Any]) -> list[str]:
        """Return what was chosen or written."""
        value = str(values.get(self.number, "")).strip()
        if self.kind == _TEXT or not value:
            return [value] if value else []
        chosen = value.split(",") if self.kind == _CHECKBOX else [value]
        unknown = [option for option in chosen if option not in self.options]
        if unknown:
            raise AnnotationError(
                f"{self.name!r} has no option {quote(unknown[0])}, there are {quote(list(self.options))}"
            )
        return [self.options[option] for option in chosen]


def sniff_via3(source: Source) -> bool:
    """Whether it is the csv with its comments, or the JSON of a project, of version 2 as well."""
    if source.head.startswith("#"):
        return any(line.startswith(_HEADER) for line in source.head.splitlines())
    document = source.json
    return isinstance(document, dict) and (
        document.keys() >= _PROJECT_KEYS or any(key in document for key in _VERSION_2_KEYS)
    )


def read_via3(sources: Sequence[Source], context: Context) -> Content:
    """Read files of several videos each."""
    content = Content(box_format="pixel")
    for source in sources:
        attributes, regions = _parse_csv(source) if source.head.startswith("#") else _parse_project(source)
        _read(source, context, content, attributes, list(regions))
    return content


def _read(
    source: Source,
    context: Context,
    content: Content,
    attributes: Sequence[_Attribute],
    regions: Sequence[_Region],
) -> None:
    used = {key for region in regions if region.shape for key in region.values}
    candidates = [attribute for attribute in attributes if attribute.number in used]
    tracks, classes = _roles(source, content, candidates)
    for region in regions:
        place = source.place(f"region {region.name}")
        with reading(context, place):
            left_out = _why_left_out(region)
            if left_out:
                content.ignored[left_out] += 1
                continue
            given = [name for name in region.files[0] if name and not name.startswith("data:")]
            names = list(dict.fromkeys(name for reference in given for name in video_names(reference)))
            if not names:
                raise AnnotationError("its file has no name: add the video in VIA as a local file, or by its link")
            content.videos.setdefault(names[0], VideoClaim(names))
            labels = as_labels(value for attribute in classes for value in attribute.read(region.values))
            who = as_track(" ".join(value for attribute in tracks for value in attribute.read(region.values)))
            seconds = number(region.times[0], "the time")
            box = corners_of(list(region.shape[1:]))
            content.entries.append(
                Entry(place, names[0], [box], labels, timestamp=seconds, track_id=in_file(source, who))
            )


def _why_left_out(region: _Region) -> str | None:
    if not region.shape:
        return "temporal segments without a region"
    if region.shape[0] != _RECTANGLE:
        return f"shapes: {_SHAPES.get(region.shape[0], region.shape[0])}"
    if len(region.files) != 1:
        return "regions of several files at once"
    if len(region.times) != 1:
        return "regions without a moment" if not region.times else "regions over a segment"
    return None


def _roles(
    source: Source, content: Content, attributes: Sequence[_Attribute]
) -> tuple[list[_Attribute], list[_Attribute]]:
    """Return the attributes that say who it is, and those that are the class."""
    names = [attribute.name for attribute in attributes]
    class_names = find_attributes(names, CLASS_ATTRIBUTES)
    track_names = find_attributes([name for name in names if name not in class_names], TRACK_ATTRIBUTES)[:1]
    if not class_names:
        # One list of options besides who it is: there is nothing else that it could be.
        left = [item.name for item in attributes if item.kind != _TEXT and item.name not in track_names]
        class_names = left if len(left) == 1 else []
    if names and not class_names:
        raise AnnotationError(
            f"{source.place()}: which attribute is the class? Name it action or activity in VIA, got {shorten(names)}"
        )
    content.notes.append(
        f"{source.place()}: classes are {shorten(class_names) or 'not given'}; who it is says "
        f"{shorten(track_names) or 'nothing'}"
    )
    unread = [name for name in names if name not in (*class_names, *track_names)]
    if unread:
        content.warnings.append(f"{source.place()}: nothing reads the attributes {shorten(unread)} of the regions")
    return [item for item in attributes if item.name in track_names], [
        item for item in attributes if item.name in class_names
    ]


def _attributes(given: Mapping[str, Any]) -> list[_Attribute]:
    return [
        _Attribute(key, str(item["aname"]).strip(), int(item["type"]), _options(item)) for key, item in given.items()
    ]


def _options(attribute: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): value for key, value in (attribute.get("options") or {}).items()}


# The two files


def _parse_csv(source: Source) -> tuple[list[_Attribute], Iterator[_Region]]:
    comments, lines = [], source.text().splitlines(keepends=True)
    while lines and (lines[0].startswith("#") or not lines[0].strip()):
        comments.append(lines.pop(0).strip())
    columns = next((line.removeprefix(_HEADER) for line in comments if line.startswith(_HEADER)), "").split(",")
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise AnnotationError(f"{source.path} has no column {missing[0]}: export it with VIA 3")
    given = next((line.removeprefix(_ATTRIBUTES) for line in comments if line.startswith(_ATTRIBUTES)), "{}")
    with parsing(source.path, "its attributes are no valid JSON: export it again"):
        attributes = _attributes(json.loads(given))
    return attributes, _csv_regions(source, columns, "".join(lines))


def _csv_regions(source: Source, columns: Sequence[str], text: str) -> Iterator[_Region]:
    for cells in csv.reader(io.StringIO(text)):
        if not cells:
            continue
        with parsing(source.place(f"region {quote(cells[0])}"), "it needs a value in every column: export it again"):
            row = dict(zip(columns, cells, strict=True))
            files, times, shape, values = (json.loads(row[name]) for name in _COLUMNS[1:])
        yield _Region(row["metadata_id"], [[name] for name in files], times, shape, values)


def _parse_project(source: Source) -> tuple[list[_Attribute], Iterator[_Region]]:
    document = source.document
    if not document.keys() >= _PROJECT_KEYS:
        raise AnnotationError(f"{source.path} is of VIA 2, which annotates pictures: annotate videos with VIA 3")
    files = {
        view: [[document["file"][str(fid)].get(key) or "" for key in ("fname", "src")] for fid in item["fid_list"]]
        for view, item in document["view"].items()
    }
    regions = (
        _Region(name, files[str(item["vid"])], item["z"], item["xy"], item["av"])
        for name, item in document["metadata"].items()
    )
    return _attributes(document["attribute"]), regions


# Writing


def write_via3(path: str | Path, rows: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> None:
    """Write rows as a project, which VIA 3 opens and `read_via3` reads to the same rows.

    VIA has regions at moments only: of tubes, every box becomes one, at the time of its frame.

    Args:
        path: The JSON file.
        rows: With `ACTION_FEATURES`, of videos that are there.
        names: Of the classes, by 0-based id.

    Raises:
        ValueError: If a video is missing.
    """
    videos = {str(number): video for number, video in enumerate(videos_of(rows, names), start=1)}
    # Doing nothing that is a class is more than saying nothing.
    listed = [*names.values(), NO_ACTION[1], *([IGNORE] if any(video.ignored for video in videos.values()) else [])]
    options = {str(place): name for place, name in enumerate(listed)}
    attribute = {"anchor_id": "FILE1_Z1_XY1", "desc": "", "default_option_id": ""}
    project = {
        "pid": "__VIA_PROJECT_ID__",
        "rev": "__VIA_PROJECT_REV_ID__",
        "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
        "pname": Path(path).stem,
        "data_format_version": "3.1.1",
        "creator": "classquery",
        "created": 0,
        "vid_list": list(videos),
    }
    content = {
        "project": project,
        "config": {"file": {"loc_prefix": {str(number): "" for number in range(1, 5)}}, "ui": {}},
        "attribute": {
            "1": {"aname": "person", "type": _TEXT, "options": {}} | attribute,
            "2": {"aname": "action", "type": _CHECKBOX, "options": options} | attribute,
        },
        "file": {
            number: {"fid": number, "fname": video.name, "type": 4, "loc": 1, "src": ""}
            for number, video in videos.items()
        },
        "metadata": dict(_written_regions(videos, {name: option for option, name in options.items()})),
        "view": {number: {"fid_list": [number]} for number in videos},
    }
    write_json(path, content, ensure_ascii=False)


def _written_regions(
    videos: Mapping[str, WrittenVideo], options: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the regions: one for all that somebody does at a moment."""
    for key, video in videos.items():
        labels: dict[tuple, list[str] | None] = {}
        for place, tube in enumerate([*video.tubes, *video.ignored]):
            who = f"nobody {place}" if tube.track_id is None else tube.track_id
            for seconds, box in zip(tube.seconds.tolist(), tube.boxes.tolist(), strict=True):
                key_of_region = who, round(seconds, 3), tuple(box)
                known = labels.setdefault(key_of_region, None)
                labels[key_of_region] = known if tube.labels is None else [*(known or ()), *tube.labels]
        for place, ((who, seconds, box), does) in enumerate(labels.items()):
            x1, y1, x2, y2 = (value * side for value, side in zip(box, (video.width, video.height) * 2, strict=True))
            shape = [_RECTANGLE, *(round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1))]
            chosen = "" if does is None else ",".join(options[name] for name in does or [NO_ACTION[1]])
            values = {"1": str(who) if isinstance(who, int) else "", "2": chosen}
            yield f"{key}_{place:08d}", {"vid": key, "flg": 0, "z": [seconds], "xy": shape, "av": values}


VIA3 = Format("via3", "VIA 3 (csv or project)", sniff_via3, read_via3, write=write_via3)
