"""Whether a run directory is ready. Here, and nowhere else, the content of a sentinel is judged."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from watcher.model import MAX_RUN_NAME_BYTES, Run

SENTINEL = ".metadata_rsync_exitcode"

SETTLE_SECONDS = 0.05
"""An empty sentinel must be this old: its writer may not have written the exit code yet."""

RACY_SECONDS = 2.0
"""What changed so shortly before a look may change again without a new time of change. So such a sentinel is read
again, and a directory that we may not enter yet is looked at again: a copy gets its mode at the end."""

SENTINEL_BYTES = 64
"""The most that a sentinel may hold. An exit code has at most three digits, so a longer sentinel is held."""

SHOWN_CHARACTERS = 40
"""So much of a held sentinel's content is shown."""

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""The errors of a path that leads nowhere."""


class Policy(StrEnum):
    """What makes a sentinel ready: an exit code of 0 (or an empty file), or its mere presence."""

    EXIT_CODE = "exit_code"
    PRESENCE = "presence"


class State(StrEnum):
    """What a run directory's sentinel says."""

    READY = "ready"
    ABSENT = "absent"
    HELD = "held"
    UNSETTLED = "unsettled"
    UNUSABLE = "unusable"


class Version(NamedTuple):
    """The version of a sentinel, and when its run's top directory last changed, in nanoseconds since the epoch."""

    sentinel: str
    top_ns: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A run directory and the state of its sentinel; `reason` says why a held or unusable one is so.

    `is_denied`: this user may not look; the run is unusable, or unsettled while it was changed just now.
    `version` is of a ready run: what tells it from the run that was archived.
    `is_whole`: the sentinel holds a whole line, so that its writer has no more to write.
    """

    run: Run
    state: State
    reason: str = ""
    is_denied: bool = False
    is_whole: bool = False
    version: Version | None = None


def inspect(path: Path, policy: Policy = Policy.EXIT_CODE, now: Callable[[], float] = time.time) -> Observation:
    """Return what the sentinel of the run directory `path` says; a run that is not there has none.

    `now` is in seconds since the epoch, like a file's times. Never follows a symbolic link: a linked
    sentinel is held, unless its presence is enough. Never waits for a pipe.
    """
    run = Run(path)
    if os.path.islink(path):  # noqa: PTH114  # Path's own raises where a directory above may not be searched
        if os.path.lexists(path / SENTINEL):
            return Observation(run, State.UNUSABLE, "the run is a symbolic link; only real directories are archived")
        return Observation(run, State.ABSENT)
    return inspect_directory(run, policy, now, set())


def inspect_directory(run: Run, policy: Policy, now: Callable[[], float], seen: set[int]) -> Observation:
    """Return what `inspect` does for a `run` that is known to be no link, and remember ready sentinels in `seen`.

    A sentinel that is in `seen`, unchanged since, is not read again.
    """
    sentinel = f"{run.path}/{SENTINEL}"
    try:
        status = os.lstat(sentinel)
        if stat.S_ISLNK(status.st_mode):
            return _linked(run, policy)
        if not stat.S_ISREG(status.st_mode):
            return Observation(run, State.UNUSABLE, "the sentinel is not a file")
        mark = hash((sentinel, status.st_ino, status.st_ctime_ns))
        moment, observation = now(), Observation(run, State.READY)
        if policy is Policy.EXIT_CODE and mark not in seen:
            observation = _by_content(run, sentinel, moment, now)
            if observation.state is State.READY and abs(moment - status.st_ctime) > RACY_SECONDS:
                seen.add(mark)
        return replace(observation, version=_version(run, status)) if observation.state is State.READY else observation
    except OSError as error:
        if error.errno in NOT_THERE:
            return Observation(run, State.ABSENT)
        return _unreadable(run, error, now())


def is_ready(run: Run, policy: Policy) -> bool:
    """Say whether the run's sentinel is ready now. A run that cannot be looked at is not."""
    try:
        return inspect(run.path, policy).state is State.READY
    except OSError:
        return False


def _version(run: Run, sentinel: os.stat_result) -> Version:
    return Version(_moments(sentinel), os.lstat(run.path).st_mtime_ns)


def _moments(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_ctime_ns}"


def _unreadable(run: Run, error: OSError, now: float) -> Observation:
    is_denied = error.errno == errno.EACCES
    if is_denied and _has_just_changed(run, now):
        return Observation(run, State.UNSETTLED, is_denied=True)
    reason = f"the sentinel cannot be read: {error.strerror}; let this user read it"
    return Observation(run, State.UNUSABLE, reason, is_denied)


def _has_just_changed(run: Run, now: float) -> bool:
    try:
        return abs(now - os.lstat(run.path).st_ctime) <= RACY_SECONDS
    except OSError:
        return False


def _by_content(run: Run, sentinel: str, before: float, now: Callable[[], float]) -> Observation:
    # Opened even if its size is 0: only then NFS asks the server whether that is still so.
    descriptor = os.open(sentinel, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = os.read(descriptor, SENTINEL_BYTES + 1)
        changed = 0.0 if content else os.fstat(descriptor).st_ctime
    finally:
        os.close(descriptor)
    # Two moments, before and after the read: this process may have been held up between them for any time.
    if not content and before - SETTLE_SECONDS < changed < now() + SETTLE_SECONDS:
        return Observation(run, State.UNSETTLED)
    is_all, is_whole = len(content) <= SENTINEL_BYTES, content.endswith(b"\n")
    if not content or (is_all and content.strip() == b"0"):
        return Observation(run, State.READY, is_whole=is_whole)
    return Observation(run, State.HELD, _why_held(content[:SENTINEL_BYTES], is_all), is_whole=is_whole)


def _why_held(content: bytes, is_all: bool) -> str:
    code = content.strip()
    if is_all and code.isdigit() and int(code) != 0:
        return f"the sentinel holds exit code {int(code)}: the transfer failed"
    escaped = repr(content)[2:-1]
    more = "" if is_all and len(escaped) <= SHOWN_CHARACTERS else "..."
    shown = f"'{escaped[:SHOWN_CHARACTERS]}{more}'"
    return f"the sentinel holds {shown}, which is no exit code; write 0 into it when the transfer is complete"


def _linked(run: Run, policy: Policy) -> Observation:
    if policy is Policy.PRESENCE:
        return Observation(run, State.READY)
    return Observation(run, State.HELD, "the sentinel is a symbolic link, which is not read; put a file there")


def version(path: Path) -> str | None:
    """Return what tells the sentinel of the run directory `path` from any before and after it; None if the run is gone.

    Empty if there is none. The same on all hosts that see it, unlike an inode's number.
    """
    try:
        status = os.lstat(f"{path}/{SENTINEL}")
    except OSError:
        return "" if os.path.isdir(path) else None  # noqa: PTH112  # as in `inspect`
    return _moments(status)


def unusable_name(name: str) -> str | None:
    """Say why a run of this name cannot be archived; None if it can."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    if name.startswith("_"):
        return "its name starts with '_', which CouchDB keeps for itself; rename it"
    if len(encoded) > MAX_RUN_NAME_BYTES:
        return f"its name has {len(encoded)} bytes and may have {MAX_RUN_NAME_BYTES}; rename it"
    return None
