"""One run's work in hand: its real child processes, its progress, and how it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from machine import no_descriptors
from sites import PATIENCE_SECONDS, wait_until
from tracing import require_strace

from watcher.errors import CannotRun, ClaimLost, Interrupted, NoSpace, Stalled
from watcher.job import MOVING, Job, enough_threads
from watcher.model import Phase, Progress, Run

RUN = Run(Path("/data/sequencing/sequencer_A/run_001"))
SLEEP = ("sleep", "1000")
GONE = Interrupted("cancelled by a test")


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def job() -> Job:
    """A job that has just begun."""
    return Job(RUN)


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_child_runs_while_its_context_lasts_and_is_reaped(job: Job) -> None:
    with job.child(SLEEP) as process:
        assert is_running(process.pid)
    assert process.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_child_that_has_ended_by_itself_keeps_its_exit_status(job: Job) -> None:
    with job.child(["sh", "-c", "exit 7"]) as process:
        process.wait(PATIENCE_SECONDS)
    assert process.returncode == 7


def test_a_child_ends_with_its_context_when_that_fails(job: Job) -> None:
    process = None

    def work() -> None:
        nonlocal process
        with job.child(SLEEP) as process:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        work()
    assert process is not None
    assert process.returncode == -signal.SIGKILL


def test_a_child_is_given_what_popen_takes(job: Job, tmp_path: Path) -> None:
    with job.child(["pwd"], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.communicate(timeout=PATIENCE_SECONDS)[0].decode().strip() == str(tmp_path)


def test_a_terminals_interrupt_does_not_reach_a_child(job: Job) -> None:
    with job.child(SLEEP) as process:
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)


def test_cancelling_ends_all_children_at_once(job: Job) -> None:
    children = [job.start(SLEEP) for _ in range(3)]
    job.cancel(GONE)
    assert [child.wait(PATIENCE_SECONDS) for child in children] == [-signal.SIGKILL] * 3


def test_cancelling_ends_what_a_child_has_started(job: Job) -> None:
    with job.child(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert is_running(grandchild)
        job.cancel(GONE)
        wait_until(lambda: not is_running(grandchild), "the child's own child is gone")
        # Nobody has the pipe open any more: who reads it comes back.
        assert process.stdout.read() == b""


def test_cancelling_ends_a_child_that_ignores_signals(job: Job) -> None:
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); print(flush=True); input()"
    with job.child([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        job.cancel(GONE)
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_cancelling_wakes_who_reads_from_a_child(job: Job) -> None:
    with ThreadPoolExecutor(1) as pool, job.child(SLEEP, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reading = pool.submit(process.stdout.read)
        job.cancel(GONE)
        assert reading.result(PATIENCE_SECONDS) == b""


def test_cancelling_a_stopped_child_ends_it(job: Job) -> None:
    with job.child(SLEEP) as process:
        process.send_signal(signal.SIGSTOP)
        job.cancel(GONE)
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_a_cancelled_job_starts_nothing(job: Job, tmp_path: Path) -> None:
    job.cancel(GONE)
    with pytest.raises(Interrupted, match="cancelled by a test"), job.child(["touch", str(tmp_path / "began")]):
        pass
    with pytest.raises(Interrupted):
        job.start(["touch", str(tmp_path / "began")])
    assert list(tmp_path.iterdir()) == []


def test_no_child_outlives_a_cancel_that_comes_while_it_starts(job: Job) -> None:
    """Whoever is first: a child that starts is ended, or does not start."""
    started: list[subprocess.Popen[bytes]] = []
    begun = threading.Event()

    def start() -> None:
        try:
            while True:
                started.append(job.start(SLEEP))
                begun.set()
        except Interrupted:
            return

    with ThreadPoolExecutor(2) as pool:
        starting = [pool.submit(start) for _ in range(2)]
        assert begun.wait(PATIENCE_SECONDS)
        job.cancel(GONE)
        for done in starting:
            done.result(PATIENCE_SECONDS)
    assert {child.wait(PATIENCE_SECONDS) for child in started} == {-signal.SIGKILL}


def test_every_step_of_a_cancelled_job_raises_the_reason(job: Job) -> None:
    job.cancel(GONE)
    assert job.cancelled.is_set()
    for step in (job.check, lambda: job.moved(1), lambda: job.enter(Phase.WRAPPING)):
        with pytest.raises(Interrupted, match="cancelled by a test"):
            step()
    assert job.progress == Progress(Phase.CLAIMED)


def test_the_first_reason_is_the_one_that_counts(job: Job) -> None:
    job.cancel(ClaimLost("taken over"))
    job.cancel(GONE)
    with pytest.raises(ClaimLost):
        job.check()


def test_a_job_that_nobody_cancels_goes_on(job: Job) -> None:
    job.check()
    assert not job.cancelled.is_set()


def test_a_program_that_is_not_there_is_not_the_runs_fault(job: Job) -> None:
    with pytest.raises(CannotRun, match="cannot run 'no-such-program'"):
        job.start(["no-such-program"])
    job.cancel(GONE)


def test_a_lack_of_threads_is_not_the_runs_fault_and_another_error_is_no_lack_of_threads() -> None:
    with pytest.raises(CannotRun, match="can't start new thread; too many run"), enough_threads():
        raise RuntimeError("can't start new thread")  # CPython's words
    with pytest.raises(RuntimeError, match="a bug"), enough_threads():
        raise RuntimeError("a bug")


def test_progress_is_of_the_phase_that_was_entered_last(job: Job) -> None:
    job.enter(Phase.ARCHIVING, bytes_total=100)
    job.moved(30)
    job.moved(12)
    assert job.progress == Progress(Phase.ARCHIVING, 42, 100)
    job.enter(Phase.VALIDATING, bytes_total=50)
    assert job.progress == Progress(Phase.VALIDATING, 0, 50)


@pytest.mark.parametrize(
    ("phase", "moved", "to_come"),
    [
        (Phase.CLAIMED, 0, 100),
        (Phase.ARCHIVING, 0, 100),
        (Phase.ARCHIVING, 60, 40),
        (Phase.ARCHIVING, 160, 0),
        (Phase.VALIDATING, 0, 0),
        (Phase.WRAPPING, 0, 0),
        (Phase.PUBLISHING, 0, 0),
    ],
)
def test_room_is_kept_for_what_a_job_will_still_write(phase: Phase, moved: int, to_come: int) -> None:
    job = Job(RUN, size=100)
    job.enter(phase)
    job.moved(moved)
    assert job.bytes_to_come == to_come


def looked_for(job: Job, clock: Clock, seconds: int) -> bool:
    """Let so many seconds pass, looking at the job each second; return whether it was found stalled."""
    for _ in range(seconds):
        clock.seconds += 1
        if job.cancel_if_stalled(900):
            return True
    return False


@pytest.mark.parametrize("phase", MOVING)
def test_a_job_that_moves_nothing_for_the_limit_is_stalled(phase: Phase) -> None:
    clock = Clock()
    job = Job(RUN, clock=clock)
    job.enter(phase)
    with job.child(SLEEP) as process:
        assert not looked_for(job, clock, 899)
        job.moved(1)
        assert not looked_for(job, clock, 899)
        assert looked_for(job, clock, 1)
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    with pytest.raises(Stalled, match=f"no byte moved for 900 s while {phase}"):
        job.check()


@pytest.mark.parametrize("phase", MOVING)
def test_a_job_whose_disk_gives_or_takes_no_byte_is_stopped_at_no_cost(phase: Phase) -> None:
    clock = Clock()
    job = Job(RUN, clock=clock)
    job.enter(phase)
    with job.child(SLEEP):
        assert job.on_storage(lambda: looked_for(job, clock, 900), Path("/archives/staged"))()
    with pytest.raises(NoSpace, match="'/archives/staged' gave or took no byte for 900 s"):
        job.check()


@pytest.mark.parametrize("phase", Phase)
def test_a_job_without_a_child_has_none_that_hangs_but_not_for_ever(phase: Phase) -> None:
    clock = Clock()
    job = Job(RUN, clock=clock)
    job.enter(phase)
    assert not looked_for(job, clock, 3599)
    with job.waiting():
        assert not looked_for(job, clock, 10_000)
    assert not looked_for(job, clock, 3599)
    assert looked_for(job, clock, 1)
    with pytest.raises(NoSpace, match=f"nothing has moved for 3600 s while {phase}"):
        job.check()


def test_a_cancel_that_was_obeyed_is_forgiven_and_no_other(job: Job) -> None:
    obeyed = Stalled("gpg hangs")
    job.cancel(obeyed)
    job.forgive(GONE)
    assert job.cancelled.is_set()
    job.forgive(obeyed)
    job.check()
    assert not job.cancelled.is_set()
    job.cancel(GONE)
    with pytest.raises(Interrupted):
        job.check()


def test_a_job_that_was_suspended_with_its_watcher_is_not_stalled() -> None:
    clock = Clock()
    job = Job(RUN, clock=clock)
    job.enter(Phase.ARCHIVING)
    with job.child(SLEEP):
        clock.seconds += 7200
        assert not job.cancel_if_stalled(900)
        assert not looked_for(job, clock, 899)
        assert looked_for(job, clock, 1)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in MOVING])
def test_a_job_that_waits_for_something_outside_is_not_stalled(phase: Phase) -> None:
    clock = Clock()
    job = Job(RUN, clock=clock)
    job.enter(phase)
    with job.child(SLEEP):
        assert not looked_for(job, clock, 2000)
    job.check()


def test_entering_a_phase_is_moving() -> None:
    clock = Clock()
    job = Job(RUN, clock=clock)
    with job.child(SLEEP):
        assert not looked_for(job, clock, 1000)
        job.enter(Phase.ARCHIVING)
        assert not looked_for(job, clock, 899)
        assert looked_for(job, clock, 1)


def test_a_job_cancelled_for_another_reason_is_not_stalled_as_well() -> None:
    clock = Clock()
    job = Job(RUN, clock=clock)
    job.enter(Phase.ARCHIVING)
    with job.child(SLEEP):
        job.cancel(GONE)
        assert not looked_for(job, clock, 1000)
    with pytest.raises(Interrupted):
        job.check()


def test_a_phase_that_begins_while_somebody_looks_is_not_stalled() -> None:
    clock = Clock()
    looked_at: list[Job] = []
    found: list[bool] = []

    def look_then_tell() -> float:
        while looked_at:
            found.append(looked_at.pop().cancel_if_stalled(900))
        return clock()

    beginning = Job(RUN, clock=look_then_tell)
    with beginning.child(SLEEP):
        assert not looked_for(beginning, clock, 1000)
        looked_at.append(beginning)
        beginning.enter(Phase.ARCHIVING)
    assert found == [False]
    beginning.check()


def test_children_that_have_ended_leave_no_process_and_no_descriptor_behind(job: Job) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pids = []
    for _ in range(200):
        with job.child(["true"], stdout=subprocess.DEVNULL) as process:
            pids.append(process.pid)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert len(os.listdir("/proc/self/fd")) <= before


def test_ctrl_c_does_not_reach_a_child_that_has_no_group_of_its_own_yet(unavailable: Callable[[str], NoReturn]) -> None:
    require_strace(unavailable)
    program = "from watcher.job import start_child; print(start_child(['true']).wait())"
    interrupted = [
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "inject=setpgid:signal=SIGINT",
        sys.executable,
        "-c",
        program,
    ]
    assert subprocess.run(interrupted, capture_output=True, check=True).stdout == b"0\n"


def test_a_child_that_gets_no_descriptor_is_not_called_missing(job: Job) -> None:
    with pytest.raises(CannotRun, match=r"'sleep': Too many open files; raise .*LimitNOFILE"), no_descriptors():
        job.start(SLEEP, stdin=subprocess.PIPE)


def test_a_program_that_is_missing_is_called_so(job: Job) -> None:
    with pytest.raises(CannotRun, match=r"No such file or directory; is it installed, and on the PATH\?"):
        job.start(["no-such-program"])


def test_a_child_whose_status_would_be_lost_is_not_started(job: Job) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(CannotRun, match="SIGCHLD is ignored"):
            job.start(SLEEP)
    finally:
        signal.signal(signal.SIGCHLD, before)
