"""What a restore wants of an archive, and how it knows that it got what was recorded: all of it, or chosen members."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from watcher.errors import NotAsRecorded, RestoreFailed
from watcher.manifest import Entry, EntryMaker
from watcher.model import Digest, Kind
from watcher.stored import Selection, StoredRun, read_manifest
from watcher.tar import ContentSink, Member


class Enough(Exception):
    """All that is wanted has passed."""


class Wanted(Protocol):
    """What is wanted of an archive that passes by."""

    content: ContentSink | None
    """What takes the content of each member."""

    def wants(self, member: Member) -> bool:
        """Say whether tar shall get the next member. Raises Enough, and NotAsRecorded for the member before it."""

    def saw(self, data: bytes) -> None:
        """Take the next piece of what was decrypted."""

    def has_all(self) -> bool:
        """Say whether all that is wanted has passed, and is as recorded, whatever follows."""

    def check(self, found: Digest | None) -> None:
        """Raise NotAsRecorded unless all was as recorded. `found` is the digest of the file if all of it was read."""


class Everything:
    """The whole archive. It is compared with the recorded digests, of the file and of what is in it."""

    content: ContentSink | None = None

    def __init__(self, stored: StoredRun) -> None:
        self._stored = stored
        self._hasher = blake3() if stored.archive.tar_blake3 else hashlib.sha256()

    def wants(self, _member: Member) -> bool:
        """Want each member."""
        return True

    def saw(self, data: bytes) -> None:
        """Hash the next piece of what was decrypted."""
        self._hasher.update(data)

    def has_all(self) -> bool:
        """Say no: only the end tells."""
        return False

    def check(self, found: Digest | None) -> None:
        """Compare the digests. Raises NotAsRecorded."""
        archive, path = self._stored.archive, self._stored.archive_path
        if found != Digest(archive.size, archive.sha256):
            raise NotAsRecorded(f"'{path}' is not the archive that was recorded: its SHA-256 or size differs")
        if self._hasher.hexdigest() != (archive.tar_blake3 or archive.tar_sha256):
            raise NotAsRecorded(f"'{path}' decrypts to another content than was recorded")


class Choice:
    """The members that match `patterns`, and the directories above them. Each is compared with its manifest line.

    The manifest is read first, so nothing behind the last wanted member is decrypted. Raises UnknownRun when there is
    no manifest or no member matches, RestoreFailed for a hard link to a file that is not chosen, and what
    `read_manifest` raises.
    """

    def __init__(self, stored: StoredRun, patterns: Sequence[str], home: Path | None) -> None:
        self.content: ContentSink | None = self
        self._stored = stored
        self._selection = Selection(patterns)
        self._directories = dict[bytes, bytes]()  # the hash of each
        self._above = set[bytes]()  # the paths of those in which a chosen member lies
        self._awaited = set[bytes]()  # the hashes of what has not passed yet
        self._is_wanted = False
        self._entries = EntryMaker(self._compare, lambda _: None)
        read_manifest(stored, home, lambda _: None, self._choose)
        self._directories.clear()
        if not self._awaited:
            raise self._selection.unmatched(stored.name)

    def data(self, data: memoryview) -> None:
        """Take the next bytes of a member's content."""
        if self._is_wanted:
            self._entries.data(data)

    def hole(self, size: int) -> None:
        """Take so many zeros of a member's content."""
        if self._is_wanted:
            self._entries.hole(size)

    def wants(self, member: Member) -> bool:
        """Say whether the next member is chosen. Raises Enough, and NotAsRecorded for the member before it."""
        if self.has_all():
            raise Enough
        path = Entry.of(member, "").path
        self._is_wanted = path in self._above or path in self._selection
        if self._is_wanted:
            self._entries.begin(member)
        return self._is_wanted

    def saw(self, data: bytes) -> None:
        """Do nothing: the manifest tells of each member."""

    def has_all(self) -> bool:
        """Say whether all that is chosen has passed. Raises NotAsRecorded for the last member."""
        self._entries.end()
        return not self._awaited

    def check(self, _found: Digest | None) -> None:
        """Raise NotAsRecorded when the archive had not all that is chosen."""
        if not self.has_all():
            raise NotAsRecorded(f"'{self._stored.archive_path}' lacks {len(self._awaited)} of the chosen members")

    def _choose(self, entry: Entry) -> None:
        if entry.kind is Kind.DIRECTORY:
            self._directories[entry.path] = entry.hash()
        if entry.path not in self._selection:
            return
        if entry.kind is Kind.HARD_LINK and entry.link not in self._selection:
            raise RestoreFailed(
                f"'{entry.name}' is a hard link to '{entry.link_name}', which --only leaves out: name that too"
            )
        self._awaited.add(entry.hash())
        above = entry.path.rpartition(b"/")[0]
        while above and above not in self._above:
            self._above.add(above)
            self._awaited.add(self._directories[above])
            above = above.rpartition(b"/")[0]

    def _compare(self, entry: Entry) -> None:
        try:
            self._awaited.remove(entry.hash())
        except KeyError:
            raise NotAsRecorded(
                f"'{self._stored.archive_path}': its member '{entry.name}' is not what the manifest says"
            ) from None
