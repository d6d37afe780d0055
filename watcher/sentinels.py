"""Which run directories are ready: one predicate, and a watchdog observer that sees them become so.

The observer holds one inotify descriptor with one reading thread, and a watch on the sequencing
path, on each sequencer, and on each run that has no ready sentinel: none below, none on a run that
is done with. `Observer.sweep` is the rescan: the same walk that sets the watches tells what is ready,
so that nothing falls between the two, and it works as well where no watch can be had.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from watchdog.events import FileClosedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver, EventEmitter, EventQueue, ObservedWatch
from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

from watcher.model import Run

SENTINEL = ".metadata_rsync_exitcode"

SETTLE_SECONDS = 0.05
"""How old an empty sentinel must be: its writer may not have come to the exit code yet."""

SENTINEL_BYTES = 64
"""Of a sentinel so much is read; an exit code has at most three digits."""

NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph glusterfs fuse.glusterfs fuse.sshfs fuse.ceph 9p afs ocfs2 gfs2"
    .split()
)  # fmt: skip
"""Types in /proc/self/mountinfo on which another host's changes cause no events here."""

_GONE = InotifyConstants.IN_DELETE_SELF | InotifyConstants.IN_MOVE_SELF | InotifyConstants.IN_UNMOUNT
_ARRIVED = InotifyConstants.IN_CREATE | InotifyConstants.IN_MOVED_TO
_DIRECTORY_MASK = _ARRIVED | InotifyConstants.IN_MOVED_FROM | _GONE | InotifyConstants.IN_ONLYDIR
# No IN_MODIFY and no IN_ATTRIB: transfer logs in a run are appended to all the time.
_RUN_MASK = (
    _ARRIVED | InotifyConstants.IN_CLOSE_WRITE | _GONE
    | InotifyConstants.IN_ONLYDIR | InotifyConstants.IN_DONT_FOLLOW
)  # fmt: skip
_CALLBACK = CallbackId(0)

logger = logging.getLogger(__name__)


class Policy(StrEnum):
    """What makes a sentinel ready: an exit code of 0 (or none at all in it), or its mere presence."""

    EXIT_CODE = "exit_code"
    PRESENCE = "presence"


class State(StrEnum):
    """What a run directory's sentinel says."""

    READY = "ready"
    ABSENT = "absent"
    HELD = "held"
    UNSETTLED = "unsettled"
    UNUSABLE = "unusable"


@dataclass(frozen=True)
class Sighting:
    """A run directory and the state of its sentinel; `reason` says why a held or unusable one is so."""

    run: Run
    state: State
    reason: str = ""


def inspect(path: Path, policy: Policy = Policy.EXIT_CODE, now: Callable[[], float] = time.time) -> Sighting:
    """Return what the sentinel of the run directory `path` says.

    `now` is in seconds since the epoch, like a file's times. Never follows a symbolic link: a linked
    sentinel counts by its presence.
    """
    run = Run(path)
    try:
        status = os.lstat(path / SENTINEL)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return Sighting(run, State.ABSENT)
        return Sighting(run, State.UNUSABLE, f"the sentinel cannot be read: {error.strerror}")
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return Sighting(run, State.UNUSABLE, "the run is a symbolic link; only real directories are archived")
    if stat.S_ISLNK(status.st_mode):
        return Sighting(run, State.READY)
    if not stat.S_ISREG(status.st_mode):
        return Sighting(run, State.UNUSABLE, "the sentinel is not a file")
    return Sighting(run, State.READY) if policy is Policy.PRESENCE else _by_content(run, status, now())


def _by_content(run: Run, status: os.stat_result, now: float) -> Sighting:
    if status.st_size == 0:
        young = abs(now - status.st_ctime) < SETTLE_SECONDS
        return Sighting(run, State.UNSETTLED if young else State.READY)
    try:
        descriptor = os.open(run.path / SENTINEL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            content = file.read(SENTINEL_BYTES)
    except FileNotFoundError:
        return Sighting(run, State.ABSENT)
    except OSError as error:
        return Sighting(run, State.UNUSABLE, f"the sentinel cannot be read: {error.strerror}")
    try:
        code = int(content)
    except ValueError:
        code = 0
    if code != 0:
        return Sighting(run, State.HELD, f"the sentinel holds exit code {code}: the transfer failed")
    return Sighting(run, State.READY)


def unusable_name(name: str, max_bytes: int) -> str | None:
    """Say why a run of this name cannot be archived; None if it can. `max_bytes` is what a file name leaves it."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    if name.startswith("_"):
        return "its name starts with '_', which CouchDB keeps for itself; rename it"
    if len(encoded) > max_bytes:
        return f"its name has {len(encoded)} bytes and may have {max_bytes}; rename it"
    return None


def file_system_type(path: Path) -> str:
    """Return the type of the file system that holds `path`, as the kernel's mount table has it."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0]
    return "unknown"


def scan_directories(path: Path, ignore: Collection[str]) -> Iterator[Path]:
    """Yield the directories (or links) in `path` that are not ignored; none if it cannot be listed."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
    except OSError:
        return
    for name in names:
        if name not in ignore:
            yield path / name


class Observer:
    """Watches `root/<sequencer>/<run>` and calls `on_sighting` with each run whose sentinel was touched.

    `on_sighting` runs in one thread, in order. `on_lost` is called when events were lost and a sweep
    has to find what they would have told. Names in `ignore` are skipped on both levels.
    """

    def __init__(
        self,
        root: Path,
        on_sighting: Callable[[Sighting], None],
        on_lost: Callable[[str], None],
        ignore: Collection[str] = (),
        policy: Policy = Policy.EXIT_CODE,
    ) -> None:
        self._root = root
        self._ignore = frozenset(ignore)
        self._policy = policy
        self._on_lost = on_lost
        self._handler = _Handler(policy, on_sighting, self._settle_later)
        self._observer: BaseObserver | None = None
        self.overflows = 0

    def start(self) -> None:
        """Begin to watch. A root that is away, or a watch limit, is logged; `sweep` works all the same."""
        observer = BaseObserver(_Emitter, tree=self)
        observer.schedule(self._handler, str(self._root))
        observer.start()
        self._observer = observer

    def stop(self) -> None:
        """End all watches and threads."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def is_alive(self) -> bool:
        """Say whether all of the observer's threads run and its root is the directory that is there now."""
        emitter = self._emitter()
        return emitter is not None and self._observer is not None and self._observer.is_alive() and emitter.is_whole()

    def restart(self) -> None:
        """Begin anew with what is there now."""
        self.stop()
        self.start()

    @property
    def watches(self) -> int:
        """How many directories are watched."""
        emitter = self._emitter()
        return emitter.count() if emitter else 0

    @property
    def unwatched(self) -> int:
        """How many directories could not be watched since the last sweep began."""
        emitter = self._emitter()
        return emitter.refused if emitter else 0

    def sweep(self) -> Iterator[Sighting]:
        """Walk all sequencers, set the watches that are missing, and yield each run's state."""
        emitter = self._emitter()
        if emitter:
            emitter.begin_sweep(self._root)
        for sequencer in scan_directories(self._root, self._ignore):
            yield from self.sweep_sequencer(sequencer)

    def sweep_sequencer(self, sequencer: Path) -> Iterator[Sighting]:
        """Walk one sequencer's runs; each is watched first and then looked at, so that there is no gap."""
        emitter = self._emitter()
        if not sequencer.is_dir():
            return
        if emitter:
            emitter.add(sequencer, _DIRECTORY_MASK)
        for path in scan_directories(sequencer, self._ignore):
            if (sighting := self.sweep_run(path)) is not None:
                yield sighting

    def sweep_run(self, path: Path) -> Sighting | None:
        """Return one run's state, with a watch on it unless it is ready; None if it is no directory (any more)."""
        emitter = self._emitter()
        try:
            sighting = inspect(path, self._policy)
            if sighting.state is State.ABSENT and not stat.S_ISDIR(os.lstat(path).st_mode):
                return None
            if emitter and sighting.state is State.READY:
                emitter.unwatch(path)
            elif emitter and emitter.add(path, _RUN_MASK):
                sighting = inspect(path, self._policy)
        except OSError:
            return None
        if sighting.state is State.UNSETTLED:
            self._settle_later(path)
        return sighting

    def arrived(self, path: Path) -> None:
        """Take in a directory that has just appeared on one of the two levels."""
        if path.name in self._ignore:
            return
        emitter = self._emitter()
        if emitter:
            emitter.unwatch(path)  # of a former directory of that name, whose end may not have been told yet
        is_run = path.parent != self._root
        sightings = (self.sweep_run(path),) if is_run else self.sweep_sequencer(path)
        for sighting in sightings:
            if emitter and sighting and sighting.state in (State.READY, State.HELD, State.UNUSABLE):
                emitter.report(sighting.run.path)

    def forget(self) -> None:
        """Drop all watches, after events were lost; the next sweep sets them anew."""
        if emitter := self._emitter():
            emitter.unwatch(self._root)

    def lost(self, why: str) -> None:
        """Tell that events were lost."""
        self._on_lost(why)

    def handled(self, path: Path) -> None:
        """End the watch on a run whose sentinel has been dealt with."""
        if emitter := self._emitter():
            emitter.unwatch(path)

    def _settle_later(self, path: Path) -> None:
        if emitter := self._emitter():
            emitter.report_later(path, SETTLE_SECONDS)

    def _emitter(self) -> _Emitter | None:
        if self._observer is None:
            return None
        return next((emitter for emitter in self._observer.emitters if isinstance(emitter, _Emitter)), None)


class _Handler(FileSystemEventHandler):
    """watchdog's side of a sighting: looks at the run whose sentinel an event names."""

    def __init__(
        self, policy: Policy, on_sighting: Callable[[Sighting], None], settle_later: Callable[[Path], None]
    ) -> None:
        self._policy = policy
        self._on_sighting = on_sighting
        self._settle_later = settle_later

    def on_closed(self, event: FileSystemEvent) -> None:
        path = Path(os.fsdecode(event.src_path)).parent
        try:
            sighting = inspect(path, self._policy)
        except OSError:
            return  # gone again
        if sighting.state is State.UNSETTLED:
            self._settle_later(path)
        elif sighting.state is not State.ABSENT:
            self._on_sighting(sighting)


class _Emitter(EventEmitter):
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
        tree: Observer,
    ) -> None:
        super().__init__(event_queue, watch, timeout=timeout, event_filter=event_filter)
        self.tree = tree
        self.root = Path(watch.path)
        self.refused = 0
        self._inotify: InotifyFD | None = None
        self._lock = threading.RLock()
        self._watches: dict[Path, WatchDescriptor] = {}
        self._root_identity: tuple[int, int] | None = None
        self._due: list[tuple[float, Path]] = []
        self._changed = threading.Condition()

    def on_thread_start(self) -> None:
        try:
            self._inotify = InotifyFD()
        except OSError as error:
            logger.warning("inotify is not to be had: %s; %s", error, _advice(error, 0))
            return
        self._inotify.start()
        self._watch_root()

    def on_thread_stop(self) -> None:
        with self._changed:
            self._changed.notify()
        if self._inotify is not None:
            self._inotify.stop()

    def queue_events(self, timeout: float) -> None:
        """Report the sentinels whose time to settle is over; wait for the next."""
        with self._changed:
            while self._due and self._due[0][0] <= time.monotonic():
                self.report(heapq.heappop(self._due)[1])
            if self.should_keep_running():
                self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)

    def report(self, run: Path) -> None:
        """Hand the run's sentinel to the handler."""
        self.queue_event(FileClosedEvent(str(run / SENTINEL)))

    def report_later(self, run: Path, seconds: float) -> None:
        """Hand the run's sentinel to the handler after `seconds`."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, run))
            self._changed.notify()

    def is_whole(self) -> bool:
        """Say whether both threads live and the root is still the directory that was watched."""
        reads = self._inotify is None or self._inotify.is_alive()
        return self.is_alive() and reads and self._root_identity == _identity(self.root)

    def count(self) -> int:
        """Return how many directories are watched."""
        return len(self._watches)

    def begin_sweep(self, root: Path) -> None:
        """Count refused watches anew, and forget those of directories that are gone."""
        self.refused = 0
        if root not in self._watches:
            self._watch_root()

    def _watch_root(self) -> None:
        self.add(self.root, _DIRECTORY_MASK)
        self._root_identity = _identity(self.root)

    def add(self, path: Path, mask: int) -> bool:
        """Watch a directory; say whether the watch is new. Limits are logged and counted in `refused`."""
        with self._lock:
            if path in self._watches or self._inotify is None:
                return False
            watched = _Watched(self, path)
            try:
                descriptor = self._inotify.add_callback(os.fsencode(path), Mask(mask), watched, _CALLBACK)
            except OSError as error:
                self._refuse(error)
                return False
            self._watches[path] = descriptor
            return True

    def _refuse(self, error: OSError) -> None:
        if error.errno not in (errno.ENOSPC, errno.EMFILE, errno.ENOMEM):
            return  # gone, or not to be listed: the sweep says so
        self.refused += 1
        if self.refused == 1:
            logger.warning(
                "%s; the rescan covers what is not watched; %s", error.strerror or error, _advice(error, self.count())
            )

    def unwatch(self, path: Path) -> None:
        """End the watch on a directory and on those below it, if there are any."""
        with self._lock:
            gone = [path]
            if path.parent == self.root or path == self.root:
                gone += [watched for watched in self._watches if path in watched.parents]
            held = [self._watches.pop(one) for one in gone if one in self._watches]
            if self._inotify is not None and held:
                self._inotify.remove_callbacks([(descriptor, _CALLBACK) for descriptor in held])

    def gone(self, path: Path, descriptor: WatchDescriptor) -> None:
        """Note that a watched directory went away, or that the kernel has ended its watch."""
        with self._lock:
            if self._watches.get(path) != descriptor:
                return  # another directory of that name is watched by now, or none
            self.unwatch(path)
        if path == self.root and self.should_keep_running():
            self.tree.lost(f"'{path}' was unmounted, moved or removed")


class _Watched:
    """One watched directory: watchdog's WatchCallback."""

    __slots__ = ("_emitter", "_path")

    def __init__(self, emitter: _Emitter, path: Path) -> None:
        self._emitter = emitter
        self._path = path

    def on_event(self, event: InotifyEvent) -> None:
        """React to what happened to the directory or in it."""
        emitter = self._emitter
        name = os.fsdecode(event.name)
        if event.mask & _GONE and not name:
            emitter.gone(self._path, event.wd)
        elif self._path != emitter.root and self._path.parent != emitter.root:
            if name == SENTINEL:
                emitter.report(self._path)
        elif event.is_moved_from:
            emitter.unwatch(self._path / name)
        else:
            # Links too: one may stand for a sequencer, or be reported as a run that cannot be taken.
            emitter.tree.arrived(self._path / name)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The kernel has ended this watch."""
        self._emitter.gone(self._path, wd)

    def on_queue_overflow(self) -> None:
        """Events were lost. watchdog tells every watch; the root's speaks for all."""
        if self._path == self._emitter.root:
            self._emitter.tree.overflows += 1
            self._emitter.tree.lost("the kernel's event queue overflowed")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _advice(error: OSError, held: int) -> str:
    key = "max_user_instances" if error.errno == errno.EMFILE else "max_user_watches"
    limit = _limit(key)
    return (
        f"fs.inotify.{key} is {limit}, {held} watches are held here; raise it: sysctl -w fs.inotify.{key}={limit * 4}"
    )


def _limit(key: str) -> int:
    try:
        return int(Path("/proc/sys/fs/inotify", key).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 8192
