"""Clips of shards, decoded from memory as they come, each process and each worker its own part."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo

from classquery.data.annotations.schema import ACTION_FEATURES, columns_to_dataset
from classquery.data.clips import MAX_REPLACEMENTS, KeyframeClips, TubeClips, draw_of
from classquery.data.shards.order import Rows, evaluation_lanes, order_clips, training_lanes
from classquery.data.shards.store import ShardStore, start_fetching
from classquery.data.video.frame_folder import nearest_frames
from classquery.data.video.opening import VideoBytes, VideoReadError
from classquery.data.video.reader import ClipReader


# Rows that are fetched while clips of earlier ones are decoded.
ROWS_AHEAD = 4
# Columns of the index: where a row is, and what says which clips it gives, see `parts_of` of clips.
_PLACES = ("shard", "row", "num_bytes")
_NAMES_OF_PARTS = ("clip_id", "num_frames", "annotated_frames")
_OF_VIDEOS = ("video", "source")


@dataclass(frozen=True, eq=False)
class ShardVideo:
    """The video of a row of a shard: some frames of an original, which keep their numbers and times."""

    content: VideoBytes
    first_frame: int
    frame_seconds: np.ndarray | None
    """Of the original; None for a folder of frames."""
    frames_fps: float | None
    num_frames: int
    is_start: bool
    is_end: bool

    @property
    def frames(self) -> range:
        """Numbers of the frames in the original."""
        return range(self.first_frame, self.first_frame + self.num_frames)

    def __str__(self) -> str:
        return self.content.name


class ShardReader:
    """Reads videos of shards by the numbers and times of their originals, as `ClipReader` reads those.

    Args:
        reader: Decodes them.
    """

    def __init__(self, reader: ClipReader):
        self.reader = reader

    def frame_indices_at(self, video: ShardVideo, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
        """Find the frames nearest to some times, as in the original.

        Raises:
            VideoReadError: If the shard lacks frames around one of the times.
        """
        seconds = np.asarray(seconds, dtype=np.float64)
        if video.frame_seconds is None:
            frames = nearest_frames(seconds, video.frames_fps)
            frames = frames.clip(0 if video.is_start else None, video.frames[-1] if video.is_end else None)
        else:
            first, last = video.frame_seconds[[0, -1]]
            is_outside = (seconds < first) & (not video.is_start) | (seconds > last) & (not video.is_end)
            nearest = _nearest(video.frame_seconds, seconds) + video.first_frame
            frames = np.where(is_outside, -1, nearest)
        self._check(video, frames)
        return frames

    def read(self, video: ShardVideo, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode frames by their numbers in the original: uint8 RGB of shape (len(frame_indices), height, width, 3).

        Raises:
            VideoReadError: If one is not in the shard, or cannot be decoded.
        """
        frames = np.asarray(frame_indices)
        self._check(video, frames)
        return self.reader.read(video.content, frames - video.first_frame)

    @staticmethod
    def _check(video: ShardVideo, frames: np.ndarray) -> None:
        if frames.size and not (frames.min() >= video.frames.start and frames.max() < video.frames.stop):
            raise VideoReadError(
                f"cannot read {video}: the clip needs more than the frames {video.frames.start} to "
                f"{video.frames.stop - 1} that the shard holds; write shards with longer clips: --clip_seconds"
            )


def _nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return which times are nearest; the earlier where two are equally near."""
    later = np.searchsorted(times, wanted).clip(max=len(times) - 1)
    earlier = (later - 1).clip(min=0)
    return np.where(wanted - times[earlier] <= times[later] - wanted, earlier, later)


class Shards:
    """A split of a folder of shards; annotations that stream with their videos.

    Args:
        store: Where they are.
        split: "train" or "validation".

    Raises:
        AnnotationError: If the index is damaged.
        FileNotFoundError: If there is no index, or no such split.
    """

    def __init__(self, store: ShardStore, split: str):
        self.store = store
        self.split = split
        index = store.read_index()
        if split not in index["splits"]:
            known = ", ".join(index["splits"]) or "none"
            raise FileNotFoundError(f"{store.url} has no split {split}, but {known}")
        self.has_tubes = index["has_tubes"]
        self.files = index["splits"][split]["shards"]
        self.info = DatasetInfo(description=index["splits"][split]["description"])
        rows = store.read_rows(split, [*_PLACES, *(f"clips.list.element.{name}" for name in _NAMES_OF_PARTS)])
        self._clips = rows["clips"].combine_chunks()
        self._columns = {name: rows[name].to_numpy() for name in _PLACES}

    def __len__(self) -> int:
        return len(self._clips)

    @cached_property
    def annotations(self) -> Dataset:
        """All annotations with `ACTION_FEATURES`, fetched when they are asked for; their videos are in the shards."""
        clips = self.store.read_rows(self.split, ["clips"])["clips"].combine_chunks().flatten()
        nothing = {name: pa.nulls(len(clips), ACTION_FEATURES.arrow_schema.field(name).type) for name in _OF_VIDEOS}
        columns = {name: clips.field(name) for name in ACTION_FEATURES if name not in _OF_VIDEOS}
        return columns_to_dataset(columns | nothing, len(clips))

    def parts(self, clips: KeyframeClips | TubeClips) -> tuple[Rows, list[str], np.ndarray]:
        """Return which clips the rows have: their numbers, the names of all, and where each row begins among them."""
        members = self._clips.flatten()
        if clips.has_tubes:
            parts = [len(clips.parts_of(member)) for member in members.to_pylist()]
            names = [clip_id for member in members.to_pylist() for clip_id, _ in clips.parts_of(member)]
        else:
            parts, names = np.ones(len(members), np.int64), members.field("clip_id").to_pylist()
        ends = np.cumsum([0, *parts])[self._clips.offsets.to_numpy() - self._clips.offsets[0].as_py()]
        rows = Rows(self._columns["shard"], np.diff(ends), self._columns["num_bytes"])
        return rows, names, ends[:-1]

    def read_row(self, number: int) -> dict[str, Any]:
        """Fetch a row: one with `WINDOW_FEATURES`."""
        return self.store.read_row(self.files[self._columns["shard"][number]], int(self._columns["row"][number]))

    def name_of(self, number: int) -> str:
        """Say where a row is."""
        file = self.files[self._columns["shard"][number]]["file"]
        return f"row {self._columns['row'][number]} of {self.store.url}/{file}"


class _Part(NamedTuple):
    process_index: int = 0
    num_processes: int = 1
    batch_size: int = 1
    is_training: bool = False


class ShardStream(torch.utils.data.IterableDataset):
    """The clips of shards, decoded as they come.

    Every process and every worker of a `DataLoader` reads its part, so that each clip is read once, see
    `classquery.data.shards.order`. In memory, a worker has the rows of a pool, at most 64 MB or one row of videos,
    four rows more that come next, and the videos that its reader has open.

    A clip is the same in every order: what is drawn for its augmentation depends on the seed, the epoch and its name.

    Args:
        shards: A split.
        clips: Clips without rows, which say what is made of a row.
        shuffle: Whether to shuffle, in another order in every epoch.
    """

    def __init__(self, shards: Shards, clips: KeyframeClips | TubeClips, *, shuffle: bool = False):
        self.shards = shards
        self.clips = copy.copy(clips)
        self.clips.reader = ShardReader(clips.reader)
        self._shuffles = shuffle
        self._part = _Part()
        # Epoch and number of batches that are passed over in it; shared with workers that live longer than an epoch.
        self._passed = torch.zeros(2, dtype=torch.int64).share_memory_()

    @property
    def has_tubes(self) -> bool:
        """Whether clips tile whole videos."""
        return self.clips.has_tubes

    @property
    def rows(self) -> Dataset:
        """The annotations."""
        return self.shards.annotations

    @cached_property
    def _contents(self) -> tuple[Rows, list[str], np.ndarray]:
        return self.shards.parts(self.clips)

    @property
    def clip_ids(self) -> list[str]:
        """Names of the clips of all processes, in the order of the annotations."""
        return self._contents[1]

    def __len__(self) -> int:
        """Number of clips of a process; in evaluation, some have one batch more or less."""
        part, num_clips = self._part, len(self.clip_ids)
        if not part.is_training:
            lanes = evaluation_lanes(num_clips, part.num_processes, 1, part.batch_size)
        else:
            lanes = training_lanes(num_clips, part.num_processes, 1, part.batch_size)
        return lanes[part.process_index][0].num_clips

    def set_epoch(self, epoch: int) -> None:
        """Give the clips another order, if they are shuffled, and the transforms other draws."""
        self.clips.set_epoch(epoch)

    def state_dict(self, num_batches: int) -> dict[str, int]:
        """Say where the epoch is after so many batches of each process."""
        return {"epoch": self.clips.epoch, "num_batches": num_batches}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a run was: batches that were given come as empty clips, None, without being read.

        They keep the place of what a data loader counts and throws away, as `accelerate.skip_first_batches` does.
        """
        self._passed[:] = torch.tensor([state["epoch"], state["num_batches"]])

    def for_process(
        self, process_index: int, num_processes: int, *, batch_size: int = 1, is_training: bool = False
    ) -> "ShardStream":
        """Return the part of one process.

        Args:
            process_index, num_processes: Which process, of how many.
            batch_size: Clips of a batch.
            is_training: Whether every process gets equally many full batches, for which some clips come twice; in
                evaluation each comes once.
        """
        part = copy.copy(self)
        part._part = _Part(process_index, num_processes, batch_size, is_training)
        return part

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        """Yield clips as `KeyframeClips` or `TubeClips` do.

        Raises:
            VideoReadError: If a row or a video cannot be read, or none of those of a worker while broken ones are
                skipped.
        """
        worker = torch.utils.data.get_worker_info()
        index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        part, (rows, names, first_of_row) = self._part, self._contents
        divide = training_lanes if part.is_training else evaluation_lanes
        lane = divide(len(names), part.num_processes, num_workers, part.batch_size)[part.process_index][index]
        seed = (self.clips.seed, self.clips.epoch) if self._shuffles else None
        wanted = order_clips(rows, lane, seed)
        num_passed = min(len(wanted), self._num_passed_batches(index, num_workers) * part.batch_size)
        yield from [None] * num_passed
        yield from self._decode(wanted[num_passed:], names, first_of_row)

    def _num_passed_batches(self, worker: int, num_workers: int) -> int:
        epoch, num_batches = self._passed.tolist()
        return len(range(worker, num_batches, num_workers)) if epoch == self.clips.epoch else 0

    def _decode(self, wanted: np.ndarray, names: list[str], first_of_row: np.ndarray) -> Iterator[dict[str, Any]]:
        skipped: list[str] = []
        for position, (fetched, (row, place)) in enumerate(self._with_windows(wanted)):
            try:
                clip = self._read_clip(fetched.result(), names[first_of_row[row] + place], place)
            except VideoReadError as error:
                if self.clips.on_error == "raise":
                    raise
                skipped.append(f"{names[first_of_row[row] + place]}: {error}")
                if not self._part.is_training:
                    continue
                clip = self._replacement(wanted, names, first_of_row, position, skipped)
            yield clip | {"skipped": skipped} if skipped else clip
            skipped = []

    def _with_windows(self, wanted: np.ndarray) -> Iterator[tuple["Future[_Window]", list[int]]]:
        """Yield each wanted clip with its window, which is fetched before it is needed and forgotten afterwards."""
        clips = wanted.tolist()
        last_use = {row: position for position, (row, _) in enumerate(clips)}
        coming = deque(dict.fromkeys(row for row, _ in clips))
        windows: dict[int, Future[_Window]] = {}
        unused: set[int] = set()
        for position, (row, place) in enumerate(clips):
            unused.discard(row)
            while coming and (row not in windows or len(unused) < ROWS_AHEAD):
                windows[coming[0]] = start_fetching(partial(self._fetch, coming[0]))
                unused |= {coming.popleft()} - {row}
            yield windows[row], [row, place]
            if last_use[row] == position:
                del windows[row]

    def _fetch(self, row: int) -> "_Window":
        return _Window.of(self.shards.read_row(row), self.shards.name_of(row))

    def _replacement(
        self, wanted: np.ndarray, names: list[str], first_of_row: np.ndarray, position: int, skipped: list[str]
    ) -> dict[str, Any]:
        """Decode another clip of the lane in place of one that cannot be read, so that all others keep their place."""
        generator = np.random.default_rng([self.clips.seed, self.clips.epoch, position, len(wanted)])
        for row, place in wanted[generator.integers(len(wanted), size=MAX_REPLACEMENTS)].tolist():
            clip_id = names[first_of_row[row] + place]
            try:
                return self._read_clip(self._fetch(row), clip_id, place)
            except VideoReadError as error:
                skipped.append(f"{clip_id}: {error}")
        raise VideoReadError(
            f"{len(skipped)} clips drawn one after the other cannot be read, the first is {skipped[0]}"
        )

    def _read_clip(self, window: "_Window", clip_id: str, place: int) -> dict[str, Any]:
        """Decode the clip with this number of a window."""
        for member in window.clips:
            parts = self.clips.parts_of(member)
            if place < len(parts):
                name, start = parts[place]
                if name != clip_id:
                    break
                annotations = member | {"video": window.video, "source": "video"}
                return self.clips.read(annotations, clip_id, start, draw_of(clip_id))
            place -= len(parts)
        raise VideoReadError(
            f"cannot read {window.video}: it lacks the clip {clip_id} that the index says; copy the shards again"
        )


class _Window(NamedTuple):
    """A row of a shard, ready to be decoded."""

    video: ShardVideo
    clips: list[dict[str, Any]]

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str) -> "_Window":
        """Take a row with `WINDOW_FEATURES`."""
        seconds = row["frame_seconds"]
        content = VideoBytes(f"{row['video']['path']} in {name}", row["video"]["bytes"] or b"")
        video = ShardVideo(
            content=content,
            frame_seconds=None if seconds is None else np.array(seconds, np.float64),
            **{key: row[key] for key in ("first_frame", "frames_fps", "num_frames", "is_start", "is_end")},
        )
        return cls(video, row["clips"])
