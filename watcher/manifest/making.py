"""The entries of a manifest, made from a decrypted stream of tar as it passes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from watcher.manifest.entry import Entry
from watcher.model import Kind
from watcher.tar import Member

_ZEROS = memoryview(bytes(1 << 20))


class EntryMaker:
    """Calls `on_entry` with the entry of each member, once its content has passed.

    It is the `content` of a MemberWalk, whose `on_member` calls `begin`. `moved` is called with 0 while the zeros of a
    hole are hashed, and may raise.
    """

    def __init__(self, on_entry: Callable[[Entry], object], moved: Callable[[int], object]) -> None:
        self._on_entry = on_entry
        self._moved = moved
        self._member: Member | None = None
        self._sha256 = hashlib.sha256()

    def begin(self, member: Member) -> None:
        """Take the next member; the one before it is complete."""
        self.end()
        self._member = member
        if member.kind is Kind.FILE:
            self._sha256 = hashlib.sha256()

    def data(self, data: memoryview) -> None:
        """Take the next bytes of a member's content."""
        self._sha256.update(data)

    def hole(self, size: int) -> None:
        """Take so many zeros of a member's content, which tar has not stored."""
        while size:
            step = min(size, len(_ZEROS))
            self._sha256.update(_ZEROS[:step])
            self._moved(0)
            size -= step

    def end(self) -> None:
        """Note that the last member is complete."""
        member, self._member = self._member, None
        if member is not None:
            self._on_entry(Entry.of(member, self._sha256.hexdigest() if member.kind is Kind.FILE else ""))
