"""Work ahead in a thread, a bounded number of items, in step with whoever takes them or dropping what gets too old."""

import atexit
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar


ItemT = TypeVar("ItemT")
# How long to wait for a thread that was told to end: it may be in the middle of a frame, or waiting for a camera.
_MAX_SECONDS_TO_END = 5.0


class Taken(NamedTuple, Generic[ItemT]):
    """Items, and how many were dropped since those taken before."""

    items: list[ItemT]
    num_dropped: int


class Background(Generic[ItemT]):
    """Iterate over something in a thread of its own; used as a context manager, which ends the thread.

    Args:
        items: What to iterate over; it is only touched by the thread.
        capacity: How many items may wait to be taken.
        drop_oldest: Whether an item that finds no room takes that of the oldest, instead of waiting. Then `take` does
            not wait for more than one item, either.
    """

    def __init__(self, items: Iterable[ItemT], *, capacity: int, drop_oldest: bool = False):
        self._items = items
        self._capacity = capacity
        self._drop_oldest = drop_oldest
        self._waiting: deque[ItemT] = deque()
        self._num_dropped = 0
        self._error: BaseException | None = None
        self._is_finished = self._is_abandoned = False
        self._changed = threading.Condition()
        # A daemon: the interpreter does not wait for ever when it exits, not even if a decoder hangs.
        self._thread = threading.Thread(target=self._run, name="Background", daemon=True)

    def __enter__(self) -> "Background[ItemT]":
        self._thread.start()
        _running.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Tell the thread to end, and wait for it, but not for ever."""
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()
        self._thread.join(_MAX_SECONDS_TO_END)

    def take(self, max_items: int) -> Taken[ItemT]:
        """Wait for items and take them in order: `max_items`, or fewer at the end, where there are none.

        Raises:
            BaseException: What ended the iteration, after all items before it were taken.
        """
        enough = 1 if self._drop_oldest else max_items
        with self._changed:
            self._changed.wait_for(lambda: self._is_finished or len(self._waiting) >= min(enough, self._capacity))
            items = [self._waiting.popleft() for _ in range(min(max_items, len(self._waiting)))]
            num_dropped, self._num_dropped = self._num_dropped, 0
            self._changed.notify_all()
            if not items and self._error is not None:
                raise self._error
            return Taken(items, num_dropped)

    def __iter__(self) -> Iterator[ItemT]:
        """Take one item after the other."""
        while batch := self.take(1).items:
            yield batch[0]

    def _run(self) -> None:
        with _Ending(self), contextlib.ExitStack() as on_exit:
            # Decoders are closed in the thread that they were opened in.
            on_exit.callback(getattr(self._items, "close", lambda: None))
            for item in self._items:
                if not self._put(item):
                    return

    def _put(self, item: ItemT) -> bool:
        """Add an item as soon as there is room; false if nobody wants it any more."""
        with self._changed:
            if self._drop_oldest and len(self._waiting) == self._capacity:
                self._waiting.popleft()
                self._num_dropped += 1
            self._changed.wait_for(lambda: self._is_abandoned or len(self._waiting) < self._capacity)
            if not self._is_abandoned:
                self._waiting.append(item)
                self._changed.notify_all()
            return not self._is_abandoned

    def _finish(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = error
            self._is_finished = True
            self._changed.notify_all()


_running: "weakref.WeakSet[Background]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """End what is left half done: a thread in native code aborts the process when the interpreter exits."""
    for background in list(_running):
        background.end()


class _Ending:
    """Hands what ends the thread over to the one who takes the items, whatever it is."""

    def __init__(self, background: Background):
        self._background = background

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._background._finish(error)
        return True
