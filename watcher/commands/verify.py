"""`verify`: whether archives are still what was recorded."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from watcher.commands.exit_codes import FAILED, OK
from watcher.commands.progress import shown
from watcher.commands.shared import load, statusdb
from watcher.config import Config
from watcher.errors import NotAsRecorded, UnknownRun, ValidateFailed
from watcher.job import Job
from watcher.manifest import MalformedManifest
from watcher.model import Document, Phase, Run, Status, verified_at
from watcher.statusdb import StatusDB
from watcher.stored import StoredRun
from watcher.text import printable
from watcher.verifying import require_directories, verify_content, verify_files
from watcher.wiring import archives

NICENESS = 19

DAMAGES = (NotAsRecorded, ValidateFailed, MalformedManifest)
"""What is wrong with an archive, and not with this machine."""


def run(options: argparse.Namespace) -> int:
    """Verify the runs; return the exit code: 1 if one is not as it was recorded.

    Raises UnknownRun, StoreAway, WrapFailed without the private key or gpg, StatusDBUnavailable, ConfigError.
    """
    if bool(options.runs) == (options.all or options.older_than is not None):
        options.refuse("name the runs, or say --all or --older-than")
    loaded = load(options)
    database = statusdb(loaded)
    _give_way()
    code, end = OK, time.monotonic() + (float("inf") if options.budget is None else options.budget)
    documents = list(_chosen(options, database))
    for number, document in enumerate(documents):
        if time.monotonic() >= end:
            print(f"{len(documents) - number} runs are left: the budget is spent")
            break
        try:
            stored = StoredRun.of(document, archives.archive_store(loaded))
        except UnknownRun as error:
            if options.runs:
                raise
            _warn(str(error))
            continue
        problem = _verify(stored, options.content, loaded)
        database.mark_verified(document, options.content, problem)
        print(f"{printable(stored.name)}: {printable(problem) or 'as recorded'}", flush=True)
        code = FAILED if problem else code
    return code


def _verify(stored: StoredRun, with_content: bool, loaded: Config) -> str:
    """Return what is not as it was recorded; empty if all is."""
    job = Job(Run(Path(stored.name)))
    job.enter(Phase.VALIDATING, stored.archive.size)
    try:
        with shown(job):
            warning = verify_files(stored, job, loaded.gnupg_home, with_archive=not with_content)
            if with_content:
                verify_content(stored, job, loaded.gnupg_home)
    except DAMAGES as error:
        require_directories(stored)
        return str(error)
    if warning:
        _warn(f"run '{stored.name}': {warning}")
    return ""


def _warn(words: str) -> None:
    print(f"dataflow_archive: warning: {printable(words)}", file=sys.stderr)


def _chosen(options: argparse.Namespace, database: StatusDB) -> Iterator[Document]:
    """Yield the documents of the runs: those that are named, or those whose last verification is oldest, first."""
    if options.runs:
        yield from map(database.demand, options.runs)
        return
    newest = datetime.now(UTC) - timedelta(seconds=options.older_than or 0)
    dated = [(verified_at(one, options.content), one) for one in database.with_status(Status.ENCRYPTED)]
    for at, document in sorted(dated, key=lambda pair: (pair[0], pair[1]["_id"])):
        if at <= newest:
            yield document


def _give_way() -> None:
    """Leave processor and disk to others: to archiving, above all. The children inherit it."""
    os.nice(NICENESS)
    with suppress(OSError):
        subprocess.run(["ionice", "--class", "idle", "--pid", str(os.getpid())], check=False, stderr=subprocess.DEVNULL)
