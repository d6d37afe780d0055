"""A disk that does not answer: whoever waits for it loses the run to one whose disk does, and the others go on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
from barrier import Gate
from cluster import Cluster
from failing_disk import Disk, failing_disk
from fuse_server import Unavailable
from sites import Site, Systemd, wait_until

from watcher.model import Document, Run

pytestmark = [pytest.mark.chaos, pytest.mark.root]

Mounting = Callable[[Path, Path], Disk]
OPERATIONS = ("create", "write", "fsync", "read", "link", "fsyncdir", "unlink")


@pytest.fixture
def disk(tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> Iterator[Mounting]:
    """Mount a way to a directory that can hang, until the test ends: a client of a file server, so to speak."""
    with ExitStack() as stack:

        def at(path: Path, real: Path) -> Disk:
            try:
                return stack.enter_context(failing_disk(path, tmp_path / f"disk_{path.name}", real))
            except Unavailable as error:
                unavailable(str(error))

        yield at


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_worker_that_hangs_in_the_destination_loses_the_run_to_another_and_changes_nothing_when_it_wakes(
    site: Site, disk: Mounting, gate: Gate, operation: str
) -> None:
    archives = disk(site.root / "archives_elsewhere", site.archives)
    site.environment["PATH"] = gate.path
    cluster = Cluster(site, stall_limit=1)
    sleeper = cluster.start("worker_1", destination_path=str(archives.path)).wait_ready()
    cluster.add_run("run_001", size=300_000)
    site.wait_for("run_001", "processing")
    archives.hang(operation)
    gate.open()
    wait_until(lambda: archives.hangs, f"{operation} hangs")
    helper = cluster.start("worker_2")
    helper.wait_for_log("run_001: took over the stale claim of worker 'worker_1'")
    cluster.await_encrypted()
    finals = cluster.finals()
    archives.go_on()
    sleeper.wait_for_log("run_001: stopped: ")
    cluster.stop_all()
    assert cluster.finals() == finals
    cluster.assert_whole()


def test_a_worker_whose_rescan_hangs_too_loses_its_run_all_the_same(site: Site, disk: Mounting, gate: Gate) -> None:
    archives = disk(site.root / "archives_elsewhere", site.archives)
    sequencer = disk(site.sequencing / "sequencer_B", site.root / "real_B")
    site.environment["PATH"] = gate.path
    cluster = Cluster(site, stall_limit=1)
    sleeper = cluster.start("worker_1", destination_path=str(archives.path), rescan_interval="0.3 s").wait_ready()
    cluster.add_run("run_001", size=300_000)
    site.wait_for("run_001", "processing")
    sequencer.hang("getattr")
    wait_until(lambda: sequencer.hangs, "the rescan hangs")
    archives.hang("write")
    gate.open()
    wait_until(lambda: archives.hangs, "the write hangs")
    cluster.start("worker_2").wait_for_log("run_001: took over the stale claim of worker 'worker_1'")
    cluster.await_encrypted()
    sequencer.go_on()
    archives.go_on()
    sleeper.wait_for_log("run_001: stopped: ")
    cluster.stop_all()
    cluster.assert_whole()


def test_a_rescan_that_hangs_keeps_no_run_of_another_sequencer_waiting_and_no_watchdog_unfed(
    site: Site, disk: Mounting, systemd: Systemd
) -> None:
    sequencer = disk(site.sequencing / "sequencer_B", site.root / "real_B")
    cluster = Cluster(site, stall_limit=1)
    site.environment["NOTIFY_SOCKET"] = systemd.address
    daemon = cluster.start("worker_1", rescan_interval="0.3 s").wait_ready()
    sequencer.hang("getattr")
    wait_until(lambda: sequencer.hangs, "the rescan hangs")
    assert "ERROR" in daemon.wait_for_log("a rescan does not end: look for a disk below")
    cluster.add_run("run_001")
    cluster.await_encrypted()
    fed = systemd.count("WATCHDOG=1")
    wait_until(lambda: systemd.count("WATCHDOG=1") > fed + 1, "the watchdog to be fed")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for_log("ended; ")
    sequencer.go_on()  # the kernel lets no process end that waits for FUSE
    assert daemon.wait() == 0
    cluster.daemons.clear()
    cluster.assert_whole()
    assert daemon.log.count("a rescan does not end") == 1


@pytest.mark.parametrize(
    ("command", "shown"),
    [(("status",), ["1 encrypted", "free for archives"]), (("explain", "run_001"), ["run_001: encrypted"])],
    ids=["status", "explain"],
)
def test_a_command_answers_while_a_sequencer_hangs_and_names_the_disk(
    command: tuple[str, ...], shown: list[str], site: Site, disk: Mounting
) -> None:
    site.complete(site.make_run())
    assert site.command("once").returncode == 0
    for name in ("run_001", "run_002"):
        (site.root / "real_C" / name).mkdir(parents=True)
    sequencer = disk(site.sequencing / "sequencer_C", site.root / "real_C")
    sequencer.hang("getattr")
    asking = site.start(*command, log="asking.log")
    assert f"'{site.sequencing}' does not answer" in asking.wait_for_log("does not answer")
    assert all(words in asking.log for words in shown)
    sequencer.go_on()  # the kernel lets no process end that waits for FUSE
    assert asking.wait() == 0


@pytest.mark.parametrize("is_claimed", [False, True], ids=["pending", "stale"])
def test_a_sequencer_that_hangs_keeps_no_lease_from_renewal_and_no_other_run_waiting(
    site: Site, disk: Mounting, gate: Gate, is_claimed: bool
) -> None:
    (site.root / "real_B" / "hung").mkdir(parents=True)
    sequencer = disk(site.sequencing / "sequencer_B", site.root / "real_B")
    cluster = Cluster(site, max_concurrent_jobs=3)
    site.configure(rescan_interval="1 h")
    hung, failed = Run(sequencer.path / "hung"), Run(site.sequencing / "sequencer_A" / cluster.add_run("run_002"))
    statusdb, store = cluster.statusdb(), site.store()
    statusdb.register([failed])
    store.put({**document(site, "run_002"), "status": "failed"})
    site.environment["PATH"] = gate.path
    cluster.start().wait_ready()
    cluster.add_run("run_001")
    site.wait_for("run_001", "processing")
    sequencer.hang("getattr")
    statusdb.register([hung])
    if is_claimed:
        assert statusdb.claim(hung, "elsewhere", document(site, "hung"))
    wait_until(lambda: sequencer.hangs, "the sequencer hangs")
    revisions: set[str] = set()

    def is_renewed() -> bool:
        revisions.add(document(site, "run_001")["_rev"])
        return len(revisions) > 5

    wait_until(is_renewed, "five renewals")
    statusdb.retry("run_002")  # of which only the database tells
    site.wait_for("run_002", "processing")
    gate.open()
    cluster.await_encrypted()
    sequencer.go_on()
    cluster.stop_all()
    cluster.assert_whole()


def document(site: Site, name: str) -> Document:
    """Return a run's document, which there is."""
    found = site.document(name)
    assert found is not None
    return found
