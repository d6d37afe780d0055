"""`cancel`: take runs from the workers that archive them."""

from __future__ import annotations

import argparse

from watcher.commands.operator import change_each, who
from watcher.commands.shared import load, statusdb


def run(options: argparse.Namespace) -> int:
    """Cancel the work on each run; return the exit code. Raises StatusDBUnavailable, ConfigError."""
    database = statusdb(load(options))

    def cancel(name: str) -> str:
        worker = database.cancel(name, who()).get("worker_id")
        return f"is held, no attempt counted: worker '{worker}' stops as soon as it hears of it"

    return change_each(options.runs, cancel, "cancel the work on", options)
