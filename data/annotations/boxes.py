"""Boxes of a split in columns: checked, joined to actors and written as rows all at once."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from classquery.data.annotations.entries import IGNORED, NOBODY, UNKNOWN, BoxTable, Entry
from classquery.data.annotations.schema import AnnotationError, ProblemCollector, nest_tubes, quote


def _codes(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(name, len(numbers)) for name in names]
    return np.array(codes, np.int32), list(numbers)


def table_of(entries: Sequence[Entry], problems: ProblemCollector) -> BoxTable:
    """Put entries into columns; those that do not fit are problems."""
    corners, times, used = [], [], []
    for entry in entries:
        with problems.at(entry.place):
            for name in (entry.video, *(entry.labels or ())):
                _refuse_no_name(name)
            boxes = _corners(entry)
            times.append([entry.timestamp] if entry.frames is None else np.asarray(entry.frames, np.float64))
            corners.append(boxes)
            used.append(entry)
    entries = used
    num_boxes = np.array([len(part) for part in corners], np.int64)
    named = [() if entry.is_ignored else tuple(dict.fromkeys(entry.labels or ())) for entry in entries]
    num_labels = np.array([max(1, len(names)) for names in named], np.int64)
    video, videos = _codes([entry.video for entry in entries])
    label, labels = _codes([name for names in named for name in names])
    first_label = np.cumsum([0, *map(len, named)])[:-1]
    # All boxes of an entry with its first label, then all with its second.
    repeated = np.repeat(np.arange(len(entries)), num_labels)
    which_label = _count_up(num_labels)
    of_entry = np.repeat(repeated, num_boxes[repeated]).astype(np.int32)
    has_label = np.array([bool(names) for names in named], bool)
    code = np.array([_code_without_label(entry) for entry in entries], np.int32)[repeated]
    code[has_label[repeated]] = label[(first_label[repeated] + which_label)[has_label[repeated]]]
    first_box = np.cumsum([0, *num_boxes])[:-1]
    box = np.repeat(first_box[repeated], num_boxes[repeated]) + _count_up(num_boxes[repeated])
    places = [entry.place for entry in entries]
    return BoxTable(
        videos,
        labels,
        places.__getitem__,
        np.array([entry.frames is None for entry in entries], bool)[of_entry],
        video[of_entry],
        np.concatenate([np.zeros(0), *times])[box],
        np.concatenate([np.zeros((0, 4)), *corners])[box],
        np.repeat(code, num_boxes[repeated]),
        _tracks(entries, video)[of_entry],
        of_entry,
        of_entry,
    )


def _code_without_label(entry: Entry) -> int:
    if entry.is_ignored:
        return IGNORED
    return UNKNOWN if entry.labels is None else NOBODY


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """Return 0, 1, ... for each of some lengths, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


@lru_cache(maxsize=4096)
def _refuse_no_name(name: str) -> None:
    """Refuse what cannot be written to a file: halves of characters, and what controls a terminal."""
    if any(0xD800 <= ord(character) <= 0xDFFF or ord(character) < 0x20 for character in name):
        raise AnnotationError(f"a name must be text, got {quote(name)}")


def _corners(entry: Entry) -> np.ndarray:
    """Check that an entry has a box with four numbers for each frame."""
    num_boxes = 1 if entry.frames is None else len(entry.frames)
    if len(entry.boxes) != num_boxes or not num_boxes:
        raise AnnotationError(f"needs one box for each frame, got {len(entry.boxes)} for {num_boxes}")
    try:
        boxes = np.asarray(entry.boxes, np.float64)
    except (TypeError, ValueError, OverflowError):
        boxes = np.zeros(0)
    if boxes.shape != (num_boxes, 4):
        raise AnnotationError(f"a box has four corners x1, y1, x2, y2, all of them numbers, got {quote(entry.boxes)}")
    return boxes


def _tracks(entries: Sequence[Entry], video: np.ndarray) -> np.ndarray:
    """Return tracks as the file numbers them, or in their order where a video has names or several files of them."""
    ids: dict[int, dict[Any, int]] = defaultdict(dict)
    for code, entry in zip(video.tolist(), entries, strict=True):
        if entry.track_id is not None:
            ids[code].setdefault(entry.track_id, len(ids[code]))
    for numbers in ids.values():
        files = {track[0] if isinstance(track, tuple) else "" for track in numbers}
        own = {track: track[1] if isinstance(track, tuple) else track for track in numbers}
        if len(files) == 1 and all(isinstance(number, int) for number in own.values()):
            numbers |= own
    return np.array(
        [
            NOBODY if entry.track_id is None else ids[code][entry.track_id]
            for code, entry in zip(video.tolist(), entries, strict=True)
        ],
        np.int32,
    )


def concatenate(tables: Sequence[BoxTable]) -> BoxTable:
    """Join the tables of several files; entries without a track stay apart."""
    if len(tables) == 1:
        return tables[0]
    video, videos = _codes([name for table in tables for name in table.videos])
    label, labels = _codes([name for table in tables for name in table.labels])
    columns: list[list[np.ndarray]] = [[] for _ in BoxTable._fields[3:]]
    first_video = first_label = first_entry = first_place = 0
    starts, names = [], []
    for table in tables:
        own_label = np.append(label[first_label : first_label + len(table.labels)], [IGNORED, UNKNOWN, NOBODY])[
            table.label
        ]
        moved = table._replace(
            video=video[first_video : first_video + len(table.videos)][table.video],
            label=own_label,
            entry=table.entry + first_entry,
            place=table.place + first_place,
        )
        for column, part in zip(columns, moved[3:], strict=True):
            column.append(part)
        starts.append(first_place)
        names.append(table.place_of)
        first_video, first_label = first_video + len(table.videos), first_label + len(table.labels)
        first_entry += int(table.entry.max(initial=-1)) + 1
        first_place += int(table.place.max(initial=-1)) + 1

    def place_of(place: int) -> str:
        table = int(np.searchsorted(starts, place, side="right")) - 1
        return names[table](place - starts[table])

    return BoxTable(videos, labels, place_of, *(np.concatenate(column) for column in columns))


class Check(NamedTuple):
    """Something that rows of a table may be wrong about."""

    wrong: np.ndarray
    """Boolean (n,)."""
    message: Callable[[int], str]
    """What is wrong with a row."""


def keep_right(table: BoxTable, checks: Sequence[Check], problems: ProblemCollector) -> BoxTable:
    """Return the rows that no check finds wrong; the first problem of every place is noted, in their order."""
    wrong = np.logical_or.reduce([check.wrong for check in checks])
    if not wrong.any():
        return table
    rows = np.flatnonzero(wrong)
    rows = rows[np.sort(np.unique(table.place[rows], return_index=True)[1])]

    def message(row: int) -> str:
        return next(check.message(row) for check in checks if check.wrong[row])

    problems.note(len(rows), ((table.where(row), message(row)) for row in rows))
    return table.take(~wrong)


_IGNORED_NAMES = {"ignore", "ignored", "ignore region", "ignored region", "dont care", "dontcare"}


def is_name_of_ignored(name: str) -> bool:
    """Whether a label says that nobody looked in the box, as data sets of traffic and surveillance call it."""
    words = name.lower().replace("'", "").replace("_", " ").replace("-", " ").split()
    return " ".join(words).removesuffix("s") in _IGNORED_NAMES


def without_ignored_names(table: BoxTable, classes: Collection[str] | None) -> BoxTable:
    """Turn labels that are named like ignored regions, and are not listed as classes, into such regions."""
    names = [
        name for name in table.labels if not is_name_of_ignored(name) or (classes is not None and name in classes)
    ]
    if len(names) == len(table.labels):
        return table
    number = {name: code for code, name in enumerate(names)}
    codes = [number.get(name, IGNORED) for name in table.labels]
    return table._replace(labels=names, label=np.array([*codes, IGNORED, UNKNOWN, NOBODY], np.int32)[table.label])


# Who is who


class Actors(NamedTuple):
    """Boxes joined to actors."""

    table: BoxTable
    scene: np.ndarray
    """int32 (n,), number of the keyframe or the video, in the order of their first rows."""
    actor: np.ndarray
    """int32 (n,), number of the actor."""


def join(table: BoxTable, problems: ProblemCollector) -> Actors:
    """Find the actors.

    Rows of one track are one actor within a video, or at a keyframe. Without a track, people at a keyframe are told
    apart by their boxes, and those in frames by their entries. Rows that repeat others, or give an actor another box
    in the same frame, are problems.
    """
    # Keyframes are told apart to the millisecond.
    scene = _groups(table.video, np.where(table.is_moment, np.round(table.time, 3), 0.0))
    has_track = table.track != NOBODY
    who = np.where(has_track, table.track, table.entry)
    by_box = table.is_moment & ~has_track
    if by_box.any():
        who = np.where(by_box, _groups(*table.corners.T), who)
    actor = _groups(scene, has_track, who)
    frame = np.where(table.is_moment, 0.0, table.time)
    in_frame = _groups(actor, frame)
    first, label_first = _first_of(in_frame), _first_of(_groups(in_frame, table.label))
    differs = np.logical_or.reduce([column[first] != column for column in table.corners.T])
    repeats = label_first != np.arange(table.num_rows)
    # Whoever says what somebody does in a frame knows more than who only boxed them there.
    most_known = np.full(in_frame.max(initial=-1) + 1, UNKNOWN)
    np.maximum.at(most_known, in_frame, np.minimum(table.label, 0))
    known = (table.label < 0) & (table.label < most_known[in_frame])

    def message(row: int) -> str:
        at = "" if table.is_moment[row] else f" in frame {frame[row]:g}"
        if differs[row]:
            return f"track {table.track[row]} has another box{at} in {table.where(first[row])}"
        return f"repeats {table.where(label_first[row])}{at}"

    wrong = differs | (repeats & ~known)
    keep_right(table, [Check(wrong, message)], problems)
    kept = ~(wrong | known)
    return Actors(table.take(kept), scene[kept], actor[kept])


def _groups(*columns: np.ndarray) -> np.ndarray:
    """Number the rows that are equal in all columns, in the order of the first of each: int32 (n,)."""
    numbers = pd.factorize(columns[0])[0]
    for column in columns[1:]:
        codes, values = pd.factorize(column)
        numbers = pd.factorize(numbers * max(1, len(values)) + codes)[0]
    return numbers.astype(np.int32)


def _first_of(groups: np.ndarray) -> np.ndarray:
    """Return for each row the first row of its group; groups are numbered in the order of these."""
    is_first = np.diff(np.maximum.accumulate(groups), prepend=-1) > 0
    return np.flatnonzero(is_first)[groups]


# Rows


def tubes_of(actors: Actors, num_scenes: int, label_ids: np.ndarray) -> pa.Array:
    """Return the column `tubes`, one list for each scene: a tube for all labels of somebody over the same frames.

    Args:
        actors: Boxes are fractions of the frame.
        num_scenes: How many scenes there are.
        label_ids: Number of each label of the table as a class, (num_labels,).
    """
    table, scene, actor = actors
    group = _groups(actor, table.label)
    order = np.lexsort((table.time, group, scene))
    table, scene, actor = table.take(order), scene[order], actor[order]
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    same = _same_frames(table, actor, starts, lengths)
    is_tube = same == np.arange(len(starts))
    first, length = starts[is_tube], lengths[is_tube]
    # A label of the group goes to the tube with its frames.
    label = np.append(label_ids, [UNKNOWN, NOBODY])[table.label[starts]]
    tube = (np.cumsum(is_tube) - 1)[same]
    known = np.flatnonzero(label >= 0)
    known = known[np.lexsort((label[known], tube[known]))]
    rows = np.repeat(first, length) + _count_up(length)
    in_frames = ~table.is_moment[first]
    return nest_tubes(
        np.bincount(scene[first], minlength=num_scenes),
        pa.array(table.track[first], mask=table.track[first] == NOBODY),
        (np.bincount(tube[known], minlength=len(first)), label[known], label[is_tube] == UNKNOWN),
        (length, table.corners[rows].astype(np.float32)),
        (in_frames, table.time[rows[~table.is_moment[rows]]]),
    )


def _same_frames(table: BoxTable, actor: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return for each group of rows of one label the first one of the same actor with the same frames."""
    same = np.arange(len(starts))
    several = np.bincount(actor[starts], minlength=1)[actor[starts]] > 1
    seen: dict[tuple, int] = {}
    for group in np.flatnonzero(several).tolist():
        start = starts[group]
        frames = b"" if table.is_moment[start] else table.time[start : start + lengths[group]].tobytes()
        same[group] = seen.setdefault((int(actor[start]), frames), group)
    return same


def regions_of(table: BoxTable, scene: np.ndarray, num_scenes: int) -> list[list[dict[str, Any]] | None]:
    """Return the column `ignored`: the regions (rows of the table) of each scene, None for none."""
    found: list[list[dict[str, Any]] | None] = [None] * num_scenes
    region = _groups(table.video, table.track != NOBODY, np.where(table.track == NOBODY, table.entry, table.track))
    region = _groups(scene, region)
    for number in range(region.max(initial=-1) + 1):
        rows = np.flatnonzero(region == number)
        rows = rows[np.unique(table.time[rows], return_index=True)[1]]
        frames = None if table.is_moment[rows[0]] else table.time[rows].astype(int).tolist()
        of_scene = found[scene[rows[0]]] = found[scene[rows[0]]] or []
        of_scene.append({"frames": frames, "boxes": table.corners[rows].astype(np.float32).tolist()})
    return found
