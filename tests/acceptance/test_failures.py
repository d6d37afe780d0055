"""A run that fails is tried three times, says why, and can be tried again; its partial files are gone."""

from __future__ import annotations

from pathlib import Path

from barrier import Gate
from sites import Site


def stand_in_the_way(site: Site, run: str = "run_001") -> Path:
    """Put a file of somebody else where the archive would be."""
    foreign = site.archives / f"{run}.tar.gpg"
    foreign.write_bytes(b"somebody else's")
    return foreign


def test_a_run_is_failed_after_three_attempts_and_retried_on_demand(site: Site) -> None:
    foreign = stand_in_the_way(site)
    run = site.complete(site.make_run())
    daemon = site.start().wait_ready()
    document = site.wait_for(status="failed")
    assert document["failure_count"] == 3
    assert document["last_error"]["kind"] == "PublishFailed"
    assert str(foreign) in document["last_error"]["message"]
    assert foreign.read_bytes() == b"somebody else's"
    assert site.staged_files() == []
    shown = " ".join(site.command("status").stdout.split())
    assert "run_001 sequencer_A failed" in shown
    foreign.unlink()
    assert site.command("retry", "run_001").returncode == 0
    assert site.wait_for()["failure_count"] == 0
    assert daemon.stop() == 0
    assert run.is_dir()


def test_a_failed_run_waits_for_its_pause_which_a_restart_keeps(site: Site) -> None:
    site.configure(retry_delay="30 min")
    stand_in_the_way(site)
    site.complete(site.make_run())
    assert site.command("once").returncode == 1
    waiting = site.wait_for(status="pending")
    assert waiting["failure_count"] == 1
    assert "not_before" in waiting
    assert site.command("once").returncode == 0
    assert site.document() == waiting
    assert waiting["not_before"][:16] in site.command("status").stdout.replace("\n", "")


def test_a_run_that_vanishes_before_it_is_claimed_is_skipped(site: Site, gate: Gate) -> None:
    site.configure(max_concurrent_jobs=1)
    site.complete(site.make_run("run_001"))
    daemon = site.start(PATH=gate.path).wait_ready()
    site.wait_for("run_001", "processing")
    gone = site.complete(site.make_run("run_002", "sequencer_B"))
    daemon.wait_for_log("run_002: registered")
    gone.rename(site.root / "elsewhere")
    gate.open()
    site.wait_for("run_001")
    site.complete(site.make_run("run_003"))  # the one thread takes it after run_002
    site.wait_for("run_003")
    assert daemon.stop() == 0
    document = site.document("run_002")
    assert document is not None
    assert (document["status"], document["failure_count"]) == ("pending", 0)
    assert not {"claim", "last_error", "archive"} & document.keys()
    assert [line.partition("run_002: ")[2] for line in daemon.log.splitlines() if "run_002" in line] == [
        f"registered '{gone}', noticed by event",
        f"'{gone}' is not archived: it is gone itself",
    ]
    assert {path.name for path in site.archives.glob("*.tar.gpg")} == {"run_001.tar.gpg", "run_003.tar.gpg"}
    assert "its directory is not on this host" in site.command("status").stdout


def test_two_runs_at_once_do_not_wait_for_a_third_that_fails(site: Site) -> None:
    site.configure(retry_delay="1 h")
    stand_in_the_way(site, "run_002")
    for number in (1, 2, 3):
        site.complete(site.make_run(f"run_00{number}"))
    assert site.command("once").returncode == 1
    assert site.statusdb().count_by_status() == {"encrypted": 2, "pending": 1}
