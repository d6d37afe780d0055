"""SIGKILL at each step and at random moments: each run ends encrypted once, whole, with nothing left over."""

from __future__ import annotations

import time

import pytest
from chaos_scale import size
from cluster import STEPS, Cluster, await_step, say, seeded
from couchdb_server import Database
from sites import Site

pytestmark = pytest.mark.chaos

ROUNDS = size("CHAOS_ROUNDS", 3)
"""How often each step is killed."""

RANDOM_KILLS = size("CHAOS_RANDOM_KILLS", 25)
KILLS_OF_THREE = size("CHAOS_KILLS_OF_THREE", 30)
"""At random moments; beside them, the holder is killed at each step."""


def settle(cluster: Cluster) -> None:
    """Let the daemons finish, end them, and look at everything."""
    cluster.await_encrypted()
    cluster.stop_all()
    cluster.await_no_children()
    cluster.assert_whole()
    assert cluster.missed < cluster.kills / 4, "most kills came at their step"
    say(
        f"{cluster.kills} kills survived ({cluster.missed} of them later than their step), "
        f"{len(cluster.runs)} runs, 0 lost"
    )


def test_a_daemon_killed_at_each_step_ends_each_run_once(site: Site) -> None:
    cluster = Cluster(site)
    cluster.start().wait_ready()
    for number in range(ROUNDS):
        for step in STEPS:
            name = cluster.add_run(f"{step.replace(' ', '_')}_{number}")
            await_step(cluster, name, step)
            cluster.kill()
            cluster.start().wait_ready()
    settle(cluster)
    assert cluster.kills == ROUNDS * len(STEPS)


def test_a_daemon_killed_at_random_moments_ends_each_run_once(site: Site) -> None:
    chance = seeded("random kills")
    cluster = Cluster(site)
    for number in range(RANDOM_KILLS):
        if number % 3 == 0:
            cluster.add_run(f"run_{number}", size=chance.randrange(100_000, 6_000_000))
        cluster.start()
        time.sleep(chance.uniform(0.4, 2.0))
        cluster.kill()
    cluster.start()
    settle(cluster)


@pytest.mark.parametrize("database", ["sqlite", "couchdb"])
def test_three_daemons_killed_at_random_moments_end_each_run_once(
    site: Site, database: str, request: pytest.FixtureRequest
) -> None:
    chance = seeded(f"three daemons on {database}")
    shared: Database | None = request.getfixturevalue("couchdb_database") if database == "couchdb" else None
    cluster = Cluster(site, shared)
    workers = ("worker_1", "worker_2", "worker_3")
    for worker in workers:
        cluster.start(worker)
    for step in STEPS:
        name = cluster.add_run(step.replace(" ", "_"))
        await_step(cluster, name, step)
        victim = (cluster.statusdb().get(name) or {}).get("worker_id", workers[0])
        cluster.kill(victim)
        cluster.start(victim)
    for number in range(KILLS_OF_THREE // 2):
        if number % 2 == 0:
            cluster.add_run(f"run_{number}", size=chance.randrange(100_000, 6_000_000))
        time.sleep(chance.uniform(0.2, 1.0))
        victim = chance.choice(workers)
        cluster.kill(victim)
        cluster.start(victim)
    settle(cluster)
