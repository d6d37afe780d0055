"""The stored files of a run are compared with what was recorded, without the private key."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from watcher import openpgp
from watcher.errors import NotAsRecorded, StoreAway
from watcher.job import Job
from watcher.stored import StoredRun

READ_BYTES = 1 << 20


def require_directories(stored: StoredRun) -> None:
    """Raise StoreAway if the directory of the archives or of the keys is missing or empty: it may not be mounted."""
    for directory in (stored.archive_path.parent, stored.key_path.parent):
        try:
            if not any(os.scandir(directory)):
                raise StoreAway(f"'{directory}' is empty: is it mounted? Nothing was recorded of run '{stored.name}'")
        except OSError as error:
            raise StoreAway(
                f"'{directory}' cannot be read: {error.strerror}; nothing was recorded of run '{stored.name}'"
            ) from error


def verify_files(stored: StoredRun, job: Job, home: Path | None, with_archive: bool = True) -> str:
    """Compare size and SHA-256 of key, manifest and archive, and who can open the key; return a warning, or nothing.

    The files come from the disk, and not from Linux's memory. Without `with_archive` the archive is left out: whoever
    decrypts it compares it too. Raises NotAsRecorded, WrapFailed when gpg cannot be asked for the recipient's key.
    """
    archive = stored.archive
    with stored.open_key() as file:
        _compare(file, stored.key_path, archive.key_size, archive.key_sha256, job)
        file.seek(0)
        warning = _compare_recipient(file.read(), stored, home)
    if archive.manifest_file:
        with stored.open_manifest() as file:
            _compare(file, stored.manifest_path, archive.manifest_size, archive.manifest_sha256, job)
    if with_archive:
        with stored.open_archive() as file:
            _compare(file, stored.archive_path, archive.size, archive.sha256, job)
    return warning


def _compare(file: BinaryIO, path: Path, size: int, sha256: str, job: Job) -> None:
    """Raise NotAsRecorded unless the file has this size and SHA-256. Earlier versions recorded no size of keys: 0."""
    found = os.fstat(file.fileno()).st_size
    if size and found != size:
        raise NotAsRecorded(f"'{path}' has {found} bytes, and {size} were recorded")
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    hasher = hashlib.sha256()
    try:
        while data := file.read(READ_BYTES):
            hasher.update(data)
            job.moved(len(data))
    except OSError as error:
        raise NotAsRecorded(f"'{path}' cannot be read: {error.strerror}") from error
    if hasher.hexdigest() != sha256:
        raise NotAsRecorded(f"'{path}' has the SHA-256 {hasher.hexdigest()}, and {sha256} was recorded")


def _compare_recipient(wrapped: bytes, stored: StoredRun, home: Path | None) -> str:
    recipient = stored.archive.recipient
    opening, allowed = openpgp.openers(wrapped), openpgp.key_ids(recipient, home)
    if not allowed:
        return f"who can open it was not compared: the public key {recipient} is not in this keyring"
    if not opening <= allowed:
        keys = " and ".join(sorted(opening))
        raise NotAsRecorded(f"'{stored.key_path}' opens with {keys}, and not with a key of the recipient {recipient}")
    return ""
