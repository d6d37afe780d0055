"""Restoring a run: unwrap the key, decrypt, compare with what was recorded, extract.

It does what the README's lines of shell do, with the digests of the run document compared on the way. It trusts
neither the document nor the archive: both may come from somebody with fewer rights than the one who restores.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, NamedTuple

from watcher import openpgp
from watcher.errors import RestoreFailed, ValidateFailed, WatcherError
from watcher.job import Job, enlarge
from watcher.model import Digest, Phase, Run
from watcher.process import tar_environment
from watcher.restoring.choice import Choice, Enough, Everything, Wanted
from watcher.restoring.guard import Guard
from watcher.restoring.workshop import by_descriptor, directory, move, workshop
from watcher.stored import StoredRun
from watcher.tar import MalformedArchive, MemberWalk
from watcher.text import printable

END_OF_ARCHIVE = bytes(1024)
"""Two blocks of zeros, by which tar knows that no member follows."""

WORDS_BYTES = 500
"""So much of tar's last message is quoted in an error."""

logger = logging.getLogger(__name__)


class Manner(NamedTuple):
    """How a run is restored: with the archived owners, with devices and set-uid and set-gid files.

    `only` are patterns for the members that are wanted; without one, all are.
    """

    same_owner: bool = False
    special: bool = False
    only: tuple[str, ...] = ()


AS_USUAL = Manner()


def restore(
    stored: StoredRun,
    to: Path,
    home: Path | None = None,
    manner: Manner = AS_USUAL,
    warn: Callable[[str], object] = logger.warning,
    job: Job | None = None,
) -> Path:
    """Extract the run into the directory `to`; return the restored run directory. `job` tells how far it is.

    Nothing has the run's name in `to` before all was compared. `warn` is given a sentence for each member that is
    not restored as it was archived. Raises RestoreFailed when something stands there already, a file is missing, the
    archive is not the recorded one or is not safe to extract; what `Choice` raises for the patterns in `manner`.
    """
    target = to / stored.name
    if not to.is_dir():
        raise RestoreFailed(f"'{to}' is not a directory; create it")
    if os.path.lexists(target):
        raise RestoreFailed(f"'{target}' exists and is not overwritten; choose another directory")
    wanted = Choice(stored, manner.only, home) if manner.only else Everything(stored)
    guard = Guard(stored.name, manner.special, wanted.wants)
    try:
        with directory(to) as place, workshop(place, to, warn) as work:
            _extract(stored, guard, wanted, work, home, manner, job or Job(Run(Path(stored.name))))
            move(stored.name, work, place)
    except (OSError, WatcherError) as error:
        raise RestoreFailed(printable(f"run '{stored.name}' is not restored: {error}")) from error
    for warning in guard.warnings:
        warn(warning)
    return target


def _extract(
    stored: StoredRun, guard: Guard, wanted: Wanted, work: int, home: Path | None, manner: Manner, job: Job
) -> None:
    key = stored.file_key(home)
    job.enter(Phase.VALIDATING, stored.archive.size)
    with (
        stored.open_archive() as file,
        tempfile.TemporaryFile() as words,
        job.child(
            _tar_command(manner), stdin=subprocess.PIPE, stderr=words, env=tar_environment(), cwd=by_descriptor(work)
        ) as tar,
    ):
        enlarge(tar.stdin)
        file_digest = _feed(tar, guard, wanted, file, key, job, home)
        if _exit_status(tar) != 0:
            words.seek(0)
            lines = os.fsdecode(words.read()[-WORDS_BYTES:]).splitlines()
            raise RestoreFailed(f"tar could not extract: {'; '.join(line.removeprefix('tar: ') for line in lines)}")
    wanted.check(file_digest)


def _tar_command(manner: Manner) -> Sequence[str]:
    # tar's own default depends on who calls it: root gives files away.
    owner = "--same-owner" if manner.same_owner else "--no-same-owner"
    return ["tar", "--extract", "--preserve-permissions", owner, "--file=-"]


def _feed(
    tar: subprocess.Popen[bytes],
    guard: Guard,
    wanted: Wanted,
    file: IO[bytes],
    key: openpgp.FileKey,
    job: Job,
    home: Path | None,
) -> Digest | None:
    """Decrypt `file` into tar, member by member, until all that is wanted has passed.

    Return the file's digest; None if that is not known, because the rest was not wanted. Raises RestoreFailed at the
    first member that tar must not see, and what `openpgp.decrypt` and `wanted` raise.
    """
    pipe = _Pipe(tar)
    walk = MemberWalk(guard.judge, pipe.write, wanted.content)

    def write(chunk: bytes) -> None:
        wanted.saw(chunk)
        try:
            walk.feed(chunk)
        except MalformedArchive as error:
            raise RestoreFailed(f"what the archive holds is not what tar writes: {error}") from error

    with closing(pipe):
        try:
            file_digest = openpgp.decrypt(file.read, key, write, job, home)
        except (Enough, ValidateFailed):
            if not wanted.has_all():
                raise
            pipe.write(END_OF_ARCHIVE)
            return None
    if not pipe.is_broken:
        walk.finish()
    return file_digest


class _Pipe:
    """tar's standard input. Once tar has ended nothing is written: its exit status and words say more."""

    def __init__(self, tar: subprocess.Popen[bytes]) -> None:
        assert tar.stdin is not None
        self._pipe = tar.stdin
        self.is_broken = False

    def write(self, data: bytes | memoryview) -> None:
        """Hand data to tar."""
        try:
            if not self.is_broken:
                self._pipe.write(data)
        except BrokenPipeError:
            self.is_broken = True

    def close(self) -> None:
        """Tell tar that nothing follows."""
        with suppress(BrokenPipeError):
            self._pipe.close()


def _exit_status(child: subprocess.Popen[bytes]) -> int:
    """Wait for a child's end; return its exit status. Raises RestoreFailed when the system does not give it."""
    try:
        # If the system does not give the status, `Popen` reports success.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        raise RestoreFailed("tar's exit status is not to be had: is SIGCHLD ignored?") from None
    return child.wait()
