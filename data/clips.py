"""Clips: rows of annotations turned into frames and targets, and clips turned into batches."""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torchvision.ops import box_convert

from classquery.data.annotations.schema import are_annotated, shorten, to_dataset
from classquery.data.video.frame_folder import frame_indices_at, read_frame_folder
from classquery.data.video.reader import ClipReader, VideoReadError


# Clips to try in place of one that cannot be read.
MAX_REPLACEMENTS = 20


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


class _Clips(torch.utils.data.Dataset, ABC):
    """What both kinds of clips share: reading, augmentation that depends on seed, epoch and clip alone, broken videos.

    A subclass knows the parts of a row, each a clip by its name and where it starts, and how to read one.
    """

    has_tubes: bool

    def __init__(
        self,
        rows: Dataset,
        num_labels: int,
        transform: Any,
        seed: int,
        reader: ClipReader | None,
        on_error: Literal["raise", "skip"],
    ):
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}.')
        self.rows = rows
        self.num_labels = num_labels
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        # Shared, so that it reaches workers that live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.reader = reader or ClipReader()

    def set_epoch(self, epoch: int) -> None:
        """Give the transforms other draws; called by Accelerate's data loader at the start of each epoch."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """Of the draws."""
        return int(self._epoch)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of clips."""

    @abstractmethod
    def parts_of(self, row: Mapping[str, Any]) -> list[tuple[str, int]]:
        """Return the name of each clip of a row, and its first frame where it is not around a keyframe."""

    @abstractmethod
    def read(self, row: Mapping[str, Any], clip_id: str, start: int, draw: int) -> dict[str, Any]:
        """Decode one clip of a row; `draw` is the number of the clip for the transform."""

    @abstractmethod
    def _clip_at(self, index: int) -> tuple[Mapping[str, Any], str, int]:
        """Return the row, the name and the first frame of a clip."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Decode one clip, see `read`; another one in its place, if it is broken and to be skipped.

        Raises:
            VideoReadError: If the video cannot be read.
        """
        if self.on_error == "raise":
            return self.read(*self._clip_at(index), index)
        skipped = []
        # Not its neighbours: they are likely of the same video. A batch keeps its size, and processes their number
        # of batches.
        others = np.random.default_rng([self.seed, self.epoch, index]).integers(len(self), size=MAX_REPLACEMENTS)
        for candidate in (index, *others.tolist()):
            row, clip_id, start = self._clip_at(candidate)
            try:
                clip = self.read(row, clip_id, start, candidate)
            except VideoReadError as error:
                skipped.append(f"{clip_id}: {error}")
            else:
                return clip | {"skipped": skipped} if skipped else clip
        raise VideoReadError(
            f"{len(skipped)} clips drawn one after the other cannot be read, the first is {skipped[0]}"
        )

    def _decode(
        self, row: Mapping[str, Any], frame_indices: np.ndarray, actors: "_Actors", ignored: torch.Tensor, draw: int
    ) -> dict[str, Any]:
        """Read and transform the frames of a clip, and leave out the actors without a box in any of them.

        `ignored` (num_regions, num_output_frames, 4) are the regions of the row where nobody looked.
        """
        read = read_frame_folder if row["source"] == "frames" else self.reader.read
        frames = torch.from_numpy(read(row["video"], frame_indices)).permute(0, 3, 1, 2)
        orig_size = tuple(frames.shape[-2:])
        if self.transform is not None:
            generator = torch.Generator().manual_seed(_sample_seed(self.seed, self.epoch, draw))
            boxes = torch.cat((actors.boxes, ignored))
            if getattr(self.transform, "mirrored_labels", ()):
                frames, boxes, kept, is_mirrored = self.transform.with_mirroring(frames, boxes, generator)
                if is_mirrored:
                    row, actors = _mirror(row, actors, self.transform.mirrored_labels)
            else:
                frames, boxes, kept = self.transform(frames, boxes, generator)
            boxes, ignored = boxes[: len(actors.boxes)], boxes[len(actors.boxes) :]
            actors = actors._replace(boxes=boxes, valid=actors.valid & kept[: len(boxes)])
        actors = _Actors(*(part[actors.valid.any(-1)] for part in actors))
        return {
            "frames": frames,
            "orig_size": orig_size,
            "boxes": actors.boxes * actors.valid[..., None],
            "class_labels": actors.class_labels * actors.valid[..., None],
            "valid": actors.valid,
            **self._partial(row, actors.labelled | ~actors.valid, ignored),
        }

    def _partial(
        self, row: Mapping[str, Any], labelled: torch.Tensor, ignored: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """What the annotations of a clip leave open, if anything."""
        partial = {} if labelled.all() else {"labelled": labelled}
        if len(ignored):
            partial["ignored_boxes"] = ignored
        if row.get("annotated_labels") is not None:
            annotated = torch.tensor(row["annotated_labels"], dtype=torch.long)
            partial["annotated_labels"] = torch.zeros(self.num_labels, dtype=torch.bool).index_fill(0, annotated, True)
        return partial


def _mirror(
    row: Mapping[str, Any], actors: "_Actors", mirrored_labels: Sequence[int]
) -> tuple[Mapping[str, Any], "_Actors"]:
    """Turn classes into what they are in a mirrored clip."""
    if row.get("annotated_labels") is not None:
        row = {**row, "annotated_labels": [mirrored_labels[label] for label in row["annotated_labels"]]}
    # What a class is now, the mirrored one was.
    return row, actors._replace(class_labels=actors.class_labels[..., list(mirrored_labels)])


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
        on_error: What a clip that cannot be read does: "raise" a `VideoReadError`, or "skip", for training: another
            clip, drawn at random, takes its place and lists it in `skipped`.
    """

    has_tubes = False

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
        on_error: Literal["raise", "skip"] = "raise",
    ):
        super().__init__(rows, num_labels, transform, seed, reader, on_error)
        self.sampling: dict[str, Any] = {
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

    def parts_of(self, row: Mapping[str, Any]) -> list[tuple[str, int]]:
        """Return the one clip of a row."""
        return [(row["clip_id"], 0)]

    def _clip_at(self, index: int) -> tuple[Mapping[str, Any], str, int]:
        row = self.rows[index]
        return row, row["clip_id"], 0

    def read(self, row: Mapping[str, Any], clip_id: str, start: int, draw: int) -> dict[str, Any]:
        """Decode one clip.

        Returns:
            `clip_id`; `frames` (num_frames, 3, height, width), uint8; `orig_size` (height, width) of the video;
            `boxes` (num_actors, 1, 4) at the keyframe, (x_min, y_min, x_max, y_max) in [0, 1]; `class_labels`
            (num_actors, 1, num_labels), 0 or 1; `valid` (num_actors, 1) and `frame_mask` (1,), true. Where annotations
            are partial, also `labelled`, `annotated_labels` and `ignored_boxes`, see `action_detection_loss`.

        Raises:
            VideoReadError: If the video cannot be read.
        """
        frame_indices = self._frame_indices_at(row, clip_seconds(row["video_seconds"], **self.sampling))
        boxes = torch.tensor([tube["boxes"] for tube in row["tubes"]]).reshape(-1, 1, 4)
        class_labels = torch.zeros(len(boxes), 1, self.num_labels)
        for actor, tube in enumerate(row["tubes"]):
            class_labels[actor, :, tube["labels"] or []] = 1
        labelled = torch.tensor([tube["labels"] is not None for tube in row["tubes"]], dtype=torch.bool)[:, None]
        actors = _Actors(boxes, torch.ones_like(labelled), class_labels, labelled)
        ignored = torch.tensor([region["boxes"] for region in row.get("ignored") or ()]).reshape(-1, 1, 4)
        return {
            "clip_id": clip_id,
            **self._decode(row, frame_indices, actors, ignored, draw),
            "frame_mask": torch.ones(1, dtype=torch.bool),
        }

    def _frame_indices_at(self, row: Mapping[str, Any], seconds: np.ndarray) -> np.ndarray:
        if row["source"] == "frames":
            return frame_indices_at(row["video"], seconds, row["fps"])
        return self.reader.frame_indices_at(row["video"], seconds)


class TubeClips(_Clips):
    """Clips of consecutive frames that together make up whole videos, with a box per actor and frame.

    Tubes of one track are one actor, who may do one thing after the other, or several at once.

    Args:
        rows: Annotations with `ACTION_FEATURES`, one row per video (`load_ucf101_24`, `load_jhmdb_21`,
            `load_multisports`).
        num_labels: Number of action classes.
        num_frames: Frames of a clip.
        tiling: How a video is divided into clips, see `tile_starts`.
        transform: Called with frames (num_frames, 3, height, width), boxes (num_tubes, num_frames, 4) and a generator;
            see `ClipTransform`. None leaves clips as they are.
        seed: The draws of the transform depend on it, on the epoch and on the index alone, not on the worker.
        supervised_frames: For training: how many frames of a clip are detected in, drawn as the transform draws. By
            default all.
        reader: Reads the videos that are files.
        on_error: As for `KeyframeClips`.

    Raises:
        ValueError: If there is no such tiling, or a clip has less frames.
    """

    has_tubes = True

    def __init__(
        self,
        rows: Dataset,
        *,
        num_labels: int,
        num_frames: int,
        tiling: Literal["complete", "released"] = "complete",
        transform: Callable | None = None,
        seed: int = 0,
        supervised_frames: int | None = None,
        reader: ClipReader | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ):
        super().__init__(rows, num_labels, transform, seed, reader, on_error)
        if tiling not in ("complete", "released"):
            raise ValueError(f'tiling must be "complete" or "released", got {tiling!r}.')
        if supervised_frames is not None and not 0 < supervised_frames <= num_frames:
            raise ValueError(
                f"--supervised_frames must be from 1 to the {num_frames} frames of a clip, got {supervised_frames}"
            )
        self.num_frames = num_frames
        self.supervised_frames = supervised_frames
        self.tiling = tiling
        # Row, clip id and first frame of every clip.
        self._tiles = [
            (index, *part)
            for index, row in enumerate(rows.select_columns(["clip_id", "num_frames", "annotated_frames"]))
            for part in self.parts_of(row)
        ]

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def clip_ids(self) -> list[str]:
        """Names of the clips, in their order: that of the video and the number of the clip in it."""
        return [clip_id for _, clip_id, _ in self._tiles]

    def parts_of(self, row: Mapping[str, Any]) -> list[tuple[str, int]]:
        """Return the name and the first frame of each clip of a video in which anything is annotated."""
        starts = tile_starts(row["num_frames"], self.num_frames, self.tiling)
        return [
            (f"{row['clip_id']}_{clip:03d}", start)
            for clip, start in enumerate(starts)
            if are_annotated(row["annotated_frames"], np.arange(start, start + self.num_frames)).any()
        ]

    def _clip_at(self, index: int) -> tuple[Mapping[str, Any], str, int]:
        row_index, clip_id, start = self._tiles[index]
        return self.rows[row_index], clip_id, start

    def read(self, row: Mapping[str, Any], clip_id: str, start: int, draw: int) -> dict[str, Any]:
        """Decode one clip.

        Returns:
            `clip_id`; `video`, its name in the annotations; `frame_numbers` (num_frames,), 0-based in the video, and
            `frame_mask` (num_frames,), false on padding, which repeats the first or last frame of the video, and in
            frames that nobody annotated; `frames` (num_frames, 3, height, width), uint8; `orig_size` (height, width)
            of the video; of the actors with a box in the clip `boxes` (num_actors, num_frames, 4), (x_min, y_min,
            x_max, y_max) in [0, 1], `class_labels` (num_actors, num_frames, num_labels), 0 or 1, and `valid`
            (num_actors, num_frames), false and both others 0 where the actor has no box, or none of it is left in a
            crop. Where annotations are partial, also as of `KeyframeClips`. With `supervised_frames`, the numbers of
            these within the clip, ascending, and all that is annotated and `frame_mask` are of these alone.

        Raises:
            VideoReadError: If the video cannot be read.
        """
        positions = np.arange(start, start + self.num_frames)
        frame_numbers = positions.clip(0, row["num_frames"] - 1)
        stop = start + self.num_frames
        actors = _actors_between(row["tubes"], start, stop, self.num_labels)
        clip = {
            "clip_id": clip_id,
            "video": row["clip_id"],
            **self._decode(row, frame_numbers, actors, _regions_between(row, start, stop), draw),
            "frame_mask": torch.from_numpy(
                (positions == frame_numbers) & are_annotated(row["annotated_frames"], positions)
            ),
            "frame_numbers": torch.from_numpy(frame_numbers),
        }
        if self.supervised_frames is None:
            return clip
        generator = torch.Generator().manual_seed(_sample_seed(self.seed, self.epoch, draw, 1))
        return draw_frames(clip, self.supervised_frames, generator)


def draw_frames(clip: dict[str, Any], num_frames: int, generator: torch.Generator | None = None) -> dict[str, Any]:
    """Draw the frames of a clip of tubes that training detects in, from those that are annotated if there are enough.

    Args:
        clip: As `TubeClips` reads it.
        num_frames: How many.
        generator: Source of the draw.

    Returns:
        The clip with `supervised_frames` (num_frames,), ascending, and `frame_mask` and annotations of these alone.
    """
    order = torch.rand(len(clip["frame_mask"]), generator=generator) - clip["frame_mask"].float()
    drawn = order.argsort()[:num_frames].sort().values
    by_actor = clip.keys() & {"boxes", "class_labels", "valid", "labelled", "ignored_boxes"}
    labels = {name: clip[name][:, drawn] for name in by_actor}
    return clip | labels | {"frame_mask": clip["frame_mask"][drawn], "supervised_frames": drawn}


class _Actors(NamedTuple):
    """Actors in the output frames of a clip."""

    boxes: torch.Tensor  # (num_actors, num_frames, 4)
    valid: torch.Tensor  # (num_actors, num_frames), whether there is a box.
    class_labels: torch.Tensor  # (num_actors, num_frames, num_labels), 0 or 1.
    labelled: torch.Tensor  # (num_actors, num_frames), whether it is known what the actor does.


def _actors_between(tubes: list[dict[str, Any]], start: int, stop: int, num_labels: int) -> _Actors:
    """Look up the actors in the frames from `start` to before `stop`."""
    # Tubes of nobody in particular are actors of their own.
    tracks = [("tube", i) if tube["track_id"] is None else ("track", tube["track_id"]) for i, tube in enumerate(tubes)]
    numbers = {track: number for number, track in enumerate(dict.fromkeys(tracks))}
    boxes = torch.zeros(len(numbers), stop - start, 4)
    valid, labelled = torch.zeros(2, len(numbers), stop - start, dtype=torch.bool)
    class_labels = torch.zeros(len(numbers), stop - start, num_labels)
    for track, tube in zip(tracks, tubes, strict=True):
        actor = numbers[track]
        slots, tube_boxes = _boxes_between(tube, start, stop)
        boxes[actor, slots] = tube_boxes
        valid[actor, slots] = True
        if tube["labels"] is not None:
            labelled[actor, slots] = True
            class_labels[actor, slots[:, None], torch.tensor(tube["labels"], dtype=torch.long)] = 1
    return _Actors(boxes, valid, class_labels, labelled)


def _regions_between(row: Mapping[str, Any], start: int, stop: int) -> torch.Tensor:
    """Ignored regions in the frames from `start` to before `stop`: (num_regions, num_frames, 4), 0 where none is."""
    regions = row.get("ignored") or ()
    boxes = torch.zeros(len(regions), stop - start, 4)
    for number, region in enumerate(regions):
        slots, region_boxes = _boxes_between(region, start, stop)
        boxes[number, slots] = region_boxes
    return boxes[boxes.any(-1).any(-1)]


def _boxes_between(tube: Mapping[str, Any], start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots (n,) of the frames from `start` to before `stop` that a tube is in, and its boxes (n, 4) there."""
    # The frames of a tube ascend.
    first, last = np.searchsorted(tube["frames"], (start, stop))
    slots = torch.tensor(tube["frames"][first:last], dtype=torch.long) - start
    return slots, torch.tensor(tube["boxes"][first:last]).reshape(-1, 4)


def keyframes_of_tubes(
    rows: Dataset, keyframes_per_second: float = 1.0, *, reader: ClipReader | None = None
) -> Dataset:
    """Turn tubes into keyframes, for a model that detects at keyframes.

    Args:
        rows: Annotations with `ACTION_FEATURES`, one row per video.
        keyframes_per_second: How many to take: the frames nearest to 0, 1 / rate, 2 / rate, ... seconds, each once. A
            frame of a video has the time that the video says, one of a folder its number at the rate of the folder.
        reader: Tells the times of the frames of videos.

    Returns:
        Rows with `ACTION_FEATURES`, one per keyframe with actors; `clip_id` is that of the video and the number of the
        frame.

    Raises:
        ValueError: If nobody knows the frame rate of a folder of frames.
        VideoReadError: If a video cannot be read.
    """
    reader = reader or ClipReader()
    return to_dataset(
        [
            keyframe
            for row in rows
            for keyframe in _keyframes_of(row, _frame_seconds(row, reader), keyframes_per_second)
        ]
    )


def _frame_seconds(row: Mapping[str, Any], reader: ClipReader) -> np.ndarray:
    """Times of all frames, (num_frames,)."""
    frames = np.arange(row["num_frames"])
    if row["source"] == "video":
        return reader.seconds_of(row["video"], frames)
    if not row["fps"]:
        raise ValueError(f"nobody knows the frame rate of {row['video']}: keyframes need videos, or a rate")
    return frames / row["fps"]


def _keyframes_of(
    row: Mapping[str, Any], frame_seconds: np.ndarray, keyframes_per_second: float
) -> list[dict[str, Any]]:
    keyframes = []
    frames = _nearest_to_multiples(frame_seconds, 1 / keyframes_per_second)
    for frame in _nearest_annotated(frames, row, frame_seconds, 0.5 / keyframes_per_second).tolist():
        # Any number of labels will do: it is that of the largest.
        num_labels = 1 + max((label for tube in row["tubes"] for label in tube["labels"] or ()), default=0)
        actors = _actors_between(row["tubes"], frame, frame + 1, num_labels)
        tubes = [
            {"labels": labels.nonzero().flatten().tolist() if known else None, "boxes": [box.tolist()]}
            for box, valid, labels, known in zip(*(part[:, 0] for part in actors), strict=True)
            if valid
        ]
        ignored = [{"boxes": [box.tolist()]} for box in _regions_between(row, frame, frame + 1)[:, 0]]
        if tubes:
            at = float(frame_seconds[frame])
            seconds = {"timestamp": at, "video_seconds": at, "center_frame": frame}
            at_frame = {"clip_id": f"{row['clip_id']}_{frame:06d}", "tubes": tubes, "ignored": ignored or None}
            keyframes.append({**row, **seconds, **at_frame})
    return keyframes


def _nearest_to_multiples(frame_seconds: np.ndarray, interval: float) -> np.ndarray:
    """Numbers of the frames nearest to 0, `interval`, ... up to the end of the last one; of two, the earlier.

    They are found from the frames, which are fewer than the multiples where a gap of a month is in the timestamps.
    """
    halfway = (frame_seconds[1:] + frame_seconds[:-1]) / 2
    # The last frame is taken to last as long as the mean one.
    end = frame_seconds[-1] + (frame_seconds[-1] - frame_seconds[0]) / max(len(frame_seconds) - 1, 1)
    # Times are sums and quotients of floats: 2.9999999 intervals are 3.
    last_multiples = np.floor(halfway / interval + 1e-6)
    last_of_all = max(np.ceil(end / interval - 1e-6) - 1, 0)
    return np.flatnonzero(np.diff(last_multiples, prepend=-1, append=last_of_all) > 0)


def _nearest_annotated(
    wanted: np.ndarray, row: Mapping[str, Any], frame_seconds: np.ndarray, max_seconds: float
) -> np.ndarray:
    """Return the annotated frames nearest to some frames, at most so far away."""
    if row["annotated_frames"] is None:
        return wanted
    frames = np.arange(row["num_frames"])
    annotated = frames[are_annotated(row["annotated_frames"], frames)]
    behind = np.searchsorted(annotated, wanted).clip(1, len(annotated) - 1)
    times = frame_seconds[annotated]
    is_before = frame_seconds[wanted] - times[behind - 1] <= times[behind] - frame_seconds[wanted]
    nearest = np.where(is_before, annotated[behind - 1], annotated[behind])
    return np.unique(nearest[np.abs(frame_seconds[nearest] - frame_seconds[wanted]) <= max_seconds])


def draw_of(clip_id: str) -> int:
    """Return the number that stands for a clip in the draws of the transform, where it has no place among others."""
    return zlib.crc32(clip_id.encode())


def _sample_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class ClipLabel(dict):
    """Labels of a clip: tensors as items. What else is known of it, as its name, is looked up alike, but no item.

    What moves, gathers and compares labels, as transformers' Trainer does, so finds nothing but tensors.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor] = MappingProxyType({}), about: dict[str, Any] | None = None
    ):
        super().__init__(tensors)
        self.about = about or {}

    def __missing__(self, name: str) -> Any:
        return self.about[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Look up a tensor, or what else is known."""
        return self[name] if name in self or name in self.about else default


class ClipLabels(list):
    """List of `ClipLabel` that a data worker sends in one piece.

    PyTorch would share the memory of each tensor and hand over its file by a connection of its own, which takes a
    tenth of the time of a small model's training step.
    """

    def __reduce__(self):
        return _labels_of_arrays, ([(_as_arrays(label), label.about) for label in self],)


def _as_arrays(label: ClipLabel) -> dict[str, Any]:
    """Tensors as arrays; what others have added stays as it is."""
    return {name: x.numpy(force=True) if isinstance(x, torch.Tensor) else x for name, x in label.items()}


def _labels_of_arrays(clips: list[tuple[dict[str, Any], dict[str, Any]]]) -> ClipLabels:
    return ClipLabels(ClipLabel(_of_arrays(items), about) for items, about in clips)


def _of_arrays(items: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in items.items()}


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
            takes them, with everything else that the clip holds besides (see `ClipLabel`).

        Raises:
            ValueError: If they are no clips.
        """
        lacking = next((clip for clip in clips if "frames" not in clip), None)
        if lacking is not None:
            raise ValueError(
                f"these are no clips of make_clips, they have no 'frames' but {shorten(list(lacking))}: rows of "
                "annotations become clips by make_clips(rows, model.config), and a Trainer leaves the frames in with "
                "TrainingArguments(remove_unused_columns=False)"
            )
        inputs = self.processor([clip["frames"] for clip in clips])
        return {
            "pixel_values": inputs["pixel_values"],
            "pixel_mask": inputs["pixel_mask"],
            "labels": ClipLabels(self._labels(clip) for clip in clips),
        }

    @staticmethod
    def _labels(clip: dict[str, Any]) -> ClipLabel:
        labels = {name: value for name, value in clip.items() if name != "frames"}
        for name in ("boxes", "ignored_boxes"):
            labels |= {name: box_convert(clip[name], "xyxy", "cxcywh")} if name in clip else {}
        tensors = {name: value for name, value in labels.items() if isinstance(value, torch.Tensor)}
        return ClipLabel(tensors, {name: value for name, value in labels.items() if name not in tensors})
