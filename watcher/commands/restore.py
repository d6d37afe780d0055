"""`restore`: bring an archived run back."""

from __future__ import annotations

import argparse
import sys

from watcher.commands.exit_codes import OK
from watcher.commands.shared import load, statusdb
from watcher.journal import printable
from watcher.restoring import Manner, restore
from watcher.wiring import archives


def run(options: argparse.Namespace) -> int:
    """Restore the run; return the exit code. Raises UnknownRun, RestoreFailed, StatusDBUnavailable, ConfigError."""
    loaded = load(options)
    document = statusdb(loaded).demand(options.run)
    manner = Manner(same_owner=options.same_owner, special=options.special)
    restored = restore(
        document, archives.archive_store(loaded), options.to.absolute(), loaded.gnupg_home, manner, _warn
    )
    print(f"restored '{printable(str(restored))}': its digests are those that were recorded")
    return OK


def _warn(words: str) -> None:
    print(f"dataflow_archive: warning: {printable(words)}", file=sys.stderr)
