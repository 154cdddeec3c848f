"""Clips: rows of annotations turned into frames and targets, and clips turned into batches."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torchvision.ops import box_convert

from classquery.data.clip_reader import ClipReader
from classquery.data.frame_folder import frame_indices_at, read_frame_folder


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


def tile_starts(
    num_video_frames: int, num_frames: int, tiling: Literal["complete", "released"] = "complete"
) -> list[int]:
    """Divide a video into clips that follow each other, half of the padding before it and half behind it.

    Args:
        num_video_frames: Frames of the video.
        num_frames: Frames of a clip.
        tiling: "complete" has every frame in exactly one clip. "released" does as the paper's code for UCF101-24: the
            same, but a video of whole clips gets a whole clip of padding, and its last `num_frames // 2` frames are in
            no clip.

    Returns:
        0-based number in the video of the first frame of each clip, negative where padding comes first. One clip, with
        the video in its middle, if the video is not longer than that.
    """
    padding = -num_video_frames % num_frames
    if tiling == "released" and padding == 0:
        padding = num_frames
    return [clip * num_frames - padding // 2 for clip in range(math.ceil(num_video_frames / num_frames))]


class _Clips(torch.utils.data.Dataset):
    """What both kinds of clips share: reading, and augmentation that depends on seed, epoch and index alone."""

    def __init__(
        self, rows: Dataset, num_labels: int, transform: Callable | None, seed: int, reader: ClipReader | None
    ):
        self.rows = rows
        self.num_labels = num_labels
        self.transform = transform
        self.seed = seed
        # Shared, so that it reaches workers that live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.reader = reader or ClipReader()

    def set_epoch(self, epoch: int) -> None:
        """Give the transforms other draws; called by Accelerate's data loader at the start of each epoch."""
        self._epoch.fill_(epoch)

    def _decode(
        self, index: int, row: dict[str, Any], frame_indices: np.ndarray, boxes: torch.Tensor, valid: torch.Tensor
    ) -> dict[str, Any]:
        """Read and transform the frames of clip `index`, and leave out the actors without a box in any of them.

        `boxes` (num_tubes, num_output_frames, 4) and `valid` (num_tubes, num_output_frames) belong to the tubes of the
        row.
        """
        read = read_frame_folder if row["source"] == "frames" else self.reader.read
        frames = torch.from_numpy(read(row["video"], frame_indices)).permute(0, 3, 1, 2)
        orig_size = tuple(frames.shape[-2:])
        if self.transform is not None:
            generator = torch.Generator().manual_seed(_sample_seed(self.seed, int(self._epoch), index))
            frames, boxes, kept = self.transform(frames, boxes, generator)
            valid = valid & kept
        class_labels = torch.zeros(len(valid), 1, self.num_labels)
        for actor, tube in enumerate(row["tubes"]):
            class_labels[actor, :, tube["labels"]] = 1
        actors = valid.any(-1)
        return {
            "frames": frames,
            "orig_size": orig_size,
            "boxes": (boxes * valid[..., None])[actors],
            "class_labels": (class_labels * valid[..., None])[actors],
            "valid": valid[actors],
        }


class KeyframeClips(_Clips):
    """Clips around annotated keyframes, decoded when they are asked for.

    Args:
        rows: Annotations with `ACTION_FEATURES`, one row per keyframe (`load_ava`).
        num_labels: Number of action classes.
        num_frames, frame_stride, frames_per_second: See `clip_seconds`.
        transform: Called with frames (num_frames, 3, height, width), boxes (num_actors, 1, 4) and a generator; see
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
        super().__init__(rows, num_labels, transform, seed, reader)
        self.sampling = {
            "num_frames": num_frames,
            "frame_stride": frame_stride,
            "frames_per_second": frames_per_second,
        }

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def clip_ids(self) -> list[str]:
        """Names of the clips, in their order."""
        return self.rows["clip_id"][:]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Decode one clip.

        Returns:
            `clip_id`; `frames` (num_frames, 3, height, width), uint8; `orig_size` (height, width) of the video;
            `boxes` (num_actors, 1, 4) at the keyframe, (x_min, y_min, x_max, y_max) in [0, 1]; `class_labels`
            (num_actors, 1, num_labels), 0 or 1; `valid` (num_actors, 1) and `frame_mask` (1,), true.

        Raises:
            VideoReadError: If the video cannot be read.
        """
        row = self.rows[index]
        frame_indices = self._frame_indices_at(row, clip_seconds(row["video_seconds"], **self.sampling))
        boxes = torch.tensor([tube["boxes"] for tube in row["tubes"]]).reshape(-1, 1, 4)
        valid = torch.ones(len(boxes), 1, dtype=torch.bool)
        return {
            "clip_id": row["clip_id"],
            **self._decode(index, row, frame_indices, boxes, valid),
            "frame_mask": torch.ones(1, dtype=torch.bool),
        }

    def _frame_indices_at(self, row: dict[str, Any], seconds: np.ndarray) -> np.ndarray:
        if row["source"] == "frames":
            return frame_indices_at(row["video"], seconds, row["fps"])
        return self.reader.frame_indices_at(row["video"], seconds)


class TubeClips(_Clips):
    """Clips of consecutive frames that together make up whole videos, with a box per actor and frame.

    Args:
        rows: Annotations with `ACTION_FEATURES`, one row per video (`load_ucf101_24`, `load_jhmdb_21`,
            `load_multisports`).
        num_labels: Number of action classes.
        num_frames: Frames of a clip.
        tiling: How a video is divided into clips, see `tile_starts`.
        transform: Called with frames (num_frames, 3, height, width), boxes (num_tubes, num_frames, 4) and a generator;
            see `ClipTransform`. None leaves clips as they are.
        seed: The draws of the transform depend on it, on the epoch and on the index alone, not on the worker.
        reader: Reads the videos that are files.

    Raises:
        ValueError: If there is no such tiling.
    """

    def __init__(
        self,
        rows: Dataset,
        *,
        num_labels: int,
        num_frames: int,
        tiling: Literal["complete", "released"] = "complete",
        transform: Callable | None = None,
        seed: int = 0,
        reader: ClipReader | None = None,
    ):
        super().__init__(rows, num_labels, transform, seed, reader)
        if tiling not in ("complete", "released"):
            raise ValueError(f'tiling must be "complete" or "released", got {tiling!r}.')
        self.num_frames = num_frames
        # Row, clip id and first frame of every clip.
        self._tiles = [
            (row, f"{video}_{clip:03d}", start)
            for row, (video, num_video_frames) in enumerate(zip(rows["clip_id"], rows["num_frames"], strict=True))
            for clip, start in enumerate(tile_starts(num_video_frames, num_frames, tiling))
        ]

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def clip_ids(self) -> list[str]:
        """Names of the clips, in their order: that of the video and the number of the clip in it."""
        return [clip_id for _, clip_id, _ in self._tiles]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Decode one clip.

        Returns:
            `clip_id`; `video`, its name in the annotations; `frame_numbers` (num_frames,), 0-based in the video, and
            `frame_mask` (num_frames,), false on padding, which repeats the first or last frame of the video; `frames`
            (num_frames, 3, height, width), uint8; `orig_size` (height, width) of the video; of the actors with a box
            in the clip `boxes` (num_actors, num_frames, 4), (x_min, y_min, x_max, y_max) in [0, 1], `class_labels`
            (num_actors, num_frames, num_labels), 0 or 1, and `valid` (num_actors, num_frames), false and both others 0
            where the actor has no box, or none of it is left in a crop.

        Raises:
            VideoReadError: If the video cannot be read.
        """
        row_index, clip_id, start = self._tiles[index]
        row = self.rows[row_index]
        positions = np.arange(start, start + self.num_frames)
        frame_numbers = positions.clip(0, row["num_frames"] - 1)
        boxes, valid = _boxes_between(row["tubes"], start, start + self.num_frames)
        return {
            "clip_id": clip_id,
            "video": row["clip_id"],
            **self._decode(index, row, frame_numbers, boxes, valid),
            "frame_mask": torch.from_numpy(positions == frame_numbers),
            "frame_numbers": torch.from_numpy(frame_numbers),
        }


def _boxes_between(tubes: list[dict[str, Any]], start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Look up the boxes of the frames from `start` to before `stop`: (num_tubes, num_frames, 4) and where they are."""
    boxes = torch.zeros(len(tubes), stop - start, 4)
    valid = torch.zeros(len(tubes), stop - start, dtype=torch.bool)
    for actor, tube in enumerate(tubes):
        # The frames of a tube ascend.
        first, last = np.searchsorted(tube["frames"], (start, stop))
        slots = torch.tensor(tube["frames"][first:last], dtype=torch.long) - start
        boxes[actor, slots] = torch.tensor(tube["boxes"][first:last]).reshape(-1, 4)
        valid[actor, slots] = True
    return boxes, valid


def _sample_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class ClipLabels(list):
    """List of dicts of small tensors that a data worker sends in one piece.

    PyTorch would share the memory of each tensor and hand over its file by a connection of its own, which takes a
    tenth of the time of a small model's training step.
    """

    def __reduce__(self):
        arrays = [{name: _as_array(value) for name, value in labels.items()} for labels in self]
        return _labels_of_arrays, (arrays,)


def _as_array(value: Any) -> Any:
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else value


def _labels_of_arrays(arrays: list[dict[str, Any]]) -> ClipLabels:
    return ClipLabels(
        {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in array.items()}
        for array in arrays
    )


class ClipCollator:
    """Turn clips into a batch for the model.

    Args:
        processor: A `ClassQueryVideoProcessor`.
    """

    def __init__(self, processor: Callable):
        self.processor = processor

    def __call__(self, clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate clips of `KeyframeClips` or `TubeClips`.

        Returns:
            `pixel_values` and `pixel_mask` as by the processor; `labels`, a list (`ClipLabels`) of dicts as the model
            takes them, with everything else that the clip holds besides.
        """
        inputs = self.processor([clip["frames"] for clip in clips])
        return {
            "pixel_values": inputs["pixel_values"],
            "pixel_mask": inputs["pixel_mask"],
            "labels": ClipLabels(self._labels(clip) for clip in clips),
        }

    @staticmethod
    def _labels(clip: dict[str, Any]) -> dict[str, Any]:
        labels = {name: value for name, value in clip.items() if name != "frames"}
        return labels | {"boxes": box_convert(clip["boxes"], "xyxy", "cxcywh")}
