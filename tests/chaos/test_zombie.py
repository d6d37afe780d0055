"""SIGSTOP in each step for longer than the lease: another worker finishes the run, and the first changes nothing."""

from __future__ import annotations

import signal
import time

import pytest
from chaos_scale import size
from cluster import STEPS, Cluster, await_step, children_of, say, signal_all
from couchdb_server import Database
from sites import Daemon, Site, wait_until

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
    cluster = Cluster(site, couchdb_database)
    sleeper, rescuer = cluster.start("worker_1").wait_ready(), cluster.start("worker_2").wait_ready()
    late = 0
    for number in range(ROUNDS):
        for step in SLEEPY_STEPS:
            suspend(rescuer)
            name = cluster.add_run(f"{step.replace(' ', '_')}_{number}")
            await_step(cluster, name, step)
            sleeper.signal(signal.SIGSTOP)
            children = children_of(sleeper.pid) if with_children else []
            signal_all(children, signal.SIGSTOP)
            wait_until(lambda: is_stopped(sleeper), "it stops")
            rescuer.signal(signal.SIGCONT)
            cluster.await_encrypted()
            document, finals = cluster.statusdb().get(name), cluster.finals()
            assert document is not None
            late += document["worker_id"] == "worker_1"
            signal_all(children, signal.SIGCONT)
            sleeper.signal(signal.SIGCONT)
            if document["worker_id"] == "worker_2":
                sleeper.wait_for_log(f"{name}: stopped")
            wait_until(lambda: not site.staged_files() and not cluster.children(), "the sleeper clears up")
            assert cluster.statusdb().get(name) == document
            assert cluster.finals() == finals
    cluster.stop_all()
    cluster.assert_whole()
    naps = ROUNDS * len(SLEEPY_STEPS)
    say(f"{naps} naps, {naps - late} of them lost the run to another worker, 0 changes by the sleeper")
    assert late <= naps // 3, "the sleeper was mostly too quick to be stopped"


def test_a_daemon_that_wakes_before_anybody_took_its_run_finishes_it(site: Site) -> None:
    cluster = Cluster(site)
    daemon = cluster.start().wait_ready()
    name = cluster.add_run("run_001", size=20_000_000)
    await_step(cluster, name, "archive begun")
    suspend(daemon)
    time.sleep(2 * cluster.site.options["lease_seconds"])  # longer than its lease, with nobody there to take it
    daemon.signal(signal.SIGCONT)
    cluster.await_encrypted()
    cluster.stop_all()
    cluster.assert_whole()
