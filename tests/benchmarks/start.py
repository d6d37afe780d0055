"""How long do the commands take that people and shells wait for?

python tests/benchmarks/start.py --times 20

Beside them a Python that does nothing, which is the least that is to be had.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import bench
from line_speed import Cost, measured
from sites import COMMAND

WAYS = (["--version"], ["--help"], ["status"], ["status", "--json"])


def main() -> None:
    """Print the table."""
    options = bench.arguments(__doc__, times=20)
    with bench.facility() as site:
        site.complete(site.make_run())
        assert site.command("once").returncode == 0
        ours = [*COMMAND, "-c", str(site.config)]
        commands = {"python -c pass": [sys.executable, "-c", "pass"], **{" ".join(way): [*ours, *way] for way in WAYS}}
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for _ in range(options.times):
            for name, command in commands.items():
                costs[name].append(
                    measured(lambda command=command: run(command, site.environment))  # type: ignore[misc]
                )
    rows = []
    for name, found in costs.items():
        wall, cpu = (statistics.median(getattr(cost, field) for cost in found) for field in ("wall", "cpu"))
        rows.append((name, f"{1000 * wall:.0f}", f"{1000 * cpu:.0f}"))
    bench.table(f"medians of {options.times}", ("command", "wall ms", "CPU ms"), rows)


def run(command: list[str], environment: dict[str, str]) -> None:
    """Run a command to its end."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


if __name__ == "__main__":
    main()
