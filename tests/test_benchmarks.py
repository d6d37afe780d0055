"""Every benchmark runs, at a size that says nothing about its figures, and prints its table."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from host import require_root

BENCHMARKS = Path(__file__).parent / "benchmarks"
SECONDS = 300


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("notice_latency.py --times 2 --warm-up 1", "median ms"),
        ("notice_latency.py --times 2 --warm-up 1 --load --open-runs 20", "a writer in 20"),
        ("watches.py --archived 20 --open 10 --subdirectories 5", "open runs + sequencers + 1 = 23"),
        ("scan.py --runs 200 --interval 0.3", "200 registered runs"),
        ("idle.py --seconds 1 --archived 20 --open 5", "% of one core"),
        ("two_big_runs.py --gigabytes 0.02 --files 50", "50 files at once, restored byte for byte"),
        ("storm.py --runs 50", "all 50 are registered exactly once"),
        pytest.param(
            "storm.py --runs 500 --queued-events 64",
            "all 500 are registered exactly once",
            marks=[pytest.mark.root, pytest.mark.alone],
        ),
    ],
)
def test_a_benchmark_prints_its_table(command: str, words: str, unavailable: Callable[[str], NoReturn]) -> None:
    if "--queued-events" in command:
        require_root(unavailable)
    program, *arguments = command.split()
    output = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), *arguments],
        capture_output=True, text=True, check=True, timeout=SECONDS,
    ).stdout  # fmt: skip
    assert words in output


@pytest.mark.slow
def test_two_big_runs_fail_at_too_much_memory() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "two_big_runs.py"), "--gigabytes=0.002", "--files=5", "--limit-mb=1"],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 1
    assert "it is to stay under 1 MB" in done.stderr
