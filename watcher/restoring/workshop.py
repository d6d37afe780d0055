"""The directory in which a run is extracted before it has its name: made, emptied, and moved from.

Nothing here follows a link. All is done through descriptors, since the directory around may be another user's.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from watcher.errors import RestoreFailed


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """Hold a directory open; give its descriptor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def workshop(place: int, to: Path, warn: Callable[[str], object]) -> Iterator[int]:
    """Make a directory in `place` that only we can enter; remove it, with all that is in it, at the end."""
    name = f".restoring-{secrets.token_hex(8)}"
    os.mkdir(name, 0o700, dir_fd=place)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        work = os.open(name, flags, dir_fd=place)
        try:
            if os.fstat(work).st_uid != os.geteuid() or os.listdir(work):
                raise RestoreFailed(
                    f"'{to / name}' is not ours: another user has replaced it, or this file system gives our files "
                    "to another user; choose another directory"
                )
            os.fchmod(work, 0o700)
            try:
                yield work
            finally:
                _empty(work)
        finally:
            os.close(work)
    finally:
        try:
            os.rmdir(name, dir_fd=place)
        except OSError as error:
            warn(f"'{to / name}' cannot be removed: {error.strerror}; remove it")


def _empty(work: int) -> None:
    """Remove whatever is in a directory of ours, however deep it is and whatever modes it has."""
    while names := os.listdir(work):
        for name in names:
            _dissolve(name, work, work)


def _dissolve(name: str, place: int, work: int) -> None:
    """Remove an entry of `place`. A directory's entries move up to `work` first."""
    try:
        os.unlink(name, dir_fd=place)
        return
    except IsADirectoryError:
        pass
    with _held(name, place) as (path, _):
        path.chmod(0o700)
        with directory(path) as inner:
            for entry in os.listdir(inner):
                _lift(entry, inner, work)
    os.rmdir(name, dir_fd=place)


def _lift(name: str, place: int, work: int) -> None:
    try:
        os.unlink(name, dir_fd=place)
        return
    except IsADirectoryError:
        pass
    with _held(name, place) as (path, _):
        path.chmod(0o700)  # a read-only directory cannot move: its entry `..` would change
        os.rename(name, secrets.token_hex(8), src_dir_fd=place, dst_dir_fd=work)


def move(name: str, work: int, place: int) -> None:
    """Move the directory `name` from `work` to `place`, whatever its mode is. Raises RestoreFailed if it is none."""
    with _held(name, work) as (path, found):
        mode = stat.S_IMODE(found.st_mode)
        path.chmod(mode | stat.S_IWUSR)  # as in `_lift`
        os.rename(name, name, src_dir_fd=work, dst_dir_fd=place)
        path.chmod(mode)


@contextmanager
def _held(name: str, place: int) -> Iterator[tuple[Path, os.stat_result]]:
    """Hold a directory; give a path that leads to it whatever becomes of its name, and its status.

    Raises RestoreFailed for what is no directory.
    """
    # O_PATH: its mode may keep its owner from reading it.
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISDIR(found.st_mode):
            raise RestoreFailed(f"what was extracted as '{name}' is not a directory")
        yield by_descriptor(descriptor), found
    finally:
        os.close(descriptor)


def by_descriptor(descriptor: int) -> Path:
    """Return a path that leads to what the descriptor holds. It works in this process and what it starts."""
    return Path(f"/proc/self/fd/{descriptor}")
