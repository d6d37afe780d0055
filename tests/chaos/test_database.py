"""A proxy breaks every single request, and is away for long: one holder, nothing lost, no attempt spent."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import requests
from chaos_scale import size
from cluster import Cluster, await_step, say, seeded
from couchdb_server import Database
from fault_proxy import Fault, FaultProxy, Request
from harness import Bench, die
from sites import Site, assert_same_tree

from watcher.archiving import Outcome
from watcher.errors import NoSpace, StatusDBUnavailable, TarFailed
from watcher.model import Claim, Phase, Progress, Run
from watcher.statusdb import CouchDBStore, Login

pytestmark = pytest.mark.chaos

TIMEOUT_SECONDS = 0.3
"""How long these tests' client waits for an answer; the proxy holds a hung one for longer."""

TRIES = 6

FAULTS = (
    Fault.RESET, Fault.RESET_AFTER, Fault.HANG, Fault.HANG_AFTER, Fault.ERROR_500, Fault.ERROR_503,
    Fault.ACCEPTED, Fault.CUT_BODY, Fault.BROKEN_JSON,
)  # fmt: skip

HARSH = tuple(fault for fault in FAULTS if fault not in (Fault.HANG, Fault.HANG_AFTER))
"""Without what only a long time-out ends."""


def break_one(proxy: FaultProxy, number: int, fault: Fault) -> None:
    """Let the request of that number meet the fault. A server that is down comes back a little later."""

    def plan(request: Request) -> Fault:
        if request.number != number:
            return Fault.PASS
        if fault is Fault.DOWN:
            threading.Timer(TIMEOUT_SECONDS, proxy.up).start()
        return fault

    proxy.plan = plan


T = TypeVar("T")


def insist(ask: Callable[[], T]) -> T:
    """Ask again while the database is away, as a daemon does in time."""
    for _ in range(TRIES):
        try:
            return ask()
        except StatusDBUnavailable:
            time.sleep(TIMEOUT_SECONDS / 2)
    raise AssertionError("the database does not come back")


def story(bench: Bench, run: Run) -> list[Outcome]:
    """Register a run and work on it until it is encrypted, as a daemon and the expiry of leases do in time."""
    outcomes: list[Outcome] = []
    while Outcome.ENCRYPTED not in outcomes:
        assert len(outcomes) < TRIES, outcomes
        try:
            bench.statusdb().register([run])
            document = bench.document(run)
            stale_rev = document["_rev"] if document["status"] == "processing" else None
            outcomes.append(bench.work(run, stale_rev))
        except StatusDBUnavailable:
            outcomes.append(Outcome.NOT_OURS)
            time.sleep(TIMEOUT_SECONDS / 2)
        bench.now.advance(61)
    return outcomes


def through(proxy: FaultProxy, site: Site, database: Database) -> Bench:
    """Return a worker whose requests go through the proxy."""
    login = Login(proxy.url, database.name)
    CouchDBStore(Login(database.url, database.name)).prepare()
    bench = Bench.of(site, lambda: CouchDBStore(login, TIMEOUT_SECONDS))
    return replace(bench, pauses=lambda: itertools.repeat(TIMEOUT_SECONDS / 6))


def named(site: Site, name: str) -> Run:
    """Make a small run that is ready."""
    return Run(site.complete(site.make_run(name, size=10_000)))


@pytest.mark.parametrize("fault", [*FAULTS, Fault.DOWN])
def test_each_request_of_the_story_may_fail(site: Site, couchdb_database: Database, fault: Fault) -> None:
    with FaultProxy(couchdb_database.url) as proxy:
        bench = through(proxy, site, couchdb_database)
        before = len(proxy.requests)
        assert story(bench, named(site, "clean")) == [Outcome.ENCRYPTED]
        count = len(proxy.requests) - before
        assert count >= 6, "register, look, claim, announce, record"
        cut = 0
        for index in range(count):
            run = named(site, f"run_{index}")
            number = len(proxy.requests) + index
            break_one(proxy, number, fault)
            outcomes = story(bench, run)
            proxy.release()
            cut += proxy.faults[number] is fault
            assert outcomes.count(Outcome.ENCRYPTED) == 1
            document = insist(lambda run=run: bench.document(run))
            assert (document["status"], document["failure_count"]) == ("encrypted", 0)
            assert document["archive"]["token"] == document["last_claim"], "it was made once and recorded by its maker"
            assert bench.work(run) is Outcome.NOT_OURS
            assert_same_tree(run.path, site.restore(run.name))
            assert site.staged_files() == []
        say(f"{fault.name}: {cut} of {count} requests cut, 0 lost")
        assert cut == count


FINISHED: dict[str, Callable[[Bench], Bench]] = {
    "not announced": lambda bench: bench.with_archive_store("stage_receipt", die, after=True),
    "announced": lambda bench: bench.with_archive_store("publish", die),
    "announced, and gone since": lambda bench: bench.with_archive_store("publish", die),
}
"""What a maker that died has left for the next to adopt."""


@pytest.mark.parametrize("fault", [*FAULTS, Fault.DOWN])
@pytest.mark.parametrize("left", FINISHED)
def test_each_request_of_a_story_that_adopts_may_fail(
    site: Site, couchdb_database: Database, left: str, fault: Fault
) -> None:
    with FaultProxy(couchdb_database.url) as proxy:
        bench = through(proxy, site, couchdb_database)
        direct = Bench.of(site, lambda: CouchDBStore(Login(couchdb_database.url, couchdb_database.name)))

        def leave(name: str) -> tuple[Run, str]:
            run = named(site, name)
            direct.statusdb().register([run])
            FINISHED[left](direct).dies(run)
            maker: str = direct.document(run)["claim"]["token"]
            if "gone" in left:
                direct.archive_store.staged_archive(run.name, maker).unlink()
            return run, maker

        run, _ = leave("clean")
        before = len(proxy.requests)
        assert story(bench, run) == [Outcome.ENCRYPTED]
        count = len(proxy.requests) - before
        for index in range(count):
            run, maker = leave(f"run_{index}")
            number = len(proxy.requests) + index
            break_one(proxy, number, fault)
            outcomes = story(bench, run)
            proxy.release()
            assert proxy.faults[number] is fault
            assert outcomes.count(Outcome.ENCRYPTED) == 1
            document = insist(lambda run=run: bench.document(run))
            assert (document["status"], document["failure_count"]) == ("encrypted", 0)
            made_by = document["last_claim"] if "gone" in left else maker
            assert document["archive"]["token"] == made_by
            assert_same_tree(run.path, site.restore(run.name))
            assert site.staged_files() == []
        say(f"{fault.name}, {left}: {count} requests cut, 0 lost")
        assert count >= 5, "register, look, claim, record"


def claim(bench: Bench, run: Run) -> Claim:
    """Claim a run, whoever seems to hold it."""

    def once() -> Claim:
        bench.now.advance(3601)
        document = bench.document(run)
        claim = bench.statusdb().claim(run, "worker_1", document)
        if claim is None:  # too few nodes confirmed it: the lease will expire
            raise StatusDBUnavailable("not claimed")
        return claim

    return insist(once)


def give_back_then_fail(bench: Bench, run: Run) -> None:
    """Do all that a holder writes beside the story of a success, and ask what the daemon asks of the database."""
    statusdb = bench.statusdb()
    insist(lambda: statusdb.register([run]))
    held = claim(bench, run)
    document = insist(lambda: statusdb.renew(held.document, held.token, Progress(Phase.ARCHIVING, 1, 2)))
    assert [found["_id"] for found in insist(statusdb.processing)] == [run.name]
    insist(lambda: statusdb.release(document, held.token, NoSpace("no room"), 60))
    assert [found["_id"] for found in insist(statusdb.pending)] == [run.name]
    held = claim(bench, run)
    insist(lambda: statusdb.fail(held.document, held.token, TarFailed("it cannot be read"), 60))
    since = insist(lambda: statusdb.changes(None, 0)).since
    assert insist(lambda: statusdb.changes(since, 0)).documents == ()


@pytest.mark.parametrize("fault", [*FAULTS, Fault.DOWN])
def test_each_request_beside_the_story_may_fail(site: Site, couchdb_database: Database, fault: Fault) -> None:
    with FaultProxy(couchdb_database.url) as proxy:
        bench = through(proxy, site, couchdb_database)
        run = named(site, "run_001")
        count = 0
        index = -1
        while index < count:
            first = len(proxy.requests)
            if index >= 0:
                break_one(proxy, first + index, fault)
            give_back_then_fail(bench, run)
            count = count or len(proxy.requests) - first
            proxy.plan = lambda _request: Fault.PASS
            proxy.release()
            document = bench.document(run)
            assert (document["status"], document["failure_count"]) == ("pending", 1)
            direct = CouchDBStore(Login(couchdb_database.url, couchdb_database.name))
            found = direct.get(run.name)
            assert found is not None
            requests.delete(
                f"{couchdb_database.url}/{couchdb_database.name}/{run.name}", params={"rev": found["_rev"]}, timeout=60
            ).raise_for_status()
            index += 1
        say(f"{fault.name}: {count} requests cut, each failure counted once")
        assert count >= 12


@pytest.mark.parametrize("fault", HARSH)
def test_of_two_workers_one_holds_the_run_whatever_request_fails(
    site: Site, couchdb_database: Database, fault: Fault
) -> None:
    """Both race for the claim; the leases do not expire."""
    with FaultProxy(couchdb_database.url) as proxy:
        bench = through(proxy, site, couchdb_database)
        for index in range(12):
            run = named(site, f"run_{index}")
            bench.statusdb().register([run])
            number = len(proxy.requests) + index
            break_one(proxy, number, fault)
            outcomes: list[Outcome] = []

            def work(worker_id: str, run: Run = run, outcomes: list[Outcome] = outcomes) -> None:
                rival = bench.other(worker_id=worker_id)
                try:
                    outcomes.append(rival.work(run))
                except StatusDBUnavailable:
                    outcomes.append(Outcome.NOT_OURS)

            rivals = [threading.Thread(target=work, args=(f"worker_{each}",)) for each in (1, 2)]
            for rival in rivals:
                rival.start()
            for rival in rivals:
                rival.join()
            assert outcomes.count(Outcome.ENCRYPTED) <= 1
            assert set(outcomes) <= {Outcome.ENCRYPTED, Outcome.NOT_OURS}
            if Outcome.ENCRYPTED not in outcomes:
                story(bench, run)
            assert bench.document(run)["status"] == "encrypted"
            assert site.staged_files() == []


OUTAGES = size("CHAOS_OUTAGES", 6)


def test_daemons_survive_outages_at_any_step_and_a_bad_line(site: Site, couchdb_database: Database) -> None:
    """Each outage lasts longer than the lease, and a fifth of all other requests fails in some way."""
    chance = seeded("outages")
    with FaultProxy(couchdb_database.url) as proxy:
        cluster = Cluster(site, couchdb_database, proxy.url)
        steps = ("claimed", "archive begun", "validating", "key staged", "receipt staged", "key named")
        proxy.plan = lambda _request: chance.choice(HARSH) if chance.random() < 0.2 else Fault.PASS
        for worker in ("worker_1", "worker_2", "worker_3"):
            cluster.start(worker)
        seconds = 0.0
        for number in range(OUTAGES):
            name = cluster.add_run(f"run_{number}", size=8_000_000)
            await_step(cluster, name, steps[number % len(steps)])
            proxy.down()
            length = chance.uniform(2.0, 6.0)
            threading.Event().wait(length)
            proxy.up()
            seconds += length
        cluster.await_encrypted()
        faults = [fault for fault in proxy.faults.values() if fault is not Fault.PASS]
        proxy.plan = lambda _request: Fault.PASS
        cluster.stop_all()
        cluster.assert_whole()
        say(
            f"{OUTAGES} outages of {seconds:.0f} s in all, {len(faults)} requests cut, {len(cluster.runs)} runs, 0 lost"
        )


def test_a_finished_archive_outlives_an_outage_and_a_kill(site: Site, couchdb_database: Database) -> None:
    with FaultProxy(couchdb_database.url) as proxy:
        cluster = Cluster(site, couchdb_database, proxy.url)
        cluster.start().wait_ready()
        # The announcement is the first write that names an archive.
        proxy.plan = _down_at_the_announcement
        name = cluster.add_run("run_001")
        await_step(cluster, name, "receipt staged")
        cluster.daemons["worker_1"].wait_for_log("cannot publish yet")
        (staged,) = site.archives.glob(".*.tar.gpg.partial")
        cluster.kill()
        proxy.plan = lambda _request: Fault.PASS
        proxy.up()
        cluster.start()
        cluster.await_encrypted()
        recorded = cluster.statusdb().get(name)
        assert recorded is not None
        assert recorded["archive"]["token"] in staged.name, "it was not made again"
        cluster.stop_all()
        cluster.assert_whole()


def _down_at_the_announcement(request: Request) -> Fault:
    return Fault.DOWN if request.method == "PUT" and b'"archive"' in request.body else Fault.PASS


def test_after_an_outage_nobody_takes_a_run_from_its_living_holder(site: Site, couchdb_database: Database) -> None:
    """The others must not find the claim stale only because its holder could not renew while they could not look."""
    with FaultProxy(couchdb_database.url) as proxy:
        cluster = Cluster(site, couchdb_database, proxy.url, max_concurrent_jobs=1)
        for worker in ("worker_1", "worker_2", "worker_3"):
            cluster.start(worker).wait_ready()
        for number in range(3):
            name = cluster.add_run(f"run_{number}", size=60_000_000)
            await_step(cluster, name, "archive begun")
            proxy.down()
            threading.Event().wait(2 * cluster.site.options["lease_seconds"])
            proxy.up()
            cluster.await_encrypted()
        cluster.stop_all()
        cluster.assert_whole()
        assert "took over" not in site.logs()
