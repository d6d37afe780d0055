"""Whether a stream of tar holds the whole run: each member is compared with the listing that was taken before tar."""

from __future__ import annotations

import os
from collections.abc import Callable

from watcher.errors import Incomplete
from watcher.model import Kind
from watcher.source import Entry, Stillness
from watcher.tar.members import Member

PROBLEMS_TOLD = 5
"""An error names so many paths at most."""


class Completeness:
    """Compares the members of a stream, as they pass, with the listing. `require` raises at the end if one is missing.

    Keeps one byte for each entry of the listing.
    """

    def __init__(self, still: Stillness) -> None:
        self._still = still
        self._listing = still.first
        self._prefix = b"./" + os.fsencode(still.source.run.name)
        self._seen = bytearray(still.first.members)
        self._problems: list[str] = []
        self._count = 0
        self.members = 0

    def saw(self, member: Member, moved: Callable[[int], object]) -> None:
        """Take the next member of the stream. `moved` is called with the number of bytes of the run that are read."""
        self.members += 1
        inner = member.path.removeprefix(self._prefix)
        is_top = inner == b"/" and member.kind is Kind.DIRECTORY
        if inner == member.path or not inner.startswith(b"/") or (inner == b"/" and not is_top):
            self._note(f"'{os.fsdecode(member.path)}' is not in the run")
        elif not is_top:
            # With a slash behind its name, tar would extract any member as a directory.
            inner = inner.removesuffix(b"/") if member.kind is Kind.DIRECTORY else inner
            self._compare(b"." + inner, member, moved)

    def require(self) -> None:
        """Raise Incomplete if the members are not what the listing has; RunNotSettled if the run changed meanwhile."""
        if self.members and not self._count and 0 not in self._seen:
            return
        self._still.require()
        for entry in self._still.source.entries():
            if self._is_unseen(entry):
                self._note(f"'{os.fsdecode(entry.path)}' is in the run, and not in the archive")
        more = f", and {self._count - PROBLEMS_TOLD} more" if self._count > PROBLEMS_TOLD else ""
        raise Incomplete(
            f"the archive does not hold what the run holds: {'; '.join(self._problems) or 'it is empty'}{more}; "
            "look at the file system of the run, and at tar"
        )

    def _compare(self, path: bytes, member: Member, moved: Callable[[int], object]) -> None:
        kind, size = member.kind, member.size
        if kind is Kind.HARD_LINK:
            other = b"." + member.link.removeprefix(self._prefix)
            linked = self._still.source.contents.size_of_linked(path, other)
            kind, size = (kind, 0) if linked is None else (Kind.FILE, linked)
        place = self._listing.place_of(path, kind, size)
        if place is None:
            self._note_stranger(path, member)
        elif member.is_hole and self._still.source.contents.has_data(path, moved):
            self._note(f"'{os.fsdecode(path)}' was archived as a hole, and holds data")
        elif self._seen[place]:
            self._note(f"'{os.fsdecode(path)}' is in the archive twice")
        else:
            self._seen[place] = 1

    def _note_stranger(self, path: bytes, member: Member) -> None:
        rules, name = self._still.source.rules, os.fsdecode(path[2:])
        if ("/" not in name and rules.tolerates(name)) or rules.excludes(path):
            return
        self._note(
            f"'{os.fsdecode(path)}' is a {member.kind} of {member.size} bytes in the archive, and not in the run"
        )

    def _is_unseen(self, entry: Entry) -> bool:
        place = self._listing.place_of(entry.path, entry.kind, entry.status.st_size)
        return place is not None and not self._seen[place]

    def _note(self, problem: str) -> None:
        self._count += 1
        if len(self._problems) < PROBLEMS_TOLD:
            self._problems.append(problem)
