"""What does the watcher cost while nothing happens?

The real command as a process; its CPU time, as the scheduler counts it, over some minutes. Rescans come five
times as often as they do by default, so that there are some to count.

  python tests/benchmarks/idle.py --seconds 120
  python tests/benchmarks/idle.py --seconds 120 --statusdb couchdb
"""

from __future__ import annotations

import time
from pathlib import Path

import bench
from scan import make_runs, register

SETTLE_SECONDS = 5


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that all threads of a process have had, to the nanosecond."""
    fields = [entry.joinpath("schedstat").read_text().split() for entry in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(field[0]) for field in fields) / 1e9


def main() -> None:
    """Print the table."""
    options = bench.arguments(
        __doc__, seconds=20.0, statusdb="sqlite", archived=1000, open=100, rescan=60.0, directory=""
    )
    with bench.facility(options.statusdb, options.directory, rescan_interval=options.rescan) as site:
        register(site, make_runs(site, options.archived))
        for number in range(options.open):
            (site.sequencing / "sequencer_0" / f"open_{number:04}").mkdir()
        daemon = site.start().wait_ready()
        time.sleep(SETTLE_SECONDS)
        before, started = cpu_seconds(daemon.pid), time.monotonic()
        time.sleep(options.seconds)
        cpu, seconds = cpu_seconds(daemon.pid) - before, time.monotonic() - started
        memory, threads = bench.memory(daemon.pid), bench.threads(daemon.pid)
        bench.end(daemon)
    bench.table(
        f"idle for {seconds:.0f} s ({options.statusdb}, {options.archived} archived and {options.open} open runs, "
        f"a rescan every {options.rescan:g} s)",
        ("CPU s", "% of one core", "CPU s in an hour", "memory MB", "threads"),
        [(f"{cpu:.3f}", f"{100 * cpu / seconds:.3f}", f"{3600 * cpu / seconds:.1f}", f"{memory:.0f}", threads)],
    )


if __name__ == "__main__":
    main()
