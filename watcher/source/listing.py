"""What a run holds at one moment.

A listing keeps no paths. It has a digest of all that it saw, and a hash of each entry:
some 10 MB for a million entries.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import blake2b

from watcher.errors import Incomplete, RunFailed
from watcher.model import Kind
from watcher.source.entry import Entry
from watcher.source.hashes import Hashes, entry_hash
from watcher.source.rules import Rules

MEMBER_BYTES = 2048
"""What tar adds to a member in its posix format: a header, an extended header with its data, padding."""

MAX_MEMBER_PATH_BYTES = 4095
"""Linux's PATH_MAX without the final NUL: tar cannot extract a member with a longer path."""

SPARSE_BYTES = 1 << 20
"""Holes are looked for only in files of this size and more: tar reads a file twice to find them."""

LEFT_OUT_NAMED = 100
"""A listing has the paths of so many excluded entries, and counts the others."""

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Listing:
    """What a run holds at one moment. `size` is about what tar will give, in bytes.

    `newest_ns` is the last time of change in it (`newest` names the entry), in nanoseconds since the epoch.
    `left_out` are the paths of the first LEFT_OUT_NAMED of the `excluded` entries.
    `trouble` says why the run cannot be archived; `transfer` names a file that a transfer in progress has left.
    """

    digest: str
    entries: int
    excluded: int
    size: int
    newest_ns: int
    newest: str
    has_holes: bool
    has_links: bool
    trouble: RunFailed | None
    transfer: str
    hashes: Hashes = field(repr=False, compare=False)
    left_out: tuple[bytes, ...] = ()

    @property
    def members(self) -> int:
        """How many of the entries must be in an archive, whatever happens to the others."""
        return len(self.hashes)

    def place_of(self, path: bytes, kind: Kind, size: int) -> int | None:
        """Return the number of the entry with this path, kind and size; None if the listing has none."""
        return self.hashes.find(entry_hash(path, kind, size))

    def has(self, entry: Entry) -> bool:
        """Say whether the listing has the entry, with this path, kind and size."""
        return self.place_of(entry.path, entry.kind, entry.status.st_size) is not None


class Survey:
    """A listing in the making."""

    def __init__(self, rules: Rules, with_hashes: bool) -> None:
        self._rules = rules
        self._with_hashes = with_hashes
        self.trouble: RunFailed | None = None
        self._left_out: list[bytes] = []
        self._sum = self._entries = self._excluded = self._size = self._longest = 0
        self._longest_path = b""
        self._newest_ns, self._newest = 0, ""
        self._size_of_holes = 0
        self._has_holes = self._has_links = self._has_blocks = False
        self._transfer = ""
        self._hashes = Hashes()

    def add(self, entry: Entry) -> None:
        """Take an entry in."""
        status = entry.status
        self._size += MEMBER_BYTES
        if len(entry.path) > self._longest:
            self._longest, self._longest_path = len(entry.path), entry.path
        if entry.kind is Kind.FILE:
            self._add_file(entry)
        if not self._rules.counts(entry):
            return
        if self._with_hashes and entry.kind is not Kind.SOCKET:  # tar leaves sockets out, and says so
            self._hashes.add(entry_hash(entry.path, entry.kind, status.st_size))
        # A sum does not depend on the order. Two walks may read a directory in different orders.
        self._sum += int.from_bytes(_digest(entry), "big")
        self._entries += 1
        if not self._transfer and self._rules.is_of_a_transfer(entry.name):
            self._transfer = os.fsdecode(entry.path)
        if status.st_ctime_ns > self._newest_ns:
            self._newest_ns, self._newest = status.st_ctime_ns, os.fsdecode(entry.path)

    def leave_out(self, path: bytes) -> None:
        """Count an excluded entry."""
        self._excluded += 1
        if self._excluded <= LEFT_OUT_NAMED:
            self._left_out.append(path)

    def _add_file(self, entry: Entry) -> None:
        status = entry.status
        allocated = status.st_blocks * 512
        is_sparse = status.st_size >= SPARSE_BYTES and allocated < status.st_size // 2
        self._has_holes |= is_sparse
        self._has_links |= status.st_nlink > 1
        # A file that only seems to have holes takes more room. If the disk is full then, no attempt is counted.
        self._size += allocated if is_sparse else status.st_size
        self._size_of_holes += status.st_size - allocated if is_sparse else 0
        self._has_blocks |= status.st_blocks > 0

    def listing(self, run_name_bytes: int) -> Listing:
        """Return the listing of all that was added, for a run whose name has so many bytes."""
        self._hashes.close()
        longest = self._longest + run_name_bytes + 1
        if longest > MAX_MEMBER_PATH_BYTES and not self.trouble:
            self.trouble = Incomplete(
                f"tar could not restore '{os.fsdecode(self._longest_path)}': with the run's name its path has "
                f"{longest} bytes, and Linux takes {MAX_MEMBER_PATH_BYTES}; shorten it, or exclude it"
            )
        if not self._has_blocks:  # no file has any: this file system does not report them
            self._size += self._size_of_holes
        digest = (self._sum % (1 << 8 * _DIGEST_BYTES)).to_bytes(_DIGEST_BYTES, "big").hex()
        return Listing(
            digest, self._entries, self._excluded, self._size, self._newest_ns, self._newest, self._has_holes,
            self._has_links, self.trouble, self._transfer, self._hashes, tuple(self._left_out),
        )  # fmt: skip


def _digest(entry: Entry) -> bytes:
    status = entry.status
    size = status.st_size if entry.kind is Kind.FILE else 0
    words = b"%s\0%s\0%d\0%d\0%d" % (
        entry.path, entry.kind.encode(), size, status.st_mtime_ns, status.st_ctime_ns
    )  # fmt: skip
    return blake2b(words, digest_size=_DIGEST_BYTES).digest()
