"""SIGINT and SIGTERM: the first lets the runs in progress finish, the second cancels them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


def listen(on_first: Callable[[signal.Signals], None], on_second: Callable[[signal.Signals], None]) -> None:
    """Call `on_first` at the first ending signal and `on_second` at the next one, in a thread of their own.

    Python runs a signal handler only when the main thread comes to it, and that thread may wait for a run to finish.
    What Python writes to the wakeup descriptor comes at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in ENDING:
        signal.signal(number, _noted)
    signals = (byte[0] for byte in iter(lambda: os.read(reading, 1), b"") if byte[0] in ENDING)
    threading.Thread(target=_obey, args=(signals, on_first, on_second), name="signals", daemon=True).start()


def ignore() -> None:
    """Ignore further signals: nothing is left to cancel.

    Python gives our handlers back to the system while it ends; a signal would then end it with another exit code.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _obey(
    signals: Iterator[int], on_first: Callable[[signal.Signals], None], on_second: Callable[[signal.Signals], None]
) -> None:
    on_first(signal.Signals(next(signals)))
    on_second(signal.Signals(next(signals)))


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Keep a signal from doing what it does by default."""
