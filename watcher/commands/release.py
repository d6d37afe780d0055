"""`release`: let held runs be taken again."""

from __future__ import annotations

import argparse

from watcher.commands.operator import change_each, who
from watcher.commands.shared import load, statusdb


def run(options: argparse.Namespace) -> int:
    """Release each run; return the exit code. Raises StatusDBUnavailable, ConfigError."""
    database = statusdb(load(options))

    def release(name: str) -> str:
        database.unhold(name, who())
        return "is pending again"

    return change_each(options.runs, release, "release", options)
