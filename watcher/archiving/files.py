"""Files on the destination: written to the disk itself, named without overwriting, read back from the disk."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from watcher.archiving.names import STAGED
from watcher.archiving.pagecache import start_write_out
from watcher.errors import ClaimLost, NoSpace, remedy

logger = logging.getLogger(__name__)


READ_BYTES = 1 << 20
"""So many bytes of a stored file are read and hashed at once."""

WINDOW_BYTES = 16 << 20
"""A file that is written goes to the disk in windows of this size."""

_WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""The errors of a file system that has no hard links."""


@contextmanager
def writing(path: Path, mode: int = 0o640, window_bytes: int = WINDOW_BYTES) -> Iterator[StagedFile]:
    """Open a new file. When the context ends it is on the disk; if that fails, it is removed.

    `mode` is narrowed by the umask. Raises NoSpace when it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with disk_trouble("write", path):
        descriptor = os.open(path, flags, mode)
    file = StagedFile(path, descriptor, window_bytes)
    try:
        yield file
        file.sync()
    except BaseException:
        remove(path)
        raise
    finally:
        os.close(descriptor)


class StagedFile:
    """A file that is being written. Each window's way to the disk begins when the window is full."""

    def __init__(self, path: Path, descriptor: int, window_bytes: int) -> None:
        self.path = path
        self.window_bytes = window_bytes
        self._descriptor = descriptor
        self._is_synced = False
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append all of `data`. Raises NoSpace."""
        view, written_out = memoryview(data), self.size - self.size % self.window_bytes
        self._is_synced = False
        with disk_trouble("write", self.path):
            while view:
                view = view[os.write(self._descriptor, view) :]
            self.size += len(data)
            if (full := self.size - self.size % self.window_bytes) > written_out:
                start_write_out(self._descriptor, written_out, full - written_out)

    def finished(self) -> str:
        """Write the rest to the disk; return the version of the file, which changes when somebody else writes to it."""
        self.sync()
        return _version(os.fstat(self._descriptor))

    def sync(self) -> None:
        """Return when all that was written is on the disk. Raises NoSpace."""
        if not self._is_synced:
            with disk_trouble("write", self.path):
                os.fsync(self._descriptor)
            self._is_synced = True


def version_of(path: Path) -> str:
    """Return the version of a file as `StagedFile.finished` gives it, nothing if the file cannot be looked at."""
    try:
        return _version(os.lstat(path))
    except OSError:
        return ""


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a stored file, to be read from the disk itself: its pages are dropped from the page cache first.

    Raises NoSpace when the disk does not give it back.
    """
    with disk_trouble("read", path), open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file


@contextmanager
def disk_trouble(verb: str, path: Path) -> Iterator[None]:
    """Raise NoSpace for an OSError in the context; it says what could not be done to which path."""
    try:
        yield
    except OSError as error:
        what = f"cannot {verb} '{path}': {error.strerror or error}"
        raise NoSpace(f"{what}; {remedy(error, 'look at this disk')}") from error


def given_name(staged: Path, final: Path) -> bool:
    """Give a staged file its final name too; return False if a file, this or another, has it already."""
    try:
        _link(staged, final)
    except FileExistsError:
        return _are_one(staged, final)
    except FileNotFoundError:
        if os.path.lexists(final):
            return False
        raise ClaimLost(f"'{staged.name}' is gone: another worker has taken the run over") from None
    except OSError as error:
        raise NoSpace(f"cannot name '{final}': {error.strerror}") from error
    return True


def _link(staged: Path, final: Path) -> None:
    try:
        # Unlike a rename, a link never takes a name from another file.
        os.link(staged, final)
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS or os.path.lexists(final):
            raise
        os.rename(staged, final)


def content_of(path: Path) -> bytes:
    """Return what is in a file; nothing for one that is not there. Raises NoSpace."""
    with disk_trouble("read", path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""


def _are_one(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file of ours if it is there; log if it stays. The next claim of the run tries again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot remove '%s' now: %s", path, error.strerror)


def fsync_directory(directory: Path) -> None:
    """Write a directory's entries to the disk. Raises NoSpace when that fails."""
    with disk_trouble("write", directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path, moved: Callable[[int], object]) -> str | None:
    """Return a regular file's SHA-256 in hex, None if there is none. `moved` is told of bytes. Raises NoSpace."""
    try:
        with open(path, "rb", opener=_no_follow, buffering=0) as file:
            digest = hashlib.sha256()
            while data := file.read(READ_BYTES):
                digest.update(data)
                moved(len(data))
            return digest.hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise NoSpace(f"cannot read '{path}': {error.strerror}") from error


def _no_follow(path: str, flags: int) -> int:
    # O_NONBLOCK: a FIFO in the file's place must not make us wait for a writer.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def staged_files(directory: Path) -> list[tuple[str, str]]:
    """Return name and token of each staged file in a directory. Raises NoSpace when it cannot be read."""
    with disk_trouble("read", directory):
        names = os.listdir(directory)
    return [(name, match[1]) for name in names if (match := STAGED.match(name))]
