"""What writers of several formats share: rows with `ACTION_FEATURES` as actors by video, and key frames of tubes."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classquery.data.annotations.schema import VIDEO_SUFFIXES


logger = logging.getLogger(__name__)


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


def videos_of(rows: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> list[WrittenVideo]:
    """Collect rows by video.

    Args:
        rows: With `ACTION_FEATURES`: tubes, or keyframes.
        names: Of the classes, by 0-based id.

    Raises:
        ValueError: If a row does not know its video, because that is missing.
    """
    videos: dict[str, WrittenVideo] = {}
    num_ignored = 0
    for row in rows:
        facts = [row.get(key) for key in ("width", "height", "fps", "num_frames")]
        if row.get("video") is None or None in facts:
            raise ValueError(
                f"the video of {row['clip_id']!r} is missing, and boxes are written in its pixels and frames"
            )
        name = _video_name(row)
        video = videos.setdefault(name, WrittenVideo(name, *facts, np.arange(0), []))
        moment = row["video_seconds"]
        tubes = [_tube(tube, moment, video, names) for tube in row["tubes"]]
        looked_at = _annotated_frames(row) if moment is None else [_frame_at(moment, video)]
        frames = np.concatenate([video.frames, looked_at, *(tube.frames for tube in tubes)])
        videos[name] = video._replace(frames=np.unique(frames).astype(np.int64), tubes=[*video.tubes, *tubes])
        num_ignored += len(row.get("ignored") or ())
    if num_ignored:
        logger.warning(f"Left out {num_ignored} regions in which nobody looked, which the format cannot say.")
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
    return next((f"{name}{suffix}" for name in ids if path.as_posix().endswith(f"/{name}{suffix}")), path.name)


def runs_of(frames: np.ndarray) -> Iterator[slice]:
    """Yield the parts of ascending frames (n,) that have no gap."""
    ends = np.flatnonzero(np.diff(frames) > 1) + 1
    for start, end in zip([0, *ends.tolist()], [*ends.tolist(), len(frames)], strict=True):
        yield slice(start, end)


def key_frames(boxes: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the places (k,) of boxes (n, 4) between which the others lie on straight lines.

    Args:
        boxes: Of frames without a gap.
        tolerance: How far a corner may be from its place; all are kept if it is below zero.
    """
    kept = {0, len(boxes) - 1}
    stretches = [(0, len(boxes) - 1)]
    while stretches:
        start, end = stretches.pop()
        if end - start < 2:
            continue
        share = np.arange(1, end - start)[:, None] / (end - start)
        distance = np.abs(boxes[start] + share * (boxes[end] - boxes[start]) - boxes[start + 1 : end]).max(axis=1)
        if distance.max() > tolerance:
            middle = start + 1 + int(distance.argmax())
            kept.add(middle)
            stretches += [(start, middle), (middle, end)]
    return np.array(sorted(kept))
