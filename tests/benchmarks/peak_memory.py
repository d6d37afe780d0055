"""How much memory does the watcher take, for a small run, a large one, and one of a million members?

python tests/benchmarks/peak_memory.py --megabytes 200 --gigabytes 8 --members 1000000

A watcher for each run. Restoring members, listing and verifying are measured on the last one, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bench
import sites
from sites import COMMAND, Site
from two_big_runs import archive, fill

LIMIT_MB = 100.0
"""The watcher's peak memory stays under this with a million members."""


def make_members(run: Path, members: int) -> None:
    """Make so many small files, a thousand in a directory."""
    for number in range(members):
        if not number % 1000:
            directory = run / "Data" / f"{number // 1000:05}"
            directory.mkdir(parents=True)
        (directory / f"{number:07}.txt").write_bytes(b"%d" % number)


def peak_of(site: Site, *words: str) -> float:
    """Return the peak memory of a command, in MB."""
    command = [*COMMAND, "-c", str(site.config), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=site.environment)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return usage.ru_maxrss / 1024


def main() -> None:
    """Print the table; exit with 1 at too much memory."""
    options = bench.arguments(__doc__, megabytes=200, gigabytes=8.0, members=1_000_000, directory="")
    rows = list[tuple[object, ...]]()
    sites.PATIENCE_SECONDS = 3600.0  # a million members take longer than any test
    with bench.facility(directory=options.directory, stall_limit="1 h") as site:
        fill(site.make_run("small", size=0), int(options.megabytes * 1e6), 8)
        fill(site.make_run("large", size=0), int(options.gigabytes * 1e9), 8)
        make_members(site.make_run("members", size=0), options.members)
        for name in ("small", "large", "members"):
            seconds, peak, size = archive(site, [name])
            rows.append((name, f"{size / 1e9:.2f} GB", f"{seconds:.0f} s", f"{peak:.0f} MB"))
        for words in (["list", "members"], ["verify", "members"], ["verify", "--content", "members"]):
            rows.append((" ".join(words), "", "", f"{peak_of(site, *words):.0f} MB"))
        restoring = peak_of(site, "restore", "members", "--only", "0999999.txt", "--to", str(site.root))
        rows.append(("restore members --only FILE", "", "", f"{restoring:.0f} MB"))
    bench.table("peak memory", ("run or command", "archive", "sentinel to encrypted", "peak"), rows)
    if peak >= LIMIT_MB:
        sys.exit(f"the watcher took {peak:.0f} MB; it is to stay under {LIMIT_MB:g} MB")


if __name__ == "__main__":
    main()
