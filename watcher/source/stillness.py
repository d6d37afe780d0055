"""Whether a run stands still while it is archived."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

from watcher.errors import RunNotSettled, TarFailed
from watcher.model import Kind
from watcher.source.directory import Source


class Stillness:
    """Whether a source has stood still since `first`, the listing that was taken before tar.

    `clock` is monotonic, `now` the wall clock, both in seconds. The wall clock can only shorten the wait: a change
    that this process has seen no sign of for `quiet_seconds` is looked for once more at the end.
    """

    def __init__(
        self,
        source: Source,
        quiet_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._now = now
        self.listed_at = clock()
        self.sentinel = source.sentinel()
        self.first = source.list()

    def seconds_left(self) -> float:
        """Return how long to wait until the source, if nothing changes, has been quiet for long enough."""
        if self._seconds_since_change() >= self._quiet_seconds:
            return 0.0
        return max(self._quiet_seconds - (self._clock() - self.listed_at), 0.0)

    def require_quiet(self) -> None:
        """Raise RunNotSettled if the run is being transferred, or has changed within the quiet time."""
        self.require_no_transfer()
        since_change = self._seconds_since_change()
        if since_change < self._quiet_seconds:
            raise RunNotSettled(
                f"'{self.first.newest}' changed {since_change:.0f} s ago, and quiet_period is {self._quiet_seconds:g} s"
            )

    def _seconds_since_change(self) -> float:
        # If the file system's clock is ahead of ours, the last change may lie in our future.
        return max(self._now() - self.first.newest_ns / 1e9, 0.0)

    def require_no_transfer(self) -> None:
        """Raise RunNotSettled if there is a file of a transfer in progress."""
        if self.first.transfer:
            raise RunNotSettled(
                f"'{self.first.transfer}' has a name that a transfer in progress leaves (see transfer_names); if no "
                "transfer runs, remove it, or transfer the run again"
            )

    def require(self, with_ends: bool = False) -> None:
        """List the source again. Raises RunNotSettled if anything is not as it was before tar.

        `with_ends`: also raise Incomplete if a file holds more than tar could know of.
        """
        if not self.source.is_in_place():
            raise RunNotSettled(f"'{self.source.run.path}' was replaced by another directory, or moved")
        if self.source.sentinel() != self.sentinel:
            raise RunNotSettled("the sentinel was written again after the archive had been begun")
        listing = self.source.list(with_ends, with_hashes=False)
        if listing.digest != self.first.digest:
            raise RunNotSettled(
                f"the run has changed since tar began: {self.first.entries} entries then, {listing.entries} now; "
                + (self._new() or f"the newest change is to '{listing.newest}'")
            )
        if listing.trouble:
            raise listing.trouble

    def _new(self) -> str:
        """Name an entry that `first` does not have like this; empty if there is none."""
        with suppress(RunNotSettled, TarFailed):
            for entry in self.source.entries():
                if entry.kind is not Kind.SOCKET and self.source.rules.counts(entry) and not self.first.has(entry):
                    return f"'{os.fsdecode(entry.path)}' is new, or has another type or size"
        return ""
