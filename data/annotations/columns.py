"""Boxes in columns, compared with classes and videos, and turned into the rows of a data set."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from classquery.data.annotations.boxes import Check, join, keep_right, regions_of, tubes_of
from classquery.data.annotations.entries import IGNORED, NOBODY, BoxTable, VideoClaim
from classquery.data.annotations.schema import (
    BOX_TOLERANCE,
    ProblemCollector,
    explain_box,
    quote,
    unit_boxes,
)
from classquery.data.annotations.videos import Video, video_ids
from classquery.data.hints import closest


_NO_PIXELS = (
    "no corner is further than one pixel from the origin: these look like fractions of width and height; if they are, "
    'say so with box_format="normalized"'
)


class Unit(NamedTuple):
    """What numbers in the annotations mean."""

    in_pixels: bool
    drawn_in: tuple[int, int] | None
    """Width and height of the frames that pixels are of, if the user says so."""
    claims: Mapping[str, VideoClaim]
    videos: Mapping[str, Video | None]
    timestamp_offset: float

    def size_of(self, name: str) -> tuple[int, int] | None:
        """Width and height of the frame that boxes are meant in; None where nobody knows."""
        video = self.videos.get(name)
        return self.claims[name].size or self.drawn_in or (video and (video.width, video.height))


def checked_boxes(table: BoxTable, label_ids: Mapping[str, int], unit: Unit, problems: ProblemCollector) -> BoxTable:
    """Check everything that a row by itself can be wrong about, and turn its box into fractions of the frame."""
    is_known = np.array([*(name in label_ids for name in table.labels), True, True, True])[table.label]

    def unknown(row: int) -> str:
        name = table.labels[table.label[row]]
        return f"unknown class {quote(name)}{closest(name, label_ids)}"

    sizes = np.array([unit.size_of(name) or (np.nan, np.nan) for name in table.videos]).reshape(-1, 2)
    in_pixels = unit.in_pixels
    size = sizes[table.video] if in_pixels else np.ones((1, 2))
    boxes, are_boxes = unit_boxes(table.corners, size, 1.0 if in_pixels else BOX_TOLERANCE)

    def no_box(row: int) -> str:
        at = "" if table.is_moment[row] else f" (frame {table.time[row]:g})"
        return f"{explain_box(table.corners[row], size[row] if in_pixels else None)}{at}"

    # Without its video, nobody knows what pixels mean: there is nothing to check, and nothing to tell.
    is_open = np.isnan(size).any(1)
    if in_pixels and table.num_rows and np.abs(table.corners).max() <= 1:
        problems.note(table.num_rows, [("boxes", _NO_PIXELS)])
        return table.take(np.zeros(table.num_rows, bool))
    checks = [Check(~is_known, unknown), *_time_checks(table, unit), Check(~are_boxes & ~is_open, no_box)]
    right = keep_right(table._replace(corners=boxes), checks, problems)
    return right.take(~np.isnan(right.corners).any(1))


def _time_checks(table: BoxTable, unit: Unit) -> list[Check]:
    """Check that moments and frames are in the video, where that can be read."""
    videos = [unit.videos.get(name) for name in table.videos]
    last_frame = np.array([np.inf if video is None else video.num_frames - 1 for video in videos])[table.video]
    ends = [np.inf if video is None else video.start_seconds + video.num_frames / video.fps for video in videos]
    duration = np.array(ends)[table.video]
    seconds = table.time - unit.timestamp_offset

    def no_frame(row: int) -> str:
        return f"frame {table.time[row]:g} is not in the video, which has frames 0 to {last_frame[row]:g}"

    def no_moment(row: int) -> str:
        return (
            f"timestamp {table.time[row]:g} is not in the video, which lasts from {unit.timestamp_offset:g} to "
            f"{unit.timestamp_offset + duration[row]:.2f} s; timestamp_offset says what the annotations call its start"
        )

    is_frame, is_known = ~table.is_moment, np.isfinite(duration)
    return [
        Check(is_frame & ((table.time > last_frame) | (table.time < 0) | (table.time % 1 != 0)), no_frame),
        Check(table.is_moment & is_known & ~((seconds >= 0) & (seconds <= duration)), no_moment),
    ]


def rows_of(
    table: BoxTable, label_ids: Mapping[str, int], unit: Unit, problems: ProblemCollector
) -> tuple[int, dict[str, Any]]:
    """Return how many rows there are and their columns: a row per keyframe or, if tubes are annotated, per video."""
    have_tubes = not table.num_rows or not table.is_moment[0]
    mixed = Check(
        table.is_moment == have_tubes, lambda row: "the rows of a split must all have a timestamp, or all frames"
    )
    table = keep_right(table, [mixed], problems)
    ignored = table.take(table.label == IGNORED)
    actors = join(table.take(table.label != IGNORED), problems)
    labels = np.array([label_ids.get(name, NOBODY) for name in table.labels], np.int64)
    if have_tubes:
        # Also those with nobody in them.
        video, seconds = np.arange(len(table.videos)), None
        actors, scene = actors._replace(scene=actors.table.video), ignored.video
    else:
        first = np.unique(actors.scene, return_index=True)[1]
        video, seconds = actors.table.video[first], np.round(actors.table.time[first], 3)
        scene, video, seconds = _scenes_with(ignored, video, seconds)
    names = [table.videos[code] for code in video]
    facts = [unit.videos.get(name) for name in names]
    columns = {
        field: [None if video is None else getattr(video, field) for video in facts]
        for field in ("source", "num_frames", "height", "width", "fps", "annotated_frames")
    }
    columns["video"] = [None if video is None else str(video.path) for video in facts]
    ids = video_ids(table.videos)
    columns["clip_id"] = [ids[name] for name in names]
    columns["tubes"] = tubes_of(actors, len(names), labels)
    columns["ignored"] = regions_of(ignored, scene, len(names))
    columns["annotated_labels"] = [_label_ids(unit.claims[name], label_ids) for name in names]
    if seconds is not None:
        columns["clip_id"] = [f"{name}_{at:.3f}" for name, at in zip(columns["clip_id"], seconds, strict=True)]
        columns |= {"timestamp": seconds, "video_seconds": seconds - unit.timestamp_offset}
    return len(names), columns


def _scenes_with(
    ignored: BoxTable, video: np.ndarray, seconds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the keyframe of each region, and the videos and times of all keyframes, also those with regions alone."""
    if not ignored.num_rows:
        return ignored.video, video, seconds
    number = {key: scene for scene, key in enumerate(zip(video.tolist(), seconds.tolist(), strict=True))}
    keys = zip(ignored.video.tolist(), np.round(ignored.time, 3).tolist(), strict=True)
    scene = np.array([number.setdefault(key, len(number)) for key in keys], np.int64)
    return scene, np.array([key[0] for key in number], np.int64), np.array([key[1] for key in number])


def _label_ids(claim: VideoClaim, label_ids: Mapping[str, int]) -> list[int] | None:
    """Return the classes that were looked for in a video; None for all."""
    if claim.annotated_labels is None:
        return None
    return sorted(label_ids[name] for name in claim.annotated_labels if name in label_ids)
