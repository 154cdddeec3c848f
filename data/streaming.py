"""Clips of annotations that are streamed, where each process and each of its workers reads its own part."""

import copy
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from classquery.data.clips import KeyframeClips, TubeClips, draw_of
from classquery.data.video.reader import VideoReadError


T = TypeVar("T")

# Rows that a worker shuffles at a time, besides the shards: some hundred bytes each at keyframes.
SHUFFLE_BUFFER = 10_000
# Clips that a worker then shuffles at a time, so that those of one video do not come one after the other.
CLIP_BUFFER = 1_000


class ClipStream(torch.utils.data.IterableDataset):
    """The clips of streamed annotations, decoded as they come.

    Every process and every worker of a `DataLoader` reads the shards that are its own, so that each clip is read once.
    Do not let Accelerate read for all processes (`dispatch_batches`): it would mix the boxes of clips.

    Args:
        rows: Annotations with `ACTION_FEATURES`, as `load_action_dataset(..., streaming=True)` returns them.
        clips: Clips without rows, which say what is made of a row.
        shuffle: Whether to shuffle rows, and the clips of many rows with each other, in another order in every epoch.
    """

    def __init__(self, rows: IterableDataset, clips: KeyframeClips | TubeClips, *, shuffle: bool = False):
        self.rows = rows
        self.clips = clips
        self._shuffles = shuffle
        self._own_rows = rows.shuffle(seed=clips.seed, buffer_size=SHUFFLE_BUFFER) if shuffle else rows
        self._num_processes = 1
        self._batch_size: int | None = None

    @property
    def has_tubes(self) -> bool:
        """Whether clips tile whole videos."""
        return self.clips.has_tubes

    @cached_property
    def clip_ids(self) -> list[str]:
        """Names of the clips of all processes, in the order of the annotations, which are read for it."""
        rows = self.rows.select_columns(["clip_id", "num_frames", "annotated_frames"])
        return [clip_id for row in rows for clip_id, _ in self.clips.parts_of(row)]

    def __len__(self) -> int:
        """Number of clips of a process; in evaluation, some have one more or less."""
        return -(-len(self.clip_ids) // self._num_processes)

    def set_epoch(self, epoch: int) -> None:
        """Give the clips another order, if they are shuffled, and the transforms other draws."""
        self._own_rows.set_epoch(epoch)
        self.clips.set_epoch(epoch)

    def for_process(self, process_index: int, num_processes: int, *, batch_size: int | None = None) -> "ClipStream":
        """Return the part of one process.

        Args:
            process_index, num_processes: Which process, of how many.
            batch_size: For training: every process and worker then gives as many batches of this size as if the clips
                were divided evenly, so that no process waits for another one. A worker with too few clips starts
                again, one with too many leaves its last ones to another epoch.

        Raises:
            ValueError: If there are fewer shards than processes.
        """
        if self.rows.num_shards < num_processes:
            raise ValueError(
                f"{num_processes} processes cannot share {self.rows.num_shards} shards: raise num_shards, or use less "
                "processes"
            )
        part = copy.copy(self)
        part.clip_ids = self.clip_ids
        part._own_rows = split_dataset_by_node(self._own_rows, process_index, num_processes)
        part._num_processes, part._batch_size = num_processes, batch_size
        return part

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield clips as `KeyframeClips` or `TubeClips` do.

        Raises:
            VideoReadError: If a video cannot be read, or none of those of a worker while broken ones are skipped.
            ValueError: If there are fewer shards than workers, in training.
        """
        if self._batch_size is None:
            yield from self._read_once()
            return
        worker = torch.utils.data.get_worker_info()
        index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        num_batches = -(-len(self) // self._batch_size)
        # The data loader takes a batch of each worker in turn.
        wanted = len(range(index, num_batches, num_workers)) * self._batch_size
        yield from islice(self._read_forever(), wanted)

    def _read_forever(self) -> Iterator[dict[str, Any]]:
        while True:
            is_empty = True
            for clip in self._read_once():
                is_empty = False
                yield clip
            if is_empty:
                raise ValueError(
                    "a worker has no clip that can be read: there are fewer shards of annotations than workers "
                    f"({self.rows.num_shards} shards), or all its videos are broken"
                )

    def _read_once(self) -> Iterator[dict[str, Any]]:
        parts: Iterator = ((row, *part) for row in self._own_rows for part in self.clips.parts_of(row))
        if self._shuffles:
            parts = shuffled(parts, CLIP_BUFFER, np.random.default_rng((self.clips.seed, self.clips.epoch)))
        skipped = []
        for row, clip_id, start in parts:
            try:
                clip = self.clips.read(row, clip_id, start, draw_of(clip_id))
            except VideoReadError as error:
                if self.clips.on_error == "raise":
                    raise
                skipped.append(f"{clip_id}: {error}")
                continue
            yield clip | {"skipped": skipped} if skipped else clip
            skipped = []


def shuffled(items: Iterable[T], buffer_size: int, generator: np.random.Generator) -> Iterator[T]:
    """Yield items in an order drawn among `buffer_size` of them at a time."""
    buffer: list[T] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        index = generator.integers(buffer_size)
        buffer[index], item = item, buffer[index]
        yield item
    yield from (buffer[index] for index in generator.permutation(len(buffer)))
