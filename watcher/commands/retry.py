"""`retry`: set a run back to pending."""

from __future__ import annotations

import argparse

from watcher.commands.shared import OK, load, statusdb
from watcher.journal import printable

NAME = "retry"
HELP = "set a failed run to pending, its failures forgotten"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the run's name."""
    parser.add_argument("run", metavar="RUN", help="the run's name")


def run(options: argparse.Namespace) -> int:
    """Set the run to pending; return the exit code. Raises UnknownRun, StatusDBUnavailable, ConfigError."""
    statusdb(load(options)).retry(options.run)
    print(f"run '{printable(options.run)}' is pending again, with no failures counted")
    return OK
