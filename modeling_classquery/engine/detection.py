"""Detect actions in any video: one pass over its frames, in constant memory, decoding while the model computes."""

import difflib
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import clip_boxes_to_image
from transformers.utils import logging

from classquery.configuration_classquery import ClassQueryConfig
from classquery.data.clip_reader import ClipReader, Frame, VideoReadError
from classquery.data.clips import clip_seconds, tile_starts
from classquery.data.metrics.linking import box_iou
from classquery.data.video_sources import Source, VideoSource, list_sources, open_source
from classquery.engine.background import Background
from classquery.engine.checkpoint import load_detector
from classquery.engine.results import ActorDetection, FrameDetections
from classquery.modeling_classquery import ClassQueryDetectionOutput, ClassQueryForVideoActionDetection
from classquery.video_processing_classquery import ClassQueryVideoProcessor


logger = logging.get_logger(__name__)

DEMO_NOTICE = "The demo model knows nothing but the people, balls and kites of the demo movies: train or load another."
# Times are sums and quotients of floats: 2.9999999 keyframes after the first are 3.
_TIME_TOLERANCE = 1e-6


def detect(
    source: Source,
    model: ClassQueryForVideoActionDetection | str = "demo",
    processor: ClassQueryVideoProcessor | None = None,
    *,
    keyframes_per_second: float | None = None,
    keyframe_stride: int | None = None,
    threshold: float | None = None,
    class_thresholds: Mapping[str, float] | None = None,
    actor_threshold: float | None = None,
    classes: Sequence[str] | None = None,
    top_k: int | None = None,
    attention: str | Sequence[str] = (),
    batch_size: int = 4,
    frames_per_second: float | None = None,
    live: bool | None = None,
    timeout_seconds: float = 10.0,
) -> Iterator[FrameDetections]:
    """Detect actors and their actions in videos, as their frames come.

    A model that detects in the keyframe of a clip gets a clip around each keyframe, with the frames that training
    takes (`clip_seconds`); clips overlap where keyframes are close. A model that detects in every frame
    (`output_frames="all"`) gets clips that tile the video (`tile_starts`), and each frame is reported once.

    Args:
        source: A file, folder, pattern, camera number, stream, frames, or a list of these: see `list_sources`.
        model: The detector, which is put in evaluation mode and runs on its own device, in its own precision; or a
            folder or a name on the Hub; or `demo` for the small model in the package.
        processor: The processor that belongs to the model, if that is not a name.
        keyframes_per_second: Keyframes are the frames nearest to 0, 1 / rate, 2 / rate, ... seconds up to the last
            frame, each frame once. By default 1, but all frames if the model detects in all.
        keyframe_stride: Instead of a rate: every n-th frame is a keyframe, at the mean frame rate of the video.
        threshold: Lowest score in [0, 1] of an action to report; by default that of the processor.
        class_thresholds: Other thresholds for some classes; by default those of the processor.
        actor_threshold: Lowest confidence in [0, 1] of an actor to report; by default that of the processor. Actors
            without any action are left out.
        classes: Names of the classes to report; all by default.
        top_k: Report so many actions of an actor at most.
        attention: Names of classes whose attention in the last decoder layer to report with each actor. It is the
            mean over the heads that see content, because the others look at the same place for all classes, and covers
            the frame but for the remainder of a patch that the model drops on the right and at the bottom. Costs the
            unfused attention and the memory for all classes and frames of the clips, so lower `batch_size` for large
            models.
        batch_size: Number of clips per forward pass, at most.
        frames_per_second: Frame rate of images and arrays; by default the one that the model counts in.
        live: Whether frames go on coming while the model is busy. Then the oldest clips are dropped rather than that
            results lag behind, and the next result says how many (`num_dropped`). By default true of cameras and of
            streams without an end.
        timeout_seconds: How long to wait for a camera or stream before it counts as ended.

    Returns:
        The results in order. If the end of a video is damaged, or a stream stops, a warning is logged and its results
        end at the last keyframe that can be decoded. Of several videos, one that cannot be read is passed over with a
        warning.

    Raises:
        ValueError: At the call, if a class is unknown or a number out of range.
        VideoReadError, FileNotFoundError: At the call, if there is no video, or the only one cannot be read at all.
        CheckpointError: At the call, if the model cannot be loaded.
    """
    model, processor = _load(model, processor)
    detector = ClipDetector.from_options(
        model,
        processor,
        threshold=threshold,
        class_thresholds=class_thresholds,
        actor_threshold=actor_threshold,
        classes=classes,
        top_k=top_k,
        attention=[attention] if isinstance(attention, str) else attention,
        batch_size=batch_size,
    )
    sampling = Sampling(keyframes_per_second, keyframe_stride)
    options = {
        "frames_per_second": frames_per_second or model.config.frames_per_second,
        "live": live,
        "timeout_seconds": timeout_seconds,
    }
    sources = list_sources(source)
    if len(sources) == 1:
        return detect_in(open_source(sources[0], **options), detector, sampling)
    return itertools.chain.from_iterable(
        detect_in(opened, detector, sampling) for opened in _open_readable(sources, options)
    )


def _load(
    model: ClassQueryForVideoActionDetection | str, processor: ClassQueryVideoProcessor | None
) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    if isinstance(model, str):
        if model == "demo":
            logger.warning_once(DEMO_NOTICE)
        loaded, its_processor = load_detector(model)
        return loaded, processor or its_processor
    if processor is None:
        raise ValueError("a model needs the processor that was saved with it: detect(source, model, processor)")
    return model, processor


def _open_readable(sources: Sequence[Source], options: dict) -> Iterator[VideoSource]:
    for source in sources:
        try:
            yield open_source(source, **options)
        except VideoReadError as error:
            logger.warning("a video is passed over: %s", error)


def detect_in(source: VideoSource, detector: "ClipDetector", sampling: "Sampling") -> Iterator[FrameDetections]:
    """Detect in an opened video; what `detect` does for each."""
    config = detector.model.config
    clips = assemble_clips(source.frames, sampling.plan(config, source), detector.resize)
    capacity = detector.batch_size if source.is_live else 2 * detector.batch_size
    total_dropped = 0
    with Background(clips, capacity=capacity, drop_oldest=source.is_live) as background:
        while True:
            try:
                batch, num_dropped = background.take(detector.batch_size)
            except VideoReadError as error:
                logger.warning("the video ends early: %s", error)
                break
            if not batch:
                break
            total_dropped += num_dropped
            for frame in detector.detect(batch, source):
                yield replace(frame, num_dropped=num_dropped)
                num_dropped = 0
    if total_dropped:
        logger.warning(
            "%s: %d keyframes were dropped, the model is slower than the source", source.name, total_dropped
        )


def with_attention(
    path: str | os.PathLike[str],
    frame: FrameDetections,
    actor: ActorDetection,
    labels: Sequence[str],
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
) -> ActorDetection:
    """Look once more at one frame of a video file, to see where some classes look for an actor.

    Args:
        path: The file.
        frame: A result of it.
        actor: One of the actors in it.
        labels: Names of the classes.
        model: The detector.
        processor: The processor that belongs to it.

    Returns:
        The actor with its `attentions`.

    Raises:
        ValueError: If a class is unknown.
        VideoReadError: If the frame or those around it cannot be read any more.
    """
    detector = ClipDetector.from_options(
        model, processor, threshold=0.0, class_thresholds={}, actor_threshold=0.0, attention=labels
    )
    source = open_source(path)
    indices, index = _clip_with(frame, path, source, model.config)
    images = torch.stack([detector.resize(image) for image in ClipReader().read(path, indices)])
    (again,) = detector.detect([Clip(images, [(index, frame.frame_index, frame.seconds)])], source)
    nearest = int(box_iou(np.array(actor.box), again.boxes).argmax())
    return replace(actor, attentions=again.actors[nearest].attentions)


def _clip_with(
    frame: FrameDetections, path: str | os.PathLike[str], source: VideoSource, config: ClassQueryConfig
) -> tuple[np.ndarray, int]:
    """Numbers of the frames of the clip in which a frame is detected, and its index in it."""
    if config.output_frames == "keyframe":
        return ClipReader().frame_indices_at(path, _clip_around(config, frame.seconds)), config.keyframe_index
    tile = next(tile for tile in _tiles(config, source.num_frames) if frame.frame_index in tile)
    return tile.clip(0, source.num_frames - 1), int(np.flatnonzero(tile == frame.frame_index)[0])


def label_id_of(label: str, config: ClassQueryConfig) -> int:
    """Look up a class by its name."""
    label_ids = {name: index for index, name in config.id2label.items()}
    if label not in label_ids:
        nearest = difflib.get_close_matches(label, label_ids, cutoff=0.0)
        raise ValueError(f"the model has no class {label!r}; the closest names are {nearest}")
    return label_ids[label]


# Clips


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
                _tiles(config, source.num_frames),
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

    def num_keyframes(self, config: ClassQueryConfig, source: VideoSource) -> int | None:
        """About how many results a video gives, where its length is known."""
        rate, num_frames = self.rate(config, source), source.num_frames
        if num_frames is None or rate is None:
            return num_frames
        return min(num_frames, int((num_frames - 1) / source.frames_per_second * rate + _TIME_TOLERANCE) + 1)


def _clips_around_keyframes(config: ClassQueryConfig, rate: float) -> Iterator[np.ndarray]:
    """Give times in seconds, without end."""
    for keyframe in itertools.count():
        yield _clip_around(config, keyframe / rate)


def _clip_around(config: ClassQueryConfig, seconds: float) -> np.ndarray:
    return clip_seconds(
        seconds,
        num_frames=config.num_frames,
        frame_stride=config.frame_stride,
        frames_per_second=config.frames_per_second,
    )


def _tiles(config: ClassQueryConfig, num_video_frames: int | None) -> Iterator[np.ndarray]:
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


# Detections


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
        if batch_size < 1 or (top_k is not None and top_k < 1):
            raise ValueError(f"both must be positive, got {batch_size = } and {top_k = }")
        config = model.config
        thresholds = np.full(config.num_labels, processor.score_threshold if threshold is None else threshold)
        of_classes = processor.class_thresholds if class_thresholds is None else class_thresholds
        for name, value in (of_classes or {}).items():
            thresholds[label_id_of(name, config)] = value
        if classes is not None:
            left_out = set(range(config.num_labels)) - {label_id_of(name, config) for name in classes}
            thresholds[list(left_out)] = np.inf
        return cls(
            model.eval(),
            processor,
            thresholds,
            processor.actor_threshold if actor_threshold is None else actor_threshold,
            top_k,
            {name: label_id_of(name, config) for name in attention},
            batch_size,
        )

    def resize(self, image: np.ndarray) -> torch.Tensor:
        """Take the first step of the processor, from (height, width, 3) to (3, height, width), both uint8.

        Taken when a frame arrives, it is done once for all clips that share the frame, and no large frame is kept.
        """
        resized = self.processor(image[None], do_center_crop=False, do_rescale=False, do_normalize=False)
        return resized["pixel_values"][0, 0]

    @torch.inference_mode()
    def detect(self, clips: Sequence[Clip], source: VideoSource) -> list[FrameDetections]:
        """Detect in some clips of a video."""
        # Bytes are sent to the device, a quarter of the floats they become.
        inputs = self.processor([clip.frames for clip in clips], do_resize=False, device=self.model.device)
        outputs = self.model(
            **inputs.to(self.model.device, self.model.dtype), output_attentions=bool(self.attention_ids)
        )
        # In float32, because bfloat16 moves boxes by pixels.
        tensors = {name: outputs[name].float() for name in ("pred_boxes", "scores", "actor_logits")}
        size = source.height, source.width
        label_ids = {name: label_id for label_id, name in self.model.config.id2label.items()}
        detections = self.processor.post_process_action_detection(tensors, target_sizes=[size] * len(clips))
        results = []
        for number, (clip, frames) in enumerate(zip(clips, detections, strict=True)):
            for index, frame_index, seconds in clip.reported:
                output_frame = index if len(frames) > 1 else 0
                attentions = self._attentions(outputs, number, output_frame)
                actors = self._actors(frames[output_frame], attentions, size)
                results.append(FrameDetections(frame_index, seconds, actors, size, source.name, label_ids=label_ids))
        return results

    def _attentions(self, outputs: ClassQueryDetectionOutput, clip: int, output_frame: int) -> dict[str, torch.Tensor]:
        """Attention (num_queries, h, w) of each class asked for in a frame of a clip."""
        attentions = {}
        for name, label_id in self.attention_ids.items():
            # (queries, labels, heads, h, w) -> (queries, heads, h, w)
            attention = outputs.class_attentions[-1][clip, output_frame, :, label_id]
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
        scores = detections["scores"].cpu().numpy()
        actors = []
        for query, actor_score in enumerate(detections["actor_scores"].tolist()):
            actions = self._actions(scores[query]) if actor_score >= self.actor_threshold else []
            if actions:
                of_query = {name: attention[query].numpy().copy() for name, attention in attentions.items()}
                actors.append(ActorDetection(tuple(boxes[query]), actor_score, actions, of_query))
        return sorted(actors, key=lambda actor: actor.box[0] + actor.box[2])

    def _actions(self, scores: np.ndarray) -> list[tuple[str, float]]:
        names = self.model.config.id2label
        chosen = np.flatnonzero(scores >= self.thresholds)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")][: self.top_k]
        return [(names[int(index)], float(scores[index])) for index in chosen]
