"""What writers of several formats share: rows with `ACTION_FEATURES` as actors by video."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classquery.data.annotations.schema import VIDEO_SUFFIXES


logger = logging.getLogger(__name__)

IGNORE = "ignore"
"""What tools are told to call a region in which nobody looked; readers know it by this name."""


class WrittenTube(NamedTuple):
    """Somebody who does the same at one moment or through frames."""

    track_id: int | None
    labels: list[str] | None
    """None where nobody said what they do."""
    frames: np.ndarray
    """int64 (n,), 0-based; of a moment the nearest one."""
    seconds: np.ndarray
    """float64 (n,)."""
    boxes: np.ndarray
    """float64 (n, 4), corners as fractions of the frame."""


class WrittenVideo(NamedTuple):
    """A video of the rows."""

    name: str
    """With its suffix, as the reader of custom data looks for it."""
    width: int
    height: int
    fps: float
    num_frames: int
    frames: np.ndarray
    """int64, ascending: the frames in which everybody is annotated."""
    tubes: list[WrittenTube]
    ignored: list[WrittenTube]
    """Regions in which nobody looked, with the label `IGNORE`."""


class WrittenTrack(NamedTuple):
    """Somebody with all that they do in each frame."""

    track_id: int | None
    frames: np.ndarray
    """int64 (n,), 0-based, ascending."""
    boxes: np.ndarray
    """float64 (n, 4), corners as fractions of the frame."""
    labels: list[tuple[str, ...] | None]
    """(n,): names in alphabetical order; None where nobody said what they do."""


def videos_of(rows: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> list[WrittenVideo]:
    """Collect rows by video.

    Args:
        rows: With `ACTION_FEATURES`: tubes, or keyframes.
        names: Of the classes, by 0-based id.

    Raises:
        ValueError: If a row does not know its video, because that is missing.
    """
    videos: dict[str, WrittenVideo] = {}
    num_partial = 0
    for row in rows:
        facts = [row.get(key) for key in ("width", "height", "fps", "num_frames")]
        if row.get("video") is None or None in facts:
            raise ValueError(
                f"the video of {row['clip_id']!r} is missing, and boxes are written in its pixels and frames"
            )
        name = _video_name(row)
        video = videos.setdefault(name, WrittenVideo(name, *facts, np.arange(0), [], []))
        moment = row["video_seconds"]
        tubes = [_tube(tube, moment, video, names) for tube in row["tubes"]]
        looked_at = _annotated_frames(row) if moment is None else [_frame_at(moment, video)]
        frames = np.concatenate([video.frames, looked_at, *(tube.frames for tube in tubes)])
        regions = [region | {"track_id": None, "labels": None} for region in row.get("ignored") or ()]
        ignored = [_tube(region, moment, video, names)._replace(labels=[IGNORE]) for region in regions]
        videos[name] = video._replace(
            frames=np.unique(frames).astype(np.int64), tubes=[*video.tubes, *tubes], ignored=[*video.ignored, *ignored]
        )
        num_partial += row.get("annotated_labels") is not None
    if num_partial:
        logger.warning(f"The format cannot say which classes were looked for: {num_partial} rows lose that.")
    return list(videos.values())


def _annotated_frames(row: Mapping[str, Any]) -> np.ndarray:
    ranges = row.get("annotated_frames")
    parts = [(0, row["num_frames"])] if ranges is None else ranges
    return np.concatenate([np.arange(0), *(np.arange(*part) for part in parts)])


def _tube(tube: Mapping[str, Any], moment: float | None, video: WrittenVideo, names: Mapping[int, str]) -> WrittenTube:
    frames = np.array([_frame_at(moment, video)] if moment is not None else tube["frames"], dtype=np.int64)
    seconds = np.array([round(moment, 3)]) if moment is not None else frames / video.fps
    boxes = np.array(tube["boxes"], dtype=np.float64)
    labels = None if tube["labels"] is None else [names[label] for label in tube["labels"]]
    return WrittenTube(tube["track_id"], labels, frames, seconds, boxes)


def _frame_at(seconds: float, video: WrittenVideo) -> int:
    return int(np.clip(round(seconds * video.fps), 0, video.num_frames - 1))


def _video_name(row: Mapping[str, Any]) -> str:
    """Return the name by which the reader of custom data finds the video: with folders, where its id has them."""
    path = Path(row["video"])
    suffix = path.suffix if path.suffix.lower() in VIDEO_SUFFIXES else ""
    ids = [row["clip_id"], row["clip_id"].rpartition("_")[0]]
    names = [name for video in ids for name in (f"{video}{suffix}", video)]
    return next((name for name in names if f"/{path.as_posix()}".endswith(f"/{name}")), path.name)


def tracks_of(tubes: Iterable[WrittenTube]) -> list[WrittenTrack]:
    """Join the tubes of each person; those that nobody numbered are people of their own."""
    groups: dict[tuple[str, int], list[WrittenTube]] = {}
    for place, tube in enumerate(tubes):
        who = ("nobody", place) if tube.track_id is None else ("track", tube.track_id)
        groups.setdefault(who, []).append(tube)
    return [_track(tubes) for tubes in groups.values()]


def _track(tubes: Sequence[WrittenTube]) -> WrittenTrack:
    labels: dict[int, set[str] | None] = {}
    boxes: dict[int, np.ndarray] = {}
    for tube in tubes:
        for frame, box in zip(tube.frames.tolist(), tube.boxes, strict=True):
            boxes[frame], known = box, labels.get(frame)
            labels[frame] = known if tube.labels is None else {*(known or ()), *tube.labels}
    frames = sorted(boxes)
    does = [None if labels[frame] is None else tuple(sorted(labels[frame])) for frame in frames]
    return WrittenTrack(tubes[0].track_id, np.array(frames), np.array([boxes[frame] for frame in frames]), does)


def runs_of(frames: np.ndarray, step: int = 1) -> Iterator[slice]:
    """Yield the parts of ascending frames (n,) that have no gap: `step` from each to the next."""
    ends = np.flatnonzero(np.diff(frames) > step) + 1
    for start, end in zip([0, *ends.tolist()], [*ends.tolist(), len(frames)], strict=True):
        yield slice(start, end)
