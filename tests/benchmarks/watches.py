"""What does it cost to watch a site with years of runs?

The real command as a process, on archived runs and open ones, each with many subdirectories; beside it
watchdog's own `Observer.schedule(recursive=True)` on the same tree, in a process of its own. As root the
kernel's limit of watches is raised for the latter and put back afterwards; without that it is met.

  python tests/benchmarks/watches.py --archived 10000 --open 2000 --subdirectories 100 --directory /dev/shm
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import bench
from machine import inotify_inodes, inotify_limit
from scan import SEQUENCERS, register
from sites import Site

from watcher.model import Run
from watcher.source import SENTINEL

HEADER = ("what", "watches", "threads", "seconds to start", "memory MB")

RECURSIVE = """
import json, os, sys, time
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer
observer = Observer()
started = time.monotonic()
trouble = ""
try:
    observer.schedule(FileSystemEventHandler(), sys.argv[1], recursive=True)
    observer.start()
except OSError as error:
    trouble = str(error)
print(json.dumps([time.monotonic() - started, trouble]), flush=True)
sys.stdin.read()
os._exit(0)
"""


def make_runs(site: Site, prefix: str, count: int, subdirectories: int) -> list[Run]:
    """Make run directories with subdirectories as a sequencer makes them: a lane's cycles."""
    runs = []
    for number in range(count):
        path = site.sequencing / f"sequencer_{number % SEQUENCERS}" / f"{prefix}_{number:06}"
        path.mkdir(parents=True)
        directory = os.open(path, os.O_DIRECTORY)
        for cycle in range(1, subdirectories + 1):
            os.mkdir(f"C{cycle}.1", dir_fd=directory)
        os.close(directory)
        runs.append(Run(path))
    return runs


def measure_ours(site: Site) -> tuple[object, ...]:
    """Start the watcher; return its row."""
    started = time.monotonic()
    daemon = site.start().wait_ready()
    seconds = time.monotonic() - started
    row = (
        "dataflow_archive", len(inotify_inodes(daemon.pid)), bench.threads(daemon.pid), f"{seconds:.2f}",
        f"{bench.memory(daemon.pid):.0f}",
    )  # fmt: skip
    bench.end(daemon)
    return row


def measure_recursive(site: Site, what: str) -> tuple[object, ...]:
    """Start watchdog's recursive observer; return its row."""
    process = subprocess.Popen(
        [sys.executable, "-c", RECURSIVE, str(site.sequencing)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    seconds, trouble = json.loads(process.stdout.readline())
    row = (
        what + (f": {trouble}" if trouble else ""), len(inotify_inodes(process.pid)), bench.threads(process.pid),
        f"{seconds:.2f}", f"{bench.memory(process.pid):.0f}",
    )  # fmt: skip
    process.kill()
    process.wait()
    return row


@contextmanager
def limit_raised(directories: int) -> Iterator[bool]:
    """Let a process watch as many directories as there are, if we may."""
    if os.geteuid() != 0:
        yield False
        return
    with inotify_limit("max_user_watches", 2 * directories + 1_000_000):
        yield True


def main() -> None:
    """Print the table."""
    options = bench.arguments(__doc__, archived=500, open=100, subdirectories=20, directory="")
    with bench.facility("sqlite", options.directory) as site:
        archived = make_runs(site, "archived", options.archived, options.subdirectories)
        for run in archived:
            (run.path / SENTINEL).write_text("0\n")
        register(site, archived)
        make_runs(site, "open", options.open, options.subdirectories)
        rows = [measure_ours(site), measure_recursive(site, "watchdog, recursive")]
        with limit_raised((options.archived + options.open) * (options.subdirectories + 1)) as raised:
            if raised:
                rows.append(measure_recursive(site, "watchdog, recursive, limit raised"))
        sequencers = len(list(site.sequencing.iterdir()))
    bench.table(
        f"{options.archived} archived and {options.open} open runs of {options.subdirectories} subdirectories each, "
        f"{sequencers} sequencers",
        HEADER,
        rows,
    )
    print(f"  open runs + sequencers + 1 = {options.open + sequencers + 1}")


if __name__ == "__main__":
    main()
