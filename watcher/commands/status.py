"""`status`: how the runs stand."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from watcher.commands import shared
from watcher.commands.exit_codes import OK
from watcher.commands.shared import counted, load, observations
from watcher.config import Config
from watcher.journal import printable
from watcher.model import Document, Status, path_of, status_of
from watcher.source import NOT_THERE, State, unusable_name
from watcher.statusdb import StatusDB, Unreadable, collision

UNBROKEN_COLUMNS = 10_000
"""The width for a reader that is no terminal, such as grep: one line a run."""


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

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object: counts, the run documents, what is skipped, what is unreadable."""
        return {
            "counts": self.counts,
            "runs": list(self.documents),
            "skipped": [vars(one) for one in self.skipped],
            "unreadable": [{"run": one.run_id, "reason": one.reason} for one in self.unreadable],
        }

    def show(self) -> None:
        """Print the report as a table."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=UNBROKEN_COLUMNS)
        console.print(counted(self.counts))
        table = Table("run", "status", "worker", "failures", "since (UTC)", "note", box=None, pad_edge=False)
        for document in self.documents:
            table.add_row(*map(_cell, _row(document)))
        for bad in self.unreadable:
            note = f"its document: {bad.reason}; mend or delete it"
            table.add_row(*map(_cell, (bad.run_id, "unreadable", "", "", "", note)))
        for one in self.skipped:
            table.add_row(*map(_cell, (Path(one.path).name, one.state, "", "", "", f"'{one.path}': {one.reason}")))
        if table.row_count:
            console.print(table)


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
    return Report(statusdb.count_by_status(), tuple(documents), skipped, statusdb.unreadable())


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


def _row(document: Document) -> tuple[str, ...]:
    absence = "its directory is not on this host" if _is_elsewhere(document) else ""
    notes = (_progress(document) or _trouble(document), absence)
    return (
        document["_id"], document["status"], document.get("worker_id") or "", str(document.get("failure_count", 0)),
        (document.get("updated_at") or "")[:19], "; ".join(filter(None, notes)),
    )  # fmt: skip


def _progress(document: Document) -> str:
    claim = document.get("claim") or {}
    total, done = claim.get("bytes_total"), claim.get("bytes_done", 0)
    return f"{claim.get('phase', '')} {100 * done // total} %" if total else str(claim.get("phase", ""))


def _trouble(document: Document) -> str:
    error = document.get("last_error")
    pause = f", not before {document['not_before']}" if document.get("not_before") else ""
    return f"{error.get('kind')}: {error.get('message')}{pause}" if error else ""


def _is_elsewhere(document: Document) -> bool:
    """Say whether a run that is still to be archived has no directory here: it has gone, or is another host's."""
    if status_of(document) not in (Status.PENDING, Status.PROCESSING):
        return False
    try:
        os.stat(path_of(document))
    except OSError as error:
        return error.errno in NOT_THERE
    except ValueError:
        return True  # a path with a NUL in it
    return False


def _cell(text: str) -> Text:
    return Text(printable(text))
