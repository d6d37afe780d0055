"""`restore`: bring an archived run back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from watcher import wiring
from watcher.commands.shared import OK, load, statusdb
from watcher.journal import printable
from watcher.restoring import Manner, restore

NAME = "restore"
HELP = "unwrap, decrypt, compare with what was recorded, and extract a run"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the run, where it shall appear, and what is restored only when asked."""
    parser.add_argument("run", metavar="RUN", help="the run's name")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the run directory shall appear")
    parser.add_argument(
        "--same-owner", action="store_true",
        help="give files the owners that they had, as only root can; otherwise they belong to who restores",
    )  # fmt: skip
    parser.add_argument(
        "--special", action="store_true",
        help="restore device nodes, and the set-uid and set-gid bits of files; otherwise a warning names each",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Restore the run; return the exit code. Raises UnknownRun, RestoreFailed, StatusDBUnavailable, ConfigError."""
    loaded = load(options)
    document = statusdb(loaded).demand(options.run)
    manner = Manner(same_owner=options.same_owner, special=options.special)
    restored = restore(document, wiring.archive_store(loaded), options.to.absolute(), loaded.gnupg_home, manner, _warn)
    print(f"restored '{printable(str(restored))}': its digests are those that were recorded")
    return OK


def _warn(words: str) -> None:
    print(f"dataflow_archive: warning: {printable(words)}", file=sys.stderr)
