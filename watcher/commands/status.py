"""`status`: the site in one screen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from watcher.commands import shared
from watcher.commands.exit_codes import OK
from watcher.commands.shared import counted, load
from watcher.commands.table import Table, follow, show
from watcher.config import Config
from watcher.model import Status
from watcher.overview import Overview, Place, RunView, look_at_site
from watcher.wiring import sites

ALERTS = ("alert", "what", "do")
HEADER = ("run", "sequencer", "status", "worker", "since (UTC)", "note")

WATCH_SECONDS = 2.0
"""How often `--watch` looks again."""


def run(options: argparse.Namespace) -> int:
    """Print how the site stands; return the exit code. Raises ConfigError, StatusDBUnavailable."""
    config = load(options)
    place = sites.place(config, shared.statusdb(config))
    if options.watch:
        follow(lambda: _blocks(_look(config, place, options), options), WATCH_SECONDS)
    overview = _look(config, place, options)
    if options.json:
        print(json.dumps(_as_json(overview, options), indent=2))
    else:
        show(_blocks(overview, options))
    return OK


def _look(config: Config, place: Place, options: argparse.Namespace) -> Overview:
    all_of_them = options.all or options.status == Status.ENCRYPTED
    shown = [status for status in Status if all_of_them or status is not Status.ENCRYPTED]
    return look_at_site(place, shown, config.minimum_free_space)


def _as_json(overview: Overview, options: argparse.Namespace) -> dict[str, Any]:
    """Return the site as a JSON object, which docs/operation.md describes."""
    runs = [run for run in overview.runs if _is_wanted(run, options)]
    return {
        "counts": overview.counts,
        "alerts": [vars(alert) for alert in overview.alerts],
        "free_bytes": overview.disks.free_bytes,
        "has_watcher": overview.has_watcher,
        "runs": [run.document for run in runs],
        "explanations": {run.name: vars(run.explanation) for run in runs},
        "skipped": [vars(one) for one in overview.disks.skipped],
        "unreadable": [{"run": one.run_id, "reason": one.reason} for one in overview.unreadable],
        "jobs": [vars(job) for job in overview.jobs],
    }


def _blocks(overview: Overview, options: argparse.Namespace) -> Iterator[Table | str]:
    yield counted(overview.counts)
    yield "; ".join(_facts(overview))
    yield Table(ALERTS, [(alert.what, alert.words, alert.remedy) for alert in overview.alerts])
    rows = [_row(run) for run in overview.runs if _is_wanted(run, options)]
    yield Table(HEADER, rows if _has_filter(options) else [*rows, *_others(overview)])


def _others(overview: Overview) -> Iterator[tuple[str, ...]]:
    """Yield the rows of what has no run's document, or one that cannot be read."""
    for bad in overview.unreadable:
        yield (bad.run_id, "", "unreadable", "", "", f"its document: {bad.reason}; mend or delete it")
    for one in overview.disks.skipped:
        path = Path(one.path)
        yield (path.name, path.parent.name, one.state, "", "", f"'{one.path}': {one.reason}")


def _facts(overview: Overview) -> Iterator[str]:
    if overview.disks.free_bytes is not None:
        yield f"{decimal(overview.disks.free_bytes)} free for archives"
    if oldest := overview.oldest:
        yield f"oldest that waits: {oldest.name}, since {oldest.document.get('created_at')}"
    if not overview.has_watcher:
        yield "no watcher runs on this host"


def _row(run: RunView) -> tuple[str, ...]:
    document = run.document
    worker, since = document.get("worker_id") or "", (document.get("updated_at") or "")[:19]
    return (run.name, run.sequencer, document["status"], worker, since, run.explanation.why)


def _has_filter(options: argparse.Namespace) -> bool:
    return any(each is not None for each in (options.status, options.sequencer, options.worker, options.older_than))


def _is_wanted(run: RunView, options: argparse.Namespace) -> bool:
    """Say whether a run passes the filters of the command line."""
    document = run.document
    return (
        options.status in (None, document["status"])
        and options.sequencer in (None, run.sequencer)
        and options.worker in (None, document.get("worker_id"))
        and (options.older_than is None or run.seconds_in_status(datetime.now(UTC)) >= options.older_than)
    )
