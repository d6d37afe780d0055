"""inotify through watchdog: watches that go two levels deep, on one descriptor with one reading thread.

The emitter knows directories, watches and one awaited file name. Its `Tree` knows what the file says, and which
directories to watch.
"""

from __future__ import annotations

import heapq
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Protocol

from watchdog.events import FileClosedEvent, FileSystemEvent
from watchdog.observers.api import EventEmitter, EventQueue, ObservedWatch
from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, InotifyFD, WatchDescriptor

from watcher.discovery.watches import ONLY_OF_RUNS, ONLY_OF_SEQUENCERS, ROOT_MASK, Root, Watches

_GONE = InotifyConstants.IN_DELETE_SELF | InotifyConstants.IN_MOVE_SELF | InotifyConstants.IN_UNMOUNT


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

    def lost(self, why: str, /) -> None:
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
        self.watches = Watches(lambda: _Reader(tree), lambda path: _Watched(self, path))
        self._root = Root(watch.path)
        self._open: dict[str, float] = {}  # sentinels that are being written, and when we stop to wait for the close
        self._ids = itertools.count()
        self._due: list[tuple[float, int, str, Callable[[], bool]]] = []
        self._changed = threading.Condition()

    # The settling thread

    def on_thread_start(self) -> None:
        """Begin to read, and watch the root."""
        self.watches.begin_reading()
        self._watch_root()

    def on_thread_stop(self) -> None:
        """End the reading thread."""
        with self._changed:
            self._changed.notify()
        self.watches.stop()

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
        return self.is_alive() and self.watches.is_read()

    def trouble_with_root(self) -> str | None:
        """Return None if the root is still the directory that is watched; else what has become of it."""
        return self._root.trouble()

    def is_run(self, path: str) -> bool:
        """Say whether a watched directory is a run, and neither the root nor a sequencer."""
        return path.count("/") == self._run_depth

    def is_open(self, run: str) -> bool:
        """Say whether the run's sentinel was seen being created and has not been closed yet."""
        return self._open.get(run, 0.0) > time.monotonic()

    def forget_open(self) -> None:
        """Stop waiting for sentinels to be closed: their events may be among those that were lost."""
        self._open.clear()

    def begin_sweep(self) -> None:
        """Watch the root, and count anew what cannot be watched."""
        self.watches.begin_sweep()
        self._watch_root()

    def unwatch(self, path: str) -> None:
        """End the watch on a directory and on those below it, if there are any."""
        if not self.watches.has(path):
            return  # most runs have no watch in a sweep; to see that takes no lock
        with self.watches.lock:
            gone = [path] if self.is_run(path) else [path, *self.watches.below(path)]
            for one in gone:
                self._open.pop(one, None)
            self.watches.remove(gone)

    def _watch_root(self) -> None:
        self._root.note()
        self.watches.add(self.root, ROOT_MASK)

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
        with self.watches.lock:
            if not self.watches.has(run):
                return lambda: True  # no event will come when it is closed
            self._open[run] = until
        return lambda: self._open.get(run) == until

    def gone(self, path: str, descriptor: WatchDescriptor) -> None:
        """Note that a watched directory went away, or that the kernel has ended its watch."""
        with self.watches.lock:
            if not self.watches.has_as(path, descriptor):
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
        elif event.mask & (ONLY_OF_SEQUENCERS if self._is_run else ONLY_OF_RUNS):
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
        elif event.is_attrib:  # for a mount point, or the target of a link, no watched parent reports this
            self._emitter.tree.opened(self._path)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Note that the kernel has ended this watch."""
        self._emitter.gone(self._path, wd)

    def on_queue_overflow(self) -> None:
        """Do nothing: `_Reader` tells it for all watches at once."""


def _is_being_made(path: str) -> bool:
    # A hard link is never closed: its file was there before.
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1
