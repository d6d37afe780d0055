"""What do many files cost, and what do two runs at once gain?

python tests/benchmarks/run_shapes.py --gigabytes 1 --files 50000 --pairs 5

Each round archives, from the sentinel to `encrypted`: the bytes in 8 files; the same bytes in many files; two runs of 8
files after one another; the same two at once.
"""

from __future__ import annotations

import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable

import bench
from line_speed import GIB, Cost, measured, watched
from sites import Site
from two_big_runs import fill

FEW, MANY, TWIN = "few_files", "many_files", "few_files_too"


def anew(site: Site, jobs: int) -> None:
    """Make the site one that has archived nothing, for a worker with so many jobs."""
    site.configure(max_concurrent_jobs=jobs)
    shutil.rmtree(site.archives)
    shutil.rmtree(site.keys, ignore_errors=True)
    site.archives.mkdir()
    for path in site.root.glob(f"{site.database.name}*"):
        path.unlink()
    for name in (FEW, MANY, TWIN):
        (site.sequencing / "sequencer_A" / name / ".metadata_rsync_exitcode").unlink(missing_ok=True)


def cost(site: Site, jobs: int, *names: str) -> Cost:
    """Return what it takes to archive the runs, less what an idle watcher takes on the processor."""
    anew(site, jobs)
    idle = measured(lambda: watched(site, defaultdict(float), ()))
    anew(site, jobs)
    return measured(lambda: watched(site, defaultdict(float), names)) - idle


def main() -> None:
    """Print the table."""
    options = bench.arguments(__doc__, gigabytes=1.0, files=50_000, pairs=5, directory="", manifest="encrypted")
    size = int(options.gigabytes * GIB)
    with bench.facility(directory=options.directory, manifest=options.manifest) as site:
        for name, files in ((FEW, 8), (MANY, options.files), (TWIN, 8)):
            fill(site.make_run(name, size=0), size, files)
        ways: dict[str, Callable[[], Cost]] = {
            "8 files": lambda: cost(site, 1, FEW),
            f"{options.files} files": lambda: cost(site, 1, MANY),
            "two runs of 8 files, one by one": lambda: cost(site, 1, FEW, TWIN),
            "two runs of 8 files, at once": lambda: cost(site, 2, FEW, TWIN),
        }
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(options.pairs):
            for name, way in ways.items():
                costs[name].append(way())
    few, many, one_by_one, at_once = costs
    rows = [(few, few), (many, few), (one_by_one, one_by_one), (at_once, one_by_one)]
    bench.table(
        f"{options.gigabytes:g} GiB a run, medians of {options.pairs} rounds",
        ("runs", "wall s", "CPU s", "context switches", "ratio of wall times, and to what"),
        [line(name, base, costs) for name, base in rows],
    )


def line(name: str, base: str, costs: dict[str, list[Cost]]) -> list[object]:
    """Return a line of the table; the ratio is the median of those of each round."""
    found = costs[name]
    ratio = statistics.median(one.wall / other.wall for one, other in zip(found, costs[base], strict=True))
    wall, cpu, switches = (statistics.median(getattr(one, field) for one in found) for field in Cost.__annotations__)
    return [name, f"{wall:.2f}", f"{cpu:.2f}", f"{switches:,.0f}", f"{ratio:.2f} {base}" if name != base else ""]


if __name__ == "__main__":
    main()
