"""How long do the start-up scan and a rescan take when all runs are registered already?

The real command as a process, on a tree of complete runs whose documents say `encrypted`. Requests to a
CouchDB are counted by a proxy in front of it; SQLite says itself whether another process has written.

  python tests/benchmarks/scan.py --runs 100000
  python tests/benchmarks/scan.py --runs 100000 --statusdb couchdb
"""

from __future__ import annotations

import re
import sqlite3
import statistics
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import bench
import requests
from fault_proxy import FaultProxy, Request
from sites import Site

from watcher import model
from watcher.model import Archive, Document, Run
from watcher.source import SENTINEL
from watcher.statusdb.couchdb import DESIGN

RESCANS = 3
BATCH = 1000
SEQUENCERS = 10
VIEW_SECONDS = 3600  # a server builds a view when it is first asked for; at an existing site that was long ago
WRITES = ("PUT", "DELETE")


def make_runs(site: Site, count: int) -> list[Run]:
    """Make complete runs that are as small as can be: no scan looks into one."""
    for sequencer in range(SEQUENCERS):
        (site.sequencing / f"sequencer_{sequencer}").mkdir()
    paths = [site.sequencing / f"sequencer_{number % SEQUENCERS}" / f"run_{number:06}" for number in range(count)]
    for path in paths:
        path.mkdir()
        (path / SENTINEL).write_text("0\n")
    return [Run(path) for path in paths]


def archived(run: Run, now: datetime) -> Document:
    """Return the document of an archived run."""
    archive = Archive(
        f"{run.name}.tar.gpg", 10**12, "0" * 64, "1" * 64, 10**12, f"{run.name}.key.gpg", "2" * 64, "A" * 40, 20_000,
        token="3" * 32,
    )  # fmt: skip
    return {
        **model.registered(run, now),
        "status": "encrypted",
        "worker_id": "worker_1",
        "archive": archive.to_document(),
    }


def register(site: Site, runs: list[Run]) -> None:
    """Write documents as they are after years of archiving, and let the view be built."""
    site.statusdb()
    store, now = site.store(), datetime.now(UTC)
    for start in range(0, len(runs), BATCH):
        store.insert_many([archived(run, now) for run in runs[start : start + BATCH]])
    if site.options["statusdb"]["url"].startswith("http"):
        view = f"{bench.address(site)}/_design/{DESIGN}/_view/by_status"
        requests.get(view, params={"limit": "1", "reduce": "false"}, timeout=VIEW_SECONDS).raise_for_status()


def is_write(request: Request) -> bool:
    return request.method in WRITES or "_bulk_docs" in request.path


def scans(log: str) -> list[float]:
    """Return the seconds of each scan that the log tells of."""
    return [float(found) for found in re.findall(r"rescan: \d+ runs seen in ([0-9.]+) s", log)]


class Commits:
    """Tells whether another process has written to an SQLite file since this was made."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._before = self._version()

    def any(self) -> bool:
        return self._version() != self._before

    def _version(self) -> int:
        return int(self._connection.execute("pragma data_version").fetchone()[0])


def main() -> None:
    """Print the table."""
    options = bench.arguments(__doc__, runs=5000, statusdb="sqlite", directory="", interval=5.0)
    with bench.facility(options.statusdb, options.directory) as site, ExitStack() as stack:
        register(site, make_runs(site, options.runs))
        proxy = None
        if options.statusdb == "couchdb":
            statusdb = site.options["statusdb"]
            proxy = stack.enter_context(FaultProxy(statusdb["url"]))
            site.configure(statusdb={**statusdb, "url": proxy.url})
        site.configure(rescan_interval=options.interval)
        commits = None if proxy else Commits(site.database)
        started = time.monotonic()
        daemon = site.start().wait_ready()
        ready = time.monotonic() - started
        at_start = list(proxy.requests) if proxy else []
        while len(scans(daemon.log)) < 1 + RESCANS:
            time.sleep(0.1)
        later = proxy.requests[len(at_start) :] if proxy else []
        peak, now = bench.memory(daemon.pid, "VmHWM"), bench.memory(daemon.pid)
        seconds = scans(daemon.log)
        written = commits is not None and commits.any()
        if proxy:
            proxy.down()
        bench.end(daemon)
    rows: list[tuple[object, ...]] = [
        ("start-up scan", f"{seconds[0]:.2f}", len(at_start), sum(map(is_write, at_start))),
        (
            f"rescan, median of {RESCANS}",
            f"{statistics.median(seconds[1:]):.2f}",
            f"{sum('_changes' not in request.path for request in later) / RESCANS:.1f}",
            sum(map(is_write, later)),
        ),
    ]
    if proxy is None:
        rows = [(*row[:2], "-", "some" if written else "none") for row in rows]
    bench.table(f"{options.runs} registered runs ({options.statusdb})", ("scan", "seconds", "requests", "writes"), rows)
    print(f"  from the process's start to ready: {ready:.2f} s; memory at most {peak:.0f} MB, then {now:.0f} MB")


if __name__ == "__main__":
    main()
