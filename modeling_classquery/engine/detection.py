"""Detect actions in a whole video: one pass over its frames, one clip around each keyframe, in constant memory."""

import difflib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import clip_boxes_to_image
from transformers.utils import logging

from classquery.configuration_classquery import ClassQueryConfig
from classquery.data.clip_reader import ClipReader, Frame, VideoInfo, VideoReadError, iterate_frames
from classquery.data.clips import clip_seconds
from classquery.data.whole_files import replacing
from classquery.modeling_classquery import ClassQueryDetectionOutput, ClassQueryForVideoActionDetection
from classquery.video_processing_classquery import ClassQueryVideoProcessor


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ActorDetection:
    """An actor in one frame and what they do."""

    box: tuple[float, float, float, float]
    """(x_min, y_min, x_max, y_max) in pixels of the original frame, clipped to it."""
    actor_score: float
    """Confidence in [0, 1] that this is an actor."""
    actions: list[tuple[str, float]]
    """Names and scores in [0, 1] of the actions, highest first."""
    attention: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Where one class looks for this actor: float32 (h, w) over the whole frame, summing to 1."""

    def to_dict(self) -> dict:
        """Return what JSON can hold, rounded for reading, without the attention."""
        return {
            "box": [round(edge, 2) for edge in self.box],
            "actor_score": round(self.actor_score, 4),
            "actions": [{"label": label, "score": round(score, 4)} for label, score in self.actions],
        }


@dataclass(frozen=True)
class KeyframeDetections:
    """The actors of one frame of a video."""

    frame_index: int
    """Number of the frame, as `ClipReader` counts."""
    seconds: float
    """Its time after the first frame."""
    actors: list[ActorDetection]
    """From left to right, so that an actor keeps its place from one keyframe to the next; may be empty."""

    def to_dict(self) -> dict:
        """Return what JSON can hold."""
        return {
            "frame_index": self.frame_index,
            "seconds": round(self.seconds, 4),
            "actors": [actor.to_dict() for actor in self.actors],
        }


def detect_video(
    path: str | os.PathLike[str],
    model: ClassQueryForVideoActionDetection,
    processor: ClassQueryVideoProcessor,
    *,
    keyframes_per_second: float = 1.0,
    threshold: float = 0.3,
    actor_threshold: float = 0.5,
    attention_label: str | None = None,
    batch_size: int = 4,
) -> Iterator[KeyframeDetections]:
    """Detect actors and their actions at regular times of a video, while it is decoded once from start to end.

    Args:
        path: The video file.
        model: The detector; it is put in evaluation mode and runs on its own device, in its own precision.
        processor: The processor that belongs to it.
        keyframes_per_second: Keyframes are the frames nearest to 0, 1 / rate, 2 / rate, ... seconds up to the last
            frame, each frame once. The clip around a keyframe has the frames that training takes (`clip_seconds`).
        threshold: Lowest score in [0, 1] of an action to report.
        actor_threshold: Lowest confidence in [0, 1] of an actor to report; actors without any action are left out.
        attention_label: Name of a class whose attention in the last decoder layer to report with each actor. It is the
            mean over the heads that see content and covers the frame but for the remainder of a patch that the model
            drops on the right and at the bottom. Costs the unfused attention and the memory for all classes and frames
            of the clips, so lower `batch_size` for large models.
        batch_size: Number of clips per forward pass.

    Returns:
        One result per keyframe, in order of time, as the frames come. If the end of the video is damaged, a warning
        is logged and the results end at the last keyframe that can be decoded.

    Raises:
        ValueError: At the call, if the class is unknown or if a number is out of range.
        VideoReadError: At the call, if the video cannot be read at all.
    """
    if not 0 < keyframes_per_second < math.inf or batch_size < 1:
        raise ValueError(f"both must be positive and finite, got {keyframes_per_second = } and {batch_size = }")
    label_id = None if attention_label is None else label_id_of(attention_label, model.config)
    info, clip_indices = _plan_clips(path, model.config, keyframes_per_second)
    detector = _ClipDetector(model.eval(), processor, (info.height, info.width), threshold, actor_threshold, label_id)
    clips = assemble_clips(readable_frames(path), clip_indices, info.num_frames, detector.resize)
    batches = iter(lambda: list(itertools.islice(clips, batch_size)), [])
    return itertools.chain.from_iterable(map(detector.detect, batches))


def write_detections(
    path: str | os.PathLike[str], video_info: VideoInfo, keyframes: Iterable[KeyframeDetections]
) -> None:
    """Write the detections of a video as JSON; a file that is there is replaced when all is written, or kept.

    The attention is not written.
    """
    content = {
        "video": video_info.path,
        "frames_per_second": video_info.frames_per_second,
        "num_frames": video_info.num_frames,
        "height": video_info.height,
        "width": video_info.width,
        "keyframes": [keyframe.to_dict() for keyframe in keyframes],
    }
    with replacing(path) as partial_path:
        partial_path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def readable_frames(path: str | os.PathLike[str]) -> Iterator[Frame]:
    """Stream a video as `iterate_frames` does, but end with a warning where the rest is damaged or missing.

    Raises:
        VideoReadError: At the call, if the video cannot be read at all.
    """
    return _up_to_damage(iterate_frames(path))


def _up_to_damage(frames: Iterator[Frame]) -> Iterator[Frame]:
    try:
        yield from frames
    except VideoReadError as error:
        logger.warning("the video ends early: %s", error)


def label_id_of(label: str, config: ClassQueryConfig) -> int:
    label_ids = {name: index for index, name in config.id2label.items()}
    if label not in label_ids:
        nearest = difflib.get_close_matches(label, label_ids, cutoff=0.0)
        raise ValueError(f"the model has no class {label!r}; the closest names are {nearest}")
    return label_ids[label]


# Clips


class Clip(NamedTuple):
    """Frames around a keyframe."""

    frame_index: int
    """Number of the keyframe."""
    seconds: float
    """Time of the keyframe."""
    frames: torch.Tensor
    """Shape (num_frames, 3, height, width), uint8."""


def _plan_clips(
    path: str | os.PathLike[str], config: ClassQueryConfig, keyframes_per_second: float
) -> tuple[VideoInfo, np.ndarray]:
    """Choose the frames of each clip: int64 of shape (num_keyframes, num_frames)."""
    reader = ClipReader()
    info = reader.info(path)
    last_seconds = (info.num_frames - 1) / info.frames_per_second
    # The tolerance is for quotients of floats: 2.9999999 keyframes after the first are 3.
    num_keyframes = int(last_seconds * keyframes_per_second + 1e-6) + 1
    seconds = [
        clip_seconds(
            keyframe / keyframes_per_second,
            num_frames=config.num_frames,
            frame_stride=config.frame_stride,
            frames_per_second=config.frames_per_second,
        )
        for keyframe in range(num_keyframes)
    ]
    clip_indices = reader.frame_indices_at(path, np.stack(seconds))
    # A frame is nearest to several times where the video has fewer frames than keyframes were asked for.
    _, first_uses = np.unique(clip_indices[:, config.keyframe_index], return_index=True)
    return info, clip_indices[first_uses]


def assemble_clips(
    frames: Iterable[Frame],
    clip_indices: np.ndarray,
    num_frames: int,
    prepare: Callable[[np.ndarray], torch.Tensor],
) -> Iterator[Clip]:
    """Cut overlapping clips out of a stream, keeping the frames of the next clip only.

    Args:
        frames: The frames of a video in order; some may be missing.
        clip_indices: Shape (num_clips, clip_length); rows and columns do not decrease. The keyframe is in the middle,
            at `clip_length // 2`.
        num_frames: Number of frames of the video.
        prepare: Called once with the image of each frame that some clip needs.

    Yields:
        The clips whose keyframe is there, each as soon as its last frame is. Another frame that is missing is replaced
        by the nearest one there is, like those beyond the ends of a video.
    """
    is_wanted = np.zeros(num_frames, dtype=bool)
    is_wanted[clip_indices] = True
    kept: dict[int, Frame] = {}
    num_done = 0
    for frame in frames:
        if is_wanted[frame.index]:
            kept[frame.index] = frame._replace(image=prepare(frame.image))
        while num_done < len(clip_indices) and clip_indices[num_done, -1] <= frame.index:
            yield from _assemble(clip_indices[num_done], kept)
            num_done += 1
            first_needed = clip_indices[num_done, 0] if num_done < len(clip_indices) else num_frames
            kept = {index: known for index, known in kept.items() if index >= first_needed}
    # What remains if the stream ended early.
    for indices in clip_indices[num_done:]:
        yield from _assemble(indices, kept)


def _assemble(indices: np.ndarray, kept: dict[int, Frame]) -> Iterator[Clip]:
    """Yield the clip of some frames, or nothing if its keyframe is missing."""
    keyframe = kept.get(int(indices[len(indices) // 2]))
    if keyframe is not None:
        nearest = [kept[min(kept, key=lambda known: abs(known - index))] for index in indices.tolist()]
        yield Clip(keyframe.index, keyframe.seconds, torch.stack([frame.image for frame in nearest]))


# Detections


@dataclass(frozen=True)
class _ClipDetector:
    """From the frames of a video to clips, and from batches of clips to the detections in their keyframes."""

    model: ClassQueryForVideoActionDetection
    processor: ClassQueryVideoProcessor
    size: tuple[int, int]
    """Height and width of the original frames."""
    threshold: float
    actor_threshold: float
    attention_label_id: int | None

    def resize(self, image: np.ndarray) -> torch.Tensor:
        """Take the first step of the processor, from (height, width, 3) to (3, height, width), both uint8.

        Taken when a frame arrives, it is done once for all clips that share the frame, and no large frame is kept.
        """
        resized = self.processor(image[None], do_center_crop=False, do_rescale=False, do_normalize=False)
        return resized["pixel_values"][0, 0]

    @torch.inference_mode()
    def detect(self, clips: list[Clip]) -> list[KeyframeDetections]:
        inputs = self.processor([clip.frames for clip in clips], do_resize=False)
        outputs = self.model(
            **inputs.to(self.model.device, self.model.dtype), output_attentions=self.attention_label_id is not None
        )
        detections = self.processor.post_process_action_detection(
            self._of_keyframes(outputs), target_sizes=[self.size] * len(clips)
        )
        attentions = self._attentions(outputs)
        return [
            KeyframeDetections(clip.frame_index, clip.seconds, self._actors(keyframe, attention))
            for clip, (keyframe,), attention in zip(clips, detections, attentions, strict=True)
        ]

    @property
    def _output_frame(self) -> int:
        config = self.model.config
        return config.keyframe_index if config.output_frames == "all" else 0

    def _of_keyframes(self, outputs: ClassQueryDetectionOutput) -> dict[str, torch.Tensor]:
        """Reduce what is post-processed to one output frame; in float32, because bfloat16 moves boxes by pixels."""
        frame = slice(self._output_frame, self._output_frame + 1)
        return {name: outputs[name][:, frame].float() for name in ("pred_boxes", "scores", "actor_logits")}

    def _attentions(self, outputs: ClassQueryDetectionOutput) -> Iterable[np.ndarray | None]:
        """Attention of the class asked for, (num_queries, h, w) for each clip, or None."""
        if self.attention_label_id is None:
            return [None] * len(outputs["logits"])
        # (batch, frames, queries, labels, heads, h, w) -> (batch, queries, heads, h, w)
        attention = outputs.class_attentions[-1][:, self._output_frame, :, self.attention_label_id]
        if self.model.config.class_attention_heads == "released":
            # The other half sees positions only: it looks at the same place for all classes.
            attention = attention[:, :, : math.ceil(attention.shape[2] / 2)]
        return attention.float().mean(2).cpu().numpy()

    def _actors(self, detections: dict[str, torch.Tensor], attention: np.ndarray | None) -> list[ActorDetection]:
        """Select from the candidates of one keyframe."""
        boxes = clip_boxes_to_image(detections["boxes"], self.size).tolist()
        actors = []
        for query, actor_score in enumerate(detections["actor_scores"].tolist()):
            actions = self._actions(detections["scores"][query].tolist())
            if actor_score >= self.actor_threshold and actions:
                query_attention = None if attention is None else attention[query].copy()
                actors.append(ActorDetection(tuple(boxes[query]), actor_score, actions, query_attention))
        return sorted(actors, key=lambda actor: actor.box[0] + actor.box[2])

    def _actions(self, scores: list[float]) -> list[tuple[str, float]]:
        names = self.model.config.id2label
        actions = [(names[index], score) for index, score in enumerate(scores) if score >= self.threshold]
        return sorted(actions, key=lambda action: action[1], reverse=True)
