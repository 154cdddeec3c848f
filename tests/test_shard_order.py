"""The order of clips in shards: each once for any number of processes, workers, shards and rows, and mixed well."""

import numpy as np
import pytest

from classquery.data.shards import order
from classquery.data.shards.order import Rows, evaluation_lanes, order_clips, order_rows, training_lanes


def rows_of(*clips_per_row: list[int], num_bytes: int = 1000) -> Rows:
    """Rows with so many clips each, a list for each shard."""
    shard = [number for number, counts in enumerate(clips_per_row) for _ in counts]
    counts = np.array([count for counts in clips_per_row for count in counts])
    return Rows(np.array(shard), counts, np.full(len(counts), num_bytes))


def clips_of(rows: Rows) -> list[tuple[int, int]]:
    return [(row, clip) for row, count in enumerate(rows.num_clips) for clip in range(count)]


ROWS = rows_of([3, 1, 8], [2], [5, 5, 1, 0, 4])


@pytest.mark.parametrize("seed", [None, (0, 1)])
@pytest.mark.parametrize("num_processes", [1, 2, 5, 13])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_evaluation_gives_each_clip_once(num_processes, num_workers, seed):
    lanes = evaluation_lanes(29, num_processes, num_workers, batch_size=2)
    seen = [tuple(clip) for process in lanes for lane in process for clip in order_clips(ROWS, lane, seed).tolist()]

    assert sorted(seen) == clips_of(ROWS)
    assert seed is not None or seen == clips_of(ROWS)


def test_batches_of_an_evaluation_are_the_same_for_any_number_of_processes():
    def batches(num_processes: int, num_workers: int) -> set[tuple]:
        found = []
        for process in evaluation_lanes(29, num_processes, num_workers, batch_size=4):
            for lane in process:
                clips = [tuple(clip) for clip in order_clips(ROWS, lane, None).tolist()]
                found += [tuple(clips[first : first + 4]) for first in range(0, len(clips), 4)]
        return set(found)

    assert batches(1, 1) == batches(2, 1) == batches(3, 2) == batches(20, 1)


@pytest.mark.parametrize(("num_processes", "num_workers", "batch_size"), [(1, 1, 4), (2, 2, 2), (3, 2, 3), (9, 2, 2)])
def test_training_gives_each_process_as_many_full_batches_and_each_clip(num_processes, num_workers, batch_size):
    lanes = training_lanes(29, num_processes, num_workers, batch_size)

    num_batches = -(-29 // (num_processes * batch_size))
    for process in lanes:
        # The data loader takes a batch of each in turn: the first workers have one more.
        per_worker = [len(range(worker, num_batches, num_workers)) for worker in range(num_workers)]
        assert [lane.num_clips for lane in process] == [count * batch_size for count in per_worker]
    seen = [tuple(clip) for process in lanes for lane in process for clip in order_clips(ROWS, lane, (0, 0)).tolist()]
    assert set(seen) == set(clips_of(ROWS))
    assert len(seen) - 29 < num_processes * batch_size


def test_a_row_is_read_by_one_lane_but_for_the_ends_of_stretches():
    rows = rows_of(*[[7] * 40] * 5)
    lanes = training_lanes(1400, 4, 2, batch_size=5)
    readers = [set(order_clips(rows, lane, (3, 0))[:, 0].tolist()) for process in lanes for lane in process]

    assert sum(map(len, readers)) <= 200 + len(readers)


def test_shuffling_depends_on_seed_and_epoch_and_mixes_shards_rows_and_clips():
    rows = rows_of(*[[8] * 50] * 20)
    lane = training_lanes(8000, 1, 1, batch_size=1)[0][0]
    first, second = (order_clips(rows, lane, (0, epoch)) for epoch in (0, 1))

    assert np.array_equal(first, order_clips(rows, lane, (0, 0)))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, order_clips(rows, lane, (1, 0)))
    # Clips of a row that follow each other: by chance about one in 64, the rows of a pool.
    assert 0.005 < np.mean(first[1:, 0] == first[:-1, 0]) < 0.03
    # Eight shards are mixed, and rows do not follow each other.
    shards = rows.shard[first[:400, 0]]
    assert len(set(shards.tolist())) == order.SHARDS_TOGETHER
    assert np.abs(np.diff(order_rows(rows, (0, 0)))).mean() > 50


def test_pools_hold_a_bounded_number_of_rows_and_bytes(monkeypatch):
    monkeypatch.setattr(order, "POOL_BYTES", 5000)
    rows = rows_of([4] * 30, num_bytes=1000)
    clips = order_clips(rows, training_lanes(120, 1, 1, 1)[0][0], (0, 0))

    first, last = {}, {}
    for place, row in enumerate(clips[:, 0].tolist()):
        first.setdefault(row, place)
        last[row] = place
    held = max(sum(first[row] <= place <= last[row] for row in first) for place in range(120))
    assert held == 5


def test_no_rows_give_no_clips():
    empty = Rows(*(np.zeros(0, np.int64) for _ in range(3)))

    assert len(order_clips(empty, evaluation_lanes(0, 2, 1, 2)[1][0], None)) == 0
