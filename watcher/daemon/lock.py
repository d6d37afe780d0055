"""The lock that makes a worker id one process's own."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watcher.errors import ConfigError, remedy
from watcher.model import lock_name


def lock_file(destination: Path, worker_id: str) -> Path:
    """Return the path of the file that `worker_lock` locks."""
    return destination / lock_name(worker_id)


@contextmanager
def worker_lock(destination: Path, worker_id: str) -> Iterator[None]:
    """Be the only process of this `worker_id` on this destination while the context lasts.

    The lock is what lets a restarted worker take its own claims back at once. Raises ConfigError when
    another process has it.
    """
    path = lock_file(destination, worker_id)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = remedy(error, "let this user make files there")
        raise ConfigError(f"destination_path: cannot make the lock file '{path}': {error.strerror}; {hint}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"worker_id: another process works as '{worker_id}' on '{destination}' ({error.strerror}: '{path}'); "
            "stop it, or give each its own worker_id"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def mark(place: Path, worker_id: str) -> Path:
    """Make sure that a directory has a file of ours, by which it is known again; return it. Raises ConfigError."""
    path = lock_file(place, worker_id)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        hint = remedy(error, "let this user make files there")
        raise ConfigError(f"run_keys_path: cannot make the file '{path}': {error.strerror}; {hint}") from error
    return path
