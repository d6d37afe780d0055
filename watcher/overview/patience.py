"""A disk may hang, and whoever asks it with it. So it is asked in a thread of its own, and for so long only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

DISK_SECONDS = 10.0
"""A look that takes longer is given up. To list 100,000 runs takes two seconds on a local disk."""

T = TypeVar("T")


def within(seconds: float, look: Callable[[], T]) -> T:
    """Return what `look` returns, or raise what it raises. Raises TimeoutError if it takes longer: a disk may hang.

    Then its thread is left behind, and ends with the process.
    """
    found: list[T] = []
    raised: list[BaseException] = []

    def looking() -> None:
        try:
            found.append(look())
        except BaseException as error:  # noqa: BLE001  # it is raised below, where somebody hears it
            raised.append(error)

    thread = threading.Thread(target=looking, name="look", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise TimeoutError
    return found[0]
