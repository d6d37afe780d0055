"""Which members of an archive are wanted."""

from __future__ import annotations

from collections.abc import Sequence

from watcher.errors import UnknownRun
from watcher.source import Rules


class Selection:
    """Members by shell patterns, which mean what those of `tar_exclusions` mean; without patterns, all members.

    `path in selection` says whether the path, `<run>/...`, or a directory above it matches.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        self._rules = Rules(tuple(patterns)) if patterns else None

    def __contains__(self, path: bytes) -> bool:
        if self._rules is None:
            return True
        ends = [place for place, byte in enumerate(path) if byte == ord("/")]
        return any(self._rules.excludes(b"./" + path[:end]) for end in (*ends, len(path)))

    def unmatched(self, run_name: str) -> UnknownRun:
        """Return the error for a run of which nothing matches."""
        return UnknownRun(f"run '{run_name}' has no member that matches {' or '.join(map(repr, self._patterns))}")
