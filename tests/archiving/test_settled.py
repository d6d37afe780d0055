"""`encrypted` is said of a source that stood still: what changes it, and when, and what is then done."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from harness import Bench, always, die
from sites import PATIENCE_SECONDS, Site, assert_same_tree, never_stop, wait_until

from watcher.archiving import Outcome
from watcher.config import Config
from watcher.errors import Interrupted, StatusDBUnavailable
from watcher.model import Document, Run
from watcher.source import SENTINEL, Rules

TRANSFERS = Config.transfer_names
RULES = Rules(tolerated=(SENTINEL, "rsync*.log"), transfers=TRANSFERS)
QUIET_SECONDS = 1.0
CLOCK_SECONDS = 0.01
"""A file system's times are those of the kernel's last tick: so much behind the clock, at most."""

AWAY = StatusDBUnavailable("the database is away, says the test")

Change = Callable[[Path], object]


@pytest.fixture
def bench(site: Site) -> Bench:
    """A worker on SQLite that tolerates a transfer's log, and waits for no quiet."""
    return Bench.of(site).other(rules=RULES)


def assert_nothing_was_made(bench: Bench, run: Run) -> Document:
    """Assert that nothing of the run is published or staged, and that no attempt was counted; return its document."""
    document = bench.document(run)
    assert (document["status"], document["failure_count"]) == ("pending", 0)
    assert document["last_error"]["kind"] == "RunNotSettled"
    assert "archive" not in document
    assert bench.finals() == {}
    assert bench.site.staged_files() == []
    return document


def assert_is_archived_when_tried_again(bench: Bench, run: Run) -> None:
    """Assert that the next try archives the run as it is now."""
    bench.now.advance(3600)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_same_tree(run.path, bench.site.restore(run.name))


def rewrite_within_its_size(run: Path) -> None:
    """Change a byte of a file, and set the times back that can be set back."""
    file = run / "Data" / "L001" / "C1.cbcl"
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(bytes([file.read_bytes()[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def renew_sentinel(run: Path) -> None:
    """Put a new sentinel over the old one, as a transfer's end does."""
    (run / "sentinel.new").write_text("0\n", encoding="ascii")
    (run / "sentinel.new").rename(run / SENTINEL)


def exchange(run: Path) -> None:
    """Put a copy in the run's place."""
    run.rename(run.with_name("old"))
    (run / "Data").mkdir(parents=True)
    (run / SENTINEL).write_text("0\n", encoding="ascii")


CHANGES: dict[str, Change] = {
    "a late file": lambda run: (run / "Data" / "L001" / "late").write_bytes(b"late"),
    "a late directory": lambda run: (run / "Data" / "L002").mkdir(),
    "a file at the top": lambda run: (run / "late.xml").touch(),
    "a file that grows": lambda run: (run / "RunInfo.xml").write_bytes(b"<RunInfo>longer</RunInfo>\n"),
    "a byte, size and mtime as before": rewrite_within_its_size,
    "a mode": lambda run: (run / "RunInfo.xml").chmod(0o600),
    "a file that goes": lambda run: (run / "RunInfo.xml").unlink(),
    "a directory for a file": lambda run: ((run / "RunInfo.xml").unlink(), (run / "RunInfo.xml").mkdir()),
    "a link that leads elsewhere": lambda run: ((run / "latest").unlink(), (run / "latest").symlink_to("Data")),
    "a new sentinel": renew_sentinel,
    "no sentinel": lambda run: (run / SENTINEL).unlink(),
    "another directory": exchange,
    "a directory moved away": lambda run: run.rename(run.with_name("old")),
}

Moment = Callable[[Bench, Callable[[], object]], Bench]

MOMENTS: dict[str, Moment] = {
    "before tar starts": lambda bench, change: bench.with_archive_store("staged_archive", change, after=True),
    "once the archive is proven": lambda bench, change: bench.with_archive_store("stage_key", change),
    "once it has its receipt": lambda bench, change: bench.with_archive_store("stage_receipt", change, after=True),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_before_the_archive_has_its_name_means_not_settled(
    bench: Bench, what: str, moment: str
) -> None:
    run = bench.ready_run()
    assert MOMENTS[moment](bench, lambda: CHANGES[what](run.path)).work(run) is Outcome.RELEASED
    assert_nothing_was_made(bench, run)


@pytest.mark.parametrize("what", ["a late file", "a byte, size and mtime as before", "a new sentinel"])
def test_a_run_that_has_changed_is_archived_as_it_has_become(bench: Bench, what: str) -> None:
    run = bench.ready_run()
    interrupted = MOMENTS["once the archive is proven"](bench, lambda: CHANGES[what](run.path))
    assert interrupted.work(run) is Outcome.RELEASED
    assert_is_archived_when_tried_again(bench, run)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_transfers_own_log_may_change_at_any_time(bench: Bench, moment: str) -> None:
    run = bench.ready_run()
    log = run.path / "rsync_7.log"
    assert MOMENTS[moment](bench, lambda: log.write_text("done\n")).work(run) is Outcome.ENCRYPTED
    log.unlink()
    assert_same_tree(run.path / "Data", bench.site.restore(run.name) / "Data")


def test_a_change_while_the_database_keeps_the_last_step_waiting_is_seen(bench: Bench) -> None:
    """The listing is taken again at each try, and after the announcement: hours may lie between."""
    run = bench.ready_run()
    away = bench.with_store("put", always(AWAY), nth=2).with_store("put", always(AWAY), nth=3)
    late = (run.path / "Data" / "late").touch
    assert away.with_store("put", late, nth=4, after=True).work(run) is Outcome.RELEASED
    assert_nothing_was_made(bench, run)


@pytest.mark.parametrize("name", [".C1.cbcl.iSr0os", ".rsync-partial", "C1.cbcl.partial", "C1.cbcl.filepart"])
def test_a_name_that_a_transfer_leaves_means_not_settled(bench: Bench, name: str) -> None:
    run = bench.ready_run()
    left = run.path / "Data" / "L001" / name
    left.write_bytes(b"half")
    assert bench.work(run) is Outcome.RELEASED
    message = assert_nothing_was_made(bench, run)["last_error"]["message"]
    assert f"Data/L001/{name}" in message
    assert "transfer_names" in message
    left.unlink()
    assert_is_archived_when_tried_again(bench, run)


def test_names_of_transfers_can_be_configured(bench: Bench) -> None:
    run = bench.ready_run()
    (run.path / "Data" / "x.uploading").touch()
    (run.path / "Data" / "x.partial").touch()
    own = bench.other(rules=replace(RULES, transfers=("*.uploading",)))
    assert own.work(run) is Outcome.RELEASED
    assert "x.uploading" in bench.document(run)["last_error"]["message"]
    (run.path / "Data" / "x.uploading").unlink()
    assert_is_archived_when_tried_again(own, run)


# The quiet period


def waiting_is_told(caplog: pytest.LogCaptureFixture) -> bool:
    return any("recorded if nothing changes" in message for message in caplog.messages)


def test_a_run_that_has_just_come_is_recorded_when_it_has_been_quiet(bench: Bench) -> None:
    run = bench.ready_run()
    assert bench.other(quiet_period=QUIET_SECONDS).work(run) is Outcome.ENCRYPTED
    newest = max(path.lstat().st_ctime for path in run.path.rglob("*") if path.name != SENTINEL)
    assert (bench.site.archives / f"{run.name}.tar.gpg").stat().st_ctime >= newest + QUIET_SECONDS - CLOCK_SECONDS


def test_a_run_that_has_long_been_quiet_waits_for_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run = bench.ready_run()
    never_stop(QUIET_SECONDS)
    assert bench.other(quiet_period=QUIET_SECONDS).work(run) is Outcome.ENCRYPTED
    assert not waiting_is_told(caplog)


def test_a_change_in_the_quiet_period_is_seen_at_its_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run = bench.ready_run()
    changed = bench.other(quiet_period=QUIET_SECONDS).with_archive_store(
        "stage_receipt", (run.path / "late").touch, after=True
    )
    assert changed.work(run) is Outcome.RELEASED
    assert waiting_is_told(caplog)
    assert_nothing_was_made(bench, run)


def test_a_run_that_has_changed_is_not_read_again_before_it_is_quiet(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """To archive a large run in vain costs hours; a look at it costs little, and is taken more often."""
    caplog.set_level("INFO")
    run = bench.ready_run()
    late = (run.path / "late").touch
    patient = bench.other(quiet_period=3600.0, retry_delay=60.0)
    assert MOMENTS["before tar starts"](patient, late).work(run) is Outcome.RELEASED
    bench.now.advance(3600)
    caplog.clear()
    assert patient.work(run) is Outcome.RELEASED
    assert (
        "'./late' changed 0 s ago, and quiet_period is 3600 s"
        in assert_nothing_was_made(bench, run)["last_error"]["message"]
    )
    assert not waiting_is_told(caplog)


def test_a_run_is_looked_at_again_when_it_may_have_become_quiet(bench: Bench) -> None:
    """However long it has been changing: not an hour after its transfer's end."""
    run = bench.ready_run()
    (run.path / "x.partial").touch()
    patient = bench.other(quiet_period=300.0, retry_delay=60.0)
    waits = []
    for _ in range(12):
        assert patient.work(run) is Outcome.RELEASED
        waits.append(bench.statusdb().seconds_until_due(bench.document(run)))
        bench.now.advance(3600)
    assert waits[0] == 60
    assert waits[-1] == 300


def test_who_is_stopped_while_it_waits_for_quiet_leaves_a_finished_archive_that_is_adopted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = bench.ready_run()
    worker = bench.other(quiet_period=3600.0).worker()
    with ThreadPoolExecutor(1) as beside:
        outcome = beside.submit(worker.work, run)
        wait_until(lambda: waiting_is_told(caplog), "the worker waits for quiet")
        worker.cancel(Interrupted("stopping"))
        assert outcome.result(PATIENCE_SECONDS) is Outcome.RELEASED
    first = bench.document(run)["last_claim"]
    bench.now.advance(3600)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert bench.document(run)["archive"]["token"] == first
    assert_same_tree(run.path, bench.site.restore(run.name))


@pytest.mark.parametrize("what", CHANGES)
def test_a_finished_archive_is_adopted_only_if_the_run_is_what_was_archived(bench: Bench, what: str) -> None:
    run = bench.ready_run()
    bench.with_archive_store("publish", die).dies(run)
    CHANGES[what](run.path)
    outcome = bench.take_over(run)
    if run.path.is_dir() and (run.path / SENTINEL).exists():
        assert outcome is Outcome.ENCRYPTED
        assert bench.document(run)["archive"]["token"] == bench.document(run)["last_claim"], "it was made again"
        assert_same_tree(run.path, bench.site.restore(run.name))
    else:
        assert outcome in (Outcome.RELEASED, Outcome.ENCRYPTED)


# The transfer itself


@pytest.fixture
def rsync(unavailable: Callable[[str], NoReturn]) -> str:
    """The transfer program of most sites."""
    return shutil.which("rsync") or unavailable("needs rsync")


def test_a_sentinel_that_arrives_before_the_data_costs_nothing_but_time(bench: Bench, rsync: str) -> None:
    """rsync sends a directory's files before those of the directories in it: the sentinel comes first."""
    whole = bench.site.complete(bench.site.make_run("whole", "../elsewhere", size=3_000_000))
    run = Run(bench.site.sequencing / "sequencer_A" / "run_001")
    transfer = [rsync, "--archive", "--bwlimit=2000", f"{whole}/", f"{run.path}/"]
    patient = bench.other(quiet_period=QUIET_SECONDS)
    with subprocess.Popen(transfer):
        wait_until((run.path / SENTINEL).exists, "rsync has sent the sentinel")
        assert not (run.path / "Data" / "L001" / "C1.cbcl").exists(), "the data come after the sentinel"
        bench.statusdb().register([run])
        outcomes = [patient.work(run)]
        while outcomes[-1] is Outcome.RELEASED:
            bench.now.advance(60)
            outcomes.append(patient.work(run))
    assert outcomes[0] is Outcome.RELEASED
    assert outcomes[-1] is Outcome.ENCRYPTED
    assert bench.document(run)["failure_count"] == 0
    assert_same_tree(run.path, bench.site.restore(run.name))
    assert subprocess.run(["diff", "-r", "--no-dereference", whole, run.path], check=False).returncode == 0
