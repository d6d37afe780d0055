"""Whoever loses its claim hears of it from the database's changes, and stops within seconds."""

from __future__ import annotations

import signal
import time

import pytest
from cluster import Cluster, children_of, say, signal_all
from couchdb_server import Database
from sites import Site, wait_until

from watcher import model

pytestmark = pytest.mark.chaos

WITHIN_SECONDS = 5.0


@pytest.mark.parametrize("database", ["sqlite", "couchdb"])
def test_one_of_three_daemons_that_loses_its_claim_stops_within_seconds(
    site: Site, database: str, request: pytest.FixtureRequest
) -> None:
    """Leases are of five minutes: no renewal would tell in time."""
    shared: Database | None = request.getfixturevalue("couchdb_database") if database == "couchdb" else None
    cluster = Cluster(site, shared)
    site.configure(lease_seconds=300, max_concurrent_jobs=1, stall_limit=600)
    for worker in ("worker_1", "worker_2", "worker_3"):
        cluster.start(worker).wait_ready()
    statusdb = cluster.statusdb()
    cluster.add_run("run_001", size=50_000_000)
    holder = wait_until(lambda: (statusdb.get("run_001") or {}).get("claim") and statusdb.get("run_001"), "a claim")
    daemon = cluster.daemons[holder["worker_id"]]
    wait_until(lambda: children_of(daemon.pid, "tar"), "tar runs")
    signal_all(children_of(daemon.pid, "tar"), signal.SIGSTOP)

    def take() -> bool:
        document = statusdb.get("run_001")
        assert document is not None
        assert model.status_of(document) is model.Status.PROCESSING
        return statusdb.claim(model.Run(cluster.runs["run_001"]), "intruder", document) is not None

    wait_until(take, "the claim is taken away")
    taken_at = time.monotonic()
    daemon.wait_for_log("run_001: stopped: .*intruder")
    wait_until(lambda: not children_of(daemon.pid) and not site.staged_files(), "its children and files are gone")
    seconds = time.monotonic() - taken_at
    say(f"{database}: stopped after {seconds:.2f} s")
    assert seconds < WITHIN_SECONDS
    document = statusdb.get("run_001")
    assert document is not None
    assert (document["worker_id"], document["failure_count"]) == ("intruder", 0)
    cluster.stop_all()
