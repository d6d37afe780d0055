"""Runs that wait, and threads that take them: how many at once, which again, and what stops it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sites import PATIENCE_SECONDS, wait_until

from watcher.daemon.dispatcher import AWAY_SECONDS, Dispatcher
from watcher.errors import StatusDBUnavailable
from watcher.model import Run

pytestmark = pytest.mark.unit

JOBS = 2


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Works:
    """Work that waits until it is told to end, and remembers what was begun, and how much of it at once."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str | None]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.twice: list[str] = []
        self.errors: dict[str, Exception] = {}
        self._running: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._free = False
        self._changed = threading.Condition()

    def __call__(self, run: Run, stale_rev: str | None) -> str:
        with self._changed:
            self.begun.append((run.name, stale_rev))
            self._running[run.name] += 1
            if self._running[run.name] > 1:
                self.twice.append(run.name)
            self.most_at_once = max(self.most_at_once, self._running.total())
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._free or self._ends[run.name] > 0, PATIENCE_SECONDS)
            self._ends[run.name] -= 1
            self._running[run.name] -= 1
            if error := self.errors.get(run.name):
                raise error
            return "encrypted"

    def end(self, *names: str) -> None:
        """Let these end, once each."""
        with self._changed:
            self._ends.update(names)
            self._changed.notify_all()

    def end_all(self) -> None:
        """Let everything end, and nothing wait from now on."""
        with self._changed:
            self._free = True
            self._changed.notify_all()

    def wait_until_begun(self, count: int) -> list[str]:
        """Wait until so many have been begun in all; return their names."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, PATIENCE_SECONDS), self.begun
            return [name for name, _ in self.begun]


class Bench:
    """A dispatcher, its work and its clock."""

    def __init__(self, jobs: int = JOBS) -> None:
        self.works = Works()
        self.clock = Clock()
        self.dispatcher = Dispatcher(self.works, jobs, self.clock)

    def submit(self, *names: str, stale_rev: str | None = None) -> None:
        """Offer runs of these names."""
        for name in names:
            self.dispatcher.submit(run(name), stale_rev)

    def drain(self) -> None:
        """Let all end, and wait for it."""
        self.works.end_all()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self.dispatcher.drain).result(PATIENCE_SECONDS)


def run(name: str) -> Run:
    return Run(Path(f"/data/sequencing/sequencer_A/{name}"))


@pytest.fixture
def bench() -> Bench:
    """A dispatcher with two threads."""
    return Bench()


@pytest.fixture(autouse=True)
def _ended(bench: Bench) -> object:
    yield
    bench.works.end_all()
    bench.dispatcher.shutdown()


def test_no_more_runs_are_worked_on_than_there_are_jobs(bench: Bench) -> None:
    names = [f"run_{number}" for number in range(20)]
    bench.submit(*names)
    bench.works.wait_until_begun(JOBS)
    assert bench.dispatcher.counts() == (JOBS, 18)
    bench.drain()
    assert sorted(bench.works.wait_until_begun(20)) == sorted(names)
    assert bench.works.most_at_once == JOBS


@pytest.mark.parametrize("jobs", [1, 5])
def test_as_many_runs_are_worked_on_as_there_are_jobs(jobs: int) -> None:
    bench = Bench(jobs)
    bench.submit(*(f"run_{number}" for number in range(10)))
    bench.works.wait_until_begun(jobs)
    assert bench.dispatcher.counts() == (jobs, 10 - jobs)
    bench.drain()
    assert bench.works.most_at_once == jobs
    bench.dispatcher.shutdown()


def test_runs_are_begun_in_the_order_in_which_they_were_submitted(bench: Bench) -> None:
    names = [f"run_{number}" for number in range(6)]
    bench.submit(*names)
    for count in range(JOBS, 6):
        begun = bench.works.wait_until_begun(count)
        bench.works.end(begun[count - JOBS])
    assert sorted(bench.works.wait_until_begun(6)[:JOBS]) == names[:JOBS]
    assert bench.works.wait_until_begun(6)[JOBS:] == names[JOBS:]


def test_a_run_submitted_many_times_before_it_begins_is_begun_once(bench: Bench) -> None:
    bench.submit("a", "b", *["c"] * 10)
    assert bench.dispatcher.counts() == (2, 1)
    bench.drain()
    assert sorted(name for name, _ in bench.works.begun) == ["a", "b", "c"]


def test_a_run_submitted_again_while_it_is_worked_on_is_begun_once_more_afterwards(bench: Bench) -> None:
    bench.submit("a")
    bench.works.wait_until_begun(1)
    bench.submit("a", "a", "a")
    assert bench.dispatcher.counts() == (1, 1)
    bench.works.end("a")
    bench.works.wait_until_begun(2)
    bench.drain()
    assert [name for name, _ in bench.works.begun] == ["a", "a"]
    assert bench.works.twice == []


def test_a_run_that_waits_for_itself_keeps_no_other_from_a_free_thread(bench: Bench) -> None:
    bench.submit("a")
    bench.works.wait_until_begun(1)
    bench.submit("a", "b")
    assert bench.works.wait_until_begun(2) == ["a", "b"]
    assert bench.dispatcher.counts() == (2, 1)


def test_all_runs_worked_on_and_submitted_again_leave_none_behind(bench: Bench) -> None:
    bench.submit("a", "b")
    bench.works.wait_until_begun(2)
    bench.submit("a", "b", "c", "d", "e")
    bench.drain()
    assert Counter(name for name, _ in bench.works.begun) == Counter("aabbcde")


def test_a_stale_claims_revision_reaches_the_worker(bench: Bench) -> None:
    bench.submit("a", stale_rev="3-abc")
    bench.drain()
    assert bench.works.begun == [("a", "3-abc")]


def test_many_threads_may_offer_at_once(bench: Bench) -> None:
    bench.works.end_all()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: bench.submit(f"run_{number % 50}"), range(400)))
    bench.drain()
    assert {name for name, _ in bench.works.begun} == {f"run_{number}" for number in range(50)}
    assert (bench.works.twice, bench.works.most_at_once <= JOBS) == ([], True)
    assert bench.dispatcher.counts() == (0, 0)


def test_a_deferred_run_is_begun_when_its_time_has_come_and_not_before(bench: Bench) -> None:
    bench.works.end_all()
    bench.dispatcher.submit_later(run("a"), 60)
    bench.dispatcher.submit_later(run("b"), 90)
    assert bench.dispatcher.release_due() == 60
    bench.clock.seconds += 59
    assert bench.dispatcher.release_due() == 1
    assert bench.works.begun == []
    bench.clock.seconds += 1
    assert bench.dispatcher.release_due() == 30
    bench.drain()
    assert bench.works.begun == [("a", None)]
    bench.clock.seconds += 30
    assert bench.dispatcher.release_due() is None
    bench.drain()
    assert bench.works.begun == [("a", None), ("b", None)]


def test_a_deferred_run_that_is_submitted_is_begun_once(bench: Bench) -> None:
    bench.works.end_all()
    bench.dispatcher.submit_later(run("a"), 60)
    bench.submit("a")
    bench.clock.seconds += 60
    assert bench.dispatcher.release_due() is None
    bench.drain()
    assert bench.works.begun == [("a", None)]


def test_a_run_that_could_not_be_claimed_for_the_database_is_deferred(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.works.end_all()
    bench.works.errors["a"] = StatusDBUnavailable("nobody answers")
    bench.submit("a")
    bench.drain()
    assert bench.dispatcher.release_due() == AWAY_SECONDS
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "waits, not claimed: nobody answers",
    )
    assert record.__dict__["run"] == "a"
    del bench.works.errors["a"]
    bench.clock.seconds += AWAY_SECONDS
    bench.dispatcher.release_due()
    bench.drain()
    assert len(bench.works.begun) == 2


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), SystemExit(7)], ids=repr)
def test_a_bug_in_the_work_is_shown_and_costs_no_thread(
    bench: Bench, caplog: pytest.LogCaptureFixture, bug: Exception
) -> None:
    bench.works.end_all()
    bench.works.errors = {f"bad_{number}": bug for number in range(5)}
    bench.submit(*bench.works.errors, "good")
    bench.drain()
    assert len(bench.works.begun) == 6
    assert bench.dispatcher.outcomes() == Counter(error=5, encrypted=1)
    if isinstance(bug, ZeroDivisionError):
        assert caplog.text.count("ZeroDivisionError: a bug") == 5


def test_outcomes_are_counted(bench: Bench) -> None:
    bench.works.errors["b"] = StatusDBUnavailable("away")
    bench.submit("a", "b", "c")
    bench.drain()
    assert bench.dispatcher.outcomes() == Counter(encrypted=2, error=1)


def test_a_closed_dispatcher_begins_nothing_and_lets_what_runs_go_on(bench: Bench) -> None:
    bench.submit("a", "b", "c")
    bench.works.wait_until_begun(2)
    bench.dispatcher.submit_later(run("d"), 0)
    bench.dispatcher.close()
    bench.submit("e")
    bench.dispatcher.submit_later(run("f"), 0)
    assert bench.dispatcher.release_due() is None
    assert bench.dispatcher.counts() == (2, 0)
    bench.works.end("a", "b")
    bench.dispatcher.shutdown()
    assert sorted(name for name, _ in bench.works.begun) == ["a", "b"]
    assert bench.dispatcher.outcomes() == Counter(encrypted=2)


def test_a_shutdown_waits_for_what_runs() -> None:
    bench = Bench(jobs=1)
    bench.submit("a")
    bench.works.wait_until_begun(1)
    ending = threading.Thread(target=bench.dispatcher.shutdown)
    ending.start()
    wait_until(lambda: not _takes_offers(bench), "the dispatcher is closed")
    assert ending.is_alive()
    bench.works.end("a")
    ending.join(PATIENCE_SECONDS)
    assert not ending.is_alive()
    assert bench.dispatcher.counts() == (0, 0)


def _takes_offers(bench: Bench) -> bool:
    bench.submit("b")
    return bench.dispatcher.counts()[1] > 0


def test_draining_ends_when_nothing_waits_and_nothing_runs(bench: Bench) -> None:
    bench.submit("a", "b", "c")
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(bench.dispatcher.drain)
        bench.works.wait_until_begun(2)
        bench.works.end("a", "b")
        bench.works.wait_until_begun(3)
        assert not draining.done()
        bench.works.end("c")
        draining.result(PATIENCE_SECONDS)
    assert bench.dispatcher.counts() == (0, 0)


def test_draining_ends_when_a_stop_leaves_what_waits(bench: Bench) -> None:
    bench.submit("a", "b", "c")
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(bench.dispatcher.drain)
        bench.works.wait_until_begun(2)
        bench.dispatcher.close()
        bench.works.end("a", "b")
        draining.result(PATIENCE_SECONDS)
    assert len(bench.works.begun) == 2


def test_draining_what_is_empty_ends_at_once(bench: Bench) -> None:
    bench.dispatcher.drain()
    assert bench.dispatcher.counts() == (0, 0)
