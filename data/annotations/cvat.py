"""Reader of "CVAT for video 1.1", the XML that CVAT exports from a task in which actors were tracked.

    <annotations>
      <meta><task>
        <stop_frame>249</stop_frame>
        <original_size><width>640</width><height>360</height></original_size>
        <source>kitchen.mp4</source>
      </task></meta>
      <track id="0" label="person">
        <box frame="12" outside="0" xtl="10.5" ytl="20" xbr="80.25" ybr="200">
          <attribute name="action">walk</attribute>
        </box>
        ...

How tracks become actions, in every frame by itself:

* a box with an attribute `action` does what its value says; nothing, if that is empty, "none" or "__undefined__";
* a checkbox ("true" or "false") is an action by its name, so that one actor can do several things at once; with a
  `classes.txt` only those that it names are;
* a box with neither does what the label of its track says: `<track label="walk">`.

Frames count from 0 in the video. Between the boxes of a track, where the file leaves frames out, the box moves in a
straight line, and what the last box says holds on; from a box with `outside="1"` on, the actor is gone. Frames without
an action are left out: nobody is told to be found there.
"""

import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classquery.data.annotations.entries import Content, Context, Entry, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, ProblemCollector


CLASS_ATTRIBUTE = "action"
_NO_ACTION = ("", "none", "__undefined__")
_CHECKED = {"true": True, "false": False}
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_OTHER_SHAPES = ("polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")


class CvatTube(NamedTuple):
    """One action of one track."""

    place: str
    """How to name the track in a message."""
    track_id: int
    label: str
    frames: np.ndarray
    """int64 (n,), ascending, 0-based in the video."""
    boxes: np.ndarray
    """float64 (n, 4), (x1, y1, x2, y2) in pixels of the video."""


class CvatVideo(NamedTuple):
    """What a file says."""

    source: str
    """Name of the video when it was uploaded."""
    num_frames: int | None
    """Frames up to the last one of the task, if that is known: nobody annotated those behind."""
    height: int
    width: int
    tubes: list[CvatTube]


class _Track(NamedTuple):
    """The boxes of a track as they stand in the file, by frame."""

    frames: np.ndarray
    boxes: np.ndarray
    shown: np.ndarray
    labels: list[set[str]]


def read_cvat_video(
    path: str | Path, problems: ProblemCollector, classes: Collection[str] | None = None, *, prefix: str = ""
) -> CvatVideo:
    """Read the tracks of one video.

    Args:
        path: The XML file.
        problems: Takes note of tracks that cannot be read.
        classes: Which checkboxes are actions; all by default.
        prefix: What comes before the name of a track in a message.

    Raises:
        AnnotationError: If the file is no such XML, of a whole project, or does not start at the first frame.
    """
    root = _parse(path)
    meta = root.find("meta")
    sources = [source.text or "" for source in meta.iter("source")] if meta is not None else []
    if len(sources) != 1:
        raise AnnotationError(f"{path} names {len(sources)} videos (<source>): export each task by itself")
    start, stop = (_number(meta, name) for name in ("start_frame", "stop_frame"))
    if start:
        raise AnnotationError(
            f"{path}: the task starts at frame {start}, and nobody annotated what is before it: cut the video there"
        )
    height, width = (_number(meta, f"original_size/{side}") for side in ("height", "width"))
    if not height or not width:
        raise AnnotationError(f"{path} must give the size of the video as <original_size>")
    tubes = []
    for track in root.iter("track"):
        place = f"{prefix}track {track.get('id')}"
        with problems.at(place):
            tubes += _tubes(place, track, classes)
    return CvatVideo(sources[0], None if stop is None else stop + 1, height, width, tubes)


def _parse(path: str | Path) -> ET.Element:
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise AnnotationError(f"{path} is no valid XML, perhaps cut off: {error}") from error
    if root.tag != "annotations" or root.find("image") is not None:
        raise AnnotationError(f"{path} is no export of tracks: choose the format 'CVAT for video 1.1'")
    return root


def _number(meta: ET.Element, name: str) -> int | None:
    found = next(iter(meta.findall(f".//{name}")), None)
    return int(found.text) if found is not None and (found.text or "").strip().isdigit() else None


def _tubes(place: str, track: ET.Element, classes: Collection[str] | None) -> Iterator[CvatTube]:
    """Yield the frames of each action of a track."""
    given = _read_track(track, classes)
    frames, boxes, origin = _fill(given)
    for label in sorted(set().union(*given.labels)):
        does = np.array([label in labels for labels in given.labels])[origin]
        if does.any():
            yield CvatTube(place, int(track.get("id")), label, frames[does], boxes[does])


def _read_track(track: ET.Element, classes: Collection[str] | None) -> _Track:
    if not (track.get("id") or "").isdigit() or not track.get("label"):
        raise AnnotationError(
            f"needs a whole number as id and a label, got {track.get('id')!r}, {track.get('label')!r}"
        )
    other = next((shape for shape in _OTHER_SHAPES if track.find(shape) is not None), None)
    boxes = track.findall("box")
    if other or not boxes:
        raise AnnotationError(f"must be made of boxes, got {other or 'none'}")
    rows = sorted((_read_box(box) for box in boxes), key=lambda row: row[0])
    frames = np.array([row[0] for row in rows])
    repeated = frames[1:][frames[1:] == frames[:-1]]
    if len(repeated):
        raise AnnotationError(f"has two boxes in frame {repeated[0]}")
    labels = [_labels(box, track.get("label"), classes) for _, _, _, box in rows]
    return _Track(frames, np.array([row[1] for row in rows]), np.array([row[2] for row in rows]), labels)


def _read_box(box: ET.Element) -> tuple[int, list[float], bool, ET.Element]:
    try:
        return int(box.get("frame")), [float(box.get(name)) for name in _CORNERS], box.get("outside") != "1", box
    except (TypeError, ValueError):
        found = {name: box.get(name) for name in ("frame", *_CORNERS)}
        raise AnnotationError(f"a box needs a frame and four corners, all of them numbers, got {found}") from None


def _labels(box: ET.Element, track_label: str, classes: Collection[str] | None) -> set[str]:
    """Return what somebody does from this box on."""
    values = {attribute.get("name"): (attribute.text or "").strip() for attribute in box.findall("attribute")}
    checks = {
        name: _CHECKED[value.lower()]
        for name, value in values.items()
        if value.lower() in _CHECKED and (classes is None or name in classes)
    }
    labels = {name for name, is_checked in checks.items() if is_checked}
    if CLASS_ATTRIBUTE in values:
        labels |= {values[CLASS_ATTRIBUTE]} - set(_NO_ACTION)
    elif not checks:
        labels.add(track_label)
    return labels


def _fill(track: _Track) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every frame in which the actor is there, its box, and which given box came last."""
    frames = np.arange(track.frames[0], track.frames[-1] + 1)
    before = np.searchsorted(track.frames, frames, side="right") - 1
    behind = np.minimum(before + 1, len(track.frames) - 1)
    distance = np.maximum(track.frames[behind] - track.frames[before], 1)
    # A box waits where it is for one that is outside.
    share = (frames - track.frames[before]) / distance * track.shown[behind]
    boxes = track.boxes[before] + share[:, None] * (track.boxes[behind] - track.boxes[before])
    is_there = track.shown[before]
    return frames[is_there], boxes[is_there], before[is_there]


def sniff_cvat(source: Source) -> bool:
    """Whether it is XML of annotations that are tracks."""
    return "<annotations" in source.head and "<image " not in source.head


def read_cvat(sources: Sequence[Source], context: Context) -> Content:
    """Read files of one video each."""
    content = Content(box_format="pixel")
    for source in sources:
        prefix = f"{source.name}, " if source.name else ""
        with context.problems.at(source.place()):
            video = read_cvat_video(source.path, context.problems, context.classes, prefix=prefix)
            claim = VideoClaim((video.source, source.path.stem), (video.width, video.height))
            claim.annotated_frames = None if video.num_frames is None else range(video.num_frames)
            content.videos[video.source] = claim
            content.entries.extend(
                Entry(place, video.source, boxes, [label], frames, track_id=(source.name, track_id))
                for place, track_id, label, frames, boxes in video.tubes
            )
    return content


CVAT = Format("cvat", "CVAT for video 1.1", sniff_cvat, read_cvat, suffixes=(".xml",))
