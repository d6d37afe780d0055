"""How much longer does a proven archive take than the bare `tar | gpg` that proves nothing?

python tests/benchmarks/line_speed.py --gigabytes 1 --files 8 --pairs 5

Each round runs three things after one another, in turn: bare (tar into gpg into a file, synced), what operators script
(bare, then `gpg -d` to nowhere), and the watcher from the sentinel to `encrypted`. Wall times on a shared machine say
little: look at the ratios, the CPU seconds and the context switches. The watcher's figures are those of its whole
process and its children, less those of a watcher that had nothing to archive.

The second table says where the watcher's CPU seconds go. Its children are looked at ten times a second, so the last
tenth of each is not in their lines. Hashing is measured apart, on as many bytes.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bench
from blake3 import blake3
from sites import Site
from two_big_runs import fill

NAME = "run_001"
GIB = 1 << 30

OPTIONS = {"encryption": "mdc", "manifest": "encrypted"}
"""Of the watcher's configuration, with their defaults; each can be given on the command line."""


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


def watched(site: Site, parts: dict[str, float], names: tuple[str, ...] = (NAME,)) -> float:
    """Let a watcher archive the runs; return the seconds from the sentinels to the last `encrypted`.

    The CPU seconds of each kind of child are added to `parts`.
    """
    daemon = site.start().wait_ready()
    with looked_at(daemon.pid, parts):
        began = time.monotonic()
        for name in names:
            site.complete(site.sequencing / "sequencer_A" / name)
        for name in names:
            site.wait_for(name)
        seconds = time.monotonic() - began
    daemon.stop()
    return seconds


@contextmanager
def looked_at(pid: int, parts: dict[str, float]) -> Iterator[None]:
    """Add the CPU seconds of a process's children to `parts`, by what they do, while the context lasts."""
    last: dict[int, tuple[str, float]] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            last.update(children_of(pid))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield
    finally:
        over.set()
        looker.join()
        for part, seconds in last.values():
            parts[part] += seconds


def children_of(pid: int) -> dict[int, tuple[str, float]]:
    """Return what each child of a process does, and its CPU seconds so far, by its pid."""
    found = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for number in map(int, children.read_text().split()):
                words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
                fields = Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2].split()
                part = "gpg encrypts" if b"--symmetric" in words else "gpg decrypts" if b"--decrypt" in words else "tar"
                found[number] = (part, (int(fields[11]) + int(fields[12])) / bench.TICKS_A_SECOND)
        except OSError:
            continue  # it has ended meanwhile
    return found


def hashing(size: int) -> float:
    """Return the CPU seconds that a run's digests take: SHA-256 once, BLAKE3 twice."""
    piece, began = os.urandom(GIB >> 10), time.thread_time()
    for hasher in (hashlib.sha256(), blake3(), blake3()):
        for _ in range(max(size // len(piece), 1)):
            hasher.update(piece)
    return time.thread_time() - began


def anew(site: Site) -> None:
    """Make the site one that has archived nothing."""
    for path in (site.archives, site.keys):
        shutil.rmtree(path, ignore_errors=True)
    site.archives.mkdir()
    for path in site.root.glob(f"{site.database.name}*"):
        path.unlink()
    (site.sequencing / "sequencer_A" / NAME / ".metadata_rsync_exitcode").unlink(missing_ok=True)


def rounds(site: Site, pairs: int, parts: dict[str, float]) -> dict[str, list[Cost]]:
    """Return the costs of each way, round by round, and put those of the watcher's children into `parts`."""
    ways: dict[str, Callable[[], float | None]] = {
        "bare, synced": lambda: bare(site),
        "bare, synced, decrypted": lambda: scripted(site),
        "watcher": lambda: watched(site, parts),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, way in ways.items():
            anew(site)
            costs[name].append(measured(way))
    anew(site)
    idle = measured(lambda: watched(site, defaultdict(float), ()))
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
    options = bench.arguments(__doc__, gigabytes=1.0, files=8, pairs=5, directory="", **OPTIONS)
    size, parts = int(options.gigabytes * GIB), defaultdict[str, float](float)
    with bench.facility(directory=options.directory, **{name: getattr(options, name) for name in OPTIONS}) as site:
        fill(site.make_run(NAME), size, options.files)
        (site.root / "passphrase").write_text(os.urandom(32).hex())
        costs = rounds(site, options.pairs, parts)
    base = costs["bare, synced"]
    bench.table(
        f"{options.gigabytes:g} GiB in {options.files} files, medians of {options.pairs} rounds, for each GiB",
        ("way", "wall s", "over bare", "CPU s", "context switches"),
        [row(name, each, base, 1 / options.gigabytes) for name, each in costs.items()],
    )
    bench.table(
        f"the watcher's CPU seconds, for each GiB ({options.encryption}), means of {options.pairs} rounds",
        ("part", "CPU s"),
        [(part, f"{seconds / options.gigabytes:.2f}") for part, seconds in split(costs, parts, size, options.pairs)],
    )


def split(costs: dict[str, list[Cost]], parts: dict[str, float], size: int, pairs: int) -> Iterator[tuple[str, float]]:
    """Yield the parts of the watcher's CPU seconds, and of the time in which its cores waited."""
    children = {part: seconds / pairs for part, seconds in sorted(parts.items())}
    total = statistics.mean(cost.cpu for cost in costs["watcher"])
    yield from children.items()
    yield "hashing", (hashes := hashing(size))
    yield "copying, and all else", total - hashes - sum(children.values())
    cores = len(os.sched_getaffinity(0))
    yield f"waiting, of {cores} cores", cores * statistics.mean(cost.wall for cost in costs["watcher"]) - total


if __name__ == "__main__":
    main()
