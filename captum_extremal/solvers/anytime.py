"""When a search has to end before its budget does: a time limit, or Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping(time_limit: float | None) -> Iterator[Callable[[], bool]]:
    """Tell a loop when to end: after a time, or after Ctrl-C.

    In the main thread a first Ctrl-C lets the step that is under way come to its end,
    warns, and keeps what was found; a second one interrupts as usual. In other threads
    Python delivers no Ctrl-C. A handler that is not Python's own is left alone.

    Args:
        time_limit: Seconds from now; None for no limit.

    Yields:
        A function that says whether to stop.

    Example:
        >>> with stopping(None) as stopped:
        ...     stopped()
        False
    """
    end = None if time_limit is None else time.monotonic() + time_limit
    interrupted = threading.Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def stopped() -> bool:
        return interrupted.is_set() or (end is not None and time.monotonic() >= end)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted.is_set():
            warnings.warn(
                "the search was interrupted: the masks are the best found until then",
                stacklevel=2,
            )
