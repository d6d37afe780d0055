"""What can be known of a run on this host: its document, the directories of its name, and how far its worker is."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from watcher.figures import Figures, current_figures, is_answering
from watcher.model import Document, Status, lock_name, path_of, status_of
from watcher.overview.patience import DISK_SECONDS, within
from watcher.source import NOT_THERE, Observation, Walk
from watcher.statusdb import StatusDB, Unreadable


@dataclass(frozen=True)
class Facts:
    """Of one run. `job` has its worker's current figures, if that runs on this host.

    `ignored` are directories of its name that `ignore` leaves out. `is_here`: the document's path leads somewhere here.
    `silent` is the path of a disk that did not answer. `has_watcher`: a watcher runs here. Times are this host's.
    """

    name: str
    now: datetime
    document: Document | None = None
    unreadable: str = ""
    observations: tuple[Observation, ...] = ()
    ignored: tuple[str, ...] = ()
    is_here: bool = False
    silent: str = ""
    job: Figures | None = None
    has_watcher: bool = False
    lease_seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where to look. `destination` has the archives and the workers' lock files, `worker_id` is this host's worker."""

    walk: Walk
    statusdb: StatusDB
    destination: Path
    worker_id: str
    lease_seconds: float

    def figures(self, worker_id: str) -> list[Figures]:
        """Return the current figures of a worker's jobs, if it runs on this host."""
        return current_figures(self.destination / lock_name(worker_id))

    def has_watcher(self) -> bool:
        """Say whether this host's worker runs."""
        return is_answering(self.destination / lock_name(self.worker_id))


def look_for(place: Place, name: str, seconds: float = DISK_SECONDS) -> Facts:
    """Return what can be known of the run of this name, its disk asked for so long. Raises StatusDBUnavailable."""
    found = place.statusdb.look(name)
    document = None if isinstance(found, Unreadable) else found
    facts = Facts(
        name,
        datetime.now(UTC),
        document,
        found.reason if isinstance(found, Unreadable) else "",
        job=_job(place, document) if document else None,
        has_watcher=place.has_watcher(),
        lease_seconds=place.lease_seconds,
    )
    try:
        return within(seconds, lambda: _with_directories(facts, place.walk))
    except TimeoutError:
        return replace(facts, silent=place.walk.root, is_here=True)


def _with_directories(facts: Facts, walk: Walk) -> Facts:
    here = list(walk.named(facts.name))
    return replace(
        facts,
        observations=tuple(walk.look(path, may_be_link=True) for path, is_ignored in here if not is_ignored),
        ignored=tuple(path for path, is_ignored in here if is_ignored),
        is_here=facts.document is not None and is_there(path_of(facts.document)),
    )


def is_there(path: Path) -> bool:
    """Say whether a path leads somewhere on this host; True if that cannot be told."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in NOT_THERE
    except ValueError:
        return False  # a path with a NUL in it
    return True


def _job(place: Place, document: Document) -> Figures | None:
    if status_of(document) is not Status.PROCESSING:
        return None
    jobs = place.figures(str(document.get("worker_id")))
    return next((job for job in jobs if job.run == document["_id"]), None)
