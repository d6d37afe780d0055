"""Restoring a run: unwrap the key, decrypt, compare with what was recorded, extract.

It does what the README's lines of shell do, with the digests of the run document compared on the way.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from watcher import crypto
from watcher.archive import Shelf
from watcher.errors import RestoreFailed, UnknownRun, WatcherError
from watcher.job import Job
from watcher.model import Archive, Digest, Document, Phase, Run


def restore(document: Document, shelf: Shelf, to: Path, home: Path | None = None) -> Path:
    """Extract the run of `document` into the directory `to`; return the restored run directory.

    Nothing has the run's name in `to` before all was compared. Raises UnknownRun for a run that is not
    `encrypted`; RestoreFailed when something stands there already, a file is missing, or the archive
    is not the recorded one.
    """
    run = Run(Path(document["path"]))
    if document["status"] != "encrypted":
        raise UnknownRun(f"run '{run.name}' is '{document['status']}', not 'encrypted': there is nothing to restore")
    target = to / run.name
    if not to.is_dir():
        raise RestoreFailed(f"'{to}' is not a directory; create it")
    if os.path.lexists(target):
        raise RestoreFailed(f"'{target}' exists and is not overwritten; choose another directory")
    try:
        with tempfile.TemporaryDirectory(prefix=".restoring-", dir=to) as work:
            _extract(Archive.from_document(document["archive"]), run, shelf, Path(work), home)
            (Path(work) / run.name).rename(target)
    except (OSError, WatcherError) as error:
        raise RestoreFailed(f"run '{run.name}' is not restored: {error}") from error
    return target


def _extract(archive: Archive, run: Run, shelf: Shelf, work: Path, home: Path | None) -> None:
    key = crypto.unwrap((shelf.keys / archive.key_file).read_bytes(), home)
    job = Job(run)
    job.enter(Phase.VALIDATING, archive.size)
    command = ["tar", "--extract", "--preserve-permissions", "--file=-", f"--directory={work}"]
    stored = shelf.destination / archive.file
    with (
        stored.open("rb", buffering=0) as file,
        tempfile.TemporaryFile() as words,
        job.child(command, stdin=subprocess.PIPE, stderr=words) as tar,
    ):
        file_digest, content = _feed(tar, file, key, job, home)
        if tar.wait() != 0:
            words.seek(0)
            raise RestoreFailed(f"tar could not extract: {os.fsdecode(words.read()[-500:]).strip()}")
    if file_digest != Digest(archive.size, archive.sha256):
        raise RestoreFailed(f"'{stored}' is not the archive that was recorded: its SHA-256 or size differs")
    if content != archive.tar_sha256:
        raise RestoreFailed(f"'{stored}' decrypts to another content than was recorded")


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

    file_digest = crypto.decrypt(file, key, write, job, home)
    try:
        pipe.close()
    except BrokenPipeError:
        deaf = True
    return file_digest, content.hexdigest()
