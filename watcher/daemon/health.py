"""The daemon's health: systemd's watchdog is fed while all threads live, and a rescan that hangs is logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from threading import Thread

from watcher.daemon.systemd import Notifier

logger = logging.getLogger(__name__)


class Health:
    """Tells systemd how the daemon is. `state` returns the line for `systemctl status`."""

    def __init__(self, notifier: Notifier, state: Callable[[], str]) -> None:
        self._notifier = notifier
        self._state = state
        self._logged_since: float | None = None

    def tell(self, *states: str) -> None:
        """Send assignments to systemd together with the daemon's state."""
        self._notifier.send(*states, f"STATUS={self._state()}")

    def feed_watchdog(self, threads: Sequence[Thread]) -> None:
        """Feed the watchdog, unless one of the threads has died: then systemd restarts the process."""
        if dead := [thread.name for thread in threads if not thread.is_alive()]:
            logger.critical("threads have died: %s; systemd will restart us", ", ".join(dead))
        else:
            self.tell("WATCHDOG=1")

    def look_for_a_hanging_disk(self, since: float | None, limit_seconds: float, path: object) -> None:
        """Log once that a look at the disks, which began at `since` on the monotonic clock, takes too long."""
        if since and since != self._logged_since and time.monotonic() - since >= limit_seconds:
            self._logged_since = since
            logger.error("a rescan does not end: look for a disk below '%s' that does not answer", path)
