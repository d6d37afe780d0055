"""Mounts: the file systems of the sequencing path and its sequencers, and whether one was mounted or unmounted."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from watcher.source import MOUNT_TABLE, NETWORK_FILE_SYSTEMS, type_of


class Places:
    """The sequencing path `root` and its sequencers, but for those in `ignore`, as they were at the last look."""

    def __init__(self, root: Path, ignore: Collection[str] = ()) -> None:
        self._root = root
        self._ignore = ignore
        self._table = b""
        self._mounts: list[bytes] = []
        self._links: dict[Path, os.stat_result] = {}
        self.remote: dict[Path, str] = {}
        """Which of them lie on network file systems, with the types."""

    def look(self) -> None:
        """Look again. If no descriptor is left to look with, the last result stays."""
        if table := _table():  # before the directories: a mount made meanwhile is a change at the next look
            places = _places(self._root, self._ignore)
            self._table, self._mounts, self._links = table, self._mounts_in(table), _links(places)
            self.remote = _remote(self._root, places, table)

    def have_changed(self) -> bool:
        """Say whether something was mounted or unmounted there since. Asks no disk while no mount has changed."""
        table = _table()
        if not table or table == self._table:
            return False
        before, self._table = (self._mounts, self._links), table
        self._mounts, self._links = self._mounts_in(table), _links(_places(self._root, self._ignore))
        both = before[1].keys() & self._links.keys()
        return before[0] != self._mounts or any(
            not os.path.samestat(before[1][place], self._links[place]) for place in both
        )

    def _mounts_in(self, table: bytes) -> list[bytes]:
        """Return the table's lines for the root and whatever is below it."""
        root = _as_in_table(os.path.realpath(self._root))
        return [
            line for line in table.splitlines() if (place := line.split()[4]) == root or place.startswith(root + b"/")
        ]


def network_places(root: Path, ignore: Collection[str] = ()) -> dict[Path, str]:
    """Return, with the types, which of `root` and its sequencers lie on network file systems.

    A sequencer may be a mount or a link; one on the root's own file system is not named beside it.
    """
    return _remote(root, _places(root, ignore), MOUNT_TABLE.read_bytes())


def _remote(root: Path, places: dict[Path, os.stat_result], table: bytes) -> dict[Path, str]:
    own = places[root].st_dev if root in places else None
    others = {place: status.st_dev for place, status in places.items() if place == root or status.st_dev != own}
    kinds = {place: type_of(device, table) for place, device in others.items()}
    return {place: kind for place, kind in kinds.items() if kind in NETWORK_FILE_SYSTEMS}


def _table() -> bytes:
    with suppress(OSError):
        return MOUNT_TABLE.read_bytes()
    return b""


def _as_in_table(path: str) -> bytes:
    return re.sub(rb"[\\ \t\n]", lambda found: b"\\%03o" % ord(found[0]), os.fsencode(path))


def _links(places: dict[Path, os.stat_result]) -> dict[Path, os.stat_result]:
    return {place: status for place, status in places.items() if os.path.islink(place)}  # noqa: PTH114  # as in `inspect`


def _places(root: Path, ignore: Collection[str]) -> dict[Path, os.stat_result]:
    names: list[str] = []
    with suppress(OSError):
        names = sorted(name for name in os.listdir(root) if name not in ignore)
    found = {}
    for place in (root, *(root / name for name in names)):
        with suppress(OSError):
            found[place] = os.stat(place)
    return found
