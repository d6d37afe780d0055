"""tar and gpg that are killed or hang: the attempt is ended and counted, and the next one succeeds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from barrier import Gate
from cluster import Cluster, children_of, signal_all
from sites import Site, assert_same_tree, wait_until

pytestmark = pytest.mark.chaos

BIG = 60_000_000
"""Bytes of a run whose archiving takes long enough to interfere."""


def victims(cluster: Cluster, program: str, phase: str) -> list[int]:
    """Return the children of the daemon that run `program` in this phase."""
    found = children_of(cluster.daemons["worker_1"].pid, program)
    if program == "tar":
        return found
    flag = {"archiving": b"--symmetric", "validating": b"--decrypt"}[phase]
    return [pid for pid in found if flag in _command(pid)]


def _command(pid: int) -> bytes:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes() if path.exists() else b""


def begin(site: Site, **options: Any) -> Cluster:
    """Start a daemon that has a big run to archive."""
    cluster = Cluster(site, **options)
    site.configure(lease_seconds=30)
    cluster.start().wait_ready()
    cluster.add_run("run_001", size=BIG)
    return cluster


CHILDREN = [("tar", "archiving"), ("gpg", "archiving"), ("gpg", "validating")]


@pytest.mark.parametrize(("program", "phase"), CHILDREN)
def test_a_killed_child_fails_the_attempt_and_the_next_one_succeeds(site: Site, program: str, phase: str) -> None:
    cluster = begin(site)
    found = wait_until(lambda: victims(cluster, program, phase), f"{program} while {phase}")
    signal_all(found, signal.SIGKILL)
    _assert_second_attempt(cluster, "failed: ")


@pytest.mark.parametrize(("program", "phase"), CHILDREN)
def test_a_child_that_hangs_is_ended_after_the_stall_limit_and_counted(site: Site, program: str, phase: str) -> None:
    cluster = begin(site, stall_limit=1)
    found = wait_until(lambda: victims(cluster, program, phase), f"{program} while {phase}")
    signal_all(found, signal.SIGSTOP)
    daemon = cluster.daemons["worker_1"]
    assert "stall_limit is 1 s" in daemon.wait_for_log("run_001: failed: ")
    wait_until(lambda: not any(map(_is_alive, found)), "the child that hung is gone")
    _assert_second_attempt(cluster, f"no byte moved .* while {phase}")


@pytest.mark.parametrize("way", ["once", "stopping"])
def test_a_child_that_hangs_is_ended_by_once_and_by_a_watcher_that_is_to_stop_too(
    site: Site, gate: Gate, way: str
) -> None:
    """At the gate, tar moves nothing."""
    site.configure(stall_limit=2, retry_delay="1 h")
    site.complete(site.make_run())
    daemon = site.start(*(["once"] if way == "once" else []), PATH=gate.path)
    if way == "stopping":
        site.wait_for("run_001", "processing")
        daemon.signal(signal.SIGTERM)
    assert daemon.wait() == (1 if way == "once" else 0)
    document = site.document()
    assert document is not None
    assert (document["failure_count"], document["last_error"]["kind"]) == (1, "Stalled")
    assert site.staged_files() == []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _assert_second_attempt(cluster: Cluster, words: str) -> None:
    cluster.daemons["worker_1"].wait_for_log(words)
    cluster.await_encrypted()
    document = cluster.statusdb().get("run_001")
    assert document is not None
    assert document["failure_count"] == 1
    cluster.stop_all()
    cluster.await_no_children()
    assert cluster.site.staged_files() == []
    assert_same_tree(cluster.runs["run_001"], cluster.site.restore("run_001"))


def test_other_runs_go_on_while_a_child_hangs(site: Site) -> None:
    cluster = begin(site, stall_limit=600)
    found: Callable[[], list[int]] = lambda: victims(cluster, "tar", "archiving")  # noqa: E731
    signal_all(wait_until(found, "tar"), signal.SIGSTOP)
    cluster.add_run("run_002", size=100_000)
    site.wait_for("run_002", "encrypted")
    signal_all(found(), signal.SIGCONT)
    cluster.await_encrypted()
    cluster.stop_all()
    cluster.assert_whole()
