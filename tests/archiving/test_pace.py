"""What a worker takes from others on its host: the rate of reading, and the priority of its children."""

import io
import os
import shutil
import threading
from pathlib import Path

import pytest
from harness import Bench
from sites import Site, children, wait_until

from watcher.archiving import Outcome
from watcher.archiving.pace import Pace, Paced
from watcher.errors import Interrupted
from watcher.job import Job
from watcher.model import Phase, Run

RUN = Run(Path("/data/sequencing/sequencer_A/run_001"))
IDLE = ("nice", "-n", "7", "ionice", "-c", "idle")


class Clock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_bytes_are_booked_one_after_the_other_whoever_moves_them() -> None:
    clock = Clock()
    pace = Pace(1000, clock)
    assert [pace.seconds_for(500) for _ in range(4)] == [0.5, 1.0, 1.5, 2.0]
    clock.seconds += 1.5
    assert pace.seconds_for(500) == 1.0


def test_time_in_which_nobody_moves_anything_is_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(1000, clock)
    clock.seconds += 3600
    assert pace.seconds_for(500) == 0.5


def test_without_a_limit_nobody_waits() -> None:
    assert Pace(None).seconds_for(1 << 40) == 0.0


def test_a_cancel_ends_the_wait_for_a_turn_and_no_stall_is_seen_meanwhile() -> None:
    clock = Clock()
    job = Job(RUN, clock=clock)
    found: list[BaseException] = []

    def read() -> None:
        try:
            Paced(io.BytesIO(b"x" * 1000), Pace(0.001), job).read(1000)
        except Interrupted as error:
            found.append(error)

    job.enter(Phase.ARCHIVING)
    reader = threading.Thread(target=read)
    with job.child(["sleep", "1000"]):
        reader.start()
        wait_until(lambda: job._is_waiting, "the reader waits for its turn")
        for _ in range(100):
            clock.seconds += 20
            assert not job.cancel_if_stalled(900)
        job.cancel(Interrupted("shut down, says the test"))
        reader.join()
    assert [str(error) for error in found] == ["shut down, says the test"]


def test_a_run_that_is_read_at_a_pace_is_archived_whole(site: Site) -> None:
    bench = Bench.of(site).other(bandwidth_limit=10_000_000.0)
    run = bench.ready_run(size=300_000)
    assert bench.work(run) is Outcome.ENCRYPTED


def io_class(pid: int) -> str:
    """Return the I/O class of a process as ionice(1) tells it."""
    return os.popen(f"ionice -p {pid}").read().strip()


def test_children_have_the_priorities_that_were_asked_for(site: Site) -> None:
    job = Job(RUN, prefix=IDLE)
    with job.child(["sleep", "1000"]), job.second_pass() as second, second.child(["sleep", "1000"]):
        first, other = wait_until(lambda: len(found := children("sleep")) == 2 and found, "both sleep")
        for pid in (first, other):
            assert (os.getpriority(os.PRIO_PROCESS, pid), io_class(pid)) == (7, "idle")
    bench = Bench.of(site).other(prefix=IDLE)
    assert bench.work(bench.ready_run()) is Outcome.ENCRYPTED


@pytest.mark.parametrize("program", ["tar", "gpg"])
def test_the_configured_priorities_reach_tar_and_gpg(program: str, site: Site) -> None:
    spying, seen = site.root / "bin", site.root / "seen"
    spying.mkdir()
    script = (
        f'#!/bin/sh\n[ "$*" = --version ] || echo "$(nice) $(ionice)" >> {seen}\nexec {shutil.which(program)} "$@"\n'
    )
    (spying / program).write_text(script)
    (spying / program).chmod(0o755)
    site.configure(nice=5, io_class="idle", bandwidth_limit="20 MB")
    site.complete(site.make_run())
    done = site.command("once", PATH=f"{spying}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "5 idle" in seen.read_text().splitlines()
