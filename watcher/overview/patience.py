"""A disk may hang, and whoever asks it with it. So it is asked in a thread of its own, and not for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

DISK_SECONDS = 10.0
"""A look is given up when nothing has come for so long. A large or a slow disk may take longer in all."""

T = TypeVar("T")


def gathered(seconds: float, look: Callable[[], Iterable[T]]) -> list[T]:
    """Return all that `look` yields, or raise what it raises. Raises TimeoutError if nothing comes for so long.

    Then its thread is left behind, and ends with the process.
    """
    found: list[T] = []
    raised: list[BaseException] = []

    def looking() -> None:
        try:
            for one in look():
                found.append(one)  # what has come is counted while more comes
        except BaseException as error:  # noqa: BLE001  # it is raised below, where somebody hears it
            raised.append(error)

    thread = threading.Thread(target=looking, name="look", daemon=True)
    thread.start()
    before = -1
    while thread.is_alive() and before < len(found):
        before = len(found)
        thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if raised:
        raise raised[0]
    return found


def within(seconds: float, look: Callable[[], T]) -> T:
    """Return what `look` returns, or raise what it raises. Raises TimeoutError if it takes longer."""
    return gathered(seconds, lambda: (look() for _ in range(1)))[0]
