"""The daemon as a process: its signals, its rescans, what it sweeps, and what it tells systemd."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from barrier import Gate
from faults import prefix
from harness import Bench, die
from machine import limited_command, require_namespace
from sites import Daemon, Site, Systemd, assert_same_tree, wait_until

from watcher.model import Document, Run
from watcher.source import SENTINEL


def document(site: Site, name: str = "run_001") -> Document:
    """Return a run's document, which there is."""
    found = site.document(name)
    assert found is not None
    return found


# Signals


def test_signals_are_heard_whichever_thread_they_come_to(site: Site, gate: Gate) -> None:
    """Python's own handlers wait for the main thread, and that waits for the run."""
    site.complete(site.make_run())
    daemon = site.start("once", PATH=gate.path)
    wait_until(site.staged_files, "the archive is begun")
    other = min(set(map(int, os.listdir(f"/proc/{daemon.pid}/task"))) - {daemon.pid})
    tgkill = ctypes.CDLL(None).tgkill
    assert tgkill(daemon.pid, other, signal.SIGTERM) == 0
    daemon.wait_for_log("finishing what runs")
    assert tgkill(daemon.pid, other, signal.SIGTERM) == 0
    assert daemon.wait() == 143


def test_a_second_signal_when_all_is_done_does_not_kill(site: Site) -> None:
    daemon = site.start().wait_ready()
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: "ended; " in daemon.log, "it has done all it had to")
    while daemon.process.poll() is None:
        daemon.signal(signal.SIGTERM)
    assert daemon.process.returncode == 0


# A run whose turn comes when it is not ready any more


def wait_behind(site: Site, daemon: Daemon, gate: Gate) -> Path:
    """Let the only thread stop at the gate with one run; return another, complete and registered, that waits for it."""
    site.complete(site.make_run("first"))
    site.wait_for("first", "processing")
    run = site.complete(site.make_run("second"))
    site.wait_for("second", "pending")
    daemon.wait_for_log("second: registered")
    return run


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("rm {sentinel}", "its sentinel is gone"),
        ("echo 23 > {sentinel}", "the sentinel holds exit code 23: the transfer failed"),
        ("rm -r {run}", "it is gone itself"),
    ],
)
def test_a_run_that_lapses_while_it_waits_is_told_with_the_reason_and_watched_again_at_once(
    site: Site, gate: Gate, script: str, reason: str
) -> None:
    site.configure(max_concurrent_jobs=1, rescan_interval="1 h")
    daemon = site.start(PATH=gate.path).wait_ready()
    run = wait_behind(site, daemon, gate)
    subprocess.run(["sh", "-c", script.format(run=run, sentinel=run / SENTINEL)], check=True)
    gate.open()
    line = daemon.wait_for_log("second: .* is not archived")
    assert line.endswith(f"'{run}' is not archived: {reason}")
    assert "WARNING" in line
    assert document(site, "second")["status"] == "pending"
    run.mkdir(exist_ok=True)
    site.complete(run)
    assert site.wait_for("second")["failure_count"] == 0
    assert daemon.stop() == 0
    assert daemon.log.count("is not archived") == 1


def test_once_does_not_call_it_good_when_a_registered_run_is_not_ready(site: Site) -> None:
    run = site.complete(site.make_run(), "23\n")
    site.statusdb().register([Run(run)])
    done = site.command("once")
    assert done.returncode == 1
    assert "done: 1 not ready" in done.stderr
    assert done.stderr.count("is not archived: the sentinel holds exit code 23") == 1
    site.complete(run)
    assert site.command("once").returncode == 0


def test_a_dead_watchers_claim_on_a_run_that_has_vanished_is_given_back_when_it_starts_again(
    site: Site, gate: Gate
) -> None:
    run = site.complete(site.make_run())
    first = site.start(log="first.log", PATH=gate.path).wait_ready()
    site.wait_for("run_001", "processing")
    first.kill()
    run.rename(site.root / "elsewhere")
    site.start(log="second.log").wait_ready()
    assert site.wait_for("run_001", "pending")["failure_count"] == 0


# Rescans


def test_the_time_to_the_next_rescan_is_a_tenth_longer_or_shorter_by_chance(site: Site) -> None:
    site.configure(rescan_interval="100 s")
    daemon = site.start(prefix=prefix("dice")).wait_ready()
    wait_until(lambda: daemon.log.count("runs seen in") >= 3, "more rescans than 100 s apart")
    assert "thrown between 0.9 and 1.1" in daemon.log


def test_a_rescan_registers_a_new_run_while_another_is_being_archived(
    site: Site, gate: Gate, unavailable: Callable[[str], NoReturn]
) -> None:
    require_namespace(unavailable)
    site.configure(max_concurrent_jobs=1, rescan_interval="0.3 s")
    daemon = site.start(prefix=limited_command("max_inotify_instances", 0), PATH=gate.path).wait_ready()
    site.complete(site.make_run("run_001"))
    site.wait_for("run_001", "processing")
    site.complete(site.make_run("run_002"))
    daemon.wait_for_log("run_002: registered .* noticed by rescan")
    assert document(site, "run_001")["status"] == "processing"
    gate.open()
    site.wait_for("run_002")
    assert daemon.stop() == 0


# Sweeping

DAY = 86400


def stage(site: Site, token: str, age_seconds: float, what: str = "tar.gpg") -> Path:
    """Leave a staged file of this token there that nobody has written for so long."""
    path = site.archives / f".run_001.{token}.{what}.partial"
    path.write_bytes(b"partial")
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def test_old_garbage_of_an_unknown_claim_is_removed_at_start_and_young_is_left(site: Site) -> None:
    old, young = stage(site, "a" * 32, DAY + 60), stage(site, "b" * 32, DAY - 3600)
    foreign = site.archives / ".something.else.partial"
    foreign.touch()
    os.utime(foreign, (0, 0))
    site.start().wait_ready()
    assert not old.exists()
    assert young.exists()
    assert foreign.exists()


@pytest.mark.parametrize("place", ["claim", "archive", "last_claim"])
def test_old_files_of_a_claim_that_a_document_names_are_kept(site: Site, place: str) -> None:
    """The run is another machine's, so that nobody here works on it."""
    token = "c" * 32
    kept = stage(site, token, DAY + 60)
    status = "processing" if place == "claim" else "failed"
    named = {"claim": {"claim": {"token": token}}, "archive": {"archive": {"token": token}}}
    fields = named.get(place, {"last_claim": token})
    at = "2026-04-28T10:00:00+00:00"
    contract = {"path": "/elsewhere/sequencer_A/run_001", "worker_id": "elsewhere", "failure_count": 0}
    site.statusdb()
    site.store().put({"_id": "run_001", "status": status, "created_at": at, "updated_at": at, **contract, **fields})
    site.start().wait_ready()
    assert kept.exists()


def test_an_old_finished_archive_of_a_run_that_is_not_archived_is_kept_whatever_its_token(site: Site) -> None:
    token = "d" * 32
    archive, receipt = stage(site, token, DAY + 60), stage(site, token, DAY + 60, "manifest")
    other = stage(site, "e" * 32, DAY + 60)
    statusdb = site.statusdb()
    statusdb.register([Run(site.sequencing / "sequencer_elsewhere" / "run_001")])
    site.start().wait_ready()
    assert archive.exists()
    assert receipt.exists()
    assert not other.exists()


def test_a_finished_archive_whose_document_was_lost_is_adopted_however_old_it_is(site: Site, gate: Gate) -> None:
    bench = Bench.of(site)
    run = bench.ready_run()
    bench.with_store("put", die, nth=2).dies(run)
    for path in site.root.glob(f"{site.database.name}*"):
        path.unlink()
    then = time.time() - DAY - 60
    for path in site.staged_files():
        os.utime(path, (then, then))
    daemon = site.start(PATH=gate.path).wait_ready()  # the gate stays shut: nothing can be made again
    site.wait_for("run_001")
    assert "run_001: adopted the archive" in daemon.log
    assert_same_tree(run.path, site.restore())


# systemd


def test_systemd_is_told_of_the_start_the_state_and_the_end(site: Site, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(60)
        daemon = site.start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        told: list[str] = []
        while not any("READY=1" in text for text in told):
            told.append(channel.recv(4096).decode())
        assert "STATUS=" in told[0]
        while not any("WATCHDOG=1" in text for text in told):
            told.append(channel.recv(4096).decode())
        assert daemon.stop() == 0
        while not any("STOPPING=1" in text for text in told):
            told.append(channel.recv(4096).decode())


def test_systemd_is_told_which_runs_are_worked_on_how_far_and_how_fast(site: Site, systemd: Systemd) -> None:
    site.configure(bandwidth_limit="1 MB")
    site.complete(site.make_run(size=200_000_000))
    daemon = site.start(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="400000")
    wanted = re.compile(r"STATUS=1 running, \d waiting; .*; run_001 archiving \d+ %, .*B/s, .* left")
    wait_until(lambda: any(map(wanted.search, systemd.listen())), "systemd to be told of the run")
    daemon.kill()


QUICK = {"WATCHDOG_USEC": "400000"}
"""systemd wants a sign of life every 0.4 s, and gets one every 0.2 s."""


def test_the_watchdog_is_fed_in_the_middle_of_a_long_rescan(site: Site, systemd: Systemd) -> None:
    for number in range(4):
        site.make_run(f"run_{number}")
    site.start(prefix=prefix("slow_disk"), NOTIFY_SOCKET=systemd.address, **QUICK)
    wait_until(lambda: systemd.count("READY=1"), "the first rescan to end")
    told = systemd.listen()
    before_ready = told[: next(number for number, text in enumerate(told) if "READY=1" in text)]
    assert [text for text in before_ready if "WATCHDOG=1" in text]


@pytest.mark.parametrize("name", ["lease", "stalls", "rescan", "changes", "registrar", "worker_0"])
def test_the_watchdog_is_not_fed_once_a_thread_has_died(site: Site, systemd: Systemd, name: str) -> None:
    site.configure(lease_seconds=1)
    daemon = site.start(prefix=prefix("thread_ends"), THREAD=name, NOTIFY_SOCKET=systemd.address, **QUICK).wait_ready()
    site.complete(site.make_run("run_001"))
    site.wait_for("run_001")
    before = len(systemd.listen())
    wait_until(lambda: any("0 running" in told for told in systemd.listen()[before:]), "the pool to have nothing to do")
    daemon.signal(signal.SIGUSR1)
    daemon.wait_for_log(f"'{name}' is to end")
    site.complete(site.make_run("run_002"))  # a thread of the pool, or the registrar's, ends when it is to work again
    line = daemon.wait_for_log(f"threads have died: {name}; systemd will restart us")
    assert "CRITICAL" in line
    fed = systemd.count("WATCHDOG=1")
    wait_until(lambda: daemon.log.count("threads have died") >= 3, "two more looks at the threads")
    assert systemd.count("WATCHDOG=1") == fed


def test_the_watchdog_is_not_fed_in_the_middle_of_a_rescan_once_a_thread_has_died(site: Site, systemd: Systemd) -> None:
    for number in range(5):
        site.make_run(f"run_{number}")
    faults = prefix("slow_disk", "thread_ends")
    daemon = site.start(prefix=faults, THREAD="changes", NOTIFY_SOCKET=systemd.address, **QUICK)
    wait_until(lambda: systemd.count("WATCHDOG=1"), "the rescan to feed the watchdog")
    daemon.signal(signal.SIGUSR1)
    daemon.wait_for_log("threads have died: changes;")
    fed = systemd.count("WATCHDOG=1")
    assert "first rescan: " not in daemon.log
    daemon.wait_ready()
    assert systemd.count("WATCHDOG=1") == fed
