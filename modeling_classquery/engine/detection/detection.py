"""Detect actions in any video: one pass over its frames, in constant memory, decoding while the model computes."""

import difflib
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torchvision.ops import clip_boxes_to_image
from transformers.utils import logging

from classquery.configuration_classquery import ClassQueryConfig
from classquery.data.metrics.linking import box_iou
from classquery.data.video.reader import ClipReader, VideoReadError
from classquery.engine.checkpoint import load_detector
from classquery.engine.detection.background import Background
from classquery.engine.detection.clips import Clip, Sampling, assemble_clips, clip_around, tiles
from classquery.engine.detection.results import ActorDetection, FrameDetections
from classquery.engine.detection.video_sources import Source, VideoSource, list_sources, open_source
from classquery.modeling_classquery import ClassQueryDetectionOutput, ClassQueryForVideoActionDetection
from classquery.video_processing_classquery import ClassQueryVideoProcessor


logger = logging.get_logger(__name__)

DEMO_NOTICE = "The demo model knows nothing but the people, balls and kites of the demo movies: train or load another."


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
            frame, each frame once. By default 1. A model that detects in all frames reports them all by default, and
            at a given rate the first frame at or after each of these times.
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
        return ClipReader().frame_indices_at(path, clip_around(config, frame.seconds)), config.keyframe_index
    tile = next(tile for tile in tiles(config, source.num_frames) if frame.frame_index in tile)
    return tile.clip(0, source.num_frames - 1), int(np.flatnonzero(tile == frame.frame_index)[0])


def label_id_of(label: str, config: ClassQueryConfig) -> int:
    """Look up a class by its name."""
    label_ids = {name: index for index, name in config.id2label.items()}
    if label not in label_ids:
        nearest = difflib.get_close_matches(label, label_ids, cutoff=0.0)
        raise ValueError(f"the model has no class {label!r}; the closest names are {nearest}")
    return label_ids[label]


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
