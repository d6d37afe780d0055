"""What systemd is told of the daemon: sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping

_TOLD_ONCE = ("READY=1", "STOPPING=1")
"""If systemd did not hear one of these, it goes with the next that is told: without READY=1 no watchdog runs."""

_MICROSECONDS = 1_000_000

logger = logging.getLogger(__name__)


def watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return how long systemd waits for a sign of life; None if it waits for none: sd_watchdog_enabled(3)."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    is_ours = pid in ("", str(os.getpid()))
    return int(text) / _MICROSECONDS if is_ours and text.isdecimal() and int(text) > 0 else None


class Notifier:
    """systemd's sd_notify(3): datagrams to `$NOTIFY_SOCKET`; silent without one."""

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._last = ""
        self._unheard: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def send(self, *states: str) -> None:
        """Send assignments such as READY=1; one that was just sent is not repeated, but for WATCHDOG=1."""
        with self._lock:
            self._send(states)

    def _send(self, states: tuple[str, ...]) -> None:
        # Of two that exclude each other, systemd takes the last.
        states = (*(state for state in self._unheard if state not in states), *states)
        text = "\n".join(states)
        if self._address is None or (text == self._last and "WATCHDOG=1" not in states):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(text.encode(), self._address)
        except OSError as error:
            self._unheard = tuple(state for state in states if state in _TOLD_ONCE)
            logger.warning("systemd does not hear us: %s", error.strerror or error)
        else:
            self._unheard = ()
            self._last = text
