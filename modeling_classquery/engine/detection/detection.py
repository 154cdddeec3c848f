"""Detect actions in any video: one pass over its frames, in constant memory, decoding while the model computes."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from classquery.configuration_classquery import ClassQueryConfig
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.detection_classquery import (
    Clip,
    ClipDetector,
    Sampling,
    assemble_clips,
    clip_around,
    frames_for,
    tiles,
)
from classquery.engine.checkpoint import demo_notice, load_detector
from classquery.engine.detection.background import Background
from classquery.engine.detection.results import ActorDetection, FrameDetections
from classquery.engine.detection.video_sources import Source, VideoSource, list_sources, open_source
from classquery.frames_classquery import DecodableFrames
from classquery.linking_classquery import box_iou
from classquery.modeling_classquery import ClassQueryForVideoActionDetection
from classquery.video_processing_classquery import ClassQueryVideoProcessor


logger = logging.get_logger(__name__)


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
    takes; clips overlap where keyframes are close. A model that detects in every frame (`output_frames="all"`) gets
    clips that tile the video, and each frame is reported once.

    Args:
        source: A file, folder, pattern, camera number, stream, frames, or a list of these: see `list_sources`.
        model: The detector, which is put in evaluation mode and runs on its own device, in its own precision; or a
            folder or a name on the Hub; or `demo` for the small model in the package.
        processor: The processor that belongs to the model, if that is not a name.
        keyframes_per_second, keyframe_stride: See `classquery.detection_classquery.Sampling`.
        threshold: Lowest score in [0, 1] of an action to report, of any class; by default those of the processor.
        class_thresholds: Other thresholds for some classes; by default, without `threshold`, those of the processor.
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
        The results in order. Damaged frames are passed over, and where a stream stops its results end; a warning says
        from when to when nothing was detected. Of several videos, one that cannot be read is passed over with a
        warning.

    Raises:
        ValueError: At the call, if a class is unknown or a number out of range; while iterating, if scores are not
            finite.
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
    options: dict[str, Any] = {
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
        loaded, its_processor = load_detector(model)
        notice = demo_notice(loaded)
        if notice:
            logger.warning_once(notice)
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


def detect_in(source: VideoSource, detector: ClipDetector, sampling: Sampling) -> Iterator[FrameDetections]:
    """Detect in an opened video; what `detect` does for each."""
    config, size = detector.model.config, (source.height, source.width)
    label_ids = {name: label_id for label_id, name in config.id2label.items()}
    plan = sampling.plan(config, source)
    decodable = DecodableFrames(frames_for(plan, source), source.name, None, VideoReadError, source.missing)
    clips = assemble_clips(decodable, plan, detector.resize)
    capacity = detector.batch_size if source.is_live else 2 * detector.batch_size
    total_dropped = 0
    with Background(clips, capacity=capacity, drop_oldest=source.is_live) as background:
        while (taken := background.take(detector.batch_size)).items:
            num_dropped = taken.num_dropped
            total_dropped += num_dropped
            for frame in detector.detect(taken.items, size):
                yield FrameDetections(**vars(frame), video=source.name, num_dropped=num_dropped, label_ids=label_ids)
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
        The actor with its `attentions` and the scores of the classes.

    Raises:
        ValueError: If a class is unknown.
        VideoReadError: If the frame or those around it cannot be read any more.
    """
    detector = ClipDetector.from_options(
        model, processor, threshold=0.0, class_thresholds={}, actor_threshold=0.0, attention=labels
    )
    source = open_source(path)
    indices, index = _clip_with(frame, source, model.config)
    images = torch.stack([detector.resize(image) for image in ClipReader().read(path, indices)])
    clip = Clip(images, [(index, frame.frame_index, frame.seconds)])
    (again,) = detector.detect([clip], (source.height, source.width))
    boxes = np.array([candidate.box for candidate in again.actors])
    nearest = int(box_iou(np.array(actor.box), boxes).argmax())
    found = again.actors[nearest]
    return replace(actor, attentions=found.attentions, attention_scores=found.attention_scores)


def _clip_with(frame: FrameDetections, source: VideoSource, config: ClassQueryConfig) -> tuple[np.ndarray, int]:
    """Numbers of the frames of the clip in which a frame is detected, and its index in it."""
    if config.output_frames == "keyframe":
        seconds = clip_around(config, frame.seconds)
        return ClipReader().frame_indices_at(source.name, seconds), config.keyframe_index
    plan = tiles(config, source.num_frames)
    clips = (plan.positions(number) for number in range(int(plan.num_clips)))
    tile = next(positions for positions in clips if frame.frame_index in positions)
    last = None if source.num_frames is None else source.num_frames - 1
    return tile.clip(0, last), int(np.flatnonzero(tile == frame.frame_index)[0])
