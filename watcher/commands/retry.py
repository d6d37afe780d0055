"""`retry`: set a run back to pending."""

from __future__ import annotations

import argparse

from watcher.commands.exit_codes import OK
from watcher.commands.shared import load, statusdb
from watcher.text import printable


def run(options: argparse.Namespace) -> int:
    """Set the run to pending; return the exit code. Raises UnknownRun, StatusDBUnavailable, ConfigError."""
    statusdb(load(options)).retry(options.run)
    print(f"run '{printable(options.run)}' is pending again, with no failures counted")
    return OK
