"""Detection in a video, from its frames to what is reported: the part that `detect` and the pipeline share.

Frames come one after the other, each with its `index` in the video, its `seconds` and its `image`. Clips are cut out
of them as they come (`assemble_clips`), where a plan (`Sampling.plan`) says; a `ClipDetector` runs the model on
batches of clips and selects by thresholds.
"""

import difflib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import clip_boxes_to_image
from transformers.utils import logging

from .configuration_classquery import ClassQueryConfig
from .modeling_classquery import ClassQueryDetectionOutput, ClassQueryForVideoActionDetection
from .video_processing_classquery import ClassQueryVideoProcessor


logger = logging.get_logger(__name__)

# Times are sums and quotients of floats: 2.9999999 keyframes after the first are 3.
_TIME_TOLERANCE = 1e-6
# Keyframes per second: no video has more frames, and each is a keyframe once.
_MAX_RATE = 1000
# Letters of a name and names of classes that a message shows.
_MAX_QUOTED = 200
_MAX_NAMED = 20


# Where clips are


@dataclass(frozen=True)
class ClipPlan:
    """Clips at regular places of a video, which overlap where they are close."""

    positions: Callable[[int], np.ndarray]
    """From the number of a clip to where its frames are, (num_frames,), not descending within clips and from clip to
    clip; may start below 0 and end behind the video."""
    by_index: bool
    """Whether positions are numbers of frames instead of seconds."""
    anchor: int
    """Index of the frame of a clip that must not lie behind the end of the video."""
    reported: range
    """Indices of the frames of a clip to detect in; of the last one, all up to its end."""
    per_second: float = math.inf
    """For positions in seconds: clips per second."""
    start_seconds: float = 0.0
    """For positions in seconds: where the anchor of the first clip is."""
    num_clips: float = math.inf
    seconds_between: float = 0.0
    """Of the frames to detect in, only the first one at or after each multiple of so many seconds; 0 for all."""

    def last_until(self, position: float) -> int:
        """Number of the last clip whose anchor is not behind a position."""
        if math.isinf(self.per_second):
            return 0
        return max(0, math.floor((position - self.start_seconds) * self.per_second + _TIME_TOLERANCE))

    def pass_over(self, number: int, position: float, next_position: float) -> int:
        """Leave out clips whose anchors are between two frames that follow each other, but for the first and the last.

        All of them would detect in one of the two frames; in a gap of a month, there are millions.
        """
        is_first = self.start_seconds + (number - 1) / self.per_second <= position
        return number if is_first else max(number, self.last_until(next_position))


@dataclass(frozen=True)
class Sampling:
    """How often to detect.

    Args:
        keyframes_per_second: Keyframes are the frames nearest to 0, 1 / rate, 2 / rate, ... seconds, from the first to
            the last frame, each frame once; by default 1. A model of all frames reports them all by default, and at a
            given rate the first frame at or after each of these times.
        keyframe_stride: Instead of a rate: every n-th frame is a keyframe, at the mean frame rate of the video and
            from its first frame on.
        clip_stride: For a model of all frames: frames from the start of a clip to that of the next; by default they
            follow each other. Where they overlap, the one counts whose middle is nearest.

    Raises:
        ValueError: If both a rate and a stride of keyframes are given, or a number is not positive.
    """

    keyframes_per_second: float | None = None
    keyframe_stride: int | None = None
    clip_stride: int | None = None

    def __post_init__(self) -> None:
        if self.keyframes_per_second is not None and self.keyframe_stride is not None:
            raise ValueError("give keyframes_per_second or keyframe_stride, not both")
        rate, strides = self.keyframes_per_second, (self.keyframe_stride, self.clip_stride)
        is_rate = rate is None or 0 < rate <= _MAX_RATE
        if not is_rate or not all(stride is None or stride >= 1 for stride in strides):
            raise ValueError(
                f"keyframes_per_second must be more than 0 and at most {_MAX_RATE}, strides at least 1: {self}"
            )

    def plan(self, config: ClassQueryConfig, video: Any) -> ClipPlan:
        """Lay clips around keyframes, or tile the video with them if the model detects in all frames.

        Args:
            config: The configuration of the model.
            video: Has `num_frames`, None where that is not known; and for `keyframe_stride` its `frames_per_second`
                and the `start_seconds` of its first frame.
        """
        rate, start = self.keyframes_per_second, 0.0
        if self.keyframe_stride is not None:
            rate, start = video.frames_per_second / self.keyframe_stride, video.start_seconds
        if config.output_frames == "all":
            return tiles(config, video.num_frames, self.clip_stride, 1 / rate if rate else 0.0)
        rate = rate or 1.0
        anchor = config.keyframe_index
        return ClipPlan(
            lambda number: clip_around(config, start + number / rate),
            by_index=False,
            anchor=anchor,
            reported=range(anchor, anchor + 1),
            per_second=rate,
            start_seconds=start,
        )


def clip_around(config: ClassQueryConfig, seconds: float) -> np.ndarray:
    """Times of the frames of the clip around a keyframe, in seconds: those that training takes."""
    offsets = (np.arange(config.num_frames) - config.keyframe_index) * config.frame_stride / config.frames_per_second
    return seconds + offsets


def tiles(
    config: ClassQueryConfig, num_frames: int | None, clip_stride: int | None = None, seconds_between: float = 0.0
) -> ClipPlan:
    """Plan clips that follow each other, half of the padding before the first and half behind the last.

    Where the number of frames is not known, they follow each other from the first frame on.
    """
    size, stride = config.num_frames, max((clip_stride or 0) // config.frame_stride, 1)
    stride = stride if clip_stride else size
    padding, num_clips = 0, math.inf
    if num_frames is not None:
        length = math.ceil(num_frames / config.frame_stride)
        num_clips = math.ceil(max(length - size, 0) / stride) + 1
        padding = max((num_clips - 1) * stride + size - length, 0)
    # A frame counts in the clip whose middle is nearest: up to here, before the next one takes over.
    end = min(max(stride, config.keyframe_index + stride // 2 + 1), size)
    places = np.arange(size) - padding // 2
    return ClipPlan(
        lambda number: (places + number * stride) * config.frame_stride,
        by_index=True,
        anchor=0,
        reported=range(end),
        num_clips=num_clips,
        seconds_between=seconds_between,
    )


# Clips


class Clip(NamedTuple):
    """Frames as the model takes them."""

    frames: torch.Tensor
    """Shape (num_frames, 3, height, width), uint8."""
    reported: list[tuple[int, int, float]]
    """Of each frame to detect in: its index in the clip, its number in the video, and its seconds."""


def assemble_clips(
    frames: Iterable[Any], plan: ClipPlan, prepare: Callable[[np.ndarray], torch.Tensor]
) -> Iterator[Clip]:
    """Cut overlapping clips out of a stream, keeping only what incomplete clips need.

    Args:
        frames: The frames of a video in order; some may be missing.
        plan: Where the frames of clips are. Each is the nearest one that comes, of two equally near the earlier; those
            before the first frame repeat it, those behind the last frame that.
        prepare: Called once with the image of each frame that some clip needs.

    Yields:
        Each clip when the frame behind its last one has come. No frame is reported twice.
    """
    assembler = _Assembler(plan, prepare)
    frame, following = None, None
    for following in frames:
        if frame is not None:
            yield from assembler.add(frame, following)
        frame = following
    if frame is not None:
        yield from assembler.add(frame, None)


class _KnownFrame(NamedTuple):
    """A frame of which only the time is known."""

    index: int
    seconds: float

    @property
    def image(self) -> int:
        """Its number."""
        return self.index


def needed_frames(frame_seconds: Sequence[float] | np.ndarray, plan: ClipPlan) -> Iterator[int]:
    """Tell which frames `assemble_clips` will look at, if all come.

    Args:
        frame_seconds: The times of all frames of a video.
        plan: Where the frames of clips are.

    Yields:
        Their numbers, increasing.
    """
    numbers: list[int] = []
    nothing = torch.empty(0)

    def note(number: int) -> torch.Tensor:
        numbers.append(number)
        return nothing

    frames = (_KnownFrame(index, float(seconds)) for index, seconds in enumerate(frame_seconds))
    for _ in itertools.chain(assemble_clips(frames, plan, note), [None]):
        yield from numbers
        numbers.clear()


def frames_for(plan: ClipPlan, video: Any) -> Iterable[Any]:
    """The frames of a video for `assemble_clips`; of a file, others than those it will look at are not decoded."""
    if video.frame_seconds is None:
        return video.frames
    return video.frames_with(needed_frames(video.frame_seconds, plan))


class _PreparedFrame(NamedTuple):
    index: int
    seconds: float
    image: torch.Tensor


class _OpenClip(NamedTuple):
    """A clip whose frames are still coming."""

    number: int
    positions: list[float]
    frames: list[_PreparedFrame]

    def takes(self, position: float, next_position: float) -> bool:
        """Whether the next frame of the clip is that at `position`, and not the one behind it."""
        num_frames = len(self.frames)
        return num_frames < len(self.positions) and _is_nearer(self.positions[num_frames], position, next_position)


class _Assembler:
    """The clips that are not complete yet."""

    def __init__(self, plan: ClipPlan, prepare: Callable[[np.ndarray], torch.Tensor]):
        self._plan = plan
        self._prepare = prepare
        self._open: deque[_OpenClip] = deque()
        self._num_opened: int | None = None
        self._upcoming: tuple[int, list[float]] | None = None
        self._last_reported = -1
        self._next_seconds = -math.inf

    def add(self, frame: Any, following: Any | None) -> Iterator[Clip]:
        """Add a frame to the clips that it belongs to, and give those that it completes."""
        position = self._position(frame)
        next_position = math.inf if following is None else self._position(following)
        if self._num_opened is None:
            # Pictures that start late: of the clips before them, the nearest.
            self._num_opened = self._plan.last_until(position)
        if following is None:
            self._open_clips(position, position, lambda positions: self._has_begun(positions, position))
            self._open = deque(clip for clip in self._open if self._has_begun(clip.positions, position))
        else:
            self._open_clips(
                position, next_position, lambda positions: _is_nearer(positions[0], position, next_position)
            )
        prepared = None
        for clip in self._open:
            while clip.takes(position, next_position):
                prepared = prepared or _PreparedFrame(frame.index, frame.seconds, self._prepare(frame.image))
                clip.frames.append(prepared)
        while self._open and len(self._open[0].frames) == len(self._open[0].positions):
            yield from self._complete(self._open.popleft())

    def _position(self, frame: Any) -> float:
        return frame.index if self._plan.by_index else frame.seconds

    def _has_begun(self, positions: list[float], last_position: float) -> bool:
        return positions[self._plan.anchor] <= last_position + _TIME_TOLERANCE

    def _open_clips(self, position: float, next_position: float, begins: Callable[[list[float]], bool]) -> None:
        while self._num_opened < self._plan.num_clips:
            self._num_opened = self._plan.pass_over(self._num_opened, position, next_position)
            if self._upcoming is None or self._upcoming[0] != self._num_opened:
                self._upcoming = self._num_opened, self._plan.positions(self._num_opened).tolist()
            positions = self._upcoming[1]
            if not begins(positions):
                return
            self._open.append(_OpenClip(self._num_opened, positions, []))
            self._num_opened += 1

    def _complete(self, clip: _OpenClip) -> Iterator[Clip]:
        """Yield a clip, or nothing if none of its frames is to be reported."""
        is_last = clip.number == self._plan.num_clips - 1
        indices = range(len(clip.frames)) if is_last else self._plan.reported
        reported = [
            (index, clip.frames[index].index, clip.frames[index].seconds)
            for index in indices
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


def _is_nearer(wanted: float, position: float, next_position: float) -> bool:
    """Whether a place that is not far before `position` is nearer to it than to the next one, or as near."""
    # In this form, it is what the clip reader of the package computes, to the last bit.
    return wanted - position <= next_position - wanted


# Detections


@dataclass(frozen=True)
class ActorDetection:
    """An actor in one frame and what they do."""

    box: tuple[float, float, float, float]
    """(x_min, y_min, x_max, y_max) in pixels of the original frame, clipped to it."""
    actor_score: float
    """Confidence in [0, 1] that this is an actor."""
    actions: list[tuple[str, float]]
    """Names and scores in [0, 1] of the actions, highest first."""
    attentions: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    """Where each class asked for looks for this actor: float32 (h, w) over the whole frame, summing to 1."""
    attention_scores: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    """Scores of the classes whose attention is asked for, whatever their thresholds."""
    person_id: int | None = None
    """Number of the person in the video, from 1, after `link_people`."""

    def to_dict(self) -> dict:
        """Return what JSON can hold, rounded for reading, without the attention."""
        person = {} if self.person_id is None else {"person_id": self.person_id}
        return person | {
            "box": [round(edge, 2) for edge in self.box],
            "actor_score": round(self.actor_score, 4),
            "actions": [{"label": label, "score": round(score, 4)} for label, score in self.actions],
        }


@dataclass(frozen=True)
class DetectedFrame:
    """The actors of one frame of a video."""

    frame_index: int
    """Number of the frame, from 0, as a player shows them."""
    seconds: float
    """Its time in seconds."""
    actors: list[ActorDetection]
    """From left to right, so that an actor keeps its place from one keyframe to the next; may be empty."""
    size: tuple[int, int] | None = None
    """Height and width of the frame in pixels."""


def label_id_of(label: str, config: ClassQueryConfig) -> int:
    """Look up a class by its name.

    Raises:
        ValueError: If there is none of this name.
    """
    label_ids = {name: index for index, name in config.id2label.items()}
    if label not in label_ids:
        nearest = difflib.get_close_matches(label[:_MAX_QUOTED], label_ids)
        names = [*label_ids][:_MAX_NAMED]
        others = f" and {len(label_ids) - _MAX_NAMED} others" if len(label_ids) > _MAX_NAMED else ""
        known = f"the closest names are {nearest}" if nearest else f"it has {names}{others}"
        raise ValueError(f"the model has no class {label[:_MAX_QUOTED]!r}; {known}")
    return label_ids[label]


def class_thresholds_of(
    config: ClassQueryConfig,
    processor: ClassQueryVideoProcessor,
    threshold: float | None = None,
    class_thresholds: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Lowest score of each class to report, (num_labels,): what is given, or else what is saved with the processor.

    A threshold that is given holds for all classes but those of `class_thresholds`, whatever is saved for some.

    Raises:
        ValueError: If a class is unknown. Saved ones that the model does not have are left out with a warning.
    """
    thresholds = np.full(config.num_labels, processor.score_threshold if threshold is None else threshold)
    saved = (processor.class_thresholds or {}) if threshold is None and class_thresholds is None else {}
    gone = sorted(saved.keys() - set(config.id2label.values()))
    if gone:
        logger.warning_once(f"the processor has thresholds for classes that the model does not have: {gone[:5]}")
    for name, value in (class_thresholds or {name: saved[name] for name in saved if name not in gone}).items():
        thresholds[label_id_of(name, config)] = value
    return thresholds


@dataclass(frozen=True)
class ClipDetector:
    """From the frames of a video to those the model sees, and from batches of clips to what is reported.

    Args:
        model: The detector, in evaluation mode.
        processor: The processor that belongs to it.
        thresholds: (num_labels,): lowest score of each class to report; infinite for classes that are left out.
        actor_threshold: Lowest confidence of an actor to report.
        top_k: Report so many actions of an actor at most.
        attention_ids: Classes whose attention to report.
        batch_size: Number of clips per forward pass, at most.
    """

    model: ClassQueryForVideoActionDetection
    processor: ClassQueryVideoProcessor
    thresholds: np.ndarray
    actor_threshold: float
    top_k: int | None
    attention_ids: dict[str, int]
    batch_size: int

    @classmethod
    def from_options(
        cls,
        model: ClassQueryForVideoActionDetection,
        processor: ClassQueryVideoProcessor,
        *,
        threshold: float | None = None,
        class_thresholds: Mapping[str, float] | None = None,
        actor_threshold: float | None = None,
        classes: Sequence[str] | None = None,
        top_k: int | None = None,
        attention: Sequence[str] = (),
        batch_size: int = 4,
    ) -> "ClipDetector":
        """Check the options of `detect` and fill in those of the processor."""
        for name, number in (("batch_size", batch_size), ("top_k", top_k)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        config = model.config
        given = [threshold, actor_threshold, *(class_thresholds or {}).values()]
        if any(value is not None and math.isnan(value) for value in given):
            raise ValueError("a threshold is NaN, which no score reaches: give a number")
        thresholds = class_thresholds_of(config, processor, threshold, class_thresholds)
        if classes is not None:
            left_out = set(range(config.num_labels)) - {label_id_of(name, config) for name in classes}
            thresholds[list(left_out)] = np.inf
        actor_threshold = processor.actor_threshold if actor_threshold is None else actor_threshold
        attention_ids = {name: label_id_of(name, config) for name in attention}
        return cls(model.eval(), processor, thresholds, actor_threshold, top_k, attention_ids, batch_size)

    def resize(self, image: np.ndarray) -> torch.Tensor:
        """Take the first step of the processor, from (height, width, 3) to (3, height, width), both uint8.

        Taken when a frame arrives, it is done once for all clips that share the frame, and no large frame is kept.
        """
        return self.processor.resize_frame(image)

    def detect_all(self, clips: Iterable[Clip], size: tuple[int, int]) -> Iterator[DetectedFrame]:
        """Detect in clips of a video, batch by batch."""
        clips = iter(clips)
        while batch := list(itertools.islice(clips, self.batch_size)):
            yield from self.detect(batch, size)

    @torch.inference_mode()
    def detect(self, clips: Sequence[Clip], size: tuple[int, int]) -> list[DetectedFrame]:
        """Detect in some clips of a video whose frames are of (height, width) `size`.

        Raises:
            ValueError: If what the model returns is not finite.
        """
        # Bytes are sent to the device, a quarter of the floats they become.
        inputs = self.processor([clip.frames for clip in clips], do_resize=False, device=self.model.device)
        outputs = self.model(
            **inputs.to(self.model.device, self.model.dtype), output_attentions=bool(self.attention_ids)
        )
        tensors = _on_the_cpu(outputs)
        detections = self.processor.post_process_action_detection(tensors, target_sizes=[size] * len(clips))
        results = []
        for number, (clip, frames) in enumerate(zip(clips, detections, strict=True)):
            for index, frame_index, seconds in clip.reported:
                output_frame = index if len(frames) > 1 else 0
                attentions = self._attentions(outputs, number, output_frame)
                actors = self._actors(frames[output_frame], attentions, size)
                results.append(DetectedFrame(frame_index, seconds, actors, size))
        return results

    def _attentions(self, outputs: ClassQueryDetectionOutput, clip: int, output_frame: int) -> dict[str, torch.Tensor]:
        """Attention (num_queries, h, w) of each class asked for in a frame of a clip."""
        attentions = {}
        for name, label_id in self.attention_ids.items():
            # All layers: the last one knows already what those before it have seen, and need not look there.
            of_layers = [maps[clip, output_frame, :, label_id] for maps in outputs.class_attentions]
            attention = torch.stack(of_layers).mean(0)  # (queries, heads, h, w)
            if self.model.config.class_attention_heads == "released":
                # The other half sees positions only: it looks at the same place for all classes.
                attention = attention[:, : math.ceil(attention.shape[1] / 2)]
            attentions[name] = attention.float().mean(1).cpu()
        return attentions

    def _actors(
        self, detections: dict[str, torch.Tensor], attentions: dict[str, torch.Tensor], size: tuple[int, int]
    ) -> list[ActorDetection]:
        """Select from the candidates of one frame."""
        boxes = clip_boxes_to_image(detections["boxes"], size).tolist()
        scores = detections["scores"].numpy()
        actors = []
        for query, actor_score in enumerate(detections["actor_scores"].tolist()):
            actions = self._actions(scores[query]) if actor_score >= self.actor_threshold else []
            if actions:
                of_query = {name: attention[query].numpy().copy() for name, attention in attentions.items()}
                asked = {name: float(scores[query, label_id]) for name, label_id in self.attention_ids.items()}
                actors.append(ActorDetection(tuple(boxes[query]), actor_score, actions, of_query, asked))
        return sorted(actors, key=lambda actor: actor.box[0] + actor.box[2])

    def _actions(self, scores: np.ndarray) -> list[tuple[str, float]]:
        names = self.model.config.id2label
        chosen = np.flatnonzero(scores >= self.thresholds)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")][: self.top_k]
        return [(names[int(index)], float(scores[index])) for index in chosen]


def _on_the_cpu(outputs: ClassQueryDetectionOutput) -> dict[str, torch.Tensor]:
    """Read boxes and scores from the device, all at once, and check them."""
    names = ("pred_boxes", "scores", "actor_logits")
    # In float32, because bfloat16 moves boxes by pixels.
    together = torch.cat([outputs[name].float() for name in names], dim=-1).cpu()
    if not together.isfinite().all():
        raise ValueError(
            "the model gives scores or boxes that are not finite: its weights are damaged, the processor's image_mean "
            "and image_std are not its own, or numbers overflow in float16 (bfloat16 and float32 have room)"
        )
    return dict(zip(names, together.split([outputs[name].shape[-1] for name in names], dim=-1), strict=True))


__all__ = [
    "ActorDetection",
    "Clip",
    "ClipDetector",
    "ClipPlan",
    "DetectedFrame",
    "Sampling",
    "assemble_clips",
    "clip_around",
    "frames_for",
    "label_id_of",
    "tiles",
]
