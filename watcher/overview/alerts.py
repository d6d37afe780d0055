"""What a person should look at, the most urgent first: of the whole site, then of each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from watcher.overview.disks import Disks
from watcher.overview.explanation import LOOK_FOR_DISK, START, Cause, Explanation

ORDER: Sequence[Cause] = (
    Cause.FAILED,
    Cause.DAMAGED,
    Cause.UNREADABLE,
    Cause.FOREIGN,
    Cause.COLLISION,
    Cause.CHANGED,
    Cause.SENTINEL,
    Cause.UNUSABLE,
    Cause.SILENT,
    Cause.STALE,
    Cause.NO_ROOM,
    Cause.NOT_HERE,
    Cause.PAUSED,
    Cause.HELD,
    Cause.WORKING,
    Cause.QUEUED,
    Cause.UNREGISTERED,
    Cause.UNSETTLED,
    Cause.NO_SENTINEL,
    Cause.IGNORED,
    Cause.ENCRYPTED,
    Cause.UNKNOWN,
)
"""What needs a person comes first, and what goes on by itself last."""

PERSONS: Sequence[Cause] = ORDER[: ORDER.index(Cause.NO_ROOM) + 1]
"""The causes that make an alert."""


@dataclass(frozen=True)
class Alert:
    """What is wrong, with how many runs or where, and what to do."""

    what: str
    words: str
    remedy: str


def alerts(
    disks: Disks, minimum_free_bytes: int, has_watcher: bool, explained: Mapping[str, Explanation]
) -> tuple[Alert, ...]:
    """Return the alerts of a site whose runs are explained so, by name."""
    return (*_of_site(disks, minimum_free_bytes, has_watcher, explained), *_of_runs(explained))


def _of_site(
    disks: Disks, minimum_free_bytes: int, has_watcher: bool, explained: Mapping[str, Explanation]
) -> Iterator[Alert]:
    for path in disks.silent:
        yield Alert("disk", f"'{path}' does not answer", LOOK_FOR_DISK)
    if disks.free_bytes is not None and disks.free_bytes < minimum_free_bytes:
        words = f"{disks.free_bytes} bytes are free, and minimum_free_space is {minimum_free_bytes}"
        yield Alert("free space", words, "free space on the destination: no run is begun until then")
    if not has_watcher and any(each.cause is Cause.QUEUED for each in explained.values()):
        yield Alert("watcher", "runs wait, and no watcher runs on this host", START)


def _of_runs(explained: Mapping[str, Explanation]) -> Iterator[Alert]:
    for cause in PERSONS:
        runs = sorted(name for name, each in explained.items() if each.cause is cause)
        if runs:
            more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
            first = explained[runs[0]]
            yield Alert(cause, f"{runs[0]}{more}: {first.why}", first.remedy)
