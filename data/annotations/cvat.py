"""Reader of "CVAT for video 1.1", the XML that CVAT exports of tasks, jobs and projects in which actors were tracked.

    <annotations>
      <meta><task>
        <start_frame>0</start_frame><stop_frame>249</stop_frame><frame_filter></frame_filter>
        <original_size><width>640</width><height>360</height></original_size>
        <source>kitchen.mp4</source>
      </task></meta>
      <track id="0" label="person">
        <box frame="12" outside="0" xtl="10.5" ytl="20" xbr="80.25" ybr="200">
          <attribute name="action">walk</attribute>
        </box>
        ...

What the numbers mean (`cvat/apps/dataset_manager/bindings.py` of CVAT):

* Frames count from 0 in the video, in tasks and in jobs, whatever frame these start at. In a project, those of a task
  are shifted by what the tasks of its subset before it take.
* With a `frame_filter` such as `step=30`, a task has every 30th frame only; nobody looked into the others.
* CVAT writes a box for every frame. Where other tools leave frames out, the box moves in a straight line between two
  boxes, and what the first says holds on; from a box with `outside="1"` on, the actor is gone. Nothing is held after
  the last box of a track.
* A box that is rotated counts as the one that encloses it.
* The export of a job names no video, and tracks without a `<meta>` (as of KABR) neither: the video is the one with the
  name of the XML file, or the only one there is.

How tracks become actions, in every frame by itself, is for `classquery.data.annotations.cvat_classes`.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from classquery.data.annotations.collecting import MAX_FRAME, in_file, look_at_video, reading
from classquery.data.annotations.cvat_classes import Classes
from classquery.data.annotations.cvat_writing import write_cvat
from classquery.data.annotations.entries import Content, Context, Entry, Format, Source, VideoClaim
from classquery.data.annotations.schema import AnnotationError, quote


_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_OTHER_SHAPES = ("polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")
_STEP = re.compile(r"\s*step\s*=\s*(\d+)\s*")


class _Task(NamedTuple):
    """Frames of one video that somebody annotated."""

    video: str
    """Its name when it was uploaded, or that of the file."""
    claim: VideoClaim
    frames: range | None
    """In the video; None where the file does not say which."""
    shift: int = 0
    """What the numbers in the file are larger by."""


class _Boxes(NamedTuple):
    """The boxes of a track as they stand in the file, in the order of their frames."""

    frames: np.ndarray
    """int64 (n,), in the file."""
    corners: np.ndarray
    """float64 (n, 5), x1, y1, x2, y2 and the rotation in degrees."""
    shown: np.ndarray
    """Boolean (n,)."""
    labels: list[frozenset[str] | None]
    """None where nobody said what happens."""


def sniff_cvat(source: Source) -> bool:
    """Whether it is XML of annotations that are not single images."""
    return "<annotations" in source.head and "<image" not in source.head


def read_cvat(sources: Sequence[Source], context: Context) -> Content:
    """Read files of tasks, jobs or projects."""
    content = Content(box_format="pixel")
    roots = []
    for source in sources:
        with context.problems.at(source.place()):
            root = source.xml()
            _refuse_others(source, root)
            roots.append((source, root))
    classes = Classes((track for _, root in roots for track in root.iter("track")), context.classes)
    for source, root in roots:
        with reading(context, source.place()):
            _read_file(source, root, classes, context, content)
    content.notes += classes.notes()
    content.warnings += classes.warnings()
    return content


def _refuse_others(source: Source, root: ET.Element) -> None:
    if root.tag != "annotations" or root.find("image") is not None:
        raise AnnotationError(f"{source.path} is no export of tracks: choose the format 'CVAT for video 1.1'")
    version = (root.findtext("version") or "1.1").strip()
    if not version.startswith("1."):
        raise AnnotationError(f"{source.path} has version {quote(version)}, and 'CVAT for video 1.1' is needed")


def _read_file(source: Source, root: ET.Element, classes: Classes, context: Context, content: Content) -> None:
    tasks = _tasks(source, root.find("meta"))
    for task in tasks.values():
        content.videos[task.video] = task.claim.joined(content.videos.get(task.video))
    for track in root.iter("track"):
        place = source.place(f"track {track.get('id')}")
        with reading(context, place):
            task = _task_of(track, tasks)
            content.ignored.update(_other_shapes(track))
            boxes = _read_track(track, classes)
            if boxes is not None:
                number = in_file(source, int(track.get("id")))
                size = task.claim.size or (_size_of_video(task, context) if boxes.corners[:, 4].any() else None)
                content.entries += _entries(Entry(place, task.video, [], track_id=number), boxes, task, size)


def _other_shapes(track: ET.Element) -> Counter[str]:
    """Count the tracks of other shapes or none; a skeleton has elements of its own inside, and is one."""
    found = next((shape for shape in _OTHER_SHAPES if track.find(shape) is not None), None)
    if found is None:
        return Counter([] if track.find("box") is not None else ["tracks without a box"])
    return Counter([f"tracks of {found}s"])


# What the file says of the video


def _tasks(source: Source, meta: ET.Element | None) -> dict[str | None, _Task]:
    """Return the tasks by their ids; the one of a file that has only one has the id None."""
    stem = source.path.stem
    own_names = (stem, stem.removesuffix("_tracks"))
    if meta is None:
        return {None: _Task(stem, VideoClaim(own_names, is_named=False), None)}
    project = meta.findall("project/tasks/task")
    if not project:
        part = next((part for name in ("task", "job") if (part := meta.find(name)) is not None), meta)
        video, frames = (part.findtext("source") or meta.findtext("source") or "").strip(), _frames(part)
        names = (video, *own_names) if video else own_names
        claim = VideoClaim(names, _size(part) or _size(meta), annotated_frames=frames, is_named=bool(video))
        return {None: _Task(video or stem, claim, frames)}
    tasks, taken = {}, Counter()
    for task in sorted(project, key=lambda task: (task.findtext("subset") or "", _number(task, "id") or 0)):
        video, subset, frames = (task.findtext("source") or "").strip(), task.findtext("subset"), _frames(task)
        if not video or frames is None:
            raise AnnotationError(
                f"task {quote(task.findtext('id'))} of the project does not say its <source>, <start_frame> and "
                "<stop_frame>: export the task by itself"
            )
        claim = VideoClaim((video,), _size(task), annotated_frames=frames)
        tasks[task.findtext("id")] = _Task(video, claim, frames, taken[subset])
        taken[subset] += frames.start + frames.step * (_number(task, "size") or len(frames))
    return tasks


def _task_of(track: ET.Element, tasks: dict[str | None, _Task]) -> _Task:
    task = tasks.get(track.get("task_id"), tasks.get(None))
    if task is None:
        raise AnnotationError(
            f"is of task {quote(track.get('task_id'))}, and the file has {', '.join(map(str, tasks))}"
        )
    return task


def _size_of_video(task: _Task, context: Context) -> tuple[int, int] | None:
    """Look at how large the frames are, where the file does not say it and turned boxes may reach out of them."""
    info = look_at_video(context, task.claim.names)
    return (info.width, info.height) if info else None


def _size(part: ET.Element) -> tuple[int, int] | None:
    width, height = (_number(part, f"original_size/{side}") for side in ("width", "height"))
    return (width, height) if width and height else None


def _frames(part: ET.Element) -> range | None:
    start, stop = (_number(part, name) for name in ("start_frame", "stop_frame"))
    step = _STEP.fullmatch(part.findtext("frame_filter") or "")
    return None if stop is None else range(start or 0, stop + 1, max(1, int(step[1])) if step else 1)


def _number(part: ET.Element, name: str) -> int | None:
    text = (part.findtext(name) or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


# Tracks


def _read_track(track: ET.Element, classes: Classes) -> _Boxes | None:
    """Return the boxes of a track; None if it is made of another shape, or of nothing."""
    if not re.fullmatch("[0-9]{1,9}", track.get("id") or "") or not track.get("label"):
        raise AnnotationError(
            f"needs a whole number as id and a label, got {quote(track.get('id'))}, {quote(track.get('label'))}"
        )
    boxes = track.findall("box")
    if not boxes:
        return None
    rows: dict[int, tuple] = {}
    for box in boxes:
        frame, *row = _read_box(box)
        row.append(classes.of(track, box))
        # Twins that agree are one.
        if rows.setdefault(frame, row) != row:
            raise AnnotationError(f"has two boxes in frame {frame}")
    frames = sorted(rows)
    corners, shown, labels = zip(*(rows[frame] for frame in frames), strict=True)
    return _Boxes(np.array(frames, np.int64), np.array(corners), np.array(shown), list(labels))


def _read_box(box: ET.Element) -> tuple[int, list[float], bool]:
    try:
        frame = int(box.get("frame"))
        corners = [float(box.get(name)) for name in _CORNERS]
        rotation = float(box.get("rotation") or 0)
    except (TypeError, ValueError):
        frame, corners, rotation = None, [], 0.0
    if frame is None or not all(map(math.isfinite, (*corners, rotation))):
        found = {name: box.get(name) for name in ("frame", *_CORNERS, "rotation")}
        raise AnnotationError(f"a box needs a frame and four corners, all of them numbers, got {quote(found)}")
    if not 0 <= frame <= MAX_FRAME:
        raise AnnotationError(f"frames count from 0 in the video, got frame {frame}")
    return frame, [*corners, rotation], box.get("outside") != "1"


def _entries(entry: Entry, given: _Boxes, task: _Task, size: tuple[int, int] | None) -> Iterator[Entry]:
    """Yield the frames of each action of a track, and those of none; `size` cuts off boxes that are turned."""
    frames, corners, origin = _fill(given, task)
    frames = frames - task.shift
    if task.frames and len(frames) and not task.frames.start <= frames[0] <= frames[-1] < task.frames.stop:
        raise AnnotationError(
            f"has frames {frames[0] + task.shift} to {frames[-1] + task.shift}, and those of its task are "
            f"{task.frames.start + task.shift} to {task.frames.stop - 1 + task.shift}"
        )
    boxes = _enclose(corners, size)
    for label in sorted(set().union(*filter(None, given.labels))):
        does = np.array([bool(labels) and label in labels for labels in given.labels])[origin]
        if does.any():
            yield entry._replace(labels=(label,), frames=frames[does], boxes=boxes[does])
    for said, names in ((frozenset(), ()), (None, None)):
        does = np.array([labels == said for labels in given.labels])[origin]
        if does.any():
            yield entry._replace(labels=names, frames=frames[does], boxes=boxes[does])


def _fill(track: _Boxes, task: _Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every frame of the task in which the actor is there, its box, and which given box came last."""
    step = task.frames.step if task.frames else 1
    first, last = track.frames[[0, -1]]
    # Frames that are given count in any case; others only if the task has them.
    offset = (task.frames.start + task.shift - first) % step if task.frames else 0
    frames = np.union1d(np.arange(first + offset, last + 1, step), track.frames)
    before = np.searchsorted(track.frames, frames, side="right") - 1
    behind = np.minimum(before + 1, len(track.frames) - 1)
    distance = np.maximum(track.frames[behind] - track.frames[before], 1)
    # A box waits where it is for one that is outside.
    share = (frames - track.frames[before]) / distance * track.shown[behind]
    way = track.corners[behind] - track.corners[before]
    way[:, 4] = (way[:, 4] + 180) % 360 - 180  # The short way round.
    corners = track.corners[before] + share[:, None] * way
    is_there = track.shown[before]
    return frames[is_there], corners[is_there], before[is_there]


def _enclose(corners: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Return the boxes that enclose boxes rotated about their centres, cut off at the edges of the frame."""
    low, high, angle = corners[:, :2], corners[:, 2:4], np.deg2rad(corners[:, 4:])
    center, side = (low + high) / 2, np.abs(high - low) / 2
    half = np.abs(np.cos(angle)) * side + np.abs(np.sin(angle)) * side[:, ::-1]
    hull = np.concatenate([center - half, center + half], axis=1).clip(0, size * 2 if size else None)
    return np.where(corners[:, 4:] % 360 == 0, corners[:, :4], hull)


CVAT = Format("cvat", "CVAT for video 1.1", sniff_cvat, read_cvat, suffixes=(".xml",), write=write_cvat)
