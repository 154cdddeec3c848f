"""From frames to the tensors the model takes, and from its outputs back to boxes in the original frames."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_convert
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput

from .loss_classquery import ACTOR, action_scores
from .saving_classquery import AUTO_MAP, SavedWithCode


# No video has larger frames, nor would memory hold a clip of them.
_MAX_SIDE = 16_384


class ClassQueryVideoProcessor(SavedWithCode, BaseVideoProcessor):
    r"""
    Resize clips so that their short side is `size["shortest_edge"]`, keeping the aspect, normalise them and pad them
    with zeros at the bottom and on the right to one size.

    Resizing is bicubic with antialiasing, on 8-bit frames, as PIL does it; the long side is truncated to whole pixels.

    Below which scores detections are not shown is saved with the processor, because it belongs to the trained model:
    `score_threshold` for actions, `class_thresholds` for those of some names, `actor_threshold` for actors; all in
    [0, 1].

    Example:

    ```python
    >>> import numpy as np
    >>> from classquery import ClassQueryVideoProcessor

    >>> processor = ClassQueryVideoProcessor(size={"shortest_edge": 64})
    >>> clips = [np.zeros((8, 120, 160, 3), np.uint8), np.zeros((8, 90, 160, 3), np.uint8)]
    >>> inputs = processor(clips)
    >>> inputs["pixel_values"].shape, inputs["pixel_mask"].shape
    (torch.Size([2, 8, 3, 64, 113]), torch.Size([2, 64, 113]))

    ```
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    score_threshold = 0.3
    class_thresholds = None
    actor_threshold = 0.5
    model_input_names = ["pixel_values", "pixel_mask"]

    def __init__(self, **kwargs: Unpack[VideosKwargs]):
        super().__init__(**kwargs)
        self._check_values()

    def _check_values(self) -> None:
        """Refuse what no clip could be processed with, as a file may say.

        Raises:
            ValueError: Names the value, what it is and what it may be.
        """
        sides = {name: side for name, side in dict(self.size or {}).items() if side is not None}
        is_good = bool(sides) and all(map(_is_side, sides.values()))
        _require("size", sides, is_good, f"sides from 1 to {_MAX_SIDE} pixels")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            values = values if isinstance(values, (list, tuple)) else [values]
            is_good = len(values) in (1, 3) and all(map(_is_number, values))
            is_good = is_good and (name == "image_mean" or min(values) > 0)
            _require(name, values, is_good, "one number or three, for red, green and blue (of `image_std` above 0)")
        _require("rescale_factor", self.rescale_factor, _is_number(self.rescale_factor), "a number")
        thresholds = {"score_threshold": self.score_threshold, "actor_threshold": self.actor_threshold}
        of_classes: dict[str, float] = self.class_thresholds if self.class_thresholds is not None else {}
        _require("class_thresholds", of_classes, isinstance(of_classes, dict), "thresholds by the names of classes")
        for name, value in (thresholds | of_classes).items():
            _require(name, value, _is_number(value) and 0 <= value <= 1, "a score in [0, 1]")
        filters = list(map(int, PILImageResampling))
        _require("resample", self.resample, self.resample in filters, f"a filter of Pillow, one of {filters}")
        for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            _require(name, getattr(self, name), isinstance(getattr(self, name), bool), "true or false")

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[VideosKwargs]) -> BatchFeature:
        """Turn clips into model inputs.

        Args:
            videos: One clip or a list of clips, each an array or tensor (num_frames, height, width, 3) or (num_frames,
                3, height, width), uint8, or a list of PIL frames. All have the same number of frames.

        Returns:
            `pixel_values` of shape (batch, num_frames, 3, height, width), float32, and `pixel_mask` of shape (batch,
            height, width), 1 on real pixels and 0 on padding.

        Raises:
            ValueError: If the clips differ in their number of frames, or are paths or links.
        """
        path = _first_path(videos)
        if path is not None:
            raise ValueError(
                f"a processor takes the frames of clips, got the path {str(path)[:100]!r}: give the file to "
                'classquery.detect or pipeline("video-action-detection"), which choose its frames as in training'
            )
        return super().preprocess(_channels_first(videos), **kwargs)

    def resize_frame(self, image: np.ndarray) -> torch.Tensor:
        """Take the first step of `preprocess` with one frame, from (height, width, 3) to (3, height, width), uint8."""
        image = image if image.flags.writeable else image.copy()
        frame = torch.from_numpy(image).permute(2, 0, 1)[None]
        if self.do_resize:
            size = self.size if isinstance(self.size, SizeDict) else SizeDict(**self.size)
            frame = self.resize(frame, size=size, resample=self.resample)
        return frame[0]

    def _preprocess(  # type: ignore[override] # videos, not images
        self,
        videos: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        scaling = (do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        # Not in groups of one size, as usual: for that they would be copied.
        clips = [self.resize(clip, size=size, resample=resample) for clip in videos] if do_resize else videos
        clips = [self.center_crop(clip, crop_size) for clip in clips] if do_center_crop else clips
        lengths = {len(clip) for clip in clips}
        if len(lengths) > 1:
            raise ValueError(f"all clips of a batch must have the same number of frames, got {sorted(lengths)}")
        height, width = (max(clip.shape[axis] for clip in clips) for axis in (-2, -1))
        one_pixel = self.rescale_and_normalize(clips[0][:1, :, :1, :1], *scaling)
        pixel_values = one_pixel.new_empty(len(clips), *clips[0].shape[:2], height, width)
        pixel_mask = torch.zeros(len(clips), height, width, dtype=torch.long, device=pixel_values.device)
        for clip, values, mask in zip(clips, pixel_values, pixel_mask, strict=True):
            clip_height, clip_width = clip.shape[-2:]
            mask[:clip_height, :clip_width] = 1
            values[..., clip_height:, :], values[..., clip_width:] = 0, 0
            # A frame at a time, what is computed of it stays in the cache: a third of the time of the whole clip.
            for frame, frame_values in zip(clip, values, strict=True):
                frame_values[:, :clip_height, :clip_width] = self.rescale_and_normalize(frame, *scaling)
        data = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def save_pretrained(self, *args, **kwargs) -> list[str]:
        """Save the processor and beside it the code of model, processor and pipeline; see `SavedWithCode`."""
        self.auto_map = {"AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"]}
        return super().save_pretrained(*args, **kwargs)

    def post_process_object_detection(
        self,
        outputs: Mapping[str, Any],
        threshold: float | Sequence[float] | Mapping[str, float] | None = None,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """Turn outputs of the model into detections as other detectors of transformers give them.

        Someone who does three things is detected three times, with the same box.

        Args:
            outputs: Output of [`ClassQueryForVideoActionDetection`].
            threshold: Lowest score of an action, in [0, 1]: one for all classes, one for each in the order of their
                ids, or one for each of some names, where the others keep `score_threshold`. By default what is saved
                with the processor, `class_thresholds` and `score_threshold`, for actors whose confidence is at least
                its `actor_threshold`.
            target_sizes: Height and width of the original frames of each clip; without it boxes stay in [0, 1].
            id2label: `model.config.id2label`, which thresholds by name need, given or saved ones.

        Returns:
            For each clip a dict of tensors, highest score first: `scores` (n,), `labels` (n,), ids of classes, and
            `boxes` (n, 4), (x_min, y_min, x_max, y_max) in pixels of the original frame. Where the model detects in
            several frames, also `frames` (n,), the number of each among them.

        Raises:
            ValueError: If the number of target sizes is not the number of clips, that of thresholds not that of
                classes, a threshold is not in [0, 1], or a name is unknown.
        """
        actor_threshold = self.actor_threshold if threshold is None else 0.0
        thresholds = self._class_thresholds(threshold, outputs["logits"].shape[-1], id2label)
        clips = self.post_process_action_detection(outputs, target_sizes)
        return [_flat_detections(clip, thresholds.to(clip[0]["scores"]), actor_threshold) for clip in clips]

    def _class_thresholds(
        self,
        given: float | Sequence[float] | Mapping[str, float] | None,
        num_labels: int,
        id2label: Mapping[int, str] | None,
    ) -> torch.Tensor:
        """Lowest score of each class, (num_labels,)."""
        saved = self.class_thresholds or self.score_threshold
        chosen = saved if given is None else given
        if isinstance(chosen, Mapping):
            if id2label is None:
                raise ValueError("thresholds go by the names of classes here: give id2label=model.config.id2label too")
            unknown = sorted(chosen.keys() - set(id2label.values()))
            # Those that are saved may be of classes that were replaced since.
            if unknown and given is not None:
                raise ValueError(f"the model has no class {unknown[0][:100]!r}, for which there is a threshold")
            chosen = [chosen.get(id2label[label_id], self.score_threshold) for label_id in range(num_labels)]
        values = [chosen] * num_labels if isinstance(chosen, (int, float)) else list(map(float, chosen))
        _require_thresholds(values, num_labels)
        return torch.tensor(values)

    def post_process_action_detection(
        self,
        outputs: Mapping[str, Any],
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        threshold: float = 0.0,
    ) -> list[list[dict[str, torch.Tensor]]]:
        """Turn outputs of the model into detections in the original frames.

        Args:
            outputs: Output of [`ClassQueryForVideoActionDetection`].
            target_sizes: Height and width of the original frames of each clip; without it boxes stay in [0, 1].
            threshold: Candidates whose best score is lower are left out.

        Returns:
            For each clip a list over its output frames of dicts: `boxes` (n, 4), (x_min, y_min, x_max, y_max) in
            pixels of the original frame; `scores` (n, num_labels) and `actor_scores` (n,), both in [0, 1].

        Raises:
            ValueError: If the number of target sizes is not the number of clips.
        """
        boxes = box_convert(outputs["pred_boxes"].float(), "cxcywh", "xyxy")
        if target_sizes is not None:
            if len(target_sizes) != len(boxes):
                raise ValueError(
                    f"`target_sizes` must hold one (height, width) per clip: got {len(target_sizes)} for {len(boxes)}"
                )
            height, width = torch.as_tensor(target_sizes, device=boxes.device).float().unbind(-1)
            # (batch,) -> (batch, 1, 1, 4)
            boxes = boxes * torch.stack((width, height, width, height), dim=-1)[:, None, None]
        scores = outputs["scores"] if "scores" in outputs else action_scores(dict(outputs), score_with_actor=False)
        actor_scores = outputs["actor_logits"].softmax(-1)[..., ACTOR]
        return [
            [
                {"boxes": b[keep], "scores": s[keep], "actor_scores": a[keep]}
                for b, s, a in zip(*clip, strict=True)
                for keep in [s.amax(-1) >= threshold]
            ]
            for clip in zip(boxes, scores, actor_scores, strict=True)
        ]


def _flat_detections(
    frames: list[dict[str, torch.Tensor]], thresholds: torch.Tensor, actor_threshold: float
) -> dict[str, torch.Tensor]:
    """One detection for each action of each actor in the frames of a clip."""
    found: list[dict[str, torch.Tensor]] = []
    for number, frame in enumerate(frames):
        is_found = (frame["scores"] >= thresholds) & (frame["actor_scores"] >= actor_threshold)[:, None]
        actors, labels = is_found.nonzero(as_tuple=True)
        found.append(
            {
                "scores": frame["scores"][actors, labels],
                "labels": labels,
                "boxes": frame["boxes"][actors],
                "frames": torch.full_like(labels, number),
            }
        )
    merged = {name: torch.cat([of_frame[name] for of_frame in found]) for name in found[0]}
    order = merged["scores"].argsort(descending=True, stable=True)
    if len(frames) == 1:
        del merged["frames"]
    return {name: tensor[order] for name, tensor in merged.items()}


def _first_path(videos: Any) -> str | os.PathLike | None:
    """The first path or link among clips."""
    if isinstance(videos, str | os.PathLike):
        return videos
    return _first_path(videos[0]) if isinstance(videos, list | tuple) and videos else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIDE


def _require(name: str, value: Any, is_met: bool, expected: str) -> None:
    if not is_met:
        raise ValueError(f"`{name}` of the processor must be {expected}, got {str(value)[:100]}")


def _require_thresholds(values: list[Any], num_labels: int) -> None:
    if len(values) != num_labels:
        raise ValueError(f"give one threshold or {num_labels}, one for each class, got {len(values)}")
    wrong = [value for value in values if not (_is_number(value) and 0 <= value <= 1)]
    if wrong:
        raise ValueError(f"a threshold is a score in [0, 1], got {str(wrong[0])[:100]}")


def _channels_first(videos: Any) -> Any:
    """Turn arrays of 8-bit frames into tensors (num_frames, 3, height, width) without moving a pixel."""
    if isinstance(videos, list | tuple):
        return [_channels_first(video) for video in videos]
    is_clip = isinstance(videos, np.ndarray) and videos.ndim == 4 and videos.shape[-1] == 3 and videos.shape[1] > 3
    return torch.from_numpy(videos).permute(0, 3, 1, 2) if is_clip and videos.flags.writeable else videos


__all__ = ["ClassQueryVideoProcessor"]
