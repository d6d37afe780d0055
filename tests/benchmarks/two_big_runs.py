"""How much memory does the watcher take, and how long, for two large runs of many files at once?

python tests/benchmarks/two_big_runs.py --gigabytes 2 --files 20000
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import bench
from sites import Site, assert_same_tree

BLOCK = os.urandom(1 << 20)

LIMIT_MB = 100.0
"""The watcher's peak memory stays under this, however large the runs."""


def fill(run: Path, size: int, files: int) -> None:
    """Write `files` files that make `size` bytes together, a hundred in a directory."""
    each = size // files
    for number in range(files):
        directory = run / "Data" / f"{number // 100:04}"
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / f"{number:06}.cbcl").open("wb") as file:
            file.write(number.to_bytes(8, "big"))
            for start in range(8, each, len(BLOCK)):
                file.write(BLOCK[: each - start])


def archive(site: Site, names: list[str]) -> tuple[float, float, int]:
    """Archive the runs at once; return the seconds it took, the watcher's peak memory in MB, and an archive's bytes."""
    daemon = site.start().wait_ready()
    began = time.monotonic()
    for name in names:
        site.complete(site.sequencing / "sequencer_A" / name)
    sizes = [site.wait_for(name)["archive"]["size"] for name in names]
    seconds = time.monotonic() - began
    peak = bench.memory(daemon.pid, "VmHWM")
    assert daemon.stop() == 0
    return seconds, peak, sizes[0]


def main() -> None:
    """Print the figures; exit with 1 if an archive does not come back byte for byte, or at too much memory."""
    options = bench.arguments(__doc__, gigabytes=2.0, files=20_000, directory="", limit_mb=LIMIT_MB)
    names = ["run_001", "run_002"]
    with bench.facility(directory=options.directory) as site:
        for name in names:
            fill(site.make_run(name), int(options.gigabytes * 1e9), options.files)
        seconds, peak, size = archive(site, names)
        for name in names:
            restored = site.restore(name)
            assert_same_tree(site.sequencing / "sequencer_A" / name, restored)
            shutil.rmtree(restored)
    bench.table(
        f"two runs of {options.gigabytes:g} GB and {options.files} files at once, restored byte for byte",
        ("sentinel to encrypted, both", "one archive", "peak memory of the watcher"),
        [(f"{seconds:.1f} s", f"{size / 1e9:.2f} GB", f"{peak:.0f} MB")],
    )
    if peak >= options.limit_mb:
        sys.exit(f"the watcher took {peak:.0f} MB; it is to stay under {options.limit_mb:g} MB")


if __name__ == "__main__":
    main()
