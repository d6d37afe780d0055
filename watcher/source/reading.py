"""What an OSError while a run is read leads to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from watcher.errors import RunNotSettled, TarFailed, remedy

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""The errors of an entry that was removed, or replaced by another kind of entry."""


def named(error: OSError, path: bytes) -> OSError:
    """Return the error with the entry's path `./...`: one from a descriptor has none."""
    error.filename = path
    return error


@contextmanager
def reading() -> Iterator[None]:
    """Raise RunNotSettled for what has just gone, TarFailed for what cannot be read."""
    try:
        yield
    except OSError as error:
        if error.errno in GONE:
            raise RunNotSettled(f"'{_shown(error)}' was removed or replaced while it was read") from error
        raise unreadable(error) from error


def unreadable(error: OSError) -> TarFailed:
    """Return the failure that says which entry cannot be read, and what to do."""
    return TarFailed(f"cannot read '{_shown(error)}': {error.strerror}; {remedy(error, 'let this user read it')}")


def _shown(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "the run"
