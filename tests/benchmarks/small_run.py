"""How long does a run of 1 KB take, from its claim to `encrypted`, and with what?

python tests/benchmarks/small_run.py --times 200

A worker in this process, on SQLite and in memory (/dev/shm). Its children are timed from their start to their end, as
this process sees them; they overlap, so the parts can be more than the whole.
"""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import bench
from harness import Bench

from watcher import job as jobs
from watcher.job import Job
from watcher.statusdb import StatusDB


class Watch:
    """Notes how long each child runs, and each call of the status database."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._begun: dict[int, tuple[str, float]] = {}

    def attach(self) -> None:
        """Time what all jobs start from now on."""
        start, end = Job.start, Job.end

        def started(job: Job, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
            began = time.monotonic()
            process = start(job, command, **options)
            self._begun[process.pid] = (part(command), began)
            return process

        def ended(job: Job, process: subprocess.Popen[bytes]) -> None:
            end(job, process)
            name, began = self._begun.pop(process.pid)
            self.seconds[name] += time.monotonic() - began

        jobs.Job.start, jobs.Job.end = started, ended  # type: ignore[method-assign]
        for name in ("claimable", "claim", "announce", "record"):
            self._time(name)

    def _time(self, name: str) -> None:
        real = getattr(StatusDB, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            try:
                return real(*args, **kwargs)
            finally:
                self.seconds[f"database: {name}"] += time.monotonic() - began

        setattr(StatusDB, name, timed)


def part(command: Sequence[str]) -> str:
    """Say what a child does."""
    words = {"--symmetric": "gpg encrypts", "--decrypt": "gpg decrypts", "--list-keys": "gpg looks for the recipient",
             "--encrypt": "gpg encrypts to the recipient", "--version": "gpg's version"}  # fmt: skip
    return next((name for word, name in words.items() if word in command), command[0])


def main() -> None:
    """Print the table."""
    options = bench.arguments(__doc__, times=200, directory="/dev/shm", manifest="encrypted")
    whole, watch = list[float](), Watch()
    with bench.facility(directory=options.directory, manifest=options.manifest) as site:
        worker = Bench.of(site)
        worker.work(worker.ready_run("first", size=1000))  # once a process: gpg's version, imports
        watch.attach()
        for number in range(options.times):
            run = worker.ready_run(f"run_{number}", size=1000)
            began = time.monotonic()
            worker.work(run)
            whole.append(time.monotonic() - began)
    bench.table("claim to encrypted, ms", ("median", "99 %", "maximum"), [bench.spread(whole)])
    bench.table(
        "its parts, means", ("part", "ms"),
        [(name, f"{1000 * seconds / options.times:.1f}") for name, seconds in sorted(watch.seconds.items())],
    )  # fmt: skip


if __name__ == "__main__":
    main()
