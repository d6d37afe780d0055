"""What the disks of this host say. One may hang: whoever asks how the site stands gets an answer nevertheless."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from watcher.model import Document, Run, Status, path_of, status_of
from watcher.overview.facts import Place, is_there
from watcher.overview.patience import DISK_SECONDS, gathered
from watcher.source import Observation, State, unusable_name
from watcher.statusdb import collision
from watcher.text import printable

T = TypeVar("T")


@dataclass(frozen=True)
class Skipped:
    """A run directory that is not archived as it stands: held, unusable, in a collision, or changed since."""

    path: str
    state: str
    reason: str


@dataclass(frozen=True)
class Disks:
    """What was found. `absent` are the names of open runs that have no directory here, `free_bytes` the destination's.

    `silent` are the paths whose disk did not answer in time.
    """

    skipped: tuple[Skipped, ...] = ()
    absent: frozenset[str] = frozenset()
    free_bytes: int | None = None
    silent: tuple[str, ...] = ()


def look_at_disks(place: Place, documents: Collection[Document], seconds: float = DISK_SECONDS) -> Disks:
    """Return what this host's disks say of runs that have these documents, and of directories that are skipped.

    Raises StatusDBUnavailable.
    """
    silent: list[str] = []

    def ask(path: object, look: Callable[[], Iterable[T]]) -> list[T]:
        try:
            return gathered(seconds, look)
        except TimeoutError:
            silent.append(str(path))
            return []

    observations = ask(place.walk.root, place.walk.observations)
    absent = [] if silent else ask(place.walk.root, lambda: _absent(documents))
    free_bytes = ask(place.destination, lambda: _free_bytes(place.destination))
    skipped = tuple(_skipped(place, observations))
    return Disks(skipped, frozenset(filter(None, absent)), next(iter(free_bytes), None), tuple(silent))


def _absent(documents: Collection[Document]) -> Iterator[str]:
    """Yield of each run that is still to be archived its name, if it has no directory here, or else nothing."""
    for document in documents:
        if status_of(document) in (Status.PENDING, Status.PROCESSING):
            yield "" if is_there(path_of(document)) else document["_id"]


def _free_bytes(destination: Path) -> Iterator[int]:
    """Yield how much is free there; nothing if there is no such directory."""
    with suppress(OSError):
        room = os.statvfs(destination)
        yield room.f_bavail * room.f_frsize


def _skipped(place: Place, observations: Iterable[Observation]) -> Iterator[Skipped]:
    ready = []
    for observation in observations:
        path = printable(str(observation.run.path))
        bad_name = unusable_name(observation.run.name)
        if observation.state is State.READY and bad_name:
            yield Skipped(path, State.UNUSABLE, bad_name)
        elif observation.state is State.READY:
            ready.append(observation.run)
        elif observation.reason:
            yield Skipped(path, observation.state, observation.reason)
    yield from _compared(place, ready)


def _compared(place: Place, ready: Sequence[Run]) -> Iterator[Skipped]:
    known = place.statusdb.known(ready)
    for run in ready:
        document = known.get(run.name)
        if document is not None and document.get("path") != str(run.path):
            yield Skipped(printable(str(run.path)), "collision", collision(run, document))
        elif document is not None and document.get("changed_since"):
            words = f"it is not what was archived any more, seen at {document['changed_since']}; keep it"
            yield Skipped(printable(str(run.path)), "changed", words)
