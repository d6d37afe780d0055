"""Is every run registered exactly once, however fast they come, and though the kernel drops events?

One process makes run directories with their sentinels as fast as it can; the real command runs beside it,
and archives meanwhile what it can. `--queued-events` lowers the kernel's queue for the watcher (root).

  python tests/benchmarks/storm.py --runs 20000
  python tests/benchmarks/storm.py --runs 20000 --queued-events 64
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext

import bench
import requests
from machine import inotify_limit
from sites import Site

from watcher.source import SENTINEL

LOOK_SECONDS = 0.1
ANSWER_SECONDS = 120
DESIGN_DOCUMENTS = 1

MAKER = """
import os, sys, time
root, count, sentinel = sys.argv[1], int(sys.argv[2]), sys.argv[3]
started = time.monotonic()
for number in range(count):
    path = f"{root}/run_{number:06}"
    os.mkdir(path)
    with open(f"{path}/{sentinel}", "w") as file:
        file.write("0\\n")
print(time.monotonic() - started)
"""


def count(site: Site) -> int:
    """Return how many run documents there are; a CouchDB is not asked for its view, which is slow to follow."""
    if site.options["statusdb"]["url"].startswith("http"):
        return int(requests.get(bench.address(site), timeout=ANSWER_SECONDS).json()["doc_count"]) - DESIGN_DOCUMENTS
    return sum(site.statusdb().count_by_status().values())


def main() -> None:
    """Print the table; fail if a run was lost or registered twice."""
    options = bench.arguments(__doc__, runs=1000, queued_events=0, statusdb="sqlite", directory="")
    limited = inotify_limit("max_queued_events", options.queued_events) if options.queued_events else nullcontext()
    with bench.facility(options.statusdb, options.directory) as site:
        with limited:
            daemon = site.start().wait_ready()
        started = time.monotonic()
        maker = subprocess.Popen(
            [sys.executable, "-c", MAKER, str(site.sequencing / "sequencer_A"), str(options.runs), SENTINEL],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        while count(site) < options.runs:
            assert daemon.process.poll() is None, daemon.log
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - started
        making = float(maker.communicate()[0])
        bench.end(daemon)
        documents = count(site)
        log = daemon.log
    registered = Counter(re.findall(r"registered '([^']*)'", log))
    by = Counter(re.findall(r"noticed by (\w+)", log))
    bench.table(
        f"a storm of {options.runs} runs ({options.statusdb}, "
        f"max_queued_events {options.queued_events or 'as it is'})",
        ("made in s", "last registered after s", "documents", "registered once", "twice", "overflows", "noticed by"),
        [
            (
                f"{making:.1f}", f"{seconds:.1f}", documents, sum(times == 1 for times in registered.values()),
                sum(times > 1 for times in registered.values()), log.count("event queue overflowed"),
                ", ".join(f"{count} {how}" for how, count in by.items()),
            )
        ],
    )  # fmt: skip
    assert set(registered.values()) == {1}
    assert len(registered) == documents == options.runs
    print(f"  all {options.runs} are registered exactly once")


if __name__ == "__main__":
    main()
