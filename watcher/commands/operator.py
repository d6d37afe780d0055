"""What commands that change runs have in common: they ask first, do what they can, and say what they did."""

from __future__ import annotations

import argparse
import os
import pwd
import socket
import sys
from collections.abc import Callable, Sequence

from watcher.commands.exit_codes import FAILED, OK
from watcher.errors import UnknownRun
from watcher.text import printable

NAMED = 5
"""So many of the runs are named in the question."""


def change_each(runs: Sequence[str], change: Callable[[str], str], question: str, options: argparse.Namespace) -> int:
    """Change each run once the operator agrees; return the exit code.

    `change` returns what it did, in words. What it refuses is told, and the next run follows. Raises
    StatusDBUnavailable.
    """
    if not runs or not _agrees(question, runs, options.yes):
        print("nothing was changed")
        return OK if not runs else FAILED
    code = OK
    for run in dict.fromkeys(runs):
        try:
            print(f"run '{printable(run)}' {change(run)}")
        except UnknownRun as error:
            print(f"dataflow_archive: {printable(str(error))}", file=sys.stderr)
            code = FAILED
    return code


def who() -> str:
    """Return who gives the command, as the run's history will have it: `user@host`."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _agrees(question: str, runs: Sequence[str], yes: bool) -> bool:
    """Say whether the operator agrees. Only who sits at a terminal is asked."""
    if yes or not (sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty()):
        return True
    names, more = ", ".join(map(printable, runs[:NAMED])), len(runs) - NAMED
    if more > 0:
        names += f" and {more} more"
    try:
        return input(f"{question} {names}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
