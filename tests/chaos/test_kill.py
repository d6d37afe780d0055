"""SIGKILL at each step and at random moments: each run ends encrypted once, whole, with nothing left over."""

from __future__ import annotations

import time

import pytest
from couchdb_server import Database
from facility import Site
from hall import STEPS, Hall, await_step, say, seeded
from scale import size

pytestmark = pytest.mark.chaos

ROUNDS = size("CHAOS_ROUNDS", 3)
"""How often each step is killed."""

RANDOM_KILLS = size("CHAOS_RANDOM_KILLS", 25)
KILLS_OF_THREE = size("CHAOS_KILLS_OF_THREE", 30)
"""At random moments; beside them, the holder is killed at each step."""


def settle(hall: Hall) -> None:
    """Let the daemons finish, end them, and look at everything."""
    hall.await_encrypted()
    hall.stop_all()
    hall.await_no_children()
    hall.assert_whole()
    assert hall.missed < hall.kills / 4, "most kills came at their step"
    say(f"{hall.kills} kills survived ({hall.missed} of them later than their step), {len(hall.runs)} runs, 0 lost")


def test_a_daemon_killed_at_each_step_ends_each_run_once(site: Site) -> None:
    hall = Hall(site)
    hall.start().wait_ready()
    for number in range(ROUNDS):
        for step in STEPS:
            name = hall.add_run(f"{step.replace(' ', '_')}_{number}")
            await_step(hall, name, step)
            hall.kill()
            hall.start().wait_ready()
    settle(hall)
    assert hall.kills == ROUNDS * len(STEPS)


def test_a_daemon_killed_at_random_moments_ends_each_run_once(site: Site) -> None:
    chance = seeded("random kills")
    hall = Hall(site)
    for number in range(RANDOM_KILLS):
        if number % 3 == 0:
            hall.add_run(f"run_{number}", size=chance.randrange(100_000, 6_000_000))
        hall.start()
        time.sleep(chance.uniform(0.4, 2.0))
        hall.kill()
    hall.start()
    settle(hall)


@pytest.mark.parametrize("database", ["sqlite", "couchdb"])
def test_three_daemons_killed_at_random_moments_end_each_run_once(
    site: Site, database: str, request: pytest.FixtureRequest
) -> None:
    chance = seeded(f"three daemons on {database}")
    shared: Database | None = request.getfixturevalue("couchdb_database") if database == "couchdb" else None
    hall = Hall(site, shared)
    workers = ("worker_1", "worker_2", "worker_3")
    for worker in workers:
        hall.start(worker)
    for step in STEPS:
        name = hall.add_run(step.replace(" ", "_"))
        await_step(hall, name, step)
        victim = (hall.statusdb().get(name) or {}).get("worker_id", workers[0])
        hall.kill(victim)
        hall.start(victim)
    for number in range(KILLS_OF_THREE // 2):
        if number % 2 == 0:
            hall.add_run(f"run_{number}", size=chance.randrange(100_000, 6_000_000))
        time.sleep(chance.uniform(0.2, 1.0))
        victim = chance.choice(workers)
        hall.kill(victim)
        hall.start(victim)
    settle(hall)
