"""Restoring a run: unwrap the key, decrypt, compare with what was recorded, extract.

It does what the README's lines of shell do, with the digests of the run document compared on the way.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import IO, BinaryIO

from watcher import crypto
from watcher.archive import Shelf
from watcher.errors import RestoreFailed, UnknownRun, WatcherError
from watcher.job import Job
from watcher.model import Archive, Digest, Document, Phase, Run, Status, status_of
from watcher.process import tar_environment

WORDS_BYTES = 500
"""tar's last words in an error are cut to this."""


def restore(document: Document, shelf: Shelf, to: Path, home: Path | None = None) -> Path:
    """Extract the run of `document` into the directory `to`; return the restored run directory.

    Nothing has the run's name in `to` before all was compared. Raises UnknownRun for a run that is not
    `encrypted`; RestoreFailed when something stands there already, a file is missing, or the archive
    is not the recorded one.
    """
    name: str = document["_id"]
    archive = _recorded(document)
    target = to / name
    if not to.is_dir():
        raise RestoreFailed(f"'{to}' is not a directory; create it")
    if os.path.lexists(target):
        raise RestoreFailed(f"'{target}' exists and is not overwritten; choose another directory")
    try:
        with tempfile.TemporaryDirectory(prefix=".restoring-", dir=to) as work:
            _extract(archive, name, shelf, Path(work), home)
            _move(Path(work, name), target)
    except (OSError, WatcherError) as error:
        raise RestoreFailed(f"run '{name}' is not restored: {error}") from error
    return target


def _recorded(document: Document) -> Archive:
    name, status = document["_id"], document.get("status")
    if status_of(document) is not Status.ENCRYPTED:
        raise UnknownRun(f"run '{name}' is '{status}', not 'encrypted': there is nothing to restore")
    try:
        return Archive.from_document(document["archive"])
    except (KeyError, TypeError, AttributeError):
        raise UnknownRun(
            f"run '{name}' was archived by another program: its document names no digests to compare with; "
            "restore it with gpg and tar, as the README says"
        ) from None


def _extract(archive: Archive, name: str, shelf: Shelf, work: Path, home: Path | None) -> None:
    with _opened(shelf.keys / archive.key_file) as wrapped:
        key = crypto.unwrap(wrapped.read(), home)
    job = Job(Run(work / name))
    job.enter(Phase.VALIDATING, archive.size)
    command = ["tar", "--extract", "--preserve-permissions", "--file=-", f"--directory={work}"]
    stored = shelf.destination / archive.file
    with (
        _opened(stored) as file,
        tempfile.TemporaryFile() as words,
        job.child(command, stdin=subprocess.PIPE, stderr=words, env=tar_environment()) as tar,
    ):
        file_digest, content = _feed(tar, file, key, job, home)
        if tar.wait() != 0:
            words.seek(0)
            lines = os.fsdecode(words.read()[-WORDS_BYTES:]).splitlines()
            raise RestoreFailed(f"tar could not extract: {'; '.join(line.removeprefix('tar: ') for line in lines)}")
    if file_digest != Digest(archive.size, archive.sha256):
        raise RestoreFailed(f"'{stored}' is not the archive that was recorded: its SHA-256 or size differs")
    if content != archive.tar_sha256:
        raise RestoreFailed(f"'{stored}' decrypts to another content than was recorded")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise RestoreFailed(f"'{path}' cannot be read: {error.strerror}; bring the file back to there") from error


def _feed(
    tar: subprocess.Popen[bytes], file: IO[bytes], key: crypto.FileKey, job: Job, home: Path | None
) -> tuple[Digest, str]:
    """Decrypt `file` into tar; return the file's digest and the SHA-256 of what was in it."""
    pipe, content, deaf = tar.stdin, hashlib.sha256(), False
    assert pipe is not None

    def write(chunk: bytes) -> None:
        nonlocal deaf
        content.update(chunk)
        try:
            if not deaf:
                pipe.write(chunk)
        except BrokenPipeError:
            deaf = True  # tar has ended: its exit status and words say more

    file_digest = crypto.decrypt(file.read, key, write, job, home)
    try:
        pipe.close()
    except BrokenPipeError:
        deaf = True
    return file_digest, content.hexdigest()


def _move(restored: Path, target: Path) -> None:
    # A directory that its owner may not write cannot be moved: its entry `..` would change.
    mode = stat.S_IMODE(restored.lstat().st_mode)
    restored.chmod(mode | stat.S_IWUSR)
    restored.rename(target)
    target.chmod(mode)
