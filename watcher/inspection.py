"""Looking without touching: whether this machine is fit to archive, and how the runs stand."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from watcher import assembly, crypto
from watcher.archive import MAX_RUN_NAME_BYTES
from watcher.config import Config, check_paths
from watcher.errors import ConfigError, WatcherError
from watcher.intake import collision
from watcher.journal import printable
from watcher.model import Document, Status, status_of
from watcher.mounts import file_system_type
from watcher.observer import Observer
from watcher.process import low_limits
from watcher.sentinels import NOT_THERE, Policy, Sighting, State, unusable_name
from watcher.statusdb import StatusDB, Unreadable, path_of
from watcher.tar import tar_version

OK, WARN, FAIL = "ok", "warn", "FAIL"

EXPIRY_WARNING = timedelta(days=30)
"""A recipient's key that expires sooner is pointed out."""


UNBROKEN_COLUMNS = 10_000
"""The width for a reader that is no terminal, such as grep: one line a run."""


@dataclass(frozen=True)
class Finding:
    """One line of `check`."""

    mark: str
    what: str
    detail: str


def check(config: Config) -> list[Finding]:
    """Look at everything that archiving by this configuration needs; nothing is changed or made."""
    parts: tuple[tuple[str, Callable[[Config], Iterator[Finding]]], ...] = (
        ("limits", _check_limits),
        ("directories", _check_directories),
        ("gpg", _check_gpg),
        ("tar", _check_tar),
        ("recipient", _check_recipient),
        ("status database", _check_statusdb),
        ("inotify", _check_inotify),
    )
    findings = []
    for what, look in parts:
        try:
            findings += list(look(config))
        except (WatcherError, OSError) as error:
            problems = error.problems if isinstance(error, ConfigError) else (str(error),)
            findings += [Finding(FAIL, what, printable(problem)) for problem in problems]
    return findings


def _check_directories(config: Config) -> Iterator[Finding]:
    problems = check_paths(config)
    yield from (Finding(FAIL, "directories", printable(problem)) for problem in problems)
    for what in ("sequencing_path", "destination_path", "run_keys_path"):
        path: Path = getattr(config, what)
        if any(problem.startswith(f"{what}:") for problem in problems):
            continue
        if not path.is_dir():
            yield Finding(OK, what, f"'{path}' will be made")
            continue
        remote = assembly.remote_places(config) if what == "sequencing_path" else {}
        if path not in remote:
            yield Finding(OK, what, f"'{path}' on {file_system_type(path)}")
        for place, kind in remote.items():
            events = f"events of other hosts do not come: rescans every {config.network_rescan_interval:g} s"
            yield Finding(WARN, what, f"'{printable(str(place))}' on {kind}; {events}")
    if config.destination_path.is_dir():
        free = shutil.disk_usage(config.destination_path).free
        mark = OK if free > config.minimum_free_space else FAIL
        yield Finding(
            mark, "free space", f"{free / 1e9:.1f} GB, minimum_free_space {config.minimum_free_space / 1e9:.1f} GB"
        )


def _check_limits(config: Config) -> Iterator[Finding]:
    problems = tuple(low_limits(config.max_concurrent_jobs))
    yield from (Finding(FAIL, "limits", problem) for problem in problems)


def _check_gpg(config: Config) -> Iterator[Finding]:
    yield Finding(OK, "gpg", crypto.gpg_version(config.gnupg_home))


def _check_tar(_config: Config) -> Iterator[Finding]:
    yield Finding(OK, "tar", tar_version())


def _check_recipient(config: Config) -> Iterator[Finding]:
    recipient = assembly.find_recipient(config)
    expires = recipient.expires
    soon = expires is not None and expires - datetime.now(UTC) < EXPIRY_WARNING
    when = f"expires {expires:%Y-%m-%d}" if expires else "never expires"
    yield Finding(WARN if soon else OK, "recipient", f"{recipient.fingerprint} {printable(recipient.user)}, {when}")


def _check_statusdb(config: Config) -> Iterator[Finding]:
    statusdb = assembly.statusdb(config, _wait)
    detail = statusdb.describe()
    try:
        statusdb.verify()
    except ConfigError as error:
        yield Finding(WARN, "status database", str(error))
        return
    yield Finding(OK, "status database", detail)
    yield Finding(OK, "run documents", _counted(statusdb.count_by_status()))


def _check_inotify(config: Config) -> Iterator[Finding]:
    if not config.sequencing_path.is_dir():
        return  # said among the directories
    limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text(encoding="ascii"))
    needed = 1 + sum(1 for _ in config.sequencing_path.iterdir()) + sum(
        sighting.state is not State.READY for sighting in _sightings(config)
    )  # fmt: skip
    detail = f"{needed} watches needed, fs.inotify.max_user_watches is {limit}"
    more = f"; raise it: sysctl -w fs.inotify.max_user_watches={needed * 4}"
    yield Finding(OK if needed < limit else WARN, "inotify", detail if needed < limit else detail + more)


@dataclass(frozen=True)
class Skipped:
    """A run directory that is not archived as it stands: held, unusable, in a collision, or changed since."""

    path: str
    state: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `status` tells."""

    counts: dict[str, int]
    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]
    unreadable: tuple[Unreadable, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object: counts, the run documents, what is skipped, what is unreadable."""
        return {
            "counts": self.counts,
            "runs": list(self.documents),
            "skipped": [vars(one) for one in self.skipped],
            "unreadable": [{"run": one.run_id, "reason": one.reason} for one in self.unreadable],
        }

    def show(self) -> None:
        """Print the report as a table."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=UNBROKEN_COLUMNS)
        console.print(_counted(self.counts))
        table = Table("run", "status", "worker", "failures", "since (UTC)", "note", box=None, pad_edge=False)
        for document in self.documents:
            table.add_row(*map(_cell, _row(document)))
        for bad in self.unreadable:
            note = f"its document: {bad.reason}; mend or delete it"
            table.add_row(*map(_cell, (bad.run_id, "unreadable", "", "", "", note)))
        for one in self.skipped:
            table.add_row(*map(_cell, (Path(one.path).name, one.state, "", "", "", f"'{one.path}': {one.reason}")))
        if table.row_count:
            console.print(table)


def status(config: Config, everything: bool = False) -> Report:
    """Return how the runs stand in the status database, and which directories here are skipped and why.

    Raises ConfigError or StatusDBUnavailable.
    """
    statusdb = assembly.statusdb(config, _wait)
    statusdb.verify()
    shown = [status for status in Status if everything or status is not Status.ENCRYPTED]
    documents = [document for status in shown for document in statusdb.with_status(status)]
    skipped = tuple(_skipped(config, statusdb))
    return Report(statusdb.count_by_status(), tuple(documents), skipped, statusdb.unreadable())


def _skipped(config: Config, statusdb: StatusDB) -> Iterator[Skipped]:
    ready = []
    for sighting in _sightings(config):
        path = printable(str(sighting.run.path))
        bad_name = unusable_name(sighting.run.name, MAX_RUN_NAME_BYTES)
        if sighting.state is State.READY and bad_name:
            yield Skipped(path, State.UNUSABLE, bad_name)
        elif sighting.state is State.READY:
            ready.append(sighting.run)
        elif sighting.reason:
            yield Skipped(path, sighting.state, sighting.reason)
    known = statusdb.known(ready)
    for run in ready:
        document = known.get(run.name)
        if document is not None and document.get("path") != str(run.path):
            yield Skipped(printable(str(run.path)), "collision", collision(run, document))
        elif document is not None and document.get("changed_since"):
            words = f"it is not what was archived any more, seen at {document['changed_since']}; keep it"
            yield Skipped(printable(str(run.path)), "changed", words)


def _sightings(config: Config) -> Iterator[Sighting]:
    # An observer that was not started has no watches to set: it only looks.
    observer = Observer(
        config.sequencing_path, lambda _: None, lambda _: None, config.ignore, Policy(config.sentinel_policy)
    )
    return observer.sweep()


def _row(document: Document) -> tuple[str, ...]:
    absence = "its directory is not on this host" if _is_elsewhere(document) else ""
    notes = (_progress(document) or _trouble(document), absence)
    return (
        document["_id"], document["status"], document.get("worker_id") or "", str(document.get("failure_count", 0)),
        (document.get("updated_at") or "")[:19], "; ".join(filter(None, notes)),
    )  # fmt: skip


def _progress(document: Document) -> str:
    claim = document.get("claim") or {}
    total, done = claim.get("bytes_total"), claim.get("bytes_done", 0)
    return f"{claim.get('phase', '')} {100 * done // total} %" if total else str(claim.get("phase", ""))


def _trouble(document: Document) -> str:
    error = document.get("last_error")
    wait = f", not before {document['not_before']}" if document.get("not_before") else ""
    return f"{error.get('kind')}: {error.get('message')}{wait}" if error else ""


def _is_elsewhere(document: Document) -> bool:
    """Say whether a run that is still to be archived has no directory here: it has gone, or is another host's."""
    if status_of(document) not in (Status.PENDING, Status.PROCESSING):
        return False
    try:
        os.stat(path_of(document))
    except OSError as error:
        return error.errno in NOT_THERE
    except ValueError:
        return True  # a path with a NUL in it
    return False


def _cell(text: str) -> Text:
    return Text(printable(text))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts.get(status, 0)} {status}" for status in Status)


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False
