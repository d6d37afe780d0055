"""The inotify watches: which directories have one, and what is done where the kernel refuses one."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
)

STOP_SECONDS = 1.0
"""How long a stop waits for the thread that reads; one that hangs in a dead file system is left behind."""

# IN_MASK_ADD: one directory may have two paths, as a run and, by a link, as a sequencer. Both paths share one kernel
# watch, and the mask of one path must not replace the mask of the other.
_ALL = (
    InotifyConstants.IN_CREATE | InotifyConstants.IN_MOVED_TO | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_UNMOUNT | InotifyConstants.IN_ONLYDIR | InotifyConstants.IN_MASK_ADD
)  # fmt: skip
ONLY_OF_SEQUENCERS = InotifyConstants.IN_MOVED_FROM | InotifyConstants.IN_ATTRIB
# IN_MOVE_SELF for the root only. For other directories the parent's events tell of a move; the directory may be watched
# under its new name by then, and must not be taken for gone.
# IN_ATTRIB: a directory may get the mode that lets us read it only after it was made.
SEQUENCER_MASK = _ALL | ONLY_OF_SEQUENCERS
ROOT_MASK = SEQUENCER_MASK | InotifyConstants.IN_MOVE_SELF
# No IN_MODIFY and no IN_ATTRIB for runs: transfers append to their logs all the time.
ONLY_OF_RUNS = InotifyConstants.IN_CLOSE_WRITE
RUN_MASK = _ALL | ONLY_OF_RUNS | InotifyConstants.IN_DONT_FOLLOW
_LIMITS = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

logger = logging.getLogger(__name__)


class Watches:
    """The watched directories. `make_reader` makes watchdog's reading thread, `callback_of` the callback for a path.

    `lock` guards the table; whoever keeps something beside it about a watched directory uses the same lock.
    """

    def __init__(self, make_reader: Callable[[], InotifyFD], callback_of: Callable[[str], WatchCallback]) -> None:
        self.lock = threading.RLock()
        self.refused = 0
        self._refusal: OSError | None = None
        self._logged_refused = 0
        self._make_reader = make_reader
        self._callback_of = callback_of
        self._reader: InotifyFD | None = None
        self._watches: dict[str, tuple[WatchDescriptor, CallbackId]] = {}
        self._ids = itertools.count()
        self._swept_from = 0

    def begin_reading(self) -> None:
        """Start the reading thread, if there is none yet. If the kernel refuses it, the next sweep tries again."""
        if self._reader is not None:
            return
        try:
            self._reader = self._make_reader()
        except OSError as error:
            self._refusal = error
        else:
            self._reader.start()

    def stop(self) -> None:
        """End the reading thread."""
        if self._reader is not None:
            self._reader.stop()
            self._reader.join(STOP_SECONDS)

    def is_read(self) -> bool:
        """Say whether the reading thread is alive, or there is none."""
        return self._reader is None or self._reader.is_alive()

    def count(self) -> int:
        """Return how many directories are watched."""
        return len(self._watches)

    def has(self, path: str) -> bool:
        """Say whether there is a watch on this directory."""
        return path in self._watches

    def has_as(self, path: str, descriptor: WatchDescriptor) -> bool:
        """Say whether the watch on this directory is still this one."""
        watch = self._watches.get(path)
        return watch is not None and watch[0] == descriptor

    def begin_sweep(self) -> None:
        """Count anew what cannot be watched."""
        self._swept_from = next(self._ids)
        self.refused = 0
        self.begin_reading()

    def end_sweep(self) -> None:
        """Drop the watches on directories that are gone; log a watch limit that was reached."""
        with self.lock:
            left = [path for path, (_, added) in self._watches.items() if added < self._swept_from]
        for path in left:
            if not os.path.lexists(path):
                self.remove([path])
        if self.refused > self._logged_refused and self._refusal:
            logger.warning("%s", _advice(self._refusal, self.count(), self.refused))
        self._logged_refused = self.refused

    def add(self, path: str, mask: int) -> bool:
        """Watch the directory that has this path now; say whether it was not watched before.

        The kernel knows: it gives a directory that is watched already the same descriptor once more.
        A limit that is reached is counted in `refused`.
        """
        with self.lock:
            previous = self._watches.pop(path, None)
            watch = self._add(path, mask)
            if watch is not None:
                self._watches[path] = watch
            if previous is not None and self._reader is not None:
                self._reader.remove_callbacks([previous])
            return watch is not None and (previous is None or previous[0] != watch[0])

    def _add(self, path: str, mask: int) -> tuple[WatchDescriptor, CallbackId] | None:
        if self._reader is None:
            self.refused += 1
            return None
        # One directory may have two paths: each has a callback of its own.
        watch_id = CallbackId(next(self._ids))
        try:
            descriptor = self._reader.add_callback(os.fsencode(path), Mask(mask), self._callback_of(path), watch_id)
        except OSError as error:
            # Any other error: it is gone, or no directory.
            if error.errno in _LIMITS:
                self.refused += 1
                self._refusal = error
            return None
        if descriptor < 0:  # watchdog does not report a directory that may not be read.
            self._reader.remove_callbacks([(descriptor, watch_id)])
            return None
        return descriptor, watch_id

    def below(self, path: str) -> list[str]:
        """Return the watched directories below this one."""
        return [watched for watched in self._watches if watched.startswith(f"{path}/")]

    def remove(self, paths: list[str]) -> None:
        """End the watches on these directories; those that have none are left out."""
        with self.lock:
            held = [self._watches.pop(path) for path in paths if path in self._watches]
            if self._reader is not None and held:
                self._reader.remove_callbacks(held)


class Root:
    """The directory at the top, whose replacement no event below it tells."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._was_closed = False

    def note(self) -> None:
        """Remember which directory is there now, and whether this user may look into it."""
        self._identity = _identity(self._path)
        self._was_closed = self._identity is not None and not may_look_into(self._path)

    def trouble(self) -> str | None:
        """Return None if the root is still the directory that was noted; else what has become of it."""
        identity = _identity(self._path)
        if identity == self._identity:
            is_opened = self._was_closed and may_look_into(self._path)
            return f"'{self._path}' may be looked into now" if is_opened else None
        if identity is None:
            return f"'{self._path}' is gone"
        return f"'{self._path}' is another directory now" if self._identity else f"'{self._path}' is back"


def may_look_into(directory: str) -> bool:
    """Say whether this user may list a directory, and what is in it."""
    return os.access(directory, os.R_OK | os.X_OK, effective_ids=True)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
