"""The current figures of a worker's jobs, for whoever asks on the same host: how far, how fast, how long still.

A run's document has them too, as old as its last renewal. Here the worker answers at once, through a socket in
Linux's abstract namespace. The name comes from the path of the worker's lock file. So a command that has the
configuration finds it, and no disk is asked: one may hang. Only root and the worker's own user get an answer. Anybody
may take a name in that namespace, so an answer of another user is believed by nobody but root, and by nobody if it
has another form.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from rich.filesize import decimal

from watcher.job import Job

PEER_SECONDS = 1.0
"""A worker waits so long for one who asks and does not read."""

ANSWER_SECONDS = 3.0
"""Who asks waits so long for an answer."""

MAX_ANSWER_BYTES = 1 << 20

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figures:
    """How far a job is. Times are in seconds; `bytes_per_second` is the mean of the phase.

    `seconds_left` is for the phase, and None where it is not known. While archiving, that is about all that is left.
    """

    run: str
    path: str
    phase: str
    phase_seconds: float
    bytes_done: int
    bytes_total: int
    bytes_validated: int
    bytes_per_second: int
    seconds_left: int | None

    def __post_init__(self) -> None:
        numbers = (self.phase_seconds, self.bytes_done, self.bytes_total, self.bytes_validated, self.bytes_per_second)
        is_right = all(isinstance(each, str) for each in (self.run, self.path, self.phase))
        if not is_right or not all(isinstance(each, int | float) for each in (*numbers, self.seconds_left or 0)):
            raise TypeError("these are no figures")

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return those of a job."""
        progress, seconds = job.progress, job.seconds_in_phase
        rate = progress.bytes_done / seconds if seconds > 0 else 0.0
        left = max(progress.bytes_total - progress.bytes_done, 0)
        return cls(
            run=job.run.name,
            path=str(job.run.path),
            phase=str(progress.phase),
            phase_seconds=round(seconds, 1),
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            bytes_validated=progress.bytes_validated,
            bytes_per_second=round(rate),
            seconds_left=round(left / rate) if rate and progress.bytes_total else None,
        )

    @property
    def in_words(self) -> str:
        """How far the job is, how fast it goes in this phase, and how long that will last."""
        if not self.bytes_total:
            return self.phase
        words = (
            f"{self.phase} {percent(self.bytes_done, self.bytes_total)}",
            f"{percent(self.bytes_validated, self.bytes_total)} validated" if self.bytes_validated else "",
            f"{decimal(self.bytes_per_second)}/s",
            f"{timedelta(seconds=self.seconds_left)} left" if self.seconds_left is not None else "",
        )
        return ", ".join(filter(None, words))


def percent(done: int, total: int) -> str:
    """Return the part of the whole, in words."""
    return f"{min(100 * done // total, 100)} %"


class FiguresServer:
    """Answers with the figures of the jobs that `jobs` returns. `serve` needs a thread, and returns after `close`."""

    def __init__(self, lock_file: Path, jobs: Callable[[], Sequence[Job]], peer_seconds: float = PEER_SECONDS) -> None:
        self._address = _address(lock_file)
        self._jobs = jobs
        self._peer_seconds = peer_seconds
        self._socket = socket.socket(socket.AF_UNIX)
        self._closed = threading.Event()

    def open(self) -> bool:
        """Begin to listen; say whether that can be done. If not, a warning is logged."""
        try:
            self._socket.bind(self._address)
            self._socket.listen()
        except OSError as error:
            logger.warning("`status` will not show current figures: no socket for them: %s", error.strerror)
            return False
        return True

    def serve(self) -> None:
        """Answer, again and again."""
        while not self._closed.is_set():
            try:
                asking, _ = self._socket.accept()
            except OSError:  # closed, or the process has as many files open as it may
                self._closed.wait(self._peer_seconds)
                continue
            with asking, suppress(OSError):
                asking.settimeout(self._peer_seconds)
                if _peer(asking) in (0, os.geteuid()):
                    asking.sendall(json.dumps([asdict(Figures.of(job)) for job in self._jobs()]).encode())

    def close(self) -> None:
        """End `serve`."""
        self._closed.set()
        with suppress(OSError):  # it may not listen
            self._socket.shutdown(socket.SHUT_RDWR)


def current_figures(lock_file: Path) -> list[Figures]:
    """Return the figures of each job of the worker that has this lock file; none if it does not run here, or is busy.

    A worker of another user answers nobody but root.
    """
    answer = bytearray()
    with suppress(OSError, ValueError, TypeError, RecursionError), socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(ANSWER_SECONDS)
        asking.connect(_address(lock_file))
        if os.geteuid() not in (0, _peer(asking)):
            return []
        while len(answer) <= MAX_ANSWER_BYTES and (data := asking.recv(1 << 16)):
            answer += data
        return [Figures(**one) for one in json.loads(answer)]
    return []


def is_answering(lock_file: Path) -> bool:
    """Say whether the worker that has this lock file runs on this host."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(ANSWER_SECONDS)
        asking.connect(_address(lock_file))
        return True
    return False


def _address(lock_file: Path) -> bytes:
    name = hashlib.blake2b(os.fsencode(lock_file), digest_size=16).hexdigest()
    return f"\0dataflow_archive.{name}".encode()


def _peer(connected: socket.socket) -> int:
    """Return the user at the other end."""
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(found)[1]
    return uid
