"""The stored files of a run, as its document names them."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from watcher import openpgp
from watcher.archiving import ArchiveStore
from watcher.errors import NotAsRecorded, UnknownRun
from watcher.model import Archive, Document, Status, manifest_name, status_of

MAX_KEY_BYTES = 1 << 20
"""At most so many bytes of a key file are read. A wrapped key has some hundred."""


@dataclass(frozen=True)
class StoredRun:
    """A run that is `encrypted`: what was recorded of it, and where its files are.

    A file is opened only if the document names the one that is this run's own in the configured directories: anybody
    who may write documents could name another. Who reads may have more rights.
    """

    name: str
    archive: Archive
    archive_store: ArchiveStore

    @classmethod
    def of(cls, document: Document, archive_store: ArchiveStore) -> Self:
        """Return the stored run of a document. Raises UnknownRun if there is none, or another program made it."""
        name, status = document["_id"], document.get("status")
        if "/" in name or "\0" in name or name in ("", ".", ".."):
            raise UnknownRun(f"'{name}' is not the name of a run")
        if status_of(document) is not Status.ENCRYPTED:
            raise UnknownRun(f"run '{name}' is '{status}', not 'encrypted': it has no archive")
        try:
            return cls(name, Archive.from_document(document["archive"]), archive_store)
        except (KeyError, TypeError, AttributeError):
            raise UnknownRun(
                f"run '{name}' was archived by another program: its document names no digests to compare with; "
                "restore it with gpg and tar, as the README says"
            ) from None

    @property
    def archive_path(self) -> Path:
        """Where the archive is."""
        return self.archive_store.final_archive(self.name)

    @property
    def key_path(self) -> Path:
        """Where the wrapped key is."""
        return self.archive_store.final_key(self.name)

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is. Raises UnknownRun if the run has none."""
        if not self.archive.manifest_file:
            raise UnknownRun(f"run '{self.name}' has no manifest; gpg and tar --list show what its archive holds")
        return self.archive_store.destination / manifest_name(self.name, self.archive.manifest_mode.suffix)

    def open_archive(self) -> BinaryIO:
        """Open the archive. Raises NotAsRecorded."""
        return _opened(self.archive_path, self.archive.file)

    def open_key(self) -> BinaryIO:
        """Open the wrapped key. Raises NotAsRecorded."""
        return _opened(self.key_path, self.archive.key_file)

    def open_manifest(self) -> BinaryIO:
        """Open the manifest. Raises NotAsRecorded, UnknownRun."""
        return _opened(self.manifest_path, self.archive.manifest_file)

    def file_key(self, home: Path | None) -> openpgp.FileKey:
        """Unwrap the file key; may ask for the private key's passphrase. Raises NotAsRecorded, WrapFailed."""
        with self.open_key() as wrapped:
            return openpgp.unwrap(wrapped.read(MAX_KEY_BYTES), home)


def _opened(path: Path, named: str) -> BinaryIO:
    """Open a stored file, which is a regular one, no link, and the one that is `named`. Raises NotAsRecorded."""
    if named != path.name:
        raise NotAsRecorded(f"its document names the file '{named}' instead of '{path.name}'; who wrote that?")
    # Without O_NONBLOCK a FIFO would wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise _irregular(path) from error
        raise NotAsRecorded(f"'{path}' cannot be read: {error.strerror}; bring the file back to there") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return os.fdopen(descriptor, "rb", buffering=0)


def _irregular(path: Path) -> NotAsRecorded:
    return NotAsRecorded(f"'{path}' is not a regular file; bring the file itself back to there")
