"""What this process gets from its parent, and what its children get from it.

A shell, cron, a batch system or a container may start us with settings that change the result: an ignored
SIGCHLD makes tar's exit 2 a 0, `TAR_OPTIONS` leaves files out. `reset_inherited` makes them the same everywhere.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TextIO, cast

UMASK = 0o027
"""The group may read what we write, others may nothing. Wrapped keys are made with 0600 besides."""

WANTED_DESCRIPTORS = 1024
"""The soft limit of open files is raised to this, if the hard limit allows it: Linux's usual default."""

BASE_DESCRIPTORS = 32
"""What a watcher without a job has open, and room for a rescan and the log. 21 were measured."""

JOB_DESCRIPTORS = 18
"""A job's directory, its file twice, pipes of tar and of two gpg, files of SQLite, and room. 14 were measured: 127 with
8 jobs."""

_DECISIVE = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
"""SIGHUP is not here: who starts us with nohup(1) wants it ignored."""

_RAISED = ("FSIZE", "CPU", "AS", "DATA", "NPROC")
_FREED = ("FSIZE", "CPU")
"""Limits that root lifts altogether: at them the kernel ends an archive, or gpg, in the middle."""

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def reset_inherited() -> None:
    """Give this process the signals, standard streams, umask and limits that it has everywhere."""
    open_standard_streams()
    _reset_signals()
    os.umask(UMASK)
    _raise_limits()


def low_limits(jobs: int) -> Iterator[str]:
    """Yield a problem for each limit that is too low to archive with `jobs` jobs at once."""
    needed = BASE_DESCRIPTORS + JOB_DESCRIPTORS * jobs
    looks: tuple[tuple[str, str, str, Callable[[int], bool], str], ...] = (
        ("FSIZE", "file size", "-f", lambda _: True, "an archive may need more"),
        ("CPU", "CPU time", "-t", lambda _: True, "the kernel ends a process that has used it up"),
        ("NOFILE", "open files", "-n", lambda value: value < needed, f"{jobs} jobs at once need {needed}"),
    )
    for name, what, option, is_low, why in looks:
        value = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
        if value != resource.RLIM_INFINITY and is_low(value):
            enough = str(max(needed, WANTED_DESCRIPTORS)) if name == "NOFILE" else "unlimited"
            setting = "infinity" if enough == "unlimited" else enough
            yield (
                f"limit RLIMIT_{name} ({what}) is {value}, and {why}; "
                f"raise it: ulimit {option} {enough}, or Limit{name}={setting} in the unit"
            )


ProgramFile = tuple[str, int, int, int]


def program_file(name: str) -> ProgramFile | None:
    """Return what tells a program's file from any other, and from a later one; None if there is none on the PATH."""
    try:
        status = os.stat(path := shutil.which(name) or "")
    except OSError:
        return None
    return path, status.st_dev, status.st_ino, status.st_mtime_ns


def tar_environment() -> dict[str, str]:
    """Return our environment without what changes tar's work, in the locale in which its words are known."""
    return _environment("TAR_OPTIONS", "POSIXLY_CORRECT", "TAPE")


def gpg_environment() -> dict[str, str]:
    """Return our environment without what changes gpg's work, in the locale in which its words are known."""
    return _environment("GPG_AGENT_INFO", "ASSUAN_DEBUG")


def _environment(*without: str) -> dict[str, str]:
    dropped = (*without, "LANG", "LANGUAGE")
    kept = {
        name: value for name, value in os.environ.items() if name not in dropped and not name.startswith("LC_")
    }  # fmt: skip
    return {**kept, "LC_ALL": "C"}


def open_standard_streams() -> None:
    """Open on /dev/null each standard stream that the parent has closed.

    The first file that we open would get its number, and with it what is meant for the stream.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            _open_on_null(number)
        if getattr(sys, name) is None:
            setattr(sys, name, _text_stream(number, mode))


def _open_on_null(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)


def _text_stream(number: int, mode: str) -> TextIO:
    return cast("TextIO", open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def _reset_signals() -> None:
    for number in _DECISIVE:
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _raise_limits() -> None:
    for name in _RAISED:
        limit = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(limit)[1]
        highest = resource.RLIM_INFINITY if name in _FREED else hard
        for wanted in (highest, hard):
            with suppress(OSError, ValueError):  # not permitted: raise the soft limit up to the hard one
                resource.setrlimit(limit, (wanted, wanted))
                break
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
