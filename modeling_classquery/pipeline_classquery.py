"""The pipeline `video-action-detection`: from videos to detections or tubes, in one pass over the frames of each."""

import itertools
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from transformers import Pipeline

from .configuration_classquery import ClassQueryConfig
from .detection_classquery import ClipDetector, DetectedFrame, Sampling, assemble_clips, frames_for
from .frames_classquery import is_one_video, local_video, open_video
from .linking_classquery import link_greedily
from .modeling_classquery import ClassQueryForVideoActionDetection
from .video_processing_classquery import ClassQueryVideoProcessor


Detection = dict[str, Any]
_LISTED_IN_TUBES = {"frame": "frames", "time": "times", "box": "boxes", "score": "scores"}


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

    # The base class has None there, and says so.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = True  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    model: ClassQueryForVideoActionDetection
    video_processor: ClassQueryVideoProcessor

    def __init__(self, model: ClassQueryForVideoActionDetection, *args, **kwargs):
        if model.config.model_type != ClassQueryConfig.model_type:
            raise ValueError(f"this pipeline runs models of type 'classquery', got {model.config.model_type!r}")
        super().__init__(model.eval(), *args, **kwargs)
        if self.video_processor is None:
            raise ValueError("give the processor of the model as well: video_processor=ClassQueryVideoProcessor(...)")

    # Without positional options and with names that say what they are, where the base class takes anything.
    def __call__(  # type: ignore[override]
        self, videos: Any, **kwargs: Any
    ) -> list[Detection] | Iterable[list[Detection]]:
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
            `label`; `score` and `actor_score`, in [0, 1]; and `trained`, False, if the class is known by its words
            only (`untrained_classes` of the configuration). With `return_tubes`, one dict per tube, of highest score
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

    def _sanitize_parameters(  # type: ignore[override]
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
        preprocessing: dict[str, Any] = {"frames_per_second": frames_per_second}
        if keyframes_per_second is not None or clip_stride is not None:
            preprocessing["sampling"] = Sampling(keyframes_per_second, clip_stride=clip_stride)
        forward = {"threshold": threshold, "actor_threshold": actor_threshold, "top_k": top_k}
        postprocessing = {"return_tubes": return_tubes, "iou_threshold": iou_threshold, "max_gap": max_gap}
        return _given(preprocessing), _given(forward), _given(postprocessing)

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

    def preprocess(  # type: ignore[override]
        self, video: Any, frames_per_second: float | None = None, sampling: Sampling | None = None
    ) -> dict[str, Any]:
        """Open a video."""
        frames = open_video(video, frames_per_second or self.model.config.frames_per_second)
        return {"video": frames, "plan": (sampling or Sampling()).plan(self.model.config, frames)}

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], **options: Any
    ) -> list[DetectedFrame]:
        """Detect in all clips of a video."""
        video, plan = model_inputs["video"], model_inputs["plan"]
        detector = ClipDetector.from_options(self.model, self.video_processor, **options)
        return list(detector.detect_all(assemble_clips(frames_for(plan, video), plan, detector.resize), video.size))

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: list[DetectedFrame],
        return_tubes: bool = False,
        iou_threshold: float = 0.5,
        max_gap: int = 0,
    ) -> list[Detection]:
        """List the actions of each frame, and join them over the frames if asked to."""
        untrained = set(self.model.config.untrained_classes or ())
        per_frame = [_detections_in(frame, untrained) for frame in model_outputs]
        if not return_tubes:
            return list(itertools.chain.from_iterable(per_frame))
        of_label: dict[str, list[tuple[int, Detection]]] = {}
        for position, detections in enumerate(per_frame):
            for detection in detections:
                of_label.setdefault(detection["label"], []).append((position, detection))
        tubes = [tube for found in of_label.values() for tube in _link(found, iou_threshold, max_gap)]
        return sorted(tubes, key=lambda tube: tube["score"], reverse=True)


def _detections_in(frame: DetectedFrame, untrained: Collection[str]) -> list[Detection]:
    """Flatten the actions in a frame, of highest score first."""
    detections = [
        {
            "frame": frame.frame_index,
            "time": frame.seconds,
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), actor.box, strict=True)),
            "label": label,
            "score": score,
            "actor_score": actor.actor_score,
            **({"trained": False} if label in untrained else {}),
        }
        for actor in frame.actors
        for label, score in actor.actions
    ]
    return sorted(detections, key=lambda detection: detection["score"], reverse=True)


def _link(found: list[tuple[int, Detection]], iou_threshold: float, max_gap: int) -> Iterator[Detection]:
    """Join the detections of one label, each with the position of its frame among those detected in."""
    positions, detections = zip(*found, strict=True)
    boxes, scores = [[*one["box"].values()] for one in detections], [one["score"] for one in detections]
    for linked in link_greedily(positions, boxes, scores, iou_threshold=iou_threshold, max_gap=max_gap):
        tube = [detections[row] for row in linked["rows"]]
        yield {
            "label": tube[0]["label"],
            "score": linked["score"],
            "actor_score": sum(one["actor_score"] for one in tube) / len(tube),
            **({"trained": False} if "trained" in tube[0] else {}),
            **{names: [one[name] for one in tube] for name, names in _LISTED_IN_TUBES.items()},
        }


def _require(name: str, value: Any, is_met: Callable[[Any], bool], expected: str) -> None:
    if value is not None and not is_met(value):
        raise ValueError(f"`{name}` must be {expected}, got {value!r}")


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


__all__ = ["VideoActionDetectionPipeline"]
