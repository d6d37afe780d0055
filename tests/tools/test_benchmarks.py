"""Every benchmark runs, at a size that says nothing about its figures, and prints its table."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from couchdb_server import Unavailable, installed_program

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
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
        ("line_speed.py --gigabytes 0.01 --files 5 --pairs 2", "0.01 GiB in 5 files, medians of 2 rounds"),
        ("storm.py --runs 50", "all 50 are registered exactly once"),
        pytest.param(
            "storm.py --runs 500 --queued-events 64",
            "all 500 are registered exactly once",
            marks=[pytest.mark.root, pytest.mark.alone],
        ),
    ],
)
def test_a_benchmark_prints_its_table(command: str, words: str) -> None:
    assert words in printed(command)


@pytest.mark.slow
def test_a_scan_of_registered_runs_on_a_couchdb_asks_for_many_at_once_and_writes_nothing(
    unavailable: Callable[[str], NoReturn],
) -> None:
    require_couchdb(unavailable)
    output = printed("scan.py --runs 200 --interval 0.3 --statusdb couchdb")
    assert "200 registered runs (couchdb)" in output
    for scan in ("start-up scan", "rescan, median of 3"):
        row = re.search(rf"^ +{scan} +[\d.]+ +(?P<requests>[\d.]+) +(?P<writes>\d+)$", output, re.MULTILINE)
        assert row is not None, output
        assert 1 <= float(row["requests"]) < 50
        assert row["writes"] == "0"


@pytest.mark.slow
def test_the_time_to_notice_a_run_on_a_couchdb_is_measured_as_often_as_was_asked(
    unavailable: Callable[[str], NoReturn],
) -> None:
    require_couchdb(unavailable)
    output = printed("notice_latency.py --times 2 --warm-up 1 --statusdb couchdb")
    assert "a sentinel's close to `processing` (couchdb, idle)" in output
    row = re.search(r"^ +2 +(?P<median>[\d.]+) +(?P<p99>[\d.]+) +(?P<most>[\d.]+)$", output, re.MULTILINE)
    assert row is not None, output
    assert 0 < float(row["median"]) <= float(row["p99"]) == float(row["most"])


def require_couchdb(unavailable: Callable[[str], NoReturn]) -> None:
    """Skip (or fail in CI) when a benchmark would find no CouchDB, nor could start what is like it."""
    if os.environ.get("COUCHDB_URL"):
        return
    try:
        installed_program()
    except Unavailable as error:
        unavailable(str(error))


def printed(command: str) -> str:
    """Run a benchmark to its end; return what it printed."""
    program, *arguments = command.split()
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / program), *arguments],
        capture_output=True, text=True, check=True, timeout=SECONDS,
    ).stdout  # fmt: skip


@pytest.mark.slow
def test_two_big_runs_fail_at_too_much_memory() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "two_big_runs.py"), "--gigabytes=0.002", "--files=5", "--limit-mb=1"],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 1
    assert "it is to stay under 1 MB" in done.stderr
