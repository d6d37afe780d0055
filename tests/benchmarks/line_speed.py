"""How much longer does a proven archive take than the bare `tar | gpg` that proves nothing?

python tests/benchmarks/line_speed.py --gigabytes 1 --files 8 --pairs 5

Each round runs three things after one another, in turn: bare (tar into gpg into a file, synced), what operators script
(bare, then `gpg -d` to nowhere), and the watcher from the sentinel to `encrypted`. Wall times on a shared machine say
little: look at the ratios, the CPU seconds and the context switches. The watcher's figures are those of its whole
process and its children, less those of a watcher that had nothing to archive.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import bench
from sites import Site
from two_big_runs import fill

NAME = "run_001"
GIB = 1 << 30


@dataclass(frozen=True)
class Cost:
    """What something took: seconds on the wall, seconds of CPU, and how often a thread left its core."""

    wall: float
    cpu: float
    switches: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall, self.cpu - other.cpu, self.switches - other.switches)


def spent() -> Cost:
    """Return what all children that have ended have taken so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(0.0, usage.ru_utime + usage.ru_stime, usage.ru_nvcsw + usage.ru_nivcsw)


def measured(work: Callable[[], float | None]) -> Cost:
    """Do the work, whose children all end; return its cost. It may say itself how long it took."""
    before, began = spent(), time.monotonic()
    told = work()
    wall = time.monotonic() - began
    after = spent() - before
    return Cost(wall if told is None else told, after.cpu, after.switches)


def gpg(site: Site) -> str:
    """Return gpg as a shell's words, with the options of the watcher's archives."""
    return (
        f"gpg --homedir {site.gnupg} --batch --no-tty --passphrase-file {site.root / 'passphrase'} "
        "--pinentry-mode loopback --no-symkey-cache"
    )


def bare(site: Site) -> None:
    """Archive without a proof."""
    encrypt = "--symmetric --cipher-algo AES256 --rfc4880 --compress-algo none --s2k-count 65536 --output -"
    shell(
        f"tar -C {site.sequencing / 'sequencer_A'} -cf - {NAME} | {gpg(site)} {encrypt} > bare.gpg && sync bare.gpg",
        site,
    )


def scripted(site: Site) -> None:
    """Archive, and decrypt again, as operators' scripts do."""
    bare(site)
    shell(f"{gpg(site)} --decrypt bare.gpg > /dev/null", site)


def shell(line: str, site: Site) -> None:
    """Run a line of shell in the site's archives."""
    subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=site.archives, check=True, capture_output=True)


def watched(site: Site, names: tuple[str, ...] = (NAME,)) -> float:
    """Let a watcher archive the runs; return the seconds from the sentinels to the last `encrypted`."""
    daemon = site.start().wait_ready()
    began = time.monotonic()
    for name in names:
        site.complete(site.sequencing / "sequencer_A" / name)
    for name in names:
        site.wait_for(name)
    seconds = time.monotonic() - began
    daemon.stop()
    return seconds


def anew(site: Site) -> None:
    """Make the site one that has archived nothing."""
    for path in (site.archives, site.keys):
        shutil.rmtree(path, ignore_errors=True)
    site.archives.mkdir()
    for path in site.root.glob(f"{site.database.name}*"):
        path.unlink()
    (site.sequencing / "sequencer_A" / NAME / ".metadata_rsync_exitcode").unlink(missing_ok=True)


def rounds(site: Site, pairs: int) -> dict[str, list[Cost]]:
    """Return the costs of each way, round by round."""
    ways: dict[str, Callable[[], float | None]] = {
        "bare, synced": lambda: bare(site),
        "bare, synced, decrypted": lambda: scripted(site),
        "watcher": lambda: watched(site),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, way in ways.items():
            anew(site)
            costs[name].append(measured(way))
    anew(site)
    idle = measured(lambda: watched(site, ()))
    costs["watcher"] = [cost - idle for cost in costs["watcher"]]
    return costs


def row(name: str, costs: list[Cost], base: list[Cost], scale: float) -> list[object]:
    """Return a line of the table: medians for each GiB, and the median of the ratios, round by round."""
    ratio = statistics.median(cost.wall / other.wall for cost, other in zip(costs, base, strict=True))
    median = {field: statistics.median(getattr(cost, field) for cost in costs) for field in ("wall", "cpu", "switches")}
    return [
        name, f"{median['wall'] * scale:.2f}", f"{ratio:.2f}", f"{median['cpu'] * scale:.2f}",
        f"{median['switches'] * scale:,.0f}",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    options = bench.arguments(__doc__, gigabytes=1.0, files=8, pairs=5, directory="")
    with bench.facility(directory=options.directory) as site:
        fill(site.make_run(NAME), int(options.gigabytes * GIB), options.files)
        (site.root / "passphrase").write_text(os.urandom(32).hex())
        costs = rounds(site, options.pairs)
    base = costs["bare, synced"]
    bench.table(
        f"{options.gigabytes:g} GiB in {options.files} files, medians of {options.pairs} rounds, for each GiB",
        ("way", "wall s", "over bare", "CPU s", "context switches"),
        [row(name, each, base, 1 / options.gigabytes) for name, each in costs.items()],
    )


if __name__ == "__main__":
    main()
