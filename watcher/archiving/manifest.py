"""The manifest of an archive: written beside it, and read back from the disk."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from watcher import openpgp
from watcher.archiving.attempt import Attempt
from watcher.archiving.files import READ_BYTES, reading, remove, writing
from watcher.archiving.members import GZIP, Members
from watcher.errors import ValidateFailed
from watcher.manifest import Heading
from watcher.model import Archive, Content, Digest, ManifestMode, manifest_name


def stage_manifest(
    attempt: Attempt, heading: Heading, members: Members, recipient: openpgp.Recipient, key: openpgp.FileKey
) -> Archive:
    """Write the manifest of a staged archive, prove it, and return the archive with its name and digest.

    It is encrypted to the recipient, and under the archive's own file key: without that nobody but the recipient could
    tell whether it decrypts. Raises ValidateFailed, RecipientUnusable, WrapFailed, NoSpace.
    """
    settings, job, mode = attempt.parts.settings, attempt.job, attempt.parts.settings.manifest
    path = attempt.parts.archive_store.staged_manifest(attempt.name, heading.archive.token, mode)
    remove(path)  # left by a try that failed
    packed = _Measured(_packed(heading, members).__next__, job.moved)
    with writing(path) as file:
        write = job.on_storage(file.write, path)
        if mode is ManifestMode.ENCRYPTED:
            openpgp.encrypt_to(packed, recipient, key, write, job, settings.gnupg_home)
        else:
            packed.copy(write)
    stored, content = _read_back(path, mode, key, attempt)
    if content != packed.content:
        raise ValidateFailed(f"the stored manifest holds {content}, and {packed.content} was written")
    name = manifest_name(attempt.name, mode.suffix)
    return replace(heading.archive, manifest_file=name, manifest_size=stored.size, manifest_sha256=stored.sha256)


def _packed(heading: Heading, members: Members) -> Iterator[bytes]:
    """Yield a gzip file in two parts: the first line, then all others. No bytes come at the end."""
    pack = zlib.compressobj(wbits=GZIP)
    yield pack.compress(heading.to_line()) + pack.flush()
    yield from members.lines() or ()
    yield b""


def _read_back(path: Path, mode: ManifestMode, key: openpgp.FileKey, attempt: Attempt) -> tuple[Digest, Content]:
    with reading(path) as stored:
        read = attempt.job.on_storage(stored.read, path)
        if mode is ManifestMode.ENCRYPTED:
            return openpgp.validate(read, key, attempt.job, attempt.parts.settings.gnupg_home)
        measured = _Measured(lambda: read(READ_BYTES), attempt.job.moved)
        measured.copy(lambda _: None)
        return measured.digest, measured.content


class _Measured:
    """A stream that measures what is read from it. `piece` gives the next piece, `moved` is told its size."""

    def __init__(self, piece: Callable[[], bytes], moved: Callable[[int], object]) -> None:
        self._piece = piece
        self._moved = moved
        self._size = 0
        self._sha256, self._blake3 = hashlib.sha256(), blake3()

    def read(self, _size: int, /) -> bytes:
        """Return the next piece, no bytes at the end. Raises NoSpace, and the job's reason once it is cancelled."""
        data = self._piece()
        self._moved(len(data))
        self._size += len(data)
        self._sha256.update(data)
        self._blake3.update(data)
        return data

    def copy(self, write: Callable[[bytes], object]) -> None:
        """Write the rest."""
        while data := self.read(READ_BYTES):
            write(data)

    @property
    def digest(self) -> Digest:
        """What has been read, as a stored file."""
        return Digest(self._size, self._sha256.hexdigest())

    @property
    def content(self) -> Content:
        """What has been read, as what is in a file."""
        return Content(self._size, self._blake3.hexdigest())
