"""What of a run counts, by shell patterns: what tar leaves out, what may change, what a transfer leaves."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from watcher.source.entry import Entry
from watcher.source.sentinel import SENTINEL

_SLASH = ord("/")


@dataclass(frozen=True)
class Rules:
    """What of a run counts: shell patterns.

    `exclusions` are tar's, for paths below the run. `tolerated` are names in the top directory that may change.
    `transfers` are names that a transfer in progress leaves.
    """

    exclusions: Sequence[str] = ()
    tolerated: Sequence[str] = ()
    transfers: Sequence[str] = ()

    def excludes(self, path: bytes) -> bool:
        """Say whether tar leaves out the entry of this path, `./...`; what is below it goes with it."""
        if self._excluded is None:
            return False
        # As tar does it: from the start of the path, or behind any slash.
        starts = [0, *(place + 1 for place, byte in enumerate(path) if byte == _SLASH)]
        return any(self._excluded.fullmatch(path[start:]) for start in starts)

    def tolerates(self, name: str) -> bool:
        """Say whether the entry of this name in the top directory may change."""
        return name == SENTINEL or self._tolerated.fullmatch(name) is not None

    def counts(self, entry: Entry) -> bool:
        """Say whether a change of the entry is one of the run."""
        return entry.path != b"." and not (entry.is_top and self.tolerates(entry.name))

    def is_of_a_transfer(self, name: str) -> bool:
        """Say whether a file of this name means that a transfer is in progress."""
        return self._transfers.fullmatch(name) is not None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_excluded", _tars(self.exclusions))
        object.__setattr__(self, "_tolerated", _any_of(self.tolerated))
        object.__setattr__(self, "_transfers", _any_of(self.transfers))

    _excluded: re.Pattern[bytes] | None = field(init=False, repr=False, compare=False)
    _tolerated: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _transfers: re.Pattern[str] = field(init=False, repr=False, compare=False)


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")


def _tars(patterns: Sequence[str]) -> re.Pattern[bytes] | None:
    if not patterns:
        return None
    from wcmatch import fnmatch as wildcards  # noqa: PLC0415  # it takes long to import, and `status` needs none of it

    flags = wildcards.CASE | wildcards.DOTMATCH
    meant = [_without_a_loose_escape(os.fsencode(pattern)) for pattern in patterns]
    found = [wildcards.translate(pattern, flags=flags)[0] for pattern in meant if pattern is not None]
    return re.compile(b"|".join(each for several in found for each in several)) if found else None


def _without_a_loose_escape(pattern: bytes) -> bytes | None:
    """Return a pattern with the meaning that tar gives it when a single backslash ends it.

    That is a backslash in a pattern without wildcards. One with wildcards matches nothing then: None.
    """
    plain = _ESCAPED.sub(b"", pattern)
    if not plain.endswith(b"\\"):
        return pattern
    return None if _WILDCARD.search(plain) else pattern + b"\\"


_ESCAPED = re.compile(rb"\\.", re.DOTALL)

_WILDCARD = re.compile(rb"[*?[]")
