"""`status`: how the runs stand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.commands import shared
from watcher.commands.exit_codes import OK
from watcher.commands.shared import counted, load, observations
from watcher.commands.table import show
from watcher.config import Config
from watcher.figures import Figures, current_figures
from watcher.model import Document, Status, lock_name, path_of, phase_of, status_of
from watcher.overview import current, is_there, percent
from watcher.source import State, unusable_name
from watcher.statusdb import StatusDB, Unreadable, collision
from watcher.text import printable

HEADER = ("run", "status", "worker", "failures", "since (UTC)", "note")


@dataclass(frozen=True)
class Skipped:
    """A run directory that is not archived as it stands: held, unusable, in a collision, or changed since."""

    path: str
    state: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `status` tells."""

    counts: dict[str, int]
    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]
    unreadable: tuple[Unreadable, ...] = ()
    jobs: tuple[Figures, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object: counts, run documents, what is skipped, what is unreadable, and `jobs`.

        These are the current figures of the jobs on this host, which `watcher.figures` describes.
        """
        return {
            "counts": self.counts,
            "runs": list(self.documents),
            "skipped": [vars(one) for one in self.skipped],
            "unreadable": [{"run": one.run_id, "reason": one.reason} for one in self.unreadable],
            "jobs": [vars(job) for job in self.jobs],
        }

    def show(self) -> None:
        """Print the report as a table."""
        print(counted(self.counts))
        jobs = {job.run: job for job in self.jobs}
        rows = [_row(document, jobs.get(document["_id"])) for document in self.documents]
        for bad in self.unreadable:
            rows.append((bad.run_id, "unreadable", "", "", "", f"its document: {bad.reason}; mend or delete it"))
        for one in self.skipped:
            rows.append((Path(one.path).name, one.state, "", "", "", f"'{one.path}': {one.reason}"))
        show(HEADER, rows)


def run(options: argparse.Namespace) -> int:
    """Print how the runs stand; return the exit code. Raises ConfigError, StatusDBUnavailable."""
    report = status(load(options), everything=options.all)
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        report.show()
    return OK


def status(config: Config, everything: bool = False) -> Report:
    """Return how the runs stand in the status database, and which directories here are skipped and why.

    Raises ConfigError or StatusDBUnavailable.
    """
    statusdb = shared.statusdb(config)
    shown = [status for status in Status if everything or status is not Status.ENCRYPTED]
    documents = [document for status in shown for document in statusdb.with_status(status)]
    skipped = tuple(_skipped(config, statusdb))
    jobs = tuple(_jobs_here(config, documents))
    return Report(statusdb.count_by_status(), tuple(documents), skipped, statusdb.unreadable(), jobs)


def _jobs_here(config: Config, documents: Sequence[Document]) -> Iterator[Figures]:
    """Yield the current figures of each job of the workers that run on this host."""
    processing = (document for document in documents if status_of(document) is Status.PROCESSING)
    for worker_id in sorted({str(document.get("worker_id")) for document in processing}):
        yield from current_figures(config.destination_path / lock_name(worker_id))


def _skipped(config: Config, statusdb: StatusDB) -> Iterator[Skipped]:
    ready = []
    for observation in observations(config):
        path = printable(str(observation.run.path))
        bad_name = unusable_name(observation.run.name)
        if observation.state is State.READY and bad_name:
            yield Skipped(path, State.UNUSABLE, bad_name)
        elif observation.state is State.READY:
            ready.append(observation.run)
        elif observation.reason:
            yield Skipped(path, observation.state, observation.reason)
    known = statusdb.known(ready)
    for run in ready:
        document = known.get(run.name)
        if document is not None and document.get("path") != str(run.path):
            yield Skipped(printable(str(run.path)), "collision", collision(run, document))
        elif document is not None and document.get("changed_since"):
            words = f"it is not what was archived any more, seen at {document['changed_since']}; keep it"
            yield Skipped(printable(str(run.path)), "changed", words)


def _row(document: Document, job: Figures | None) -> tuple[str, ...]:
    absence = "its directory is not on this host" if _is_elsewhere(document) else ""
    notes = ((current(job) if job else _recorded(document)) or _trouble(document), absence)
    return (
        document["_id"], document["status"], document.get("worker_id") or "", str(document.get("failure_count", 0)),
        (document.get("updated_at") or "")[:19], "; ".join(filter(None, notes)),
    )  # fmt: skip


def _recorded(document: Document) -> str:
    """Say how far a run was when its claim was renewed last."""
    claim = document.get("claim") or {}
    total, done = claim.get("bytes_total"), claim.get("bytes_done", 0)
    return f"{phase_of(document)} {percent(done, total)}" if total else phase_of(document)


def _trouble(document: Document) -> str:
    error = document.get("last_error")
    pause = f", not before {document['not_before']}" if document.get("not_before") else ""
    return f"{error.get('kind')}: {error.get('message')}{pause}" if error else ""


def _is_elsewhere(document: Document) -> bool:
    """Say whether a run that is still to be archived has no directory here: it has gone, or is another host's."""
    if status_of(document) not in (Status.PENDING, Status.PROCESSING):
        return False
    return not is_there(path_of(document))
