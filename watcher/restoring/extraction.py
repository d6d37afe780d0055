"""Restoring a run: unwrap the key, decrypt, compare with what was recorded, extract.

It does what the README's lines of shell do, with the digests of the run document compared on the way. It trusts
neither the document nor the archive: both may come from somebody with fewer rights than the one who restores.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from blake3 import blake3

from watcher import journal, openpgp
from watcher.archiving import ArchiveStore
from watcher.errors import RestoreFailed, UnknownRun, WatcherError
from watcher.job import Job, enlarge
from watcher.model import Archive, Digest, Document, Phase, Run, Status, status_of
from watcher.process import tar_environment
from watcher.restoring.guard import Guard
from watcher.restoring.workshop import by_descriptor, directory, move, workshop
from watcher.tar import MalformedArchive, MemberWalk

WORDS_BYTES = 500
"""So much of tar's last message is quoted in an error."""

MAX_KEY_BYTES = 1 << 20
"""At most so many bytes of a key file are read. A wrapped key has some hundred."""

logger = logging.getLogger(__name__)


class Manner(NamedTuple):
    """How a run is restored: with the archived owners, with devices and set-uid and set-gid files."""

    same_owner: bool = False
    special: bool = False


AS_USUAL = Manner()


def restore(
    document: Document,
    archive_store: ArchiveStore,
    to: Path,
    home: Path | None = None,
    manner: Manner = AS_USUAL,
    warn: Callable[[str], object] = logger.warning,
) -> Path:
    """Extract the run of `document` into the directory `to`; return the restored run directory.

    Nothing has the run's name in `to` before all was compared. `warn` is given a sentence for each member that is
    not restored as it was archived. Raises UnknownRun for a run that is not `encrypted`; RestoreFailed when
    something stands there already, a file is missing, the archive is not the recorded one or is not safe to extract.
    """
    name: str = document["_id"]
    archive = _recorded(document)
    target = to / name
    if not to.is_dir():
        raise RestoreFailed(f"'{to}' is not a directory; create it")
    if os.path.lexists(target):
        raise RestoreFailed(f"'{target}' exists and is not overwritten; choose another directory")
    guard = Guard(name, manner.special)
    try:
        _refuse_other_files(archive, name, archive_store)
        with directory(to) as place, workshop(place, to, warn) as work:
            _extract(archive, guard, name, archive_store, work, home, manner)
            move(name, work, place)
    except (OSError, WatcherError) as error:
        raise RestoreFailed(journal.printable(f"run '{name}' is not restored: {error}")) from error
    for warning in guard.warnings:
        warn(warning)
    return target


def _recorded(document: Document) -> Archive:
    name, status = document["_id"], document.get("status")
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise UnknownRun(f"'{name}' is not the name of a run")
    if status_of(document) is not Status.ENCRYPTED:
        raise UnknownRun(f"run '{name}' is '{status}', not 'encrypted': there is nothing to restore")
    try:
        return Archive.from_document(document["archive"])
    except (KeyError, TypeError, AttributeError):
        raise UnknownRun(
            f"run '{name}' was archived by another program: its document names no digests to compare with; "
            "restore it with gpg and tar, as the README says"
        ) from None


def _refuse_other_files(archive: Archive, name: str, archive_store: ArchiveStore) -> None:
    for named, own in (
        (archive.file, archive_store.final_archive(name)),
        (archive.key_file, archive_store.final_key(name)),
    ):
        if named != own.name:
            raise RestoreFailed(f"its document names the file '{named}' instead of '{own.name}'; who wrote that?")


def _extract(
    archive: Archive, guard: Guard, name: str, archive_store: ArchiveStore, work: int, home: Path | None, manner: Manner
) -> None:
    with _opened(archive_store.final_key(name)) as wrapped:
        key = openpgp.unwrap(wrapped.read(MAX_KEY_BYTES), home)
    job = Job(Run(Path(name)))
    job.enter(Phase.VALIDATING, archive.size)
    stored = archive_store.final_archive(name)
    with (
        _opened(stored) as file,
        tempfile.TemporaryFile() as words,
        job.child(
            _tar_command(manner), stdin=subprocess.PIPE, stderr=words, env=tar_environment(), cwd=by_descriptor(work)
        ) as tar,
    ):
        enlarge(tar.stdin)
        hasher = blake3() if archive.tar_blake3 else hashlib.sha256()
        file_digest = _feed(tar, guard, file, key, job, home, hasher.update)
        if _exit_status(tar) != 0:
            words.seek(0)
            lines = os.fsdecode(words.read()[-WORDS_BYTES:]).splitlines()
            raise RestoreFailed(f"tar could not extract: {'; '.join(line.removeprefix('tar: ') for line in lines)}")
    if file_digest != Digest(archive.size, archive.sha256):
        raise RestoreFailed(f"'{stored}' is not the archive that was recorded: its SHA-256 or size differs")
    if hasher.hexdigest() != (archive.tar_blake3 or archive.tar_sha256):
        raise RestoreFailed(f"'{stored}' decrypts to another content than was recorded")


def _tar_command(manner: Manner) -> Sequence[str]:
    # tar's own default depends on who calls it: root gives files away.
    owner = "--same-owner" if manner.same_owner else "--no-same-owner"
    return ["tar", "--extract", "--preserve-permissions", owner, "--file=-"]


def _opened(path: Path) -> BinaryIO:
    """Open a stored file, which is a regular one, and no link. Raises RestoreFailed."""
    # Without O_NONBLOCK a FIFO would wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise _irregular(path) from error
        raise RestoreFailed(f"'{path}' cannot be read: {error.strerror}; bring the file back to there") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return os.fdopen(descriptor, "rb", buffering=0)


def _irregular(path: Path) -> RestoreFailed:
    return RestoreFailed(f"'{path}' is not a regular file; bring the file itself back to there")


def _feed(
    tar: subprocess.Popen[bytes],
    guard: Guard,
    file: IO[bytes],
    key: openpgp.FileKey,
    job: Job,
    home: Path | None,
    saw: Callable[[bytes], object],
) -> Digest:
    """Decrypt `file` into tar, member by member; return the file's digest. `saw` is called with all that was in it.

    Raises RestoreFailed at the first member that tar must not see, and what `openpgp.decrypt` raises.
    """
    pipe, deaf = tar.stdin, False
    assert pipe is not None

    def hand_on(data: bytes | memoryview) -> None:
        nonlocal deaf
        try:
            if not deaf:
                pipe.write(data)
        except BrokenPipeError:
            deaf = True  # tar has ended: its exit status and words say more

    walk = MemberWalk(guard.judge, hand_on)

    def write(chunk: bytes) -> None:
        saw(chunk)
        try:
            walk.feed(chunk)
        except MalformedArchive as error:
            raise RestoreFailed(f"what the archive holds is not what tar writes: {error}") from error

    try:
        file_digest = openpgp.decrypt(file.read, key, write, job, home)
    finally:
        with suppress(BrokenPipeError):
            pipe.close()
    if not deaf:
        walk.finish()
    return file_digest


def _exit_status(child: subprocess.Popen[bytes]) -> int:
    """Wait for a child's end; return its exit status. Raises RestoreFailed when the system does not give it."""
    try:
        # If the system does not give the status, `Popen` reports success.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        raise RestoreFailed("tar's exit status is not to be had: is SIGCHLD ignored?") from None
    return child.wait()
