"""Which frames of which video a row of a shard holds: windows around keyframes, and whole videos with their tubes."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset


# The recipes of AVA look at 64 frames at 30 Hz.
CLIP_SECONDS = 64 / 30
# Rows of eight keyframes a second apart hold 1.14 s of video for each, those of one keyframe 2.13 s.
KEYFRAMES_PER_ROW = 8


class Window(NamedTuple):
    """Some rows of annotations of one video, and the part of it that their clips need."""

    name: str
    """Of the video, in the annotations."""
    video: str
    """Path of the file or of the folder of frames."""
    source: str
    """"video" or "frames"."""
    seconds: tuple[float, float] | None
    """Between which times its clips lie; None for all of the video."""
    rows: list[dict[str, Any]]
    """Annotations with `ACTION_FEATURES`."""


def plan_windows(
    rows: Dataset, *, clip_seconds: float = CLIP_SECONDS, keyframes_per_row: int = KEYFRAMES_PER_ROW
) -> Iterator[Window]:
    """Divide annotations into windows.

    Keyframes share a window where their clips overlap, as they then share frames, so many at most.

    Args:
        rows: Annotations with `ACTION_FEATURES`, with their videos.
        clip_seconds: Length of the longest clip around a keyframe that is going to be taken, for any model.
        keyframes_per_row: How many keyframes may share a window.

    Yields:
        Windows in the order of the annotations, keyframes of a video by time.

    Raises:
        ValueError: If a number is not positive.
    """
    if not (clip_seconds > 0 and math.isfinite(clip_seconds)) or keyframes_per_row < 1:
        raise ValueError(
            f"clip_seconds and keyframes_per_row must be positive, got {clip_seconds} and {keyframes_per_row}"
        )
    videos, seconds = rows["video"][:], rows["video_seconds"][:]
    groups: dict[str, list[int]] = {}
    for number, video in enumerate(videos):
        groups.setdefault(video, []).append(number)
    for numbers in groups.values():
        tubes = [number for number in numbers if seconds[number] is None]
        keyframes = sorted((number for number in numbers if seconds[number] is not None), key=seconds.__getitem__)
        for number in tubes:
            row = rows[number]
            yield Window(row["clip_id"], row["video"], row["source"], None, [row])
        yield from _around_keyframes(
            rows, keyframes, [seconds[number] for number in keyframes], clip_seconds, keyframes_per_row
        )


def _around_keyframes(
    rows: Dataset, numbers: Sequence[int], seconds: Sequence[float], clip_seconds: float, keyframes_per_row: int
) -> Iterator[Window]:
    first = 0
    for stop in range(1, len(numbers) + 1):
        is_full = stop - first == keyframes_per_row
        if stop == len(numbers) or is_full or seconds[stop] - seconds[stop - 1] >= clip_seconds:
            members = [rows[number] for number in numbers[first:stop]]
            span = seconds[first] - clip_seconds / 2, seconds[stop - 1] + clip_seconds / 2
            name = members[0]["clip_id"].rpartition("_")[0]
            yield Window(name, members[0]["video"], members[0]["source"], span, members)
            first = stop


def frames_between(frame_seconds: np.ndarray, seconds: tuple[float, float] | None) -> range:
    """Return the frames that clips between two times may need: those nearest to any time between, and one more.

    With one frame on either side, the frame nearest to a time is the same one among these as among all.
    """
    if seconds is None:
        return range(len(frame_seconds))
    first, stop = np.searchsorted(frame_seconds, seconds, side="right")
    return range(max(0, int(first) - 2), min(len(frame_seconds), int(stop) + 2))
