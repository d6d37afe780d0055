"""An archive is decrypted, and compared with what was recorded: as a whole, and member by member."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from watcher import openpgp
from watcher.errors import NotAsRecorded, ValidateFailed
from watcher.job import Job
from watcher.manifest import HASH_BYTES, Entry, EntryMaker
from watcher.model import Digest, Phase
from watcher.stored import StoredRun, read_manifest
from watcher.tar import MalformedArchive, Member, MemberWalk

NAMED = 5
"""So many members that differ are named."""


def verify_content(stored: StoredRun, job: Job, home: Path | None) -> None:
    """Decrypt the archive; compare the file, what is in it, and each member with what was recorded.

    A damaged archive is decrypted as far as gpg goes, to name the members that are damaged. Raises NotAsRecorded with
    all that differs, WrapFailed without the private key, MalformedManifest, and the job's reason if it was cancelled.
    """
    archive = stored.archive
    job.enter(Phase.VALIDATING, archive.size)
    content = _Content(blake3() if archive.tar_blake3 else hashlib.sha256(), job.moved)
    key = stored.file_key(home)
    problems = []
    with stored.open_archive() as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            found = openpgp.decrypt(file.read, key, content.feed, job, home)
        except ValidateFailed as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"it cannot be read: {error.strerror}")
        else:
            if found != Digest(archive.size, archive.sha256):
                problems.append("its SHA-256 or size is not what was recorded")
    content.finish()
    if not problems and content.digest != (archive.tar_blake3 or archive.tar_sha256):
        problems.append("it decrypts to another content than was recorded")
    if archive.manifest_file:
        problems += _differing(stored, content.hashes, home)
    if problems:
        raise NotAsRecorded(f"'{stored.archive_path}': {'; '.join(problems)}")


class _Content:
    """What was decrypted: its digest, and a hash of each member. What tar could not read ends the members."""

    def __init__(self, hasher: hashlib._Hash | blake3, moved: Callable[[int], object]) -> None:
        self._hasher = hasher
        self.hashes = bytearray()
        self._entries = EntryMaker(self._keep, moved)
        self._walk = MemberWalk(self._begin, content=self._entries)
        self._is_whole = True

    @property
    def digest(self) -> str:
        """The digest of all that was decrypted, in hexadecimal."""
        return self._hasher.hexdigest()

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises what `moved` raises."""
        self._hasher.update(data)
        try:
            if self._is_whole:
                self._walk.feed(data)
        except MalformedArchive:
            self._is_whole = False  # the digest tells it, and the manifest names where

    def finish(self) -> None:
        """Note that nothing follows."""
        self._entries.end()

    def _begin(self, member: Member) -> int:
        self._entries.begin(member)
        return member.mode

    def _keep(self, entry: Entry) -> None:
        self.hashes += entry.hash()


def _differing(stored: StoredRun, hashes: bytearray, home: Path | None) -> list[str]:
    """Say which members the manifest has otherwise, or has not."""
    names, count, place = list[str](), 0, 0

    def compare(entry: Entry) -> None:
        nonlocal count, place
        if hashes[place : place + HASH_BYTES] != entry.hash():
            count += 1
            if count <= NAMED:
                names.append(f"'{entry.name}'")
        place += HASH_BYTES

    read_manifest(stored, home, lambda _: None, compare)
    found = [f"{count} members are not what the manifest says: {', '.join(names)}"] if count else []
    if place < len(hashes):
        found.append("it has more members than the manifest")
    return found
