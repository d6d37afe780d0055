"""How long from a sentinel's close to `processing` in the status database?

The real command as a process, one run after the other. `--load` adds open runs of 100 files each, and a
writer that opens, appends to and closes files in 20 of them all the time.

  python tests/benchmarks/notice_latency.py --times 200
  python tests/benchmarks/notice_latency.py --times 200 --statusdb couchdb --load
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bench
import requests
from sites import PATIENCE_SECONDS, Site

from watcher.source import SENTINEL

LOOK_SECONDS = 0.0003
LOADED_RUNS = 20
FILES = 100

WRITER = """
import itertools, sys, time
for path in itertools.cycle(sys.argv[1:]):
    for _ in range(10):
        with open(path, "a") as file:
            file.write("one more line\\n")
    time.sleep(0.001)
"""


class Observations:
    """When each run was first seen `processing`, as `time.monotonic` has it."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition()

    def see(self, run_id: str) -> None:
        with self._changed:
            self._seen.setdefault(run_id, time.monotonic())
            self._changed.notify_all()

    def wait_for(self, run_id: str) -> float:
        with self._changed:
            if not self._changed.wait_for(lambda: run_id in self._seen, PATIENCE_SECONDS):
                raise TimeoutError(run_id)
            return self._seen[run_id]


def follow_sqlite(site: Site, observations: Observations, ended: threading.Event) -> None:
    """Look at the database file every 0.3 ms; that is the error of the measurement."""
    connection = sqlite3.connect(site.database)
    version = None
    while not ended.is_set():
        now = connection.execute("pragma data_version").fetchone()
        if now != version:
            version = now
            for (run_id,) in connection.execute("select id from documents where status = 'processing'"):
                observations.see(run_id)
        time.sleep(LOOK_SECONDS)
    connection.close()


def follow_couchdb(site: Site, observations: Observations, ended: threading.Event) -> None:
    """Follow the server's own feed, which sends a line a change."""
    query = {"feed": "continuous", "since": "now", "include_docs": "true", "heartbeat": "1000"}
    address = f"{bench.address(site)}/_changes"
    plain = {"Accept-Encoding": "identity"}  # gzip would keep lines back until it has enough of them
    try:
        with requests.get(address, params=query, headers=plain, stream=True, timeout=PATIENCE_SECONDS) as answer:
            for line in answer.iter_lines(chunk_size=1):
                if line and json.loads(line).get("doc", {}).get("status") == "processing":
                    observations.see(json.loads(line)["id"])
    except requests.RequestException:
        if not ended.is_set():  # else the server has ended, as it should
            raise


@contextmanager
def following(site: Site, statusdb: str) -> Iterator[Observations]:
    """See runs become `processing` while the context lasts."""
    observations, ended = Observations(), threading.Event()
    follow: Callable[[Site, Observations, threading.Event], None] = (
        follow_couchdb if statusdb == "couchdb" else follow_sqlite
    )
    thread = threading.Thread(target=follow, args=(site, observations, ended), daemon=True)
    thread.start()
    yield observations
    ended.set()


@contextmanager
def load(site: Site, runs: int) -> Iterator[None]:
    """Make open runs, and append to files at the top of some of them while the context lasts."""
    paths = []
    for number in range(runs):
        run = site.sequencing / f"sequencer_{number % 10}" / f"open_{number:05}"
        run.mkdir(parents=True)
        for name in range(FILES):
            (run / f"file_{name:03}.log").write_bytes(b"")
        paths.append(run)
    logs = [str(run / f"file_{number:03}.log") for run in paths[:LOADED_RUNS] for number in range(FILES)]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, *logs]) if logs else None
    try:
        yield
    finally:
        if writer:
            writer.kill()
            writer.wait()


def close_sentinel(run: Path) -> float:
    """Write the sentinel as a shell does; return when it was closed."""
    with open(run / SENTINEL, "w", encoding="ascii") as file:
        file.write("0\n")
    return time.monotonic()


def measure(site: Site, statusdb: str, times: int, warm_up: int = 3) -> list[float]:
    """Complete one run after the other; return the seconds to `processing`."""
    runs = [site.make_run(f"run_{number:04}", size=1000) for number in range(times + warm_up)]
    site.start().wait_ready()
    seconds = []
    with following(site, statusdb) as observations:
        time.sleep(1)
        for run in runs:
            closed = close_sentinel(run)
            seconds.append(observations.wait_for(run.name) - closed)
            site.wait_for(run.name)
    return seconds[warm_up:]


def main() -> None:
    """Print the table."""
    options = bench.arguments(__doc__, times=20, statusdb="sqlite", load=False, open_runs=3000, directory="", warm_up=3)
    with (
        bench.facility(options.statusdb, options.directory) as site,
        load(site, options.open_runs if options.load else 0),
    ):
        seconds = measure(site, options.statusdb, options.times, options.warm_up)
    state = f"{options.open_runs} open runs, a writer in {LOADED_RUNS}" if options.load else "idle"
    bench.table(
        f"a sentinel's close to `processing` ({options.statusdb}, {state})",
        ("times", "median ms", "p99 ms", "max ms"),
        [(len(seconds), *bench.spread(seconds))],
    )


if __name__ == "__main__":
    main()
