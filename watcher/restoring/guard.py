"""What of a run's archive may reach tar: each member is judged before tar is given its header.

Who can write archives must not gain the rights of who restores them. So tar is given only members that stay inside
the run's directory, and never one that passes through a link.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable

from watcher.errors import RestoreFailed
from watcher.model import Kind
from watcher.tar import Member

MAX_WARNINGS = 20
"""Warnings name so many members, and count the others."""

MAX_KNOWN = 2_000_000
"""So many directories, links and special files may be in an archive. We keep some 100 bytes for each."""

SET_ID = 0o6000
"""The set-uid and the set-gid bit of a mode."""

DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)


class Guard:
    """Judges the members of a run's archive, in their order.

    Every member lies in a directory that came before it as a member and that no later member replaces. So no
    member passes through a link, and the stream needs no look at the disk. We keep a 64-bit hash of the path of each
    directory, link and special file. A secret goes into the hash, so that nobody can make an archive whose paths
    collide. We keep nothing of regular files: if two have the same path, the later one replaces the earlier one.

    With `with_special` devices and set-uid and set-gid files are restored too. Each member is judged; then `wants` is
    asked whether tar shall have it, and may raise.
    """

    def __init__(self, run_name: str, with_special: bool, wants: Callable[[Member], bool] = lambda _: True) -> None:
        self._run = os.fsencode(run_name)
        self._with_special = with_special
        self._wants = wants
        self._secret = secrets.token_bytes(16)
        self._known: dict[int, Kind] = {}
        self._warnings: list[str] = []
        self._not_named = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was not restored as it was archived, a sentence for each member, and a count of those not named."""
        rest = (f"{self._not_named} more members were changed or left out",) if self._not_named else ()
        return (*self._warnings, *rest)

    def judge(self, member: Member) -> int | None:
        """Return the mode that tar shall give to the member; None for a member that tar shall not see.

        Raises RestoreFailed for a member that tar must not see, and what `wants` raises.
        """
        path = self._inside(member, member.path)
        self._refuse_misplaced(member, path)
        kind = self._linked_kind(member) if member.kind is Kind.HARD_LINK else member.kind
        if kind is not Kind.FILE:
            self._remember(path, kind)
        if not self._wants(member):
            return None
        if self._with_special or kind is Kind.DIRECTORY:
            # The set-gid bit of a directory gives no rights: new files in it get its group.
            return member.mode
        if kind in DEVICES:
            self._warn(member, f"is a {kind} and was left out")
            return None
        if kind is Kind.FILE and member.kind is Kind.FILE and member.mode & SET_ID:
            self._warn(member, f"had the mode {member.mode:04o} and was restored without its set-uid and set-gid bits")
        return member.mode & ~SET_ID

    def _inside(self, member: Member, path: bytes) -> bytes:
        """Return a path in the run, without a slash at its end. Raises RestoreFailed for any other path."""
        plain = path.removesuffix(b"/") if member.kind is Kind.DIRECTORY else path
        start, *parts = plain.split(b"/")
        if start != b"." or parts[:1] != [self._run] or not {b"", b".", b".."}.isdisjoint(parts):
            words = f", a hard link to '{os.fsdecode(path)}'," if path != member.path else ""
            raise _refused(member, f"{words} leads out of './{os.fsdecode(self._run)}/'")
        return plain

    def _refuse_misplaced(self, member: Member, path: bytes) -> None:
        if not self._known:
            if member.kind is not Kind.DIRECTORY or path.count(b"/") != 1:
                raise _refused(member, f" is a {member.kind}; the first member must be the run's directory")
            return
        if self._kind_of(path) is not None:
            raise _refused(member, f" has the path of a {self._kind_of(path)} that came before it")
        self._refuse_detour(member, path)

    def _refuse_detour(self, member: Member, path: bytes) -> None:
        parent = self._kind_of(path.rpartition(b"/")[0])
        if parent is not Kind.DIRECTORY:
            what = f"a {parent}" if parent else "a directory that did not come before it"
            raise _refused(member, f" passes through {what}")

    def _linked_kind(self, member: Member) -> Kind:
        """Return the kind of a hard link's target. A target that is not known is a regular file, or tar fails on it."""
        target = self._inside(member, member.link)
        self._refuse_detour(member, target)
        kind = self._kind_of(target) or Kind.FILE
        if kind is Kind.DIRECTORY:
            raise _refused(member, " is a hard link to a directory")
        return kind

    def _kind_of(self, path: bytes) -> Kind | None:
        return self._known.get(self._hash(path))

    def _remember(self, path: bytes, kind: Kind) -> None:
        if len(self._known) >= MAX_KNOWN:
            raise RestoreFailed(f"the archive has more than {MAX_KNOWN} directories, links and special files")
        self._known[self._hash(path)] = kind

    def _hash(self, path: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(path, digest_size=8, key=self._secret).digest(), "big")

    def _warn(self, member: Member, words: str) -> None:
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings.append(f"'{os.fsdecode(member.path)}' {words}; --special restores it as archived")
        else:
            self._not_named += 1


def _refused(member: Member, words: str) -> RestoreFailed:
    return RestoreFailed(f"the archive is not safe to extract: its member '{os.fsdecode(member.path)}'{words}")
