"""The first signal finishes what runs, the second cancels it, and a kill costs nothing either."""

from __future__ import annotations

import os
import pty
import signal
import time
from pathlib import Path

import pytest
from barrier import Gate
from couchdb_server import Database
from fault_proxy import Fault, FaultProxy
from sites import COMMAND, Daemon, Site, assert_same_tree, wait_until

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LIMIT_SECONDS = 5.0


def begin(site: Site, gate: Gate, *names: str) -> Daemon:
    """Start the watcher on runs; return it when all `names` are being archived, and stand at the gate."""
    for name in names:
        site.complete(site.make_run(name))
    daemon = site.start(PATH=gate.path)
    wait_until(lambda: len(site.staged_files()) == len(names), "the archives are begun")
    return daemon


def children(session: int) -> list[str]:
    """Return the commands of the processes of a session, but its leader's."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            command = (entry / "comm").read_text().strip()
        except OSError:
            continue
        if int(fields[3]) == session and int(entry.name) != session and fields[0] != "Z":
            found.append(command)
    return found


@pytest.mark.parametrize("number", EXIT_CODES)
def test_the_first_signal_finishes_all_runs_in_progress_and_begins_none(
    site: Site, gate: Gate, number: signal.Signals
) -> None:
    daemon = begin(site, gate, "run_001", "run_002")
    site.complete(site.make_run("run_003"))
    daemon.wait_for_log("run_003: registered")
    daemon.signal(number)
    daemon.wait_for_log("finishing what runs")
    gate.open()
    assert daemon.wait() == 0
    statuses = {name: site.wait_for(name, status)["status"] for name, status in (
        ("run_001", "encrypted"), ("run_002", "encrypted"), ("run_003", "pending"))}  # fmt: skip
    assert statuses["run_003"] == "pending"
    assert "run_003: claimed" not in daemon.log
    assert_same_tree(site.sequencing / "sequencer_A" / "run_001", site.restore("run_001"))
    assert site.staged_files() == []


@pytest.mark.parametrize("number", EXIT_CODES)
def test_the_second_signal_cancels_at_once_and_costs_no_attempt(site: Site, gate: Gate, number: signal.Signals) -> None:
    daemon = begin(site, gate, "run_001", "run_002")
    daemon.signal(number)
    daemon.wait_for_log("finishing what runs")
    wait_until(lambda: "gpg" in children(daemon.pid), "gpg runs")
    asked_at = time.monotonic()
    daemon.signal(number)
    assert daemon.wait() == EXIT_CODES[number]
    assert time.monotonic() - asked_at < LIMIT_SECONDS
    assert [name for name in children(daemon.pid) if name != "gpg-agent"] == []
    assert site.staged_files() == []
    for name in ("run_001", "run_002"):
        document = site.document(name)
        assert document is not None
        assert (document["status"], document["failure_count"]) == ("pending", 0)
        assert "not_before" not in document


def test_two_signals_end_it_even_while_the_database_hangs(site: Site, gate: Gate, couchdb_database: Database) -> None:
    site.complete(site.make_run())
    with FaultProxy(couchdb_database.url) as proxy:
        site.use_couchdb(couchdb_database.url, couchdb_database.name, through=proxy.url)
        daemon = site.start(PATH=gate.path)
        site.wait_for(status="processing")
        proxy.plan = lambda _request: Fault.HANG
        daemon.signal(signal.SIGTERM)
        daemon.wait_for_log("finishing what runs")
        asked_at = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == EXIT_CODES[signal.SIGTERM]
        assert time.monotonic() - asked_at < LIMIT_SECONDS
    assert site.staged_files() == []


def test_ctrl_c_at_a_terminal_does_not_reach_tar_and_gpg(site: Site, gate: Gate) -> None:
    site.complete(site.make_run())
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(COMMAND[0], [COMMAND[0], "-c", str(site.config)], site.environment | {"PATH": gate.path})
    wait_until(gate.is_reached, "tar runs")
    os.write(terminal, b"\x03")
    said = b""
    while b"finishing what runs" not in said:
        said += os.read(terminal, 4096)
    gate.open()
    try:
        while piece := os.read(terminal, 4096):
            said += piece
    except OSError:
        pass  # the terminal's other side has closed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said.decode()
    assert site.wait_for()["failure_count"] == 0


def test_a_killed_watcher_takes_its_own_runs_back_when_it_starts_again(site: Site, gate: Gate) -> None:
    site.configure(lease_seconds="1 h")
    begin(site, gate, "run_001", "run_002").kill()
    second = site.start(log="second.log").wait_ready()
    for name in ("run_001", "run_002"):
        second.wait_for_log(f"{name}: took over the stale claim of worker 'worker_1'")
        assert site.wait_for(name)["failure_count"] == 0
        assert_same_tree(site.sequencing / "sequencer_A" / name, site.restore(name))
    assert site.staged_files() == []


def test_a_second_watcher_of_the_same_worker_id_is_refused(site: Site) -> None:
    daemon = site.start().wait_ready()
    done = site.command()
    assert done.returncode == 3
    assert "worker_1" in done.stderr
    assert "worker_id" in done.stderr
    assert daemon.stop() == 0
    assert site.command("once").returncode == 0


def test_a_second_watcher_of_another_worker_id_shares_the_work(site: Site, gate: Gate) -> None:
    site.configure(max_concurrent_jobs=1)
    first = site.start(PATH=gate.path).wait_ready()
    site.configure(worker_id="worker_2")
    second = site.start(log="second.log", PATH=gate.path).wait_ready()
    for number in range(6):
        site.complete(site.make_run(f"run_{number}"))
    for daemon in (first, second):
        daemon.wait_for_log(": claimed")
    gate.open()  # nobody has done with the first run before the other has one, too
    for number in range(6):
        site.wait_for(f"run_{number}")
    assert (first.stop(), second.stop()) == (0, 0)
    claims = [line for daemon in (first, second) for line in daemon.log.splitlines() if ": claimed" in line]
    assert len(claims) == 6
    workers = {(site.document(f"run_{number}") or {})["worker_id"] for number in range(6)}
    assert workers == {"worker_1", "worker_2"}
