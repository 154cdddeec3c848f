"""Work that may hang, without anybody who has to wait for it."""

import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar


ResultT = TypeVar("ResultT")

_SECONDS_TO_STOP = 2.0


class TimeLimit:
    """Runs work in threads of its own: a native decoder that hangs cannot be interrupted, but left alone.

    Args:
        max_seconds: How long to wait for it.
    """

    def __init__(self, max_seconds: float) -> None:
        if not max_seconds > 0:
            raise ValueError(f"a time limit must be positive, got {max_seconds}")
        self.max_seconds = max_seconds
        self._running: dict[concurrent.futures.Future, tuple[threading.Thread, threading.Event]] = {}

    def run(self, work: Callable[[Callable[[], bool]], ResultT]) -> ResultT:
        """Return what `work` returns; it is given a function that tells whether nobody waits for it any more.

        Raises:
            ValueError: If it takes too long, or `close` is called.
        """
        outcome: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
        is_stopped = threading.Event()
        # The context tells gradio whose progress bar it is.
        in_context = contextvars.copy_context().run
        thread = threading.Thread(target=in_context, args=(_settle, outcome, work, is_stopped), daemon=True)
        thread.start()
        self._running[outcome] = thread, is_stopped
        try:
            return outcome.result(self.max_seconds)
        except concurrent.futures.TimeoutError as error:
            raise ValueError(
                f"This took more than {self.max_seconds:g} seconds, the limit here: give a shorter video or detect "
                "less often."
            ) from error
        except concurrent.futures.CancelledError as error:
            raise ValueError("The page was closed or something unexpected went wrong: try again.") from error
        finally:
            is_stopped.set()
            del self._running[outcome]

    def close(self) -> None:
        """Let nobody wait any longer, and wait a moment for what ends when it is asked to."""
        running = list(self._running.items())
        for outcome, (_, is_stopped) in running:
            is_stopped.set()
            outcome.cancel()
        for _, (thread, _) in running:
            thread.join(_SECONDS_TO_STOP)


def _settle(
    outcome: concurrent.futures.Future, work: Callable[[Callable[[], bool]], ResultT], is_stopped: threading.Event
) -> None:
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        try:
            outcome.set_result(work(is_stopped.is_set))
        except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
            outcome.set_exception(error)
        finally:
            # Without effect on an outcome; after any other error, nobody waits in vain.
            outcome.cancel()
