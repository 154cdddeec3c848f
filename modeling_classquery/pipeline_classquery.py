"""The pipeline `video-action-detection`: from videos to detections or tubes, in one pass over the frames of each."""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou, clip_boxes_to_image
from transformers import Pipeline

from .configuration_classquery import ClassQueryConfig
from .frames_classquery import DecodedFrame, VideoFrames, is_one_video, local_video, open_video
from .modeling_classquery import ClassQueryForVideoActionDetection
from .video_processing_classquery import ClassQueryVideoProcessor


Detection = dict[str, Any]
_BOX = ("xmin", "ymin", "xmax", "ymax")


class VideoActionDetectionPipeline(Pipeline):
    r"""
    Detects who does what, where and when in videos.

    Frames of a file are chosen by time, as in training: a clip spans the same moment at any frame rate. A model of
    keyframes detects at regular times; a model of all frames in clips that follow each other.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import classquery

    >>> detector = pipeline("video-action-detection", model=classquery.demo_checkpoint())
    >>> detector("video.mp4", threshold=0.5)
    [{'frame': 0, 'time': 0.0, 'box': {'xmin': 45.8, ...}, 'label': 'stand', 'score': 0.89, 'actor_score': 0.99}, ...]

    ```
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    model: ClassQueryForVideoActionDetection
    video_processor: ClassQueryVideoProcessor

    def __init__(self, model: ClassQueryForVideoActionDetection, *args, **kwargs):
        if model.config.model_type != ClassQueryConfig.model_type:
            raise ValueError(f"this pipeline runs models of type 'classquery', got {model.config.model_type!r}")
        super().__init__(model.eval(), *args, **kwargs)
        if self.video_processor is None:
            raise ValueError("give the processor of the model as well: video_processor=ClassQueryVideoProcessor(...)")

    def __call__(self, videos: Any, **kwargs) -> list[Detection] | Iterable[list[Detection]]:
        """Detect actions in one or several videos.

        Args:
            videos: A video: path or link (http, https) of a file; array or tensor of shape (num_frames, height, width,
                3) or (num_frames, 3, height, width), uint8 RGB; or list of PIL images. Or a list of videos, or a
                generator or `datasets`-like collection of them, which is gone through as results are asked for.
            threshold (`float`, *optional*): Lowest score in [0, 1] of an action; by default those of the processor, of
                which some classes may have their own.
            actor_threshold (`float`, *optional*): Lowest confidence in [0, 1] of an actor; by default the processor's.
            top_k (`int`, *optional*): At most so many actions of each actor in a frame, those of highest score.
            return_tubes (`bool`, *optional*, defaults to `False`): Whether to join the detections of an action.
            iou_threshold (`float`, *optional*, defaults to 0.5): Smallest IoU of consecutive boxes of a tube.
            max_gap (`int`, *optional*, defaults to 0): How many of the frames detected in a tube may miss in a row.
            keyframes_per_second (`float`, *optional*, defaults to 1): For a model of keyframes: how many to detect in.
            clip_stride (`int`, *optional*): For a model of all frames: frames from the start of a clip to that of the
                next; by default they do not overlap. Where they do, the one counts whose middle is nearest.
            frames_per_second (`float`, *optional*): Frame rate of videos that are no files; by default that which the
                model counts in.
            batch_size (`int`, *optional*, defaults to 1): Clips of a video per forward pass.

        Returns:
            For one video a list of dicts, in the order of frames and then of scores: `frame`, its number; `time`, in
            seconds after the first; `box`, with `xmin`, `ymin`, `xmax`, `ymax` in pixels of the original frame;
            `label`; `score` and `actor_score`, in [0, 1]. With `return_tubes`, one dict per tube, of highest score
            first: `label`; `score` and `actor_score`, the means; and the lists `frames`, `times`, `boxes`, `scores`.
            For several videos, a list or an iterator of such lists.

        Raises:
            ValueError: If a video cannot be read or an option is out of range.
        """
        if is_one_video(videos):
            return super().__call__([videos], **kwargs)[0]
        if isinstance(videos, list | tuple):
            return super().__call__(list(videos), **kwargs) if videos else []
        return super().__call__((video for video in videos), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save the model, its processor and the code of both and of this pipeline."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.video_processor.save_pretrained(save_directory, **kwargs)

    def _upload_modified_files(self, *args, **kwargs):
        """Upload with the card of the model."""
        return self.model._upload_modified_files(*args, **kwargs)

    def _sanitize_parameters(
        self,
        *,
        frames_per_second: float | None = None,
        keyframes_per_second: float | None = None,
        clip_stride: int | None = None,
        threshold: float | None = None,
        actor_threshold: float | None = None,
        top_k: int | None = None,
        return_tubes: bool | None = None,
        iou_threshold: float | None = None,
        max_gap: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, value in (("threshold", threshold), ("actor_threshold", actor_threshold)):
            _require(name, value, lambda number: 0 <= number <= 1, "between 0 and 1")
        for name, value in (("frames_per_second", frames_per_second), ("keyframes_per_second", keyframes_per_second)):
            _require(name, value, lambda number: 0 < number < math.inf, "more than 0")
        for name, value in (("clip_stride", clip_stride), ("top_k", top_k)):
            _require(name, value, lambda number: number >= 1, "at least 1")
        _require("iou_threshold", iou_threshold, lambda number: 0 < number <= 1, "more than 0 and at most 1")
        _require("max_gap", max_gap, lambda number: number >= 0, "at least 0")
        self._refuse_other_mode(keyframes_per_second, clip_stride)
        preprocessing = {
            "frames_per_second": frames_per_second,
            "keyframes_per_second": keyframes_per_second,
            "clip_stride": clip_stride,
        }
        postprocessing = {
            "threshold": threshold,
            "actor_threshold": actor_threshold,
            "top_k": top_k,
            "return_tubes": return_tubes,
            "iou_threshold": iou_threshold,
            "max_gap": max_gap,
        }
        return _given(preprocessing), {}, _given(postprocessing)

    def _refuse_other_mode(self, keyframes_per_second: float | None, clip_stride: int | None) -> None:
        detects_in_all = self.model.config.output_frames == "all"
        if detects_in_all and keyframes_per_second is not None:
            raise ValueError("this model detects in all frames: give clip_stride instead of keyframes_per_second")
        if not detects_in_all and clip_stride is not None:
            raise ValueError("this model detects in keyframes: give keyframes_per_second instead of clip_stride")

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[list[Detection]]:
        """Go through videos one after the other; batches are made of the clips of one."""
        _require("batch_size", batch_size, lambda number: number >= 1, "at least 1")
        forward_params = {**forward_params, "batch_size": batch_size}
        return (self.run_single(video, preprocess_params, forward_params, postprocess_params) for video in inputs)

    def run_single(self, video: Any, preprocess_params, forward_params, postprocess_params) -> list[Detection]:
        """Run on one video, from a link or not."""
        with local_video(video) as video:
            return super().run_single(video, preprocess_params, forward_params, postprocess_params)

    def preprocess(
        self,
        video: Any,
        frames_per_second: float | None = None,
        keyframes_per_second: float = 1.0,
        clip_stride: int | None = None,
    ) -> dict[str, Any]:
        """Open a video and choose the frames of its clips."""
        config = self.model.config
        frames = open_video(video, frames_per_second or config.frames_per_second)
        if config.output_frames == "all":
            plan = _tile(frames.num_frames, config, clip_stride)
        else:
            plan = _around_keyframes(frames, config, keyframes_per_second)
        return {"frames": frames, "plan": plan}

    def _forward(self, model_inputs: dict[str, Any], batch_size: int = 1) -> list[dict[str, Any]]:
        """Detect in all clips of a video: candidates of each frame, in order."""
        frames, plan = model_inputs["frames"], model_inputs["plan"]
        clips = _assemble_clips(frames.stream(), plan, self._resize)
        batches = iter(lambda: list(itertools.islice(clips, batch_size)), [])
        return [found for batch in batches for found in self._detect(batch, frames.size)]

    def _resize(self, image: np.ndarray) -> torch.Tensor:
        """Take the first step of the processor, once for all clips that share a frame: (3, height, width), uint8."""
        resized = self.video_processor(image[None], do_center_crop=False, do_rescale=False, do_normalize=False)
        return resized["pixel_values"][0, 0]

    def _detect(self, clips: list["_Clip"], size: tuple[int, int]) -> Iterator[dict[str, Any]]:
        inputs = self.video_processor([clip.frames for clip in clips], do_resize=False)
        outputs = self.model(**inputs.to(self.model.device, self.model.dtype))
        # In float32: bfloat16 moves boxes by pixels.
        outputs = {name: outputs[name].float().cpu() for name in ("pred_boxes", "scores", "actor_logits")}
        results = self.video_processor.post_process_action_detection(outputs, target_sizes=[size] * len(clips))
        for clip, per_frame in zip(clips, results, strict=True):
            for (slot, index), seconds in zip(clip.outputs, clip.output_seconds, strict=True):
                boxes = clip_boxes_to_image(per_frame[slot]["boxes"], size)
                yield {**per_frame[slot], "boxes": boxes, "frame": index, "time": seconds}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        threshold: float | None = None,
        actor_threshold: float | None = None,
        top_k: int | None = None,
        return_tubes: bool = False,
        iou_threshold: float = 0.5,
        max_gap: int = 0,
    ) -> list[Detection]:
        """Select from the candidates, and join what is left over the frames if asked to."""
        thresholds = self._thresholds(threshold)
        actor_threshold = self.video_processor.actor_threshold if actor_threshold is None else actor_threshold
        per_frame = [self._select(found, thresholds, actor_threshold, top_k) for found in model_outputs]
        if not return_tubes:
            return list(itertools.chain.from_iterable(per_frame))
        labels = {detection["label"]: None for detections in per_frame for detection in detections}
        tubes = []
        for label in labels:
            of_label = [[found for found in detections if found["label"] == label] for detections in per_frame]
            tubes += [_to_tube(linked) for linked in link_detections(of_label, iou_threshold, max_gap)]
        return sorted(tubes, key=lambda tube: tube["score"], reverse=True)

    def _thresholds(self, threshold: float | None) -> torch.Tensor:
        """Lowest score of each class: (num_labels,)."""
        processor, label2id = self.video_processor, self.model.config.label2id
        if threshold is not None:
            return torch.full((len(label2id),), threshold)
        thresholds = torch.full((len(label2id),), processor.score_threshold)
        for label, of_class in (processor.class_thresholds or {}).items():
            thresholds[label2id[label]] = of_class
        return thresholds

    def _select(
        self, found: dict[str, Any], thresholds: torch.Tensor, actor_threshold: float, top_k: int | None
    ) -> list[Detection]:
        """Detections in one frame, of highest score first."""
        scores = found["scores"].where(found["scores"] >= thresholds, -1)
        best = scores.topk(min(top_k or len(thresholds), len(thresholds)), dim=1)
        is_actor = found["actor_scores"] >= actor_threshold
        detections = [
            {
                "frame": found["frame"],
                "time": found["time"],
                "box": dict(zip(_BOX, found["boxes"][actor].tolist(), strict=True)),
                "label": self.model.config.id2label[best.indices[actor, rank].item()],
                "score": best.values[actor, rank].item(),
                "actor_score": found["actor_scores"][actor].item(),
            }
            for actor, rank in (is_actor[:, None] & (best.values >= 0)).nonzero().tolist()
        ]
        return sorted(detections, key=lambda detection: detection["score"], reverse=True)


def _require(name: str, value: Any, is_met: Callable[[Any], bool], expected: str) -> None:
    if value is not None and not is_met(value):
        raise ValueError(f"`{name}` must be {expected}, got {value!r}")


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


# Clips


@dataclass(frozen=True)
class _Plan:
    """The clips of a video, in order."""

    indices: np.ndarray
    """Frames of each clip, of shape (num_clips, num_frames); rows and columns do not decrease."""
    outputs: list[list[tuple[int, int]]]
    """For each clip, which of the model's output frames count, and their numbers in the video."""


class _Clip(NamedTuple):
    """Decoded frames, and which of them the model detects in."""

    frames: torch.Tensor
    """Shape (num_frames, 3, height, width), uint8."""
    outputs: list[tuple[int, int]]
    """As in `_Plan`; without frames that could not be decoded."""
    output_seconds: list[float]
    """Their times."""


def _around_keyframes(frames: VideoFrames, config: ClassQueryConfig, keyframes_per_second: float) -> _Plan:
    """Plan clips around the frames nearest to 0, 1 / rate, 2 / rate, ... seconds, each frame once."""
    # The tolerance is for quotients of floats: 2.9999999 keyframes after the first are 3.
    num_keyframes = int(frames.last_seconds * keyframes_per_second + 1e-6) + 1
    keyframes = np.arange(num_keyframes)[:, None] / keyframes_per_second
    offsets = (np.arange(config.num_frames) - config.keyframe_index) * config.frame_stride / config.frames_per_second
    indices = frames.indices_at(keyframes + offsets)
    _, first_uses = np.unique(indices[:, config.keyframe_index], return_index=True)
    indices = indices[first_uses]
    return _Plan(indices, [[(0, keyframe)] for keyframe in indices[:, config.keyframe_index].tolist()])


def _tile(num_video_frames: int, config: ClassQueryConfig, clip_stride: int | None) -> _Plan:
    """Plan clips that follow each other, half of the padding before the first and half behind the last."""
    length = math.ceil(num_video_frames / config.frame_stride)
    stride = max(clip_stride // config.frame_stride, 1) if clip_stride else config.num_frames
    num_clips = math.ceil(max(length - config.num_frames, 0) / stride) + 1
    padding = max((num_clips - 1) * stride + config.num_frames - length, 0)
    starts = np.arange(num_clips)[:, None] * stride - padding // 2
    indices = (starts + np.arange(config.num_frames)) * config.frame_stride
    # Which clip a frame counts in: its place there is nearest to the middle.
    distance, outputs = {}, [[] for _ in range(num_clips)]
    for (clip, slot), index in np.ndenumerate(indices):
        if 0 <= index < num_video_frames:
            distance.setdefault(int(index), []).append((abs(slot - config.keyframe_index), clip, slot))
    for index, places in sorted(distance.items()):
        _, clip, slot = min(places)
        outputs[clip].append((slot, index))
    return _Plan(indices.clip(0, num_video_frames - 1), outputs)


def _assemble_clips(
    frames: Iterable[DecodedFrame], plan: _Plan, prepare: Callable[[np.ndarray], torch.Tensor]
) -> Iterator[_Clip]:
    """Cut the clips out of a stream, keeping the frames of the next one only.

    A frame that is missing is replaced by the nearest there is, and does not count as an output; a clip without any
    output is left out.
    """
    wanted = set(plan.indices.ravel().tolist())
    kept: dict[int, tuple[float, torch.Tensor]] = {}
    num_done = 0
    for frame in frames:
        if frame.index in wanted:
            kept[frame.index] = frame.seconds, prepare(frame.image)
        while num_done < len(plan.indices) and plan.indices[num_done, -1] <= frame.index:
            yield from _cut(plan, num_done, kept)
            num_done += 1
            if num_done < len(plan.indices):
                kept = {index: known for index, known in kept.items() if index >= plan.indices[num_done, 0]}
    # What remains if the stream ended early.
    for clip in range(num_done, len(plan.indices)):
        yield from _cut(plan, clip, kept)


def _cut(plan: _Plan, clip: int, kept: dict[int, tuple[float, torch.Tensor]]) -> Iterator[_Clip]:
    outputs = [output for output in plan.outputs[clip] if output[1] in kept]
    if outputs:
        nearest = [min(kept, key=lambda known: abs(known - index)) for index in plan.indices[clip].tolist()]
        frames = torch.stack([kept[index][1] for index in nearest])
        yield _Clip(frames, outputs, [kept[index][0] for _, index in outputs])


# Tubes


def link_detections(per_frame: list[list[Detection]], iou_threshold: float, max_gap: int) -> list[list[Detection]]:
    """Join the detections of one label over the frames, going through them once.

    In each frame the tubes choose in descending order of their mean score so far, each the detection with the highest
    score among those that are left and overlap its last box. Detections that nobody chose start new tubes. This is
    `link_greedily` of the package's metrics, which code that runs from the Hub does not have.

    Args:
        per_frame: Detections in consecutive frames.
        iou_threshold: Smallest IoU of consecutive boxes of a tube.
        max_gap: For how many frames in a row a tube may miss.

    Returns:
        Tubes as lists of detections, in the order of their first frames.
    """
    tubes: list[list[Detection]] = []
    last_position: list[int] = []
    for position, detections in enumerate(per_frame):
        left = list(detections)
        is_open = [number for number, last in enumerate(last_position) if position - last <= max_gap + 1]
        for number in sorted(is_open, key=lambda number: _mean_score(tubes[number]), reverse=True):
            overlapping = [found for found in left if _iou(tubes[number][-1], found) >= iou_threshold]
            if overlapping:
                best = max(overlapping, key=lambda found: found["score"])
                left.remove(best)
                tubes[number].append(best)
                last_position[number] = position
        tubes += [[found] for found in left]
        last_position += [position] * len(left)
    return tubes


def _mean_score(tube: list[Detection]) -> float:
    return sum(found["score"] for found in tube) / len(tube)


def _iou(detection: Detection, other: Detection) -> float:
    boxes = (torch.tensor([[found["box"][edge] for edge in _BOX]]) for found in (detection, other))
    return box_iou(*boxes).item()


def _to_tube(linked: list[Detection]) -> Detection:
    return {
        "label": linked[0]["label"],
        "score": _mean_score(linked),
        "actor_score": sum(found["actor_score"] for found in linked) / len(linked),
        "frames": [found["frame"] for found in linked],
        "times": [found["time"] for found in linked],
        "boxes": [found["box"] for found in linked],
        "scores": [found["score"] for found in linked],
    }


__all__ = ["VideoActionDetectionPipeline", "link_detections"]
