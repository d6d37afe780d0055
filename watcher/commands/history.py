"""`history`: what has happened to a run, or to all runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from watcher.commands.exit_codes import OK
from watcher.commands.shared import load, statusdb
from watcher.commands.table import Table, show
from watcher.model import Document, Status, Step, history
from watcher.statusdb import StatusDB

HEADER = ("at (UTC)", "run", "event", "now", "by", "times", "reason")


def run(options: argparse.Namespace) -> int:
    """Print the steps, the newest last; return the exit code. Raises UnknownRun, StatusDBUnavailable, ConfigError."""
    database = statusdb(load(options))
    documents = [database.demand(options.run)] if options.run else _all(database)
    steps = _newest(documents, options.last)
    dropped = sum(document.get("history_dropped", 0) for document in documents) if options.run else 0
    if options.json:
        print(json.dumps({"steps": steps, "dropped": dropped}, indent=2))
        return OK
    if dropped:
        print(f"{dropped} earlier steps are not kept")
    show_steps(steps)
    return OK


def show_steps(steps: list[Step]) -> None:
    """Print steps as a table; each has its `run`."""
    show([Table(HEADER, [_row(step) for step in steps])])


def _all(database: StatusDB) -> list[Document]:
    return [document for status in Status for document in database.with_status(status)]


def _newest(documents: list[Document], count: int) -> list[Step]:
    """Return the newest steps of all documents, the oldest of them first; each with its `run`."""
    every: Iterator[Step] = ({"run": document["_id"], **step} for document in documents for step in history(document))
    return sorted(every, key=lambda step: str(step.get("at", "")))[-count:]


def _row(step: Step) -> tuple[str, ...]:
    times = f"{step['times']} since {step['since'][:19]}" if "times" in step and "since" in step else ""
    reason = ": ".join(filter(None, (step.get("kind"), step.get("reason"))))
    texts = (step.get(key, "") for key in ("run", "event", "status", "by"))
    return (step.get("at", "")[:19], *texts, times, reason)
