"""When a search has to end before its budget does: a time limit, or Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

Ended = Literal["budget", "time limit", "interrupt"]


class Stop:
    """Whether a search has to end, and what ended it.

    Args:
        time_limit: Seconds from now; None for no limit.

    Example:
        >>> Stop(None)()
        False
    """

    def __init__(self, time_limit: float | None) -> None:
        self.ended: Ended = "budget"
        self._end = None if time_limit is None else time.monotonic() + time_limit

    def __call__(self) -> bool:
        """Whether to stop now; once it said so, it says so for good."""
        late = self._end is not None and time.monotonic() >= self._end
        if late and self.ended == "budget":
            self.ended = "time limit"
        return self.ended != "budget"


@contextmanager
def stopping(time_limit: float | None) -> Iterator[Stop]:
    """Tell a loop when to end: after a time, or after Ctrl-C.

    In the main thread a first Ctrl-C lets the step that is under way come to its end; a
    second one interrupts as usual. In other threads Python delivers no Ctrl-C. A
    handler that is not Python's own is left alone.

    Args:
        time_limit: Seconds from now; None for no limit.

    Yields:
        What says whether to stop, and afterwards why.

    Example:
        >>> with stopping(None) as stop:
        ...     stop(), stop.ended
        (False, 'budget')
    """
    stop = Stop(time_limit)

    def note(_signal: int, _frame: FrameType | None) -> None:
        stop.ended = "interrupt"
        signal.signal(signal.SIGINT, signal.default_int_handler)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
