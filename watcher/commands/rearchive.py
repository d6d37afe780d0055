"""`rearchive`: archive runs again that were transferred again."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from watcher.commands.operator import change_each, who
from watcher.commands.shared import load, statusdb
from watcher.errors import UnknownRun
from watcher.stored import StoredRun, move_aside
from watcher.wiring import archives


def run(options: argparse.Namespace) -> int:
    """Move each run's files aside and set it to pending; return the exit code.

    Raises StatusDBUnavailable, ConfigError, and OSError when a file cannot be moved.
    """
    config = load(options)
    database, archive_store = statusdb(config), archives.archive_store(config)

    def rearchive(name: str) -> str:
        document = database.demand(name)
        stored = StoredRun.of(document, archive_store)
        if not document.get("changed_since"):
            raise UnknownRun(f"run '{name}' has not changed since it was archived, as far as a watcher has seen")
        moved = move_aside(stored, datetime.now(UTC))
        database.retry(name, who())
        return f"is pending again; moved aside: {', '.join(str(path) for path in moved) or 'nothing'}"

    return change_each(options.runs, rearchive, "archive again", options)
