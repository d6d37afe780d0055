"""A watchdog observer that sees runs become ready, and the sweep that finds what no event told.

One inotify descriptor has one reading thread. A watch is on the sequencing path, on each sequencer, and on each run
that has no ready sentinel. Nothing below a run is watched, and no run that is done with.

`Observer.sweep` is the rescan. The walk that renews the watches also tells what is ready, so that no run can be missed
between the two. It works as well where no watch can be had.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver

from watcher.discovery.inotify import Emitter
from watcher.discovery.watches import RUN_MASK, SEQUENCER_MASK, may_look_into
from watcher.model import Run
from watcher.source import RACY_SECONDS, SENTINEL, SETTLE_SECONDS, Observation, State, Walk, is_directory, is_link

CLOSE_SECONDS = 10.0
"""After this time a new sentinel is read even if nobody has closed it. A file that was made by a link, and not by
opening it, is never closed. A sentinel that holds a whole line is read at once."""


class Observer:
    """Watches what `walk` finds, and calls `on_observation` with each run whose sentinel was touched.

    Sweeps and events share one class because they share one state: what is watched, what this user may not look into,
    and what is missing. Each must see what the other has just found.

    `on_observation` runs in one thread, in order. `on_lost` is called when events were lost and a sweep has to find
    what they would have told. A new sentinel that nobody closes is looked at after `close_seconds`.
    """

    def __init__(
        self,
        walk: Walk,
        on_observation: Callable[[Observation], None],
        on_lost: Callable[[str], None],
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._walk = walk
        self._on_observation = on_observation
        self.lost = on_lost
        self.close_seconds = close_seconds
        self.settle_seconds = SETTLE_SECONDS
        self._observer: BaseObserver | None = None
        self._emitter: Emitter | None = None
        self._inaccessible: set[str] = set()  # directories that this user could not read, or not watch
        self._missing = SimpleQueue[str]()  # paths that are gone, and whose return causes no event
        self.overflows = 0

    def start(self) -> None:
        """Begin to watch. If the root is missing, or a watch limit is reached, sweeps still work."""
        observer = BaseObserver(Emitter, tree=self, awaited=SENTINEL)
        observer.name = "observer"
        observer.schedule(_Handler(self), self._walk.root)
        self._observer = observer
        self._emitter = next(emitter for emitter in observer.emitters if isinstance(emitter, Emitter))
        observer.start()

    def stop(self) -> None:
        """End all watches and threads."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = self._emitter = None

    def restart(self) -> None:
        """Begin anew with what is there now."""
        self.stop()
        self.start()

    def is_alive(self) -> bool:
        """Say whether the observer works: see `trouble`."""
        return self.trouble() is None

    def trouble(self) -> str | None:
        """Return why the observer must be restarted: a thread has ended, or the root was replaced. Else None."""
        if self._observer is None or self._emitter is None:
            return "it was not started"
        if not self._observer.is_alive() or not self._emitter.has_its_threads():
            return "one of its threads has ended"
        return self._emitter.trouble_with_root()

    @property
    def watches(self) -> int:
        """How many directories are watched."""
        emitter = self._emitter
        return emitter.watches.count() if emitter else 0

    @property
    def unwatched(self) -> int:
        """How many directories could not be watched since the last sweep began."""
        emitter = self._emitter
        return emitter.watches.refused if emitter else 0

    def sweep(self) -> Iterator[Observation]:
        """Walk all sequencers, set the watches that are missing, and yield each run's state.

        It finds everything that was lost before it began. Events tell what comes later.
        """
        emitter = self._emitter
        self._inaccessible.clear()
        if emitter:
            emitter.begin_sweep()
        for sequencer in self._walk.sequencers():
            yield from self._sweep_sequencer(sequencer)
        if emitter:
            emitter.watches.end_sweep()

    def stop_watching(self, path: Path) -> None:
        """End the watch on a run whose sentinel has been dealt with."""
        if emitter := self._emitter:  # another thread may stop the observer meanwhile
            emitter.unwatch(str(path))

    def watch_again(self, run: Run) -> Observation:
        """Look at a run that was handed on and is not ready any more; watch it unless it is ready now."""
        return self._sweep_run(str(run.path), may_be_link=True)

    def take_missing(self) -> set[str]:
        """Return the paths whose return causes no event, and forget them. Give them to `look_again`."""
        missing = set()
        with suppress(Empty):
            while True:
                missing.add(self._missing.get_nowait())
        return missing

    def look_again(self, missing: set[str]) -> None:
        """Look whether something is at these paths now. A link that still leads nowhere stays missing."""
        for path in missing:
            if is_directory(path):
                self.arrived(*path.rsplit("/", 1))
            elif is_link(path):
                self._missing.put(path)

    # The emitter's threads call these.

    def arrived(self, directory: str, name: str) -> None:
        """Watch and look at what has just appeared in the root or in a sequencer."""
        emitter = self._emitter
        if self._walk.is_ignored(name) or emitter is None:
            return
        path = f"{directory}/{name}"
        if directory == emitter.root:
            observations = list(self._sweep_sequencer(path))
        else:
            observations = [self._sweep_run(path, may_be_link=True)]
        for observation in observations:
            if observation.state in (State.READY, State.HELD, State.UNUSABLE):
                emitter.report(str(observation.run.path))

    def opened(self, path: str) -> None:
        """Look again at a sequencer or run whose mode or owner has changed, if it was inaccessible until now."""
        if path in self._inaccessible:
            self.arrived(*path.rsplit("/", 1))

    def went_away(self, path: str) -> None:
        """Note that a path leads nowhere any more. A mount, or the target of a link, may come back without an event."""
        self._missing.put(path)

    def touched(self, path: str) -> None:
        """Look at a run whose sentinel has changed, or has had time to settle."""
        observation = self._look(path, may_be_link=True)
        if observation.state not in (State.ABSENT, State.UNSETTLED):
            self._on_observation(observation)

    def overflowed(self) -> None:
        """Count an overflow of the kernel's queue, and report that events were lost."""
        self.overflows += 1
        if emitter := self._emitter:
            emitter.forget_open()
        self.lost("the kernel's event queue overflowed")

    def _sweep_sequencer(self, sequencer: str) -> Iterator[Observation]:
        # Each directory is watched before it is read: what appears between the two causes an event.
        if not is_directory(sequencer):
            if is_link(sequencer):
                self._missing.put(sequencer)  # no event tells when its target appears
            return
        self._inaccessible.add(sequencer)  # until it is readable and watched: its mode may change in between
        if emitter := self._emitter:
            emitter.watches.add(sequencer, SEQUENCER_MASK)
        if may_look_into(sequencer) and (emitter is None or emitter.watches.has(sequencer)):
            self._inaccessible.discard(sequencer)
        yield from self._walk.runs(sequencer, self._sweep_run)

    def _sweep_run(self, path: str, may_be_link: bool) -> Observation:
        self._inaccessible.add(path)  # as a sequencer is
        emitter, observation = self._emitter, self._look(path, may_be_link)
        if emitter and observation.state is State.READY:
            emitter.unwatch(path)
        elif emitter and emitter.watches.add(path, RUN_MASK):
            observation = self._look(path, may_be_link)
        if observation.state is State.READY or (emitter and emitter.watches.has(path) and not observation.is_denied):
            self._inaccessible.discard(path)
        return observation

    def _look(self, path: str, may_be_link: bool) -> Observation:
        emitter, observation = self._emitter, self._walk.look(path, may_be_link)
        is_legible = observation.state in (State.READY, State.HELD)
        if emitter and is_legible and not observation.is_whole and emitter.is_open(path):
            return Observation(observation.run, State.UNSETTLED)
        if emitter and observation.state is State.UNSETTLED:
            if observation.is_denied:
                emitter.report_later(path, RACY_SECONDS, lambda: path in self._inaccessible)
            else:
                emitter.report_later(path, SETTLE_SECONDS)
        return observation


class _Handler(FileSystemEventHandler):
    """Receives watchdog's events. Each names a sentinel to look at."""

    def __init__(self, tree: Observer) -> None:
        self._tree = tree

    def on_closed(self, event: FileSystemEvent) -> None:
        self._tree.touched(os.path.dirname(os.fsdecode(event.src_path)))  # noqa: PTH120  # plain text, as above
