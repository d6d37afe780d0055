"""`retry`: set runs back to pending."""

from __future__ import annotations

import argparse

from watcher.commands.operator import change_each, who
from watcher.commands.shared import load, statusdb
from watcher.model import Status


def run(options: argparse.Namespace) -> int:
    """Set each run to pending; return the exit code. Raises StatusDBUnavailable, ConfigError."""
    if bool(options.runs) == options.all_failed:
        options.refuse("name runs, or say --all-failed")
    database = statusdb(load(options))
    failed = database.with_status(Status.FAILED) if options.all_failed else []

    def retry(name: str) -> str:
        database.retry(name, who())
        return "is pending again, with no failures counted"

    return change_each(options.runs or [document["_id"] for document in failed], retry, "retry", options)
