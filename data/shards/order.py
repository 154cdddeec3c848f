"""In which order the clips of shards are read: arithmetic on numbers of rows, before anything is fetched.

The order of an epoch is a list of all clips that depends on the seed and the epoch alone. Each process and each of its
workers, a lane, takes one stretch of it, so that a clip is read once whatever the numbers of shards, processes and
workers are, a row by one lane but for those at the ends of stretches, and a shard by few. To go on in the middle of an
epoch takes no more than the number of clips that were given.

Shuffling mixes shards, then the rows of `SHARDS_TOGETHER` shards, then the clips of the rows of a pool, which a lane
holds in memory.
"""

from typing import NamedTuple

import numpy as np


# A lane has the rows of so many shards open at a time.
SHARDS_TOGETHER = 8
# Rows whose clips are mixed: at most so many, and so many bytes of them, which are in memory.
POOL_ROWS = 64
POOL_BYTES = 64_000_000


class Rows(NamedTuple):
    """What the order depends on: arrays with an item for each row."""

    shard: np.ndarray
    """Number of its shard, ascending."""
    num_clips: np.ndarray
    num_bytes: np.ndarray


class Lane(NamedTuple):
    """The stretch of one worker of one process."""

    start: int
    """Place in the order of all clips; those behind the last one are the first ones again."""
    num_clips: int


def training_lanes(num_clips: int, num_processes: int, num_workers: int, batch_size: int) -> list[list[Lane]]:
    """Divide an epoch so that each process has equally many full batches.

    Together they hold every clip, and some of the first twice where that does not come out even.

    Returns:
        The lanes of each process: those of its workers.
    """
    num_batches = -(-num_clips // (num_processes * batch_size))
    # A data loader takes a batch of each worker in turn.
    per_worker = [len(range(worker, num_batches, num_workers)) * batch_size for worker in range(num_workers)]
    starts = np.cumsum([0, *per_worker * num_processes])
    return [
        [Lane(int(starts[process * num_workers + worker]), size) for worker, size in enumerate(per_worker)]
        for process in range(num_processes)
    ]


def evaluation_lanes(num_clips: int, num_processes: int, num_workers: int, batch_size: int) -> list[list[Lane]]:
    """Divide the clips so that each is in one lane; the batches are the same for any number of lanes."""
    num_batches, num_lanes = -(-num_clips // batch_size), num_processes * num_workers
    bounds = [min(num_clips, num_batches * lane // num_lanes * batch_size) for lane in range(num_lanes + 1)]
    lanes = [Lane(start, stop - start) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    return [lanes[process * num_workers : (process + 1) * num_workers] for process in range(num_processes)]


def order_rows(rows: Rows, seed: tuple[int, int] | None) -> np.ndarray:
    """Order all rows: as they are, or shuffled by a seed and an epoch."""
    if seed is None:
        return np.arange(len(rows.shard))
    generator = np.random.default_rng((*seed, 0))
    bounds = np.flatnonzero(np.diff(rows.shard, prepend=-1))
    shards = np.split(np.arange(len(rows.shard)), bounds[1:])
    order = generator.permutation(len(shards))
    together = (order[first : first + SHARDS_TOGETHER] for first in range(0, len(order), SHARDS_TOGETHER))
    return np.concatenate([generator.permutation(np.concatenate([shards[n] for n in group])) for group in together])


def order_clips(rows: Rows, lane: Lane, seed: tuple[int, int] | None) -> np.ndarray:
    """Order the clips of a lane: int64 (lane.num_clips, 2), the row and the number of the clip in it."""
    order = order_rows(rows, seed)
    ends = np.cumsum(rows.num_clips[order])
    places = np.arange(lane.start, lane.start + lane.num_clips) % max(1, int(rows.num_clips.sum()))
    positions = np.searchsorted(ends, places, side="right")
    in_row = places - (ends[positions] - rows.num_clips[order][positions])
    clips = np.stack((order[positions], in_row), axis=1)
    if seed is None or not len(clips):
        return clips
    generator = np.random.default_rng((*seed, 1, lane.start))
    return np.concatenate([generator.permutation(pool) for pool in np.split(clips, _pool_bounds(rows, clips))])


def _pool_bounds(rows: Rows, clips: np.ndarray) -> list[int]:
    """Where pools begin: at changes of the row, when the next one would be too much."""
    bounds, num_rows, num_bytes = [], 0, 0
    for place in np.flatnonzero(np.diff(clips[:, 0], prepend=-1)).tolist():
        size = int(rows.num_bytes[clips[place, 0]])
        if num_rows and (num_rows == POOL_ROWS or num_bytes + size > POOL_BYTES):
            bounds.append(place)
            num_rows = num_bytes = 0
        num_rows, num_bytes = num_rows + 1, num_bytes + size
    return bounds
