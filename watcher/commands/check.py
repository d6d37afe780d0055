"""`check`: whether this machine and its configuration are fit to archive."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from watcher import openpgp
from watcher.commands.exit_codes import FAILED, OK
from watcher.commands.shared import config_path, counted, load, observations, pause
from watcher.commands.table import Table, show
from watcher.config import Config, check_paths
from watcher.errors import ConfigError, WatcherError
from watcher.model import Encryption
from watcher.overview import Planned, plan
from watcher.process import low_limits
from watcher.source import State, file_system_type
from watcher.tar import tar_version
from watcher.text import printable
from watcher.wiring import archives, daemon, sites

GOOD, WARN, FAIL = "ok", "warn", "FAIL"
"""The marks of a finding."""

PLAN = ("run", "sequencer", "the watcher", "why")

EXPIRY_WARNING = timedelta(days=30)
"""A recipient's key that expires sooner is pointed out."""


@dataclass(frozen=True)
class Finding:
    """One line of `check`."""

    mark: str
    what: str
    detail: str


def run(options: argparse.Namespace) -> int:
    """Print what was found, a line each; return the exit code, 1 if something fails.

    Raises ConfigError and, for the plan, StatusDBUnavailable.
    """
    loaded = load(options)
    findings = [Finding(GOOD, "config", str(config_path(options))), *check(loaded)]
    planned = list(_plan(loaded)) if options.plan else []
    if options.json:
        print(
            json.dumps({"findings": list(map(vars, findings)), "plan": [_as_json(each) for each in planned]}, indent=2)
        )
    else:
        for finding in findings:
            print(f"{finding.mark:<5} {finding.what}: {finding.detail}")
        show([Table(PLAN, [_row(each) for each in planned])])
    return FAILED if any(finding.mark == FAIL for finding in findings) else OK


def _plan(config: Config) -> Iterator[Planned]:
    """Yield what a watcher that starts now would do with each run that is here and not archived."""
    database = sites.statusdb(config, pause)
    try:
        database.verify()
    except ConfigError:
        return plan(sites.walk(config), lambda _runs: {}, config.lease_seconds)  # the watcher will make it
    return plan(sites.walk(config), database.known, config.lease_seconds)


def _as_json(planned: Planned) -> dict[str, str]:
    return {"path": str(planned.run.path), "does": planned.does, **vars(planned.explanation)}


def _row(planned: Planned) -> tuple[str, ...]:
    path = planned.run.path
    return (path.name, path.parent.name, planned.does, planned.explanation.why)


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
            yield Finding(GOOD, what, f"'{path}' will be made")
            continue
        remote = daemon.remote_places(config) if what == "sequencing_path" else {}
        if path not in remote:
            yield Finding(GOOD, what, f"'{path}' on {file_system_type(path)}")
        for place, kind in remote.items():
            events = f"events of other hosts do not come: rescans every {config.network_rescan_interval:g} s"
            yield Finding(WARN, what, f"'{printable(str(place))}' on {kind}; {events}")
    if config.destination_path.is_dir():
        free = shutil.disk_usage(config.destination_path).free
        mark = GOOD if free > config.minimum_free_space else FAIL
        yield Finding(
            mark, "free space", f"{free / 1e9:.1f} GB, minimum_free_space {config.minimum_free_space / 1e9:.1f} GB"
        )


def _check_limits(config: Config) -> Iterator[Finding]:
    problems = tuple(low_limits(config.max_concurrent_jobs))
    yield from (Finding(FAIL, "limits", problem) for problem in problems)


def _check_gpg(config: Config) -> Iterator[Finding]:
    openpgp.require(Encryption(config.encryption), config.gnupg_home)
    yield Finding(GOOD, "gpg", openpgp.gpg_version(config.gnupg_home))


def _check_tar(_config: Config) -> Iterator[Finding]:
    yield Finding(GOOD, "tar", tar_version())


def _check_recipient(config: Config) -> Iterator[Finding]:
    recipient = archives.find_recipient(config)
    expires = recipient.expires
    soon = expires is not None and expires - datetime.now(UTC) < EXPIRY_WARNING
    when = f"expires {expires:%Y-%m-%d}" if expires else "never expires"
    yield Finding(WARN if soon else GOOD, "recipient", f"{recipient.fingerprint} {printable(recipient.user)}, {when}")


def _check_statusdb(config: Config) -> Iterator[Finding]:
    statusdb = sites.statusdb(config, pause)
    detail = statusdb.describe()
    try:
        statusdb.verify()
    except ConfigError as error:
        yield Finding(WARN, "status database", str(error))
        return
    yield Finding(GOOD, "status database", detail)
    yield Finding(GOOD, "run documents", counted(statusdb.count_by_status()))


def _check_inotify(config: Config) -> Iterator[Finding]:
    if not config.sequencing_path.is_dir():
        return  # said among the directories
    limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text(encoding="ascii"))
    needed = 1 + sum(1 for _ in config.sequencing_path.iterdir()) + sum(
        observation.state is not State.READY for observation in observations(config)
    )  # fmt: skip
    detail = f"{needed} watches needed, fs.inotify.max_user_watches is {limit}"
    more = f"; raise it: sysctl -w fs.inotify.max_user_watches={needed * 4}"
    yield Finding(GOOD if needed < limit else WARN, "inotify", detail if needed < limit else detail + more)
