"""From frames to the tensors the model takes, and from its outputs back to boxes in the original frames."""

import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import center_to_corners_format
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput

from .loss_classquery import ACTOR, action_scores
from .saving_classquery import AUTO_MAP, SavedWithCode


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

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[VideosKwargs]) -> BatchFeature:
        """Turn clips into model inputs.

        Args:
            videos: One clip or a list of clips, each an array or tensor (num_frames, height, width, 3) or (num_frames,
                3, height, width), uint8, or a list of PIL frames. All have the same number of frames.

        Returns:
            `pixel_values` of shape (batch, num_frames, 3, height, width), float32, and `pixel_mask` of shape (batch,
            height, width), 1 on real pixels and 0 on padding.

        Raises:
            ValueError: If the clips differ in their number of frames.
        """
        return super().preprocess(videos, **kwargs)

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        scaling = (do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        # Resized only: as 8-bit frames, clips are a quarter of the size.
        resized = super()._preprocess(
            videos,
            do_rescale=False,
            rescale_factor=rescale_factor,
            do_normalize=False,
            image_mean=image_mean,
            image_std=image_std,
            **kwargs,
        )
        clips = resized["pixel_values_videos"]
        lengths = {len(clip) for clip in clips}
        if len(lengths) > 1:
            raise ValueError(f"all clips of a batch must have the same number of frames, got {sorted(lengths)}")
        height, width = (max(clip.shape[axis] for clip in clips) for axis in (-2, -1))
        one_pixel = self.rescale_and_normalize(clips[0][:1, :, :1, :1], *scaling)
        pixel_values = one_pixel.new_zeros(len(clips), *clips[0].shape[:2], height, width)
        pixel_mask = torch.zeros(len(clips), height, width, dtype=torch.long, device=pixel_values.device)
        for clip, values, mask in zip(clips, pixel_values, pixel_mask, strict=True):
            clip_height, clip_width = clip.shape[-2:]
            mask[:clip_height, :clip_width] = 1
            # A frame at a time, what is computed of it stays in the cache: a third of the time of the whole clip.
            for frame, frame_values in zip(clip, values, strict=True):
                frame_values[:, :clip_height, :clip_width] = self.rescale_and_normalize(frame, *scaling)
        data = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def save_pretrained(self, *args, **kwargs) -> list[str]:
        """Save the processor and beside it the code of model, processor and pipeline; see `SavedWithCode`."""
        self.auto_map = {"AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"]}
        return super().save_pretrained(*args, **kwargs)

    def post_process_action_detection(
        self, outputs, target_sizes: list[tuple[int, int]] | torch.Tensor | None = None, threshold: float = 0.0
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
        boxes = center_to_corners_format(outputs["pred_boxes"].float())
        if target_sizes is not None:
            if len(target_sizes) != len(boxes):
                raise ValueError(
                    f"`target_sizes` must hold one (height, width) per clip: got {len(target_sizes)} for {len(boxes)}"
                )
            height, width = torch.as_tensor(target_sizes, device=boxes.device).float().unbind(-1)
            # (batch,) -> (batch, 1, 1, 4)
            boxes = boxes * torch.stack((width, height, width, height), dim=-1)[:, None, None]
        scores = outputs["scores"] if "scores" in outputs else action_scores(outputs, score_with_actor=False)
        actor_scores = outputs["actor_logits"].softmax(-1)[..., ACTOR]
        return [
            [
                {"boxes": b[keep], "scores": s[keep], "actor_scores": a[keep]}
                for b, s, a in zip(*clip, strict=True)
                for keep in [s.amax(-1) >= threshold]
            ]
            for clip in zip(boxes, scores, actor_scores, strict=True)
        ]


__all__ = ["ClassQueryVideoProcessor"]
