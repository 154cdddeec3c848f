"""Working ahead: in order, bounded, never stuck, and dropping the oldest where that is asked for."""

import threading
import time
from collections.abc import Iterator

import pytest

from classquery.engine.detection import background as background_module
from classquery.engine.detection.background import Background


def take_all(background: Background, max_items: int) -> list[list]:
    return [batch.items for batch in iter(lambda: background.take(max_items), ([], 0))]


def test_items_come_in_batches_and_in_order():
    with Background(range(7), capacity=4) as background:
        assert take_all(background, 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_batch_larger_than_the_capacity_comes_in_parts():
    with Background(range(5), capacity=2) as background:
        assert sum(take_all(background, 4), []) == [0, 1, 2, 3, 4]


def test_no_more_is_made_than_there_is_room_for():
    made = []

    def make() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with Background(make(), capacity=3) as background:
        background.take(1)
        time.sleep(0.05)

        assert len(made) <= 1 + 3 + 1


def test_error_comes_after_the_items_before_it():
    def make() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    with Background(make(), capacity=4) as background:
        assert background.take(4) == ([1], 0)
        with pytest.raises(KeyError, match="broken"):
            background.take(4)


def test_oldest_items_are_dropped_and_counted():
    has_made_all = threading.Event()

    def make() -> Iterator[int]:
        yield from range(10)
        has_made_all.set()

    with Background(make(), capacity=2, drop_oldest=True) as background:
        has_made_all.wait(5)

        assert background.take(4) == ([8, 9], 8)


def test_live_items_are_not_waited_for_to_fill_a_batch():
    go_on = threading.Event()

    def make() -> Iterator[int]:
        yield 1
        go_on.wait(5)
        yield 2

    with Background(make(), capacity=4, drop_oldest=True) as background:
        assert background.take(4) == ([1], 0)
        go_on.set()
        assert background.take(4) == ([2], 0)


def test_thread_ends_when_nobody_takes_any_more():
    with Background(iter(int, 1), capacity=1) as background:
        background.take(1)

    background._thread.join(5)
    assert not background._thread.is_alive()


def test_leaving_early_waits_for_the_thread_which_closes_what_it_read():
    closed_in = []

    def make() -> Iterator[int]:
        try:
            yield from iter(int, 1)
        finally:
            closed_in.append(threading.current_thread())

    with Background(make(), capacity=1) as background:
        background.take(1)

    assert not background._thread.is_alive()
    assert closed_in == [background._thread]


def test_thread_that_hangs_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(background_module, "_MAX_SECONDS_TO_END", 0.01)
    go_on = threading.Event()

    def make() -> Iterator[int]:
        yield 1
        go_on.wait(20)

    with Background(make(), capacity=1) as background:
        background.take(1)

    assert background._thread.is_alive()
    go_on.set()


def test_what_is_half_done_at_exit_is_ended():
    background = Background(iter(int, 1), capacity=1).__enter__()

    background_module._end_all()

    assert not background._thread.is_alive()
