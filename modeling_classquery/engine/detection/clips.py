"""Clips cut out of a stream of frames as it comes: around keyframes, or tiling the whole video."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from classquery.configuration_classquery import ClassQueryConfig
from classquery.data.clips import clip_seconds, tile_starts
from classquery.data.video.reader import Frame, VideoReadError
from classquery.engine.detection.video_sources import VideoSource


# Times are sums and quotients of floats: 2.9999999 keyframes after the first are 3.
_TIME_TOLERANCE = 1e-6


class ClipPlan(NamedTuple):
    """Where the frames of each clip are in the video, and which of them to detect in."""

    positions: Iterator[np.ndarray]
    """Shape (num_frames,) for each clip, not descending within clips and from clip to clip; may start below 0."""
    by_index: bool
    """Whether positions are numbers of frames instead of seconds."""
    anchor: int
    """Index of the frame of a clip that must not lie behind the end of the video."""
    reported: Sequence[int]
    """Indices of the frames of a clip to detect in."""
    seconds_between: float
    """Of these only the first one at or after each multiple of so many seconds; 0 for all of them."""


@dataclass(frozen=True)
class Sampling:
    """How often to detect; see `detect`.

    Raises:
        ValueError: If both are given, or one is not positive.
    """

    keyframes_per_second: float | None = None
    keyframe_stride: int | None = None

    def __post_init__(self) -> None:
        if self.keyframes_per_second is not None and self.keyframe_stride is not None:
            raise ValueError("give keyframes_per_second or keyframe_stride, not both")
        rate, stride = self.keyframes_per_second, self.keyframe_stride
        if not (rate is None or 0 < rate < math.inf) or not (stride is None or stride >= 1):
            raise ValueError(f"keyframes_per_second must be positive and finite, keyframe_stride at least 1: {self}")

    def rate(self, config: ClassQueryConfig, source: VideoSource) -> float | None:
        """Keyframes per second, or None for every frame."""
        if self.keyframe_stride is not None:
            return source.frames_per_second / self.keyframe_stride
        if self.keyframes_per_second is None and config.output_frames == "keyframe":
            return 1.0
        return self.keyframes_per_second

    def plan(self, config: ClassQueryConfig, source: VideoSource) -> ClipPlan:
        """Lay clips around keyframes, or tile the video with them if the model detects in all frames."""
        rate = self.rate(config, source)
        if config.output_frames == "all":
            return ClipPlan(
                tiles(config, source.num_frames),
                by_index=True,
                anchor=0,
                reported=range(config.num_frames),
                seconds_between=1 / rate if rate else 0.0,
            )
        return ClipPlan(
            _clips_around_keyframes(config, rate),
            by_index=False,
            anchor=config.keyframe_index,
            reported=[config.keyframe_index],
            seconds_between=0.0,
        )


def _clips_around_keyframes(config: ClassQueryConfig, rate: float) -> Iterator[np.ndarray]:
    """Give times in seconds, without end."""
    for keyframe in itertools.count():
        yield clip_around(config, keyframe / rate)


def clip_around(config: ClassQueryConfig, seconds: float) -> np.ndarray:
    """Times of the frames of the clip around a keyframe, in seconds."""
    return clip_seconds(
        seconds,
        num_frames=config.num_frames,
        frame_stride=config.frame_stride,
        frames_per_second=config.frames_per_second,
    )


def tiles(config: ClassQueryConfig, num_video_frames: int | None) -> Iterator[np.ndarray]:
    """Give numbers of every `frame_stride`-th frame; where the length is not known, from the first frame on."""
    stride = config.frame_stride
    if num_video_frames is None:
        starts = itertools.count(0, config.num_frames)
    else:
        starts = tile_starts(math.ceil(num_video_frames / stride), config.num_frames)
    for start in starts:
        yield stride * np.arange(start, start + config.num_frames)


class Clip(NamedTuple):
    """Frames as the model takes them."""

    frames: torch.Tensor
    """Shape (num_frames, 3, height, width), uint8."""
    reported: list[tuple[int, int, float]]
    """Of each frame to detect in: its index in the clip, its number in the video, and its seconds."""


def assemble_clips(
    frames: Iterable[Frame], plan: ClipPlan, prepare: Callable[[np.ndarray], torch.Tensor]
) -> Iterator[Clip]:
    """Cut overlapping clips out of a stream, keeping only what incomplete clips need.

    Args:
        frames: The frames of a video in order; some may be missing.
        plan: Where the frames of clips are. Each is the nearest one that comes, of two equally near the earlier; those
            before the first frame repeat it, those behind the last frame that.
        prepare: Called once with the image of each frame that some clip needs.

    Yields:
        Each clip when the frame behind its last one has come. No frame is reported twice.

    Raises:
        VideoReadError: What `frames` raises, after the last clip whose keyframe has come.
    """
    damage: list[VideoReadError] = []
    assembler = _Assembler(plan, prepare)
    for frame, following in _with_following(_until_damage(frames, damage)):
        yield from assembler.add(frame, following)
    if damage:
        raise damage[0]


def _until_damage(frames: Iterable[Frame], damage: list[VideoReadError]) -> Iterator[Frame]:
    try:
        yield from frames
    except VideoReadError as error:
        damage.append(error)


def _with_following(frames: Iterable[Frame]) -> Iterator[tuple[Frame, Frame | None]]:
    """Pair each frame with the next one; the last with None."""
    frames = iter(frames)
    frame = next(frames, None)
    while frame is not None:
        following = next(frames, None)
        yield frame, following
        frame = following


class _PreparedFrame(NamedTuple):
    index: int
    seconds: float
    image: torch.Tensor


class _OpenClip(NamedTuple):
    """A clip whose frames are still coming."""

    positions: np.ndarray
    frames: list[_PreparedFrame]


class _Assembler:
    """The clips that are not complete yet."""

    def __init__(self, plan: ClipPlan, prepare: Callable[[np.ndarray], torch.Tensor]):
        self._plan = plan
        self._prepare = prepare
        self._upcoming = next(plan.positions, None)
        self._open: deque[_OpenClip] = deque()
        self._last_reported = -1
        self._next_seconds = -math.inf

    def add(self, frame: Frame, following: Frame | None) -> Iterator[Clip]:
        """Add a frame to the clips that it belongs to, and give those that it completes."""
        position = self._position(frame)
        if following is None:
            next_position = math.inf
            self._open_clips(lambda positions: self._has_begun(positions, position))
            self._open = deque(clip for clip in self._open if self._has_begun(clip.positions, position))
        else:
            next_position = self._position(following)
            self._open_clips(lambda positions: _is_nearer(positions[0], position, next_position))
        prepared = None
        for clip in self._open:
            num_new = np.count_nonzero(_is_nearer(clip.positions, position, next_position)) - len(clip.frames)
            if num_new:
                prepared = prepared or _PreparedFrame(frame.index, frame.seconds, self._prepare(frame.image))
                clip.frames.extend([prepared] * num_new)
        while self._open and len(self._open[0].frames) == len(self._open[0].positions):
            yield from self._complete(self._open.popleft())

    def _position(self, frame: Frame) -> float:
        return frame.index if self._plan.by_index else frame.seconds

    def _has_begun(self, positions: np.ndarray, last_position: float) -> bool:
        return positions[self._plan.anchor] <= last_position + _TIME_TOLERANCE

    def _open_clips(self, begins: Callable[[np.ndarray], bool]) -> None:
        while self._upcoming is not None and begins(self._upcoming):
            self._open.append(_OpenClip(self._upcoming, []))
            self._upcoming = next(self._plan.positions, None)

    def _complete(self, clip: _OpenClip) -> Iterator[Clip]:
        """Yield a clip, or nothing if none of its frames is to be reported."""
        reported = [
            (index, clip.frames[index].index, clip.frames[index].seconds)
            for index in self._plan.reported
            if self._is_reported(clip, index)
        ]
        if reported:
            yield Clip(torch.stack([frame.image for frame in clip.frames]), reported)

    def _is_reported(self, clip: _OpenClip, index: int) -> bool:
        """Whether to detect in a frame of a clip: not twice, not in padding, and not more often than asked for."""
        frame, interval = clip.frames[index], self._plan.seconds_between
        is_padding = self._plan.by_index and frame.index != clip.positions[index]
        if frame.index <= self._last_reported or is_padding or frame.seconds + _TIME_TOLERANCE < self._next_seconds:
            return False
        self._last_reported = frame.index
        if interval:
            self._next_seconds = interval * (math.floor(frame.seconds / interval + _TIME_TOLERANCE) + 1)
        return True


def _is_nearer(positions: np.ndarray | float, position: float, next_position: float) -> np.ndarray | bool:
    """Whether positions, none of them far before `position`, are nearer to it than to the next one, or as near."""
    # In this form, it is what `ClipReader.frame_indices_at` computes, to the last bit.
    return positions - position <= next_position - positions
