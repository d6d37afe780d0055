"""Which run directories are ready: one predicate, and a watchdog observer that sees them become so.

The observer holds one inotify descriptor with one reading thread, and a watch on the sequencing
path, on each sequencer, and on each run that has no ready sentinel: none below, none on a run that
is done with. `Observer.sweep` is the rescan: the same walk that renews the watches tells what is
ready, so that nothing falls between the two, and it works as well where no watch can be had.
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

CLOSE_SECONDS = 10.0
"""How long a sentinel that was seen being created may stay open before it is read all the same: a file made
in another way than by opening it is never closed."""

STOP_SECONDS = 1.0
"""How long a stop waits for the thread that reads; one that hangs in a dead file system is left behind."""

RACY_SECONDS = 2.0
"""A sentinel that changed so shortly before it was read may change again without its time of change showing it."""

SENTINEL_BYTES = 64
"""Of a sentinel so much is read; an exit code has at most three digits."""

NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.glusterfs",
        "fuse.sshfs", "fuse.ceph", "fuse.beegfs", "9p", "afs", "ocfs2", "gfs2",
    }
)  # fmt: skip
"""Types in /proc/self/mountinfo on which another host's changes cause no events here."""

_ALL = (
    InotifyConstants.IN_CREATE | InotifyConstants.IN_MOVED_TO | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_UNMOUNT | InotifyConstants.IN_ONLYDIR
)  # fmt: skip
# IN_MOVE_SELF for the root only. Elsewhere the parent tells of a move, and an inode that is watched under its
# new name by then would be taken for gone.
_ROOT_MASK = _ALL | InotifyConstants.IN_MOVED_FROM | InotifyConstants.IN_MOVE_SELF
_SEQUENCER_MASK = _ALL | InotifyConstants.IN_MOVED_FROM
# No IN_MODIFY and no IN_ATTRIB: transfer logs in a run are appended to all the time.
_RUN_MASK = _ALL | InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_DONT_FOLLOW
_GONE = InotifyConstants.IN_DELETE_SELF | InotifyConstants.IN_MOVE_SELF | InotifyConstants.IN_UNMOUNT
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_LIMITS = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

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


@dataclass(frozen=True, slots=True)
class Sighting:
    """A run directory and the state of its sentinel; `reason` says why a held or unusable one is so."""

    run: Run
    state: State
    reason: str = ""


def inspect(path: Path, policy: Policy = Policy.EXIT_CODE, now: Callable[[], float] = time.time) -> Sighting:
    """Return what the sentinel of the run directory `path` says; a run that is not there has none.

    `now` is in seconds since the epoch, like a file's times. Never follows a symbolic link: a linked
    sentinel counts by its presence. Never waits for a pipe.
    """
    run = Run(path)
    if os.path.islink(path):  # noqa: PTH114  # Path's own raises where a directory above may not be searched
        if os.path.lexists(path / SENTINEL):
            return Sighting(run, State.UNUSABLE, "the run is a symbolic link; only real directories are archived")
        return Sighting(run, State.ABSENT)
    return _inspect_directory(run, policy, now, set())


def _inspect_directory(run: Run, policy: Policy, now: Callable[[], float], seen: set[int]) -> Sighting:
    sentinel = f"{run.path}/{SENTINEL}"
    try:
        status = os.lstat(sentinel)
        if stat.S_ISLNK(status.st_mode):
            return Sighting(run, State.READY)
        if not stat.S_ISREG(status.st_mode):
            return Sighting(run, State.UNUSABLE, "the sentinel is not a file")
        version = hash((sentinel, status.st_ino, status.st_ctime_ns))
        if policy is Policy.PRESENCE or version in seen:
            return Sighting(run, State.READY)
        moment = now()
        sighting = _by_content(run, sentinel, moment)
        if sighting.state is State.READY and abs(moment - status.st_ctime) > RACY_SECONDS:
            seen.add(version)
        return sighting
    except OSError as error:
        if error.errno in _NOT_THERE:
            return Sighting(run, State.ABSENT)
        return Sighting(run, State.UNUSABLE, f"the sentinel cannot be read: {error.strerror}; let this user read it")


def _by_content(run: Run, sentinel: str, now: float) -> Sighting:
    # Opened even if its size is 0: only that makes NFS ask the server whether this is still so.
    descriptor = os.open(sentinel, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = os.read(descriptor, SENTINEL_BYTES)
        changed = 0.0 if content else os.fstat(descriptor).st_ctime
    finally:
        os.close(descriptor)
    if not content and abs(now - changed) < SETTLE_SECONDS:
        return Sighting(run, State.UNSETTLED)
    if content.strip().isdigit() and int(content) != 0:
        return Sighting(run, State.HELD, f"the sentinel holds exit code {int(content)}: the transfer failed")
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


class Observer:
    """Watches `root/<sequencer>/<run>` and calls `on_sighting` with each run whose sentinel was touched.

    `on_sighting` runs in one thread, in order. `on_lost` is called when events were lost and a sweep
    has to find what they would have told. Names in `ignore` are skipped on both levels. A new sentinel
    that nobody closes is looked at after `close_seconds`.
    """

    def __init__(
        self,
        root: Path,
        on_sighting: Callable[[Sighting], None],
        on_lost: Callable[[str], None],
        ignore: Collection[str] = (),
        policy: Policy = Policy.EXIT_CODE,
        close_seconds: float = CLOSE_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._ignore = frozenset(ignore)
        self._policy = policy
        self._on_sighting = on_sighting
        self._on_lost = on_lost
        self.close_seconds = close_seconds
        self._now = now
        self._observer: BaseObserver | None = None
        self._emitter: _Emitter | None = None
        self._complaints: dict[str, str] = {}
        self._seen: set[int] = set()  # sentinels that were read and found ready, as they were then
        self.overflows = 0

    def start(self) -> None:
        """Begin to watch. A root that is away, or a watch limit, keeps no sweep from working."""
        observer = BaseObserver(_Emitter, tree=self)
        observer.name = "observer"
        observer.schedule(_Handler(self), str(self._root))
        self._observer = observer
        self._emitter = next(emitter for emitter in observer.emitters if isinstance(emitter, _Emitter))
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
        """Say whether all is well: see `trouble`."""
        return self.trouble() is None

    def trouble(self) -> str | None:
        """Return why the observer must be restarted: a thread has ended, the root is another directory. Else None."""
        if self._observer is None or self._emitter is None:
            return "it was not started"
        if not self._observer.is_alive() or not self._emitter.has_its_threads():
            return "one of its threads has ended"
        return self._emitter.trouble_with_root()

    @property
    def watches(self) -> int:
        """How many directories are watched."""
        emitter = self._emitter
        return emitter.count() if emitter else 0

    @property
    def unwatched(self) -> int:
        """How many directories could not be watched since the last sweep began."""
        emitter = self._emitter
        return emitter.refused if emitter else 0

    def sweep(self) -> Iterator[Sighting]:
        """Walk all sequencers, make sure that every watch is where it should be, and yield each run's state.

        What was lost before the sweep began is found by it; what comes later, by events.
        """
        emitter = self._emitter
        if emitter:
            emitter.begin_sweep()
        for entry in self._list(str(self._root)):
            yield from self._sweep_sequencer(entry.path)
        if emitter:
            emitter.end_sweep()

    def handled(self, path: Path) -> None:
        """End the watch on a run whose sentinel has been dealt with."""
        if emitter := self._emitter:  # another thread may stop the observer meanwhile
            emitter.unwatch(str(path))

    # What events lead to; called by the emitter's threads. Paths are plain text here: there are many.

    def arrived(self, directory: str, name: str) -> None:
        """Take in what has just appeared in the root or in a sequencer."""
        emitter = self._emitter
        if name in self._ignore or emitter is None:
            return
        path = f"{directory}/{name}"
        if directory == emitter.root:
            sightings = list(self._sweep_sequencer(path))
        else:
            sightings = [self._sweep_run(path, may_be_link=True)]
        for sighting in sightings:
            if sighting.state in (State.READY, State.HELD, State.UNUSABLE):
                emitter.report(str(sighting.run.path))

    def touched(self, path: str) -> None:
        """Look at a run whose sentinel has changed, or has had time to settle."""
        sighting = self._look(path, may_be_link=True)
        if sighting.state not in (State.ABSENT, State.UNSETTLED):
            self._on_sighting(sighting)

    def lost(self, why: str) -> None:
        """Tell that events were lost."""
        self._on_lost(why)

    def overflowed(self) -> None:
        """Count an overflow of the kernel's queue, and tell."""
        self.overflows += 1
        if emitter := self._emitter:
            emitter.forget_open()
        self._on_lost("the kernel's event queue overflowed")

    def _sweep_sequencer(self, sequencer: str) -> Iterator[Sighting]:
        # Each directory is watched first and then looked at, so that there is no gap.
        if not os.path.isdir(sequencer):  # noqa: PTH112  # as in `inspect`
            return
        if emitter := self._emitter:
            emitter.add(sequencer, _SEQUENCER_MASK)
        for entry in self._list(sequencer):
            sighting = self._sweep_run(entry.path, entry.is_symlink())
            if sighting.state is not State.ABSENT or not entry.is_symlink():
                yield sighting

    def _sweep_run(self, path: str, may_be_link: bool) -> Sighting:
        emitter, sighting = self._emitter, self._look(path, may_be_link)
        if emitter and sighting.state is State.READY:
            emitter.unwatch(path)
        elif emitter and emitter.add(path, _RUN_MASK):
            sighting = self._look(path, may_be_link)
        return sighting

    def _look(self, path: str, may_be_link: bool) -> Sighting:
        emitter, run = self._emitter, Run(Path(path))
        if may_be_link:
            sighting = inspect(run.path, self._policy, self._now)
        else:
            sighting = _inspect_directory(run, self._policy, self._now, self._seen)
        if emitter and sighting.state in (State.READY, State.HELD) and emitter.is_open(path):
            return Sighting(run, State.UNSETTLED)
        if emitter and sighting.state is State.UNSETTLED:
            emitter.report_later(path, SETTLE_SECONDS)
        return sighting

    def _list(self, path: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(path) as entries:
                found = [
                    entry
                    for entry in entries
                    if entry.name not in self._ignore and (entry.is_dir(follow_symlinks=False) or entry.is_symlink())
                ]
        except OSError as error:
            self._complain(path, error)
            return []
        self._complaints.pop(path, None)
        return found

    def _complain(self, path: str, error: OSError) -> None:
        vanished = error.errno in _NOT_THERE and path != str(self._root)
        reason = error.strerror or str(error)
        if not vanished and self._complaints.get(path) != reason:
            self._complaints[path] = reason
            logger.warning("no run in '%s' is seen: %s; mount it, let this user read it, or ignore it", path, reason)


class _Handler(FileSystemEventHandler):
    """watchdog's side of a sighting: an event names a sentinel to look at."""

    def __init__(self, tree: Observer) -> None:
        self._tree = tree

    def on_closed(self, event: FileSystemEvent) -> None:
        self._tree.touched(os.path.dirname(os.fsdecode(event.src_path)))  # noqa: PTH120  # plain text, as above


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
        self.name = "settle"
        self.tree = tree
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
        self._swept_from = 0
        self._open: dict[str, float] = {}
        self._due: list[tuple[float, str]] = []
        self._changed = threading.Condition()

    # The settling thread

    def on_thread_start(self) -> None:
        self._begin_reading()
        self._watch_root()

    def on_thread_stop(self) -> None:
        with self._changed:
            self._changed.notify()
        if self._reader is not None:
            self._reader.stop()
            self._reader.join(STOP_SECONDS)

    def queue_events(self, timeout: float) -> None:
        """Report the sentinels whose time to settle is over; wait for the next."""
        with self._changed:
            while self._due and self._due[0][0] <= time.monotonic():
                self.report(heapq.heappop(self._due)[1])
            if self.should_keep_running():
                self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)

    def report(self, run: str) -> None:
        """Hand the run's sentinel to the handler."""
        self.queue_event(FileClosedEvent(f"{run}/{SENTINEL}"))

    def report_later(self, run: str, seconds: float) -> None:
        """Hand the run's sentinel to the handler after `seconds`."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, run))
            self._changed.notify()

    # What the observer asks

    def has_its_threads(self) -> bool:
        """Say whether the thread that settles lives, and the one that reads if there is anything to read."""
        return self.is_alive() and (self._reader is None or self._reader.is_alive())

    def trouble_with_root(self) -> str | None:
        """Return None if the root is the directory that was there when it was last watched, else what it is now."""
        identity = _identity(self.root)
        if identity == self._root_identity:
            return None
        if identity is None:
            return f"'{self.root}' is gone"
        return f"'{self.root}' is another directory now" if self._root_identity else f"'{self.root}' is back"

    def count(self) -> int:
        """Return how many directories are watched."""
        return len(self._watches)

    def is_run(self, path: str) -> bool:
        """Say whether a watched directory is a run, and neither the root nor a sequencer."""
        return path.count("/") == self._run_depth

    def is_open(self, run: str) -> bool:
        """Say whether the run's sentinel was seen being created and has not been closed yet."""
        return self._open.get(run, 0.0) > time.monotonic()

    def forget_open(self) -> None:
        """Wait for no sentinel's close any more: events were lost, theirs may be among them."""
        self._open.clear()

    # Watches

    def begin_sweep(self) -> None:
        """Watch the root, and count anew what cannot be watched."""
        self._swept_from = next(self._ids)
        self.refused = 0
        self._begin_reading()
        self._watch_root()

    def end_sweep(self) -> None:
        """Drop the watches on directories that are not there any more; tell of a limit that was met."""
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
            return  # as most runs are, in every sweep: no need to wait for the lock
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
        """Take in an event of the run's sentinel. A new file's content is there when it is closed, not before."""
        if is_new and _is_being_made(f"{run}/{SENTINEL}"):
            with self._lock:
                if run in self._watches:  # else nothing will tell of the close
                    self._open[run] = time.monotonic() + self.tree.close_seconds
            self.report_later(run, self.tree.close_seconds)
        else:
            self._open.pop(run, None)
            self.report(run)

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

    def __init__(self, tree: Observer) -> None:
        super().__init__()
        self.name = "inotify"
        self._tree = tree

    def handle_event(self, event: InotifyEvent) -> None:
        """Hand an event to the watch that it belongs to. An overflow belongs to none, and is told once."""
        if event.is_queue_overflow:
            self._tree.overflowed()
        else:
            super().handle_event(event)


class _Watched:
    """One watched directory: watchdog's WatchCallback."""

    __slots__ = ("_emitter", "_is_run", "_path")

    def __init__(self, emitter: _Emitter, path: str) -> None:
        self._emitter = emitter
        self._path = path
        self._is_run = emitter.is_run(path)

    def on_event(self, event: InotifyEvent) -> None:
        """React to what happened to the directory or in it."""
        emitter, name = self._emitter, os.fsdecode(event.name)
        if not name:
            if event.mask & _GONE:
                emitter.gone(self._path, event.wd)
        elif self._is_run:
            if name == SENTINEL:
                emitter.sentinel_touched(self._path, event.is_create)
        elif event.is_moved_from:
            emitter.unwatch(f"{self._path}/{name}")
        else:
            # Links too: one may stand for a sequencer, or be reported as a run that cannot be taken.
            emitter.tree.arrived(self._path, name)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Note that the kernel has ended this watch."""
        self._emitter.gone(self._path, wd)

    def on_queue_overflow(self) -> None:
        """Do nothing: `_Reader` tells it for all watches at once."""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_being_made(path: str) -> bool:
    # A link has no close to wait for: what it names was there before.
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _advice(error: OSError, held: int, refused: int) -> str:
    what = "instances" if error.errno in (errno.EMFILE, errno.ENFILE) else "watches"
    # The second is a user namespace's own, as a container may have it; outside of any, both are one.
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
