"""Clips: rows of annotations turned into frames and targets, and clips turned into batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torchvision.ops import box_convert

from classquery.data.clip_reader import ClipReader


def clip_seconds(
    keyframe_seconds: float, *, num_frames: int, frame_stride: int, frames_per_second: float = 30.0
) -> np.ndarray:
    """Times of the frames of a clip, so that frame `num_frames // 2` is the keyframe.

    Chosen by time, a clip spans the same moment of a video of any frame rate: AVA's recipes count frames at 30 Hz.

    Args:
        keyframe_seconds: Time of the keyframe in the video.
        num_frames: Frames of the clip.
        frame_stride: Distance between them, in frames at `frames_per_second`.
        frames_per_second: The frame rate that the stride refers to.

    Returns:
        Shape (num_frames,), seconds; may reach beyond either end of the video, where its first or last frame repeats.
    """
    return keyframe_seconds + (np.arange(num_frames) - num_frames // 2) * frame_stride / frames_per_second


class KeyframeClips(torch.utils.data.Dataset):
    """Clips around annotated keyframes, decoded when they are asked for.

    Args:
        rows: Annotations with `ACTION_FEATURES`, one row per keyframe (`load_ava`).
        num_labels: Number of action classes.
        num_frames, frame_stride, frames_per_second: See `clip_seconds`.
        transform: Called with frames (num_frames, 3, height, width), boxes (num_actors, 4) and a generator; see
            `ClipTransform`. None leaves clips as they are.
        seed: The draws of the transform depend on it, on the epoch and on the index alone, not on the worker.
        reader: Reads the videos.
    """

    def __init__(
        self,
        rows: Dataset,
        *,
        num_labels: int,
        num_frames: int,
        frame_stride: int,
        frames_per_second: float = 30.0,
        transform: Callable | None = None,
        seed: int = 0,
        reader: ClipReader | None = None,
    ):
        self.rows = rows
        self.num_labels = num_labels
        self.sampling = {
            "num_frames": num_frames,
            "frame_stride": frame_stride,
            "frames_per_second": frames_per_second,
        }
        self.transform = transform
        self.seed = seed
        # Shared, so that it reaches workers that live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.reader = reader or ClipReader()

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Give the transforms other draws; called by Accelerate's data loader at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Decode one clip.

        Returns:
            `clip_id`; `frames` (num_frames, 3, height, width), uint8; `orig_size` (height, width) of the video;
            `boxes` (num_actors, 4), (x_min, y_min, x_max, y_max) in [0, 1]; `class_labels` (num_actors, num_labels),
            0 or 1.

        Raises:
            VideoReadError: If the video cannot be read.
        """
        row = self.rows[index]
        indices = self.reader.frame_indices_at(row["video"], clip_seconds(row["video_seconds"], **self.sampling))
        frames = torch.from_numpy(self.reader.read(row["video"], indices)).permute(0, 3, 1, 2)
        boxes = torch.tensor([tube["boxes"][0] for tube in row["tubes"]]).reshape(-1, 4)
        class_labels = torch.zeros(len(boxes), self.num_labels)
        for actor, tube in enumerate(row["tubes"]):
            class_labels[actor, tube["labels"]] = 1
        orig_size = tuple(frames.shape[-2:])
        if self.transform is not None:
            generator = torch.Generator().manual_seed(_sample_seed(self.seed, int(self._epoch), index))
            frames, boxes, kept = self.transform(frames, boxes, generator)
            boxes, class_labels = boxes[kept], class_labels[kept]
        return {
            "clip_id": row["clip_id"],
            "frames": frames,
            "orig_size": orig_size,
            "boxes": boxes,
            "class_labels": class_labels,
        }


def _sample_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class ClipCollator:
    """Turn clips into a batch for the model.

    Args:
        processor: A `ClassQueryVideoProcessor`.
    """

    def __init__(self, processor: Callable):
        self.processor = processor

    def __call__(self, clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate.

        Returns:
            `pixel_values` and `pixel_mask` as by the processor; `labels`, a list of dicts as the model takes them,
            with `clip_id` and `orig_size` besides.
        """
        inputs = self.processor([clip["frames"] for clip in clips])
        return {
            "pixel_values": inputs["pixel_values"],
            "pixel_mask": inputs["pixel_mask"],
            "labels": [self._labels(clip) for clip in clips],
        }

    @staticmethod
    def _labels(clip: dict[str, Any]) -> dict[str, Any]:
        """Targets of one key frame, with the frame axis that the model expects."""
        num_actors = len(clip["boxes"])
        return {
            "clip_id": clip["clip_id"],
            "orig_size": clip["orig_size"],
            "boxes": box_convert(clip["boxes"], "xyxy", "cxcywh")[:, None],
            "class_labels": clip["class_labels"][:, None],
            "valid": torch.ones(num_actors, 1, dtype=torch.bool),
            "frame_mask": torch.ones(1, dtype=torch.bool),
        }
