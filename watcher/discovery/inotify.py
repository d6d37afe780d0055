"""inotify through watchdog: watches that go two levels deep, on one descriptor with one reading thread.

The emitter knows directories, watches and one awaited file name, and nothing of what the file says:
that, and where watches belong, its `Tree` knows.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from watchdog.events import FileClosedEvent, FileSystemEvent
from watchdog.observers.api import EventEmitter, EventQueue, ObservedWatch
from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

STOP_SECONDS = 1.0
"""How long a stop waits for the thread that reads; one that hangs in a dead file system is left behind."""

# IN_MASK_ADD: one directory may have two paths, as a run and, by a link, as a sequencer. Both paths share one kernel
# watch, and the mask of one path must not replace the mask of the other.
_ALL = (
    InotifyConstants.IN_CREATE | InotifyConstants.IN_MOVED_TO | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_UNMOUNT | InotifyConstants.IN_ONLYDIR | InotifyConstants.IN_MASK_ADD
)  # fmt: skip
_OF_SEQUENCERS = InotifyConstants.IN_MOVED_FROM | InotifyConstants.IN_ATTRIB
# IN_MOVE_SELF for the root only. For other directories the parent's events tell of a move; the directory may be watched
# under its new name by then, and must not be taken for gone.
# IN_ATTRIB: a directory may get the mode that lets us read it only after it was made.
SEQUENCER_MASK = _ALL | _OF_SEQUENCERS
_ROOT_MASK = SEQUENCER_MASK | InotifyConstants.IN_MOVE_SELF
# No IN_MODIFY and no IN_ATTRIB for runs: transfers append to their logs all the time.
_OF_RUNS = InotifyConstants.IN_CLOSE_WRITE
RUN_MASK = _ALL | _OF_RUNS | InotifyConstants.IN_DONT_FOLLOW
_GONE = InotifyConstants.IN_DELETE_SELF | InotifyConstants.IN_MOVE_SELF | InotifyConstants.IN_UNMOUNT
_LIMITS = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

logger = logging.getLogger(__name__)


class Tree(Protocol):
    """Receives what an emitter has heard. The emitter's threads call these methods."""

    close_seconds: float
    settle_seconds: float

    def arrived(self, directory: str, name: str) -> None:
        """Learn that something has appeared in the root or in a sequencer."""

    def opened(self, path: str) -> None:
        """Learn that the mode or owner of a sequencer or run has changed."""

    def went_away(self, path: str) -> None:
        """Learn that a sequencer or run was removed or unmounted."""

    def lost(self, why: str) -> None:
        """Learn that events were lost."""

    def overflowed(self) -> None:
        """Learn that the kernel has dropped events."""


class Emitter(EventEmitter):
    """A watchdog emitter of bounded depth.

    Its own thread only waits for sentinels that have to settle; inotify is read by watchdog's InotifyFD.
    """

    def __init__(
        self,
        event_queue: EventQueue,
        watch: ObservedWatch,
        *,
        timeout: float = 1.0,
        event_filter: list[type[FileSystemEvent]] | None = None,
        tree: Tree,
        awaited: str,
    ) -> None:
        super().__init__(event_queue, watch, timeout=timeout, event_filter=event_filter)
        self.name = "settle"
        self.tree = tree
        self.awaited = awaited
        self.root = watch.path
        self._run_depth = watch.path.count("/") + 2
        self.refused = 0
        self._refusal: OSError | None = None
        self._told_refused = 0
        self._reader: _Reader | None = None
        self._lock = threading.RLock()
        self._ids = itertools.count()
        self._watches: dict[str, tuple[WatchDescriptor, CallbackId]] = {}
        self._root_identity: tuple[int, int] | None = None
        self._root_was_closed = False
        self._swept_from = 0
        self._open: dict[str, float] = {}
        self._due: list[tuple[float, int, str, Callable[[], bool]]] = []
        self._changed = threading.Condition()

    # The settling thread

    def on_thread_start(self) -> None:
        """Begin to read, and watch the root."""
        self._begin_reading()
        self._watch_root()

    def on_thread_stop(self) -> None:
        """End the reading thread."""
        with self._changed:
            self._changed.notify()
        if self._reader is not None:
            self._reader.stop()
            self._reader.join(STOP_SECONDS)

    def queue_events(self, timeout: float) -> None:
        """Report the sentinels whose time to settle is over; wait for the next."""
        with self._changed:
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, run, is_wanted = heapq.heappop(self._due)
                if is_wanted():
                    self.report(run)
            if self.should_keep_running():
                self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)

    def report(self, run: str) -> None:
        """Hand the run's awaited file to the handler."""
        self.queue_event(FileClosedEvent(f"{run}/{self.awaited}"))

    def report_later(self, run: str, seconds: float, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Hand the run's awaited file to the handler after `seconds`, if that `is_wanted` then."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._ids), run, is_wanted))
            self._changed.notify()

    # What the observer asks

    def has_its_threads(self) -> bool:
        """Say whether the settling thread is alive, and the reading thread too, if there is one."""
        return self.is_alive() and (self._reader is None or self._reader.is_alive())

    def trouble_with_root(self) -> str | None:
        """Return None if the root is still the directory that is watched; else what has become of it."""
        identity = _identity(self.root)
        if identity == self._root_identity:
            is_opened = self._root_was_closed and may_look_into(self.root)
            return f"'{self.root}' may be looked into now" if is_opened else None
        if identity is None:
            return f"'{self.root}' is gone"
        return f"'{self.root}' is another directory now" if self._root_identity else f"'{self.root}' is back"

    def count(self) -> int:
        """Return how many directories are watched."""
        return len(self._watches)

    def is_run(self, path: str) -> bool:
        """Say whether a watched directory is a run, and neither the root nor a sequencer."""
        return path.count("/") == self._run_depth

    def is_watched(self, path: str) -> bool:
        """Say whether there is a watch on this directory."""
        return path in self._watches

    def is_open(self, run: str) -> bool:
        """Say whether the run's sentinel was seen being created and has not been closed yet."""
        return self._open.get(run, 0.0) > time.monotonic()

    def forget_open(self) -> None:
        """Stop waiting for sentinels to be closed: their events may be among those that were lost."""
        self._open.clear()

    # Watches

    def begin_sweep(self) -> None:
        """Watch the root, and count anew what cannot be watched."""
        self._swept_from = next(self._ids)
        self.refused = 0
        self._begin_reading()
        self._watch_root()

    def end_sweep(self) -> None:
        """Drop the watches on directories that are gone; log a watch limit that was reached."""
        with self._lock:
            left = [path for path, (_, added) in self._watches.items() if added < self._swept_from]
        for path in left:
            if not os.path.lexists(path):
                self.unwatch(path)
        if self.refused > self._told_refused and self._refusal:
            logger.warning("%s", _advice(self._refusal, self.count(), self.refused))
        self._told_refused = self.refused

    def add(self, path: str, mask: int) -> bool:
        """Watch the directory that has this path now; say whether it was not watched before.

        The kernel knows: it gives a directory that is watched already the same descriptor once more.
        A limit that is met is counted in `refused`.
        """
        with self._lock:
            former = self._watches.pop(path, None)
            watch = self._add(path, mask)
            if watch is not None:
                self._watches[path] = watch
            if former is not None and self._reader is not None:
                self._reader.remove_callbacks([former])
            return watch is not None and (former is None or former[0] != watch[0])

    def _add(self, path: str, mask: int) -> tuple[WatchDescriptor, CallbackId] | None:
        if self._reader is None:
            self.refused += 1
            return None
        # One directory may have two paths: each has a callback of its own.
        watch_id = CallbackId(next(self._ids))
        try:
            descriptor = self._reader.add_callback(os.fsencode(path), Mask(mask), _Watched(self, path), watch_id)
        except OSError as error:
            # Any other error: it is gone, or no directory.
            if error.errno in _LIMITS:
                self.refused += 1
                self._refusal = error
            return None
        if descriptor < 0:  # watchdog keeps quiet about a directory that may not be read
            self._reader.remove_callbacks([(descriptor, watch_id)])
            return None
        return descriptor, watch_id

    def unwatch(self, path: str) -> None:
        """End the watch on a directory and on those below it, if there are any."""
        if path not in self._watches:
            return  # true of most runs in every sweep: the lock is not needed
        with self._lock:
            gone = [path] if path in self._watches else []
            if not self.is_run(path):
                gone += [watched for watched in self._watches if watched.startswith(f"{path}/")]
            held = [self._watches.pop(one) for one in gone]
            for one in gone:
                self._open.pop(one, None)
            if self._reader is not None and held:
                self._reader.remove_callbacks(held)

    def _watch_root(self) -> None:
        self._root_identity = _identity(self.root)
        self._root_was_closed = self._root_identity is not None and not may_look_into(self.root)
        self.add(self.root, _ROOT_MASK)

    def _begin_reading(self) -> None:
        if self._reader is not None:
            return
        try:
            self._reader = _Reader(self.tree)
        except OSError as error:
            self._refusal = error
        else:
            self._reader.start()

    # What inotify tells

    def sentinel_touched(self, run: str, is_new: bool) -> None:
        """Handle an event of the run's sentinel. A new file has its content when it is closed, not before."""
        if is_new and _is_being_made(f"{run}/{self.awaited}"):
            is_open = self._await_close(run)
            self.report_later(run, self.tree.settle_seconds, is_open)
            self.report_later(run, self.tree.close_seconds, is_open)
        else:
            self._open.pop(run, None)
            self.report(run)

    def _await_close(self, run: str) -> Callable[[], bool]:
        """Note that the run's file is open; return what says whether it still is, within its time."""
        until = time.monotonic() + self.tree.close_seconds
        with self._lock:
            if run not in self._watches:
                return lambda: True  # nothing will tell of the close
            self._open[run] = until
        return lambda: self._open.get(run) == until

    def gone(self, path: str, descriptor: WatchDescriptor) -> None:
        """Note that a watched directory went away, or that the kernel has ended its watch."""
        with self._lock:
            watch = self._watches.get(path)
            if watch is None or watch[0] != descriptor:
                return  # another directory of that name is watched by now, or none
            self.unwatch(path)
        if path == self.root and self.should_keep_running():
            self.tree.lost(f"'{path}' was unmounted, moved or removed")


class _Reader(InotifyFD):
    """watchdog's one thread that reads inotify."""

    def __init__(self, tree: Tree) -> None:
        try:
            super().__init__()
        except OSError:
            if "_inotify_fd" in vars(self):  # there was no descriptor for watchdog's pipe; it leaves this one open
                os.close(self._inotify_fd)
            raise
        self.name = "inotify"
        self._tree = tree

    def handle_event(self, event: InotifyEvent) -> None:
        """Hand an event to its watch. An overflow belongs to no watch, and is reported once."""
        if event.is_queue_overflow:
            self._tree.overflowed()
        else:
            super().handle_event(event)


class _Watched:
    """One watched directory: watchdog's WatchCallback."""

    __slots__ = ("_emitter", "_is_run", "_path")

    def __init__(self, emitter: Emitter, path: str) -> None:
        self._emitter = emitter
        self._path = path
        self._is_run = emitter.is_run(path)

    def on_event(self, event: InotifyEvent) -> None:
        """React to what happened to the directory or in it."""
        emitter, name = self._emitter, os.fsdecode(event.name)
        if not name:
            self._on_itself(event)
        elif event.mask & (_OF_SEQUENCERS if self._is_run else _OF_RUNS):
            return  # an event for this directory's other path
        elif self._is_run:
            if name == emitter.awaited:
                emitter.sentinel_touched(self._path, event.is_create)
        elif event.is_moved_from:
            emitter.unwatch(f"{self._path}/{name}")
            # Two directories may have been exchanged, and the other one's arrival may have been read before.
            if os.path.lexists(f"{self._path}/{name}"):
                emitter.tree.arrived(self._path, name)
        elif event.is_attrib:
            emitter.tree.opened(f"{self._path}/{name}")
        else:
            # Links too: a link may lead to a sequencer, or must be reported as a run that is not archived.
            emitter.tree.arrived(self._path, name)

    def _on_itself(self, event: InotifyEvent) -> None:
        if event.mask & _GONE:
            self._emitter.gone(self._path, event.wd)
            if self._path != self._emitter.root:
                self._emitter.tree.went_away(self._path)
        elif event.is_attrib:  # a mount point, or the target of a link, has no watched parent that tells
            self._emitter.tree.opened(self._path)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Note that the kernel has ended this watch."""
        self._emitter.gone(self._path, wd)

    def on_queue_overflow(self) -> None:
        """Do nothing: `_Reader` tells it for all watches at once."""


def may_look_into(directory: str) -> bool:
    """Say whether this user may list a directory, and what is in it."""
    return os.access(directory, os.R_OK | os.X_OK, effective_ids=True)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_being_made(path: str) -> bool:
    # A hard link is never closed: its file was there before.
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _advice(error: OSError, held: int, refused: int) -> str:
    what = "instances" if error.errno in (errno.EMFILE, errno.ENFILE) else "watches"
    # The second limit is that of a user namespace, as in a container. Outside of one, both are the same.
    limit, key = min((_limit(key), key) for key in (f"fs.inotify.max_user_{what}", f"user.max_inotify_{what}"))
    wanted = max(2 * limit, 4 * (held + refused)) if what == "watches" else max(2 * limit, 128)
    return (
        f"{error.strerror}: {held + refused} watches are needed, {held} are held; rescans cover the rest. "
        f"{key} is {limit} for all processes of this user; raise it: sysctl -w {key}={wanted}"
    )


def _limit(key: str) -> int:
    try:
        return int(Path("/proc/sys", key.replace(".", "/")).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 2**31 - 1
