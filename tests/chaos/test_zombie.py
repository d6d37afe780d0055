"""SIGSTOP in each step for longer than the lease: another worker finishes the run, and the first changes nothing."""

from __future__ import annotations

import signal
import time

import pytest
from couchdb_server import Database
from facility import Daemon, Site, wait_until
from hall import STEPS, Hall, await_step, children_of, say, signal_all
from scale import size

pytestmark = pytest.mark.chaos

ROUNDS = size("CHAOS_ZOMBIES", 1)
SLEEPY_STEPS = [step for step in STEPS if step not in ("registered", "recorded")]


def is_stopped(daemon: Daemon) -> bool:
    """Whether all of the daemon's threads have stopped."""
    with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def suspend(daemon: Daemon) -> None:
    """Stop a daemon, and return when it has stopped."""
    daemon.signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(daemon), "it stops")


@pytest.mark.parametrize("with_children", [True, False], ids=["with its children", "alone"])
def test_a_daemon_that_slept_through_its_lease_changes_nothing(
    site: Site, couchdb_database: Database, with_children: bool
) -> None:
    """On a server, as several hosts have it: who is suspended within a write to SQLite keeps its lock."""
    hall = Hall(site, couchdb_database)
    sleeper, rescuer = hall.start("worker_1").wait_ready(), hall.start("worker_2").wait_ready()
    late = 0
    for number in range(ROUNDS):
        for step in SLEEPY_STEPS:
            suspend(rescuer)
            name = hall.add_run(f"{step.replace(' ', '_')}_{number}")
            await_step(hall, name, step)
            sleeper.signal(signal.SIGSTOP)
            children = children_of(sleeper.pid) if with_children else []
            signal_all(children, signal.SIGSTOP)
            wait_until(lambda: is_stopped(sleeper), "it stops")
            rescuer.signal(signal.SIGCONT)
            hall.await_encrypted()
            document, finals = hall.statusdb().get(name), hall.finals()
            assert document is not None
            late += document["worker_id"] == "worker_1"
            signal_all(children, signal.SIGCONT)
            sleeper.signal(signal.SIGCONT)
            if document["worker_id"] == "worker_2":
                sleeper.wait_for_log(f"{name}: stopped")
            wait_until(lambda: not site.debris() and not hall.children(), f"the sleeper clears up: {site.debris()}")
            assert hall.statusdb().get(name) == document
            assert hall.finals() == finals
    hall.stop_all()
    hall.assert_whole()
    naps = ROUNDS * len(SLEEPY_STEPS)
    say(f"{naps} naps, {naps - late} of them lost the run to another worker, 0 changes by the sleeper")
    assert late <= naps // 3, "the sleeper was mostly too quick to be stopped"


def test_a_daemon_that_wakes_before_anybody_took_its_run_finishes_it(site: Site) -> None:
    hall = Hall(site)
    daemon = hall.start().wait_ready()
    name = hall.add_run("run_001", size=20_000_000)
    await_step(hall, name, "archive begun")
    suspend(daemon)
    time.sleep(2 * hall.site.options["lease_seconds"])  # longer than its lease, with nobody there to take it
    daemon.signal(signal.SIGCONT)
    hall.await_encrypted()
    hall.stop_all()
    hall.assert_whole()
