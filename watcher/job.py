"""The work on one run: its progress, its child processes, and the reason to stop, if there is one.

Several threads share a job. The worker's thread does the work. The threads that renew leases and end stalled jobs read
the progress, and may cancel.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from watcher.errors import CannotRun, NoSpace, Stalled, WatcherError, remedy
from watcher.model import Phase, Progress, Run

MOVING = (Phase.ARCHIVING, Phase.VALIDATING)
"""The phases in which bytes must move; in the others a job may well wait for something outside."""

UNHURRIED = 4
"""A job without a child may move no byte for this many times `stall_limit`: the last part of a large file may take
long to get from memory to the disk."""

LOOK_SECONDS = 30.0
"""A stall check that comes later than this after the last one was suspended, probably with the job. It starts to count
anew. The service checks every two seconds."""

PIPE_BYTES = 1 << 20
"""The size of a pipe that carries a run. With Linux's default of 64 KiB both ends wait for each other."""

P = ParamSpec("P")
T = TypeVar("T")


class Job:
    """The work on one run, from its claim to the claim's end. `size` is the run's, in bytes.

    `prefix` are the words before each child's command: a program that starts it with another priority.

    Progress, cancel and children are one class: a cancel must see each child, and a stall is judged by all three.
    """

    def __init__(
        self, run: Run, size: int = 0, clock: Callable[[], float] = time.monotonic, prefix: Sequence[str] = ()
    ) -> None:
        self.run = run
        self.size = size
        self._clock = clock
        self._prefix = prefix
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._progress = Progress(Phase.CLAIMED)
        self._moved_at = self._looked_at = self._entered_at = clock()
        self._storage: Path | None = None
        self._is_waiting = False
        self._reason: WatcherError | None = None
        self._second: Job | None = None
        self.cancelled = threading.Event()
        self.on_enter: Callable[[], object] = lambda: None
        """Called when a phase has begun."""

    @contextmanager
    def second_pass(self) -> Iterator[Job]:
        """Have a job for a second pass over the run while the context lasts. What ends this job ends that one, too.

        It is made for another thread, and counts as waiting until that thread leaves its first `waiting`.
        """
        second = Job(self.run, self.size, self._clock, self._prefix)
        second.enter(Phase.VALIDATING)
        second._is_waiting = True
        with self._lock:
            self.check()
            self._second = second
        try:
            yield second
        finally:
            with self._lock:
                self._second = None

    @property
    def progress(self) -> Progress:
        """How far the work has come, that of the second pass included."""
        progress, second = self._progress, self._second
        if second is None:
            return progress
        validated = second.progress.bytes_done
        done = validated if progress.phase is Phase.VALIDATING else progress.bytes_done
        return replace(progress, bytes_done=done, bytes_validated=validated)

    @property
    def seconds_in_phase(self) -> float:
        """How long the phase has lasted."""
        return self._clock() - self._entered_at

    @property
    def bytes_to_come(self) -> int:
        """How much this job will still write to the destination."""
        progress = self._progress
        if progress.phase is Phase.CLAIMED:
            return self.size
        return max(self.size - progress.bytes_done, 0) if progress.phase is Phase.ARCHIVING else 0

    def enter(self, phase: Phase, bytes_total: int = 0) -> None:
        """Begin a phase in which `bytes_total` bytes are expected. Raises the reason if cancelled."""
        self.check()
        # Before the phase: a stall check must not see a new phase with an old time.
        self._moved_at = self._entered_at = self._clock()
        self._progress = Progress(phase, 0, bytes_total)
        self.on_enter()

    def moved(self, count: int) -> None:
        """Note `count` more bytes. Raises the reason if cancelled."""
        self.check()
        progress = self._progress
        self._progress = replace(progress, bytes_done=progress.bytes_done + count)
        self._moved_at = self._clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the context lasts the job is not stalled: it waits on purpose, for its next try."""
        self._is_waiting = True
        try:
            yield
        finally:
            self._moved_at = self._clock()
            self._is_waiting = False

    def check(self) -> None:
        """Raise the reason of the cancel, if this job was cancelled."""
        if self._reason is not None:
            raise self._reason

    def cancel(self, reason: WatcherError) -> None:
        """Stop the work for `reason`; the first reason counts. The children are killed, so their pipes close."""
        with self._lock:
            self._reason = self._reason or reason
            for child in self._children:
                kill(child)
            self.cancelled.set()
            if self._second is not None:
                self._second.cancel(reason)

    def forgive(self, reason: Exception) -> None:
        """Undo a cancel for `reason`: the work has ended, and the end must still be written into the document."""
        with self._lock:
            if self._reason is reason:
                self._reason = None
                self.cancelled.clear()

    def cancel_if_stalled(self, limit_seconds: float) -> bool:
        """Cancel the job if no byte has moved for `limit_seconds` in one of its passes; say whether it was.

        A pass without a child gets `UNHURRIED` times as long: no child can hang.
        """
        second = self._second
        reason = self._stall(limit_seconds) or (second._stall(limit_seconds) if second else None)
        if reason is None or self.cancelled.is_set():
            return False
        self.cancel(reason)
        return True

    def _stall(self, limit_seconds: float) -> WatcherError | None:
        now, progress = self._clock(), self._progress
        if self._is_waiting or now - self._looked_at > LOOK_SECONDS:
            self._moved_at = max(self._moved_at, now)
        self._looked_at = now
        still = now - self._moved_at
        has_child = progress.phase in MOVING and bool(self._children)
        if still < limit_seconds * (1 if has_child else UNHURRIED):
            return None
        return self._stalled(
            f"for {still:.0f} s while {progress.phase} (stall_limit is {limit_seconds:g} s)", has_child
        )

    def _stalled(self, words: str, has_child: bool) -> WatcherError:
        storage, look = self._storage, "look for a disk that does not answer"
        if storage is not None:
            return NoSpace(f"'{storage}' gave or took no byte {words}: {look}")
        if has_child:
            return Stalled(f"no byte moved {words}; tar or gpg hangs: {look}")
        return NoSpace(f"nothing has moved {words}: {look}")

    def on_storage(self, move: Callable[P, T], path: Path) -> Callable[P, T]:
        """Return a function that calls `move`. While the call lasts, a stall is blamed on the disk of `path`."""

        def moving(*args: P.args, **kwargs: P.kwargs) -> T:
            self._storage = path
            try:
                return move(*args, **kwargs)
            finally:
                self._storage = None

        return moving

    @contextmanager
    def child(self, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run `command` while the context lasts; it is killed if it still runs at the end or at a cancel.

        `options` go to `subprocess.Popen`. Raises the reason if the job was cancelled.
        """
        process = self.start(command, **options)
        try:
            yield process
        finally:
            self.end(process)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a child that a cancel ends. Its own process group keeps a terminal's Ctrl+C from it."""
        with self._lock:
            self.check()
            process = start_child((*self._prefix, *command), **options)
            self._children.add(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a child that still runs, and reap it."""
        kill(process)
        process.wait()
        with self._lock:
            self._children.discard(process)


def enlarge(pipe: IO[bytes] | None) -> None:
    """Give a child's pipe room for PIPE_BYTES. It keeps its size where the user's pipes have used up their limit."""
    if pipe is not None:
        with suppress(OSError):  # fs.pipe-user-pages-soft: slower, not wrong
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


@contextmanager
def enough_threads() -> Iterator[None]:
    """Raise CannotRun when no thread can be started in the context."""
    try:
        yield
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise CannotRun(f"no thread can be started: {error}; too many run on this machine, or for this user") from error


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a child's process group: processes that the child has started would keep its pipes open."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def start_child(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, which Ctrl+C at our terminal does not reach. Raises CannotRun."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        raise CannotRun(
            f"cannot run '{command[0]}': SIGCHLD is ignored, so its exit status would be lost; set SIGCHLD to SIG_DFL"
        )
    # Until the group is made, Ctrl+C would reach the child. So SIGINT is blocked; the child inherits that.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        return subprocess.Popen(command, process_group=0, **options)
    except OSError as error:
        hint = remedy(error, "is it installed, and on the PATH?")
        raise CannotRun(f"cannot run '{command[0]}': {error.strerror or error}; {hint}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
