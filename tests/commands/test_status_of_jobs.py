"""`status` while a run is worked on: the phase as it changes, and the figures of this host's workers as they are."""

import json

import pytest
from sites import Site, wait_until


@pytest.mark.parametrize("worker_id", ["worker", "two words/ä"])
def test_status_shows_what_the_worker_does_now(worker_id: str, site: Site) -> None:
    site.configure(bandwidth_limit="1 MB", lease_seconds=3000, worker_id=worker_id)  # the next renewal is far away
    site.complete(site.make_run(size=200_000_000))
    daemon = site.start().wait_ready()

    def phase() -> str:
        return str((site.document() or {}).get("claim", {}).get("phase"))

    wait_until(lambda: phase() == "archiving", "the document says that it is archived")
    wait_until(lambda: json.loads(site.command("status", "--json").stdout)["jobs"][0]["bytes_done"], "bytes move")
    (job,) = json.loads(site.command("status", "--json").stdout)["jobs"]
    assert (job["run"], job["phase"]) == ("run_001", "archiving")
    assert 0 < job["bytes_done"] < job["bytes_total"]
    assert job["bytes_per_second"] > 0
    assert "archiving " in (shown := site.command("status").stdout)
    assert "/s, " in shown
    assert " left" in shown
    daemon.kill()
    report = json.loads(site.command("status", "--json").stdout)
    assert (report["counts"]["processing"], report["jobs"]) == (1, [])
    assert "archiving" in site.command("status").stdout
