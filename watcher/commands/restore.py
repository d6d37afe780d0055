"""`restore`: bring an archived run back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from watcher.commands.exit_codes import OK
from watcher.commands.progress import shown
from watcher.commands.shared import load, statusdb
from watcher.job import Job
from watcher.model import Run
from watcher.restoring import Manner, restore
from watcher.stored import StoredRun
from watcher.text import printable
from watcher.wiring import archives


def run(options: argparse.Namespace) -> int:
    """Restore the run; return the exit code.

    Raises UnknownRun, RestoreFailed, NotAsRecorded, WrapFailed, StatusDBUnavailable, ConfigError.
    """
    loaded = load(options)
    stored = StoredRun.of(statusdb(loaded).demand(options.run), archives.archive_store(loaded))
    manner = Manner(same_owner=options.same_owner, special=options.special, only=tuple(options.only))
    job = Job(Run(Path(stored.name)))
    with shown(job):
        restored = restore(stored, options.to.absolute(), loaded.gnupg_home, manner, _warn, job)
    what = "the digest of each member is the one that was" if options.only else "its digests are those that were"
    print(f"restored '{printable(str(restored))}': {what} recorded")
    return OK


def _warn(words: str) -> None:
    print(f"dataflow_archive: warning: {printable(words)}", file=sys.stderr)
