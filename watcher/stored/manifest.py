"""A stored manifest is read: compared with its recorded digest first, then decrypted and handed on line by line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from watcher import openpgp
from watcher.errors import NotAsRecorded
from watcher.job import Job
from watcher.manifest import Entry, Heading, ManifestReader
from watcher.model import Digest, ManifestMode, Run
from watcher.stored.files import StoredRun

READ_BYTES = 1 << 20


def read_manifest(
    stored: StoredRun, home: Path | None, on_heading: Callable[[Heading], object], on_entry: Callable[[Entry], object]
) -> None:
    """Call `on_heading`, then `on_entry` for each member in tar's order; no more is kept in memory.

    Nothing is called before the file was compared with the digest in the run's document. Raises NotAsRecorded,
    UnknownRun for a run without a manifest, WrapFailed and ValidateFailed when gpg does not open it, MalformedManifest,
    and what was raised by what is called.
    """
    archive = stored.archive
    reader = ManifestReader(on_entry, on_heading)
    with stored.open_manifest() as file:
        if _digest(file) != Digest(archive.manifest_size, archive.manifest_sha256):
            raise NotAsRecorded(f"'{stored.manifest_path}' is not what was recorded: its SHA-256 or size differs")
        file.seek(0)
        if archive.manifest_mode is ManifestMode.CLEAR:
            while data := file.read(READ_BYTES):
                reader.feed(data)
        else:
            job = Job(Run(Path(stored.name)))
            openpgp.decrypt(file.read, stored.file_key(home), reader.feed, job, home)
    reader.finish()


def _digest(file: BinaryIO) -> Digest:
    sha256, size = hashlib.sha256(), 0
    while data := file.read(READ_BYTES):
        sha256.update(data)
        size += len(data)
    return Digest(size, sha256.hexdigest())
