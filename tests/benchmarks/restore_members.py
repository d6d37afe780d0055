"""How long does it take to restore one file of a large archive?

python tests/benchmarks/restore_members.py --gigabytes 4 --times 5

The first file of the archive, and the last; beside them the whole run, and a bare `gpg --decrypt` to nowhere.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable

import bench
from line_speed import measured
from sites import COMMAND, Site, gpg
from two_big_runs import fill

NAME = "run_001"


def main() -> None:
    """Print the table."""
    options = bench.arguments(__doc__, gigabytes=4.0, files=40, times=5, directory="")
    with bench.facility(directory=options.directory) as site:
        fill(site.make_run(NAME, size=0), int(options.gigabytes * (1 << 30)), options.files)
        site.complete(site.sequencing / "sequencer_A" / NAME)
        assert site.command("once").returncode == 0
        listed = site.command("list", NAME, "--json", "*.cbcl").stdout.splitlines()[1:]
        paths = [json.loads(line)["path"].removeprefix(f"{NAME}/") for line in listed]
        key = gpg(site.gnupg, "--decrypt", str(site.keys / f"{NAME}.key.gpg"))
        ways: dict[str, Callable[[], None]] = {
            "the first file": lambda: restore(site, "--only", paths[0]),
            "the last file": lambda: restore(site, "--only", paths[-1]),
            "the whole run": lambda: restore(site),
            "gpg --decrypt, to nowhere": lambda: decrypt(site, key),
        }
        rows = []
        for name, way in ways.items():
            costs = [measured(lambda way=way: way()) for _ in range(options.times)]  # type: ignore[misc]
            wall, cpu = (statistics.median(getattr(cost, field) for cost in costs) for field in ("wall", "cpu"))
            rows.append((name, f"{wall:.2f}", f"{cpu:.2f}"))
    bench.table(
        f"{options.gigabytes:g} GiB in {options.files} files, medians of {options.times}",
        ("what", "wall s", "CPU s"), rows,
    )  # fmt: skip


def restore(site: Site, *only: str) -> None:
    """Restore the run, or a member of it, and remove it."""
    to = site.root / "to"
    to.mkdir()
    command = [*COMMAND, "-c", str(site.config), "restore", NAME, "--to", str(to), *only]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=site.environment)
    shutil.rmtree(to)


def decrypt(site: Site, key: bytes) -> None:
    """Decrypt the archive, and look at nothing."""
    command = ["gpg", "--homedir", str(site.gnupg), "--batch", "--pinentry-mode", "loopback", "--passphrase-fd", "0",
               "--decrypt", str(site.archives / f"{NAME}.tar.gpg")]  # fmt: skip
    subprocess.run(command, input=key, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
