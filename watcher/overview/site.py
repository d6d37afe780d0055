"""How the whole site stands: its runs, each explained, what needs a person, and what it archives with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from watcher.figures import Figures
from watcher.model import Document, Status, path_of, status_of
from watcher.overview.alerts import ORDER, Alert, alerts
from watcher.overview.disks import Disks, Skipped, look_at_disks
from watcher.overview.explanation import KEEP, OF_STATES, RENAME, Cause, Explanation, age, explain
from watcher.overview.facts import Facts, Place
from watcher.source import State
from watcher.statusdb import Unreadable

OF_SKIPPED: Mapping[str, tuple[Cause, str]] = {
    State.HELD: OF_STATES[State.HELD],
    State.UNUSABLE: OF_STATES[State.UNUSABLE],
    "collision": (Cause.COLLISION, RENAME),
    "changed": (Cause.CHANGED, KEEP),
}
"""Of the states in which a directory is skipped: the cause, and what to do."""


@dataclass(frozen=True)
class RunView:
    """A run as its document has it, with the reason why it stands so."""

    document: Document
    explanation: Explanation

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.document["_id"])

    @property
    def sequencer(self) -> str:
        """The name of the directory that the run lies in."""
        return path_of(self.document).parent.name

    def seconds_in_status(self, now: datetime) -> float:
        """Return how long ago the document was written last, by this host's clock."""
        return age(self.document.get("updated_at"), now)


@dataclass(frozen=True)
class Overview:
    """The site. `runs` are sorted by what needs a person; `jobs` are the current figures of this host's workers."""

    counts: dict[str, int]
    runs: tuple[RunView, ...]
    unreadable: tuple[Unreadable, ...]
    jobs: tuple[Figures, ...]
    alerts: tuple[Alert, ...]
    disks: Disks
    has_watcher: bool

    @property
    def oldest(self) -> RunView | None:
        """The run that has waited longest to be archived; None if none waits."""
        waiting = (run for run in self.runs if status_of(run.document) is Status.PENDING)
        return min(waiting, key=lambda run: str(run.document.get("created_at")), default=None)


def look_at_site(place: Place, statuses: Iterable[Status], minimum_free_bytes: int) -> Overview:
    """Return how the site stands, with the runs of these statuses. Raises StatusDBUnavailable."""
    database = place.statusdb
    documents = [document for status in statuses for document in database.with_status(status)]
    jobs, has_watcher = tuple(_jobs_here(place, documents)), place.has_watcher()
    disks = look_at_disks(place, documents)
    facts = Facts("", datetime.now(UTC), has_watcher=has_watcher, lease_seconds=place.lease_seconds)
    runs = [_explained(facts, document, jobs, disks) for document in documents]
    unreadable = database.unreadable()
    explained = {
        **{run.name: run.explanation for run in runs},
        **{one.run_id: explain(replace(facts, unreadable=one.reason))[0] for one in unreadable},
        **{_name_of(one): _of_skipped(one) for one in disks.skipped},
    }
    return Overview(
        database.count_by_status(),
        tuple(sorted(runs, key=_urgency)),
        unreadable,
        jobs,
        alerts(disks, minimum_free_bytes, has_watcher, explained),
        disks,
        has_watcher,
    )


def _jobs_here(place: Place, documents: Collection[Document]) -> Iterator[Figures]:
    """Yield the current figures of each job of the workers that run on this host."""
    processing = (document for document in documents if status_of(document) is Status.PROCESSING)
    for worker_id in sorted({str(document.get("worker_id")) for document in processing}):
        yield from place.figures(worker_id)


def _explained(facts: Facts, document: Document, jobs: Iterable[Figures], disks: Disks) -> RunView:
    name = document["_id"]
    job = next((job for job in jobs if job.run == name), None)
    of_run = replace(facts, name=name, document=document, is_here=name not in disks.absent, job=job)
    return RunView(document, explain(of_run)[0])


def _name_of(one: Skipped) -> str:
    """Return the run's name if it is its only directory, else the path: each is counted once."""
    return Path(one.path).name if one.state == "changed" else one.path


def _of_skipped(one: Skipped) -> Explanation:
    cause, remedy = OF_SKIPPED[one.state]
    return Explanation(cause, one.reason, remedy)


def _urgency(run: RunView) -> tuple[int, str]:
    return ORDER.index(run.explanation.cause), str(run.document.get("updated_at"))
