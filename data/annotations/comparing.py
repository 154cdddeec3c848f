"""What changed from one file of annotations to another of the same videos, as after a correction."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from classquery.data.annotations.boxes import concatenate, table_of, without_ignored_names
from classquery.data.annotations.entries import IGNORED, UNKNOWN, BoxTable, Content, Context, Source, VideoClaim
from classquery.data.annotations.formats import read_annotations
from classquery.data.annotations.schema import AnnotationError, ProblemCollector
from classquery.data.annotations.videos import VideoFinder, video_id
from classquery.data.video.reader import ClipReader


# Less, and it is somebody else.
_SAME_PERSON_IOU = 0.3
# Less, and the box was moved: rounding to hundredths of a pixel does not do so.
_SAME_BOX_IOU = 0.95


class Actor(NamedTuple):
    """Somebody in a frame, or at a moment."""

    box: np.ndarray
    """float64 (4,), corners, in pixels or fractions of the frame."""
    labels: frozenset[str] | None
    """None where nobody said what they do."""
    who: str
    """What the file calls the track; nothing where it has none."""


class Change(NamedTuple):
    """The same change through frames, or moments, that follow each other."""

    video: str
    start: float
    """Frame, or second, and so is `end`, which is included."""
    end: float
    who: str
    """The track in the old file, or in the new one if it is new."""
    what: str


@dataclass
class ClassChanges:
    """How many boxes of a class."""

    before: int = 0
    after: int = 0
    kept: int = 0
    """Of the same person, wherever the box is now."""

    @property
    def added(self) -> int:
        """Boxes that are of the class now."""
        return self.after - self.kept

    @property
    def removed(self) -> int:
        """Boxes that are not of the class any more."""
        return self.before - self.kept


@dataclass
class Comparison:
    """What changed."""

    classes: dict[str, ClassChanges] = field(default_factory=lambda: defaultdict(ClassChanges))
    boxes: Counter[str] = field(default_factory=Counter)
    """How many are "the same", "moved", "new" and "gone"."""
    changes: list[Change] = field(default_factory=list)
    """By video and person."""


def compare_annotations(old: str | Path, new: str | Path, video_folder: str | Path | None = None) -> Comparison:
    """Compare two files, or folders of files, of any format, frame by frame; people are told by their boxes.

    Args:
        old, new: What was corrected, and what it is now.
        video_folder: Where the videos are; only needed where the formats count in different units.

    Raises:
        AnnotationError: If one cannot be read, or they cannot be compared.
        FileNotFoundError: If one is not there.
    """
    finder = VideoFinder([] if video_folder is None else [Path(video_folder)])
    (old_content, before), (new_content, after) = (_read(Path(path), finder) for path in (old, new))
    is_moment = {bool(table.is_moment[0]) for table in (before, after) if table.num_rows}
    if len(is_moment) > 1:
        raise AnnotationError("one has frames and the other moments: compare files of one format")
    names = _common_names(old_content.videos, new_content.videos)
    in_fractions = old_content.box_format != new_content.box_format
    comparison, changes = Comparison(), []
    frames_before = _by_frame(before, _units(old_content, finder) if in_fractions else {}, {})
    frames_after = _by_frame(after, _units(new_content, finder) if in_fractions else {}, names)
    for video in sorted(frames_before.keys() | frames_after.keys()):
        ours, others = frames_before.get(video, {}), frames_after.get(video, {})
        for order, time in enumerate(sorted(ours.keys() | others.keys())):
            for who, what in _compare_frame(ours.get(time, []), others.get(time, []), comparison):
                changes.append((video, who, what, order, time))
    comparison.changes = list(_joined(changes))
    return comparison


def _read(path: Path, finder: VideoFinder) -> tuple[Content, BoxTable]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"there are no annotations in {path}")
    problems = ProblemCollector(path)
    sources = [Source(file, file.name if len(files) > 1 else "") for file in files]
    _, content = read_annotations(sources, Context(problems, find_video=finder, list_videos=finder.list_videos))
    table = without_ignored_names(concatenate([*content.tables, table_of(content.entries, problems)]), None)
    problems.raise_if_any()
    return content, table.take(table.label != IGNORED)


def _common_names(old: Mapping[str, VideoClaim], new: Mapping[str, VideoClaim]) -> dict[str, str]:
    """Return what the old file calls the videos of the new one."""
    if len(old) == len(new) == 1:
        return dict(zip(new, old, strict=True))
    by_name = {candidate: name for name, claim in old.items() for candidate in _candidates(name, claim)}
    common = {}
    for name, claim in new.items():
        found = [by_name[candidate] for candidate in _candidates(name, claim) if candidate in by_name]
        common[name] = found[0] if found else name
    return common


def _candidates(name: str, claim: VideoClaim) -> list[str]:
    full = [video_id(candidate) for candidate in (name, *claim.names) if candidate]
    return [*full, *(candidate.replace("\\", "/").rpartition("/")[2] for candidate in full)]


def _units(content: Content, finder: VideoFinder) -> dict[str, np.ndarray]:
    """Return what boxes are divided by to be fractions of the frame, by video."""
    if content.box_format != "pixel":
        return {}
    units = {}
    for name, claim in content.videos.items():
        path = finder(finder.resolve(name, claim))
        if claim.size is None and path is None:
            raise AnnotationError(f"one file counts in pixels and the other does not: put {name} into --video_folder")
        info = None if claim.size else ClipReader().info(path)
        units[name] = np.array((claim.size or (info.width, info.height)) * 2, float)
    return units


def _by_frame(
    table: BoxTable, units: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> dict[str, dict[float, list[Actor]]]:
    """Collect the actors by video and time."""
    found: dict[tuple, Actor] = {}
    times = np.where(table.is_moment, np.round(table.time, 3), table.time).tolist()
    columns = (table.video, table.track, table.entry, table.label)
    rows = zip(times, table.corners, *(column.tolist() for column in columns), strict=True)
    for time, corners, video, track, entry, label in rows:
        name = table.videos[video]
        # Rows of nobody at one place are one actor with several labels.
        key = (video, time, ("track", track) if track >= 0 else tuple(corners) if table.is_moment[0] else entry)
        said = None if label == UNKNOWN else frozenset(table.labels[label : label + 1] if label >= 0 else ())
        known = found.get(key)
        if known is not None and known.labels is not None:
            said = known.labels | (said or frozenset())
        box = corners / units.get(name, 1.0)
        found[key] = Actor(box, said, str(track) if track >= 0 else "")
    frames: dict[str, dict[float, list[Actor]]] = defaultdict(lambda: defaultdict(list))
    for (video, time, _), actor in found.items():
        name = table.videos[video]
        frames[names.get(name, name)][time].append(actor)
    return frames


def _compare_frame(
    before: Sequence[Actor], after: Sequence[Actor], comparison: Comparison
) -> Iterator[tuple[str, str]]:
    """Count what is in a frame, and yield whom it concerns and what changed."""
    pairs = _pairs(before, after)
    for group, name in ((before, "before"), (after, "after")):
        for actor in group:
            for label in actor.labels or ():
                counts = comparison.classes[label]
                setattr(counts, name, getattr(counts, name) + 1)
    for one, other, iou in pairs:
        is_same = iou >= _SAME_BOX_IOU
        comparison.boxes["the same" if is_same else "moved"] += 1
        if not is_same:
            yield one.who, "box moved"
        had, has = one.labels or frozenset(), other.labels or frozenset()
        for label in had & has:
            comparison.classes[label].kept += 1
        if had != has:
            yield one.who, f"{_named(one.labels)} -> {_named(other.labels)}"
    for group, index, name in ((before, 0, "gone"), (after, 1, "new")):
        paired = {id(pair[index]) for pair in pairs}
        for actor in group:
            if id(actor) not in paired:
                comparison.boxes[name] += 1
                yield actor.who, f"{name}: {_named(actor.labels)}"


def _named(labels: frozenset[str] | None) -> str:
    return "unknown" if labels is None else ", ".join(sorted(labels)) or "none"


def _pairs(before: Sequence[Actor], after: Sequence[Actor]) -> list[tuple[Actor, Actor, float]]:
    """Pair the actors of a frame so that their boxes overlap most."""
    if not before or not after:
        return []
    ious = _iou(np.array([actor.box for actor in before]), np.array([actor.box for actor in after]))
    rows, columns = linear_sum_assignment(ious, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [
        (before[row], after[column], float(ious[row, column]))
        for row, column in pairs
        if ious[row, column] >= _SAME_PERSON_IOU
    ]


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the overlap (n, m) of boxes (n, 4) and (m, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas, other_areas = ((part[:, 2:] - part[:, :2]).prod(1) for part in (boxes, others))
    return common / np.maximum(areas[:, None] + other_areas - common, 1e-12)


def _joined(changes: Sequence[tuple[str, str, str, int, float]]) -> Iterator[Change]:
    """Join what goes on from one frame with annotations to the next."""
    last: tuple | None = None
    for video, who, what, order, time in sorted(changes):
        if last is not None and last[:3] == (video, who, what) and order <= last[3] + 1:
            last = (video, who, what, order, last[4], time)
            continue
        if last is not None:
            yield Change(last[0], last[4], last[5], last[1], last[2])
        last = (video, who, what, order, time, time)
    if last is not None:
        yield Change(last[0], last[4], last[5], last[1], last[2])
