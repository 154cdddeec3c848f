"""Writer of "CVAT for video 1.1", to be corrected in CVAT: tracks with few key frames, which CVAT moves in between.

Somebody is a track of the label `person`, with a checkbox for every class, because one may do several things at once.
Where nobody said what anybody does, there is one list `action` instead, of which nothing is chosen yet.
"""

import logging
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from classquery.data.annotations.key_frames import choose_key_frames
from classquery.data.annotations.schema import as_ranges
from classquery.data.annotations.videos import video_id
from classquery.data.annotations.writing import IGNORE, WrittenTrack, WrittenVideo, runs_of, tracks_of, videos_of
from classquery.data.whole_files import replacing, write_json


logger = logging.getLogger(__name__)

LABELS_FILE = "cvat_labels.json"
_LABEL = "person"
_NOT_SAID = "__undefined__"
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
# Corners are written with two decimals, as CVAT does.
_ROUNDING = 0.01


def write_cvat(
    path: str | Path, rows: Iterable[Mapping[str, Any]], names: Mapping[int, str], *, tolerance: float = 1e-6
) -> None:
    """Write rows as tracks, which CVAT takes as annotations of a task and `read_cvat` reads to the same rows.

    The key frames are as few as a tolerance allows, and every one in which somebody starts or stops to do something:
    a correction holds up to the next. A track is `outside` where it has no box. CVAT takes one file for each task: of
    several videos, each has one in a folder of the name of `path` without its suffix. A task needs the labels before:
    paste `cvat_labels.json`, written beside, into the tab "Raw" of the label constructor.

    Args:
        path: The xml file.
        rows: With `ACTION_FEATURES`, of videos that are there; moments become frames.
        names: Of the classes, by 0-based id.
        tolerance: How far boxes between key frames may be off, as a part of width and height of the frame.

    Raises:
        ValueError: If a video is missing.
    """
    path, videos = Path(path), videos_of(rows, names)
    said = [tube.labels is not None for video in videos for tube in video.tubes]
    is_open = not names or (bool(said) and not any(said))
    labels = _labels((), [_NOT_SAID, "none", *names.values()]) if is_open else _labels(names.values())
    if any(video.ignored for video in videos):
        labels.append({"name": IGNORE, "type": "rectangle", "attributes": []})
    if not is_open:
        _warn_of_unknown(videos)
    for video in videos:
        # A name of a video may have folders.
        file = path if len(videos) == 1 else path.with_suffix("") / f"{video_id(video.name)}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_video(file, video, labels, tolerance)
    write_json(path.with_name(LABELS_FILE), labels, indent=2, ensure_ascii=False)


def _warn_of_unknown(videos: Iterable[WrittenVideo]) -> None:
    num_unknown = sum(len(tube.frames) for video in videos for tube in video.tubes if tube.labels is None)
    if num_unknown:
        logger.warning(
            f"{num_unknown} boxes of which nobody said what happens have no checkbox, and get unchecked ones in CVAT."
        )


def _labels(checkboxes: Collection[str], actions: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return what the label constructor of CVAT takes."""
    attributes = [
        {"name": name, "mutable": True, "input_type": "checkbox", "default_value": "false", "values": ["false"]}
        for name in checkboxes
    ]
    if actions:
        values = list(dict.fromkeys(actions))
        attributes.append(
            {"name": "action", "mutable": True, "input_type": "select", "default_value": values[0], "values": values}
        )
    return [{"name": _LABEL, "type": "rectangle", "attributes": attributes}]


def _write_video(path: Path, video: WrittenVideo, labels: list[dict[str, Any]], tolerance: float) -> None:
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    frames = _frames_of(video)
    _add_task(ET.SubElement(root, "meta"), video, frames, labels)
    tracks = [*tracks_of(video.tubes), *tracks_of(video.ignored)]
    numbers = {track.track_id for track in tracks}
    free = (number for number in range(len(tracks) + len(numbers)) if number not in numbers)
    for place, track in enumerate(tracks):
        number = next(free) if track.track_id is None else track.track_id
        label = labels[0] if place < len(tracks) - len(video.ignored) else labels[-1]
        element = ET.SubElement(root, "track", id=str(number), label=label["name"], source="auto")
        _add_boxes(element, track, video, frames, label["attributes"], tolerance)
    ET.indent(root)
    with replacing(path) as partial_path:
        ET.ElementTree(root).write(partial_path, encoding="utf-8", xml_declaration=True)


def _frames_of(video: WrittenVideo) -> range:
    """Return the frames of the task."""
    ranges = as_ranges(video.frames)
    if len(ranges) > 1:
        logger.warning(f"{video.name}: CVAT cannot say that its annotated frames are {len(ranges)} ranges.")
    return range(*ranges[0]) if len(ranges) == 1 else range(video.num_frames)


def _add_task(meta: ET.Element, video: WrittenVideo, frames: range, labels: list[dict[str, Any]]) -> None:
    task = ET.SubElement(meta, "task")
    facts = {"size": len(frames), "mode": "interpolation", "start_frame": frames.start, "stop_frame": frames[-1]}
    facts["frame_filter"] = f"step={frames.step}" if frames.step > 1 else ""
    for tag, value in facts.items():
        ET.SubElement(task, tag).text = str(value)
    parent = ET.SubElement(task, "labels")
    for label in labels:
        element = ET.SubElement(parent, "label")
        ET.SubElement(element, "name").text = label["name"]
        attributes = ET.SubElement(element, "attributes")
        for attribute in label["attributes"]:
            child = ET.SubElement(attributes, "attribute")
            for key, value in attribute.items():
                ET.SubElement(child, key).text = "\n".join(value) if isinstance(value, list) else str(value)
    size = ET.SubElement(task, "original_size")
    ET.SubElement(size, "width").text, ET.SubElement(size, "height").text = str(video.width), str(video.height)
    ET.SubElement(task, "source").text = video.name


def _add_boxes(
    parent: ET.Element,
    track: WrittenTrack,
    video: WrittenVideo,
    frames: range,
    attributes: list[dict[str, Any]],
    tolerance: float,
) -> None:
    corners = track.boxes * ([video.width, video.height] * 2)
    edges = np.maximum(tolerance * np.array([video.width, video.height] * 2) - _ROUNDING, 0)
    for run in runs_of(track.frames, frames.step):
        chosen = choose_key_frames(track.frames[run], corners[run], track.labels[run], edges)
        for key in (run.start + index for index in chosen):
            box = _add_box(parent, track.frames[key], corners[key])
            _add_attributes(box, track.labels[key], attributes)
        behind = track.frames[run.stop - 1] + frames.step
        if behind < frames.stop:
            box = _add_box(parent, behind, corners[run.stop - 1], outside=True)
            _add_attributes(box, track.labels[run.stop - 1], attributes)


def _add_box(parent: ET.Element, frame: int, corners: np.ndarray, *, outside: bool = False) -> ET.Element:
    flags = {"frame": str(frame), "outside": str(int(outside)), "occluded": "0", "keyframe": "1", "z_order": "0"}
    places = {name: f"{edge:.2f}" for name, edge in zip(_CORNERS, corners.tolist(), strict=True)}
    return ET.SubElement(parent, "box", flags | places)


def _add_attributes(box: ET.Element, does: tuple[str, ...] | None, attributes: list[dict[str, Any]]) -> None:
    for name, value in _values(does, attributes):
        ET.SubElement(box, "attribute", name=name).text = value


def _values(does: tuple[str, ...] | None, attributes: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for attribute in attributes:
        if attribute["input_type"] == "select":
            yield attribute["name"], _NOT_SAID
        elif does is not None:
            yield attribute["name"], "true" if attribute["name"] in does else "false"
