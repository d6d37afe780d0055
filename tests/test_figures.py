"""The current figures of a worker: right, had at once, and only by whoever may have them."""

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread

import pytest
from machine import as_user_nobody

from watcher import figures as module
from watcher.figures import Figures, FiguresServer, current_figures
from watcher.job import Job
from watcher.model import Phase, Run

RUN = Run(Path("/data/sequencing/sequencer_A/run_001"))


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@contextmanager
def serving(lock_file: Path, *jobs: Job, peer_seconds: float = 60.0) -> Iterator[FiguresServer]:
    server = FiguresServer(lock_file, lambda: jobs, peer_seconds)
    assert server.open()
    thread = Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


@pytest.mark.unit
def test_the_figures_of_a_phase_are_its_own() -> None:
    clock = Clock()
    job = Job(RUN, 1000, clock)
    assert Figures.of(job).phase == "claimed"
    assert Figures.of(job).seconds_left is None
    clock.seconds += 50
    job.enter(Phase.ARCHIVING, 1000)
    assert (Figures.of(job).bytes_per_second, Figures.of(job).seconds_left) == (0, None)
    clock.seconds += 4
    job.moved(200)
    with job.second_pass() as second:
        second.moved(100)
        assert Figures.of(job) == Figures("run_001", str(RUN.path), "archiving", 4.0, 200, 1000, 100, 50, 16)
    job.moved(900)  # more than the run was said to have
    assert Figures.of(job).seconds_left == 0


@pytest.mark.unit
def test_who_asks_is_answered_each_time(lock_file: Path) -> None:
    job = Job(RUN)
    with serving(lock_file, job, Job(Run(Path("/other")))):
        assert [one.run for one in current_figures(lock_file)] == ["run_001", "other"]
        job.enter(Phase.WRAPPING)
        assert current_figures(lock_file)[0].phase == "wrapping"
        assert current_figures(lock_file.with_name("other")) == []
    assert current_figures(lock_file) == []


@pytest.mark.unit
def test_who_does_not_read_keeps_nobody_waiting(lock_file: Path) -> None:
    jobs = [Job(Run(Path(f"/{number}") / ("x" * 250) / ("y" * 250) / ("z" * 250))) for number in range(700)]
    with serving(lock_file, *jobs, peer_seconds=0.5), socket.socket(socket.AF_UNIX) as idler:
        idler.connect(module._address(lock_file))
        assert len(current_figures(lock_file)) == len(jobs)


@pytest.mark.unit
def test_a_name_that_is_taken_is_logged(lock_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(lock_file), caplog.at_level(logging.WARNING):
        assert not FiguresServer(lock_file, list).open()
    assert "`status` will not show current figures: no socket for them: Address already in use" in caplog.text


@contextmanager
def replying(lock_file: Path, answer: bytes) -> Iterator[None]:
    """Give whoever asks first this answer, whoever it is."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(module._address(lock_file))
        listener.listen()

        def reply() -> None:
            with listener.accept()[0] as asking, suppress(BrokenPipeError):
                asking.sendall(answer)

        thread = Thread(target=reply)
        thread.start()
        yield
        thread.join()


@pytest.mark.unit
@pytest.mark.parametrize("answer", [b"", b"{", b"5", b"[5]", b"[{}]", b'[{"run": 5}]', b"[" * 100_000])
def test_an_answer_of_another_form_is_none(answer: bytes, lock_file: Path) -> None:
    with replying(lock_file, answer):
        assert current_figures(lock_file) == []


@pytest.mark.unit
@pytest.mark.parametrize("wrong", [{"run": 5}, {"seconds_left": "soon"}, {"bytes_done": None}])
def test_figures_of_a_wrong_type_are_refused(wrong: dict[str, object]) -> None:
    right = asdict(Figures.of(Job(RUN)))
    assert Figures(**right).run == "run_001"
    with pytest.raises(TypeError):
        Figures(**right | wrong)


ASK = "import pathlib, sys; from watcher.figures import *; print(current_figures(pathlib.Path(sys.argv[1])))"


def asked_by_nobody(lock_file: Path) -> str:
    """Return what a user who is neither root nor the worker's gets."""
    command = [*as_user_nobody(), sys.executable, "-c", ASK, str(lock_file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.root
def test_another_user_gets_no_answer(lock_file: Path) -> None:
    with serving(lock_file, Job(RUN)):
        assert asked_by_nobody(lock_file) == "[]\n"
        assert current_figures(lock_file)


@pytest.mark.root
def test_another_user_s_answer_is_not_believed(lock_file: Path) -> None:
    answer = json.dumps([asdict(Figures.of(Job(RUN)))]).encode()
    with replying(lock_file, answer):
        assert current_figures(lock_file)
    with replying(lock_file, answer):
        assert asked_by_nobody(lock_file) == "[]\n"
