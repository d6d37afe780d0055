"""Every way in which a sentinel or a run can arrive leads to an archive, by events alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sites import Daemon, Site, assert_same_tree

from watcher.source import SENTINEL


def shell(script: str) -> Callable[[Path], None]:
    """Return a way to create the sentinel `$1` by a line of shell; `$2` is a directory beside the runs."""

    def create(run: Path) -> None:
        aside = run.parent.parent.parent / "aside"
        aside.mkdir(exist_ok=True)
        subprocess.run(["sh", "-c", script, "sh", str(run / SENTINEL), str(aside)], check=True)

    return create


WAYS = {
    "written": shell('echo 0 > "$1"'),
    "touched": shell('touch "$1"'),
    "rewritten": shell('echo 23 > "$1"; echo 0 > "$1"'),
    "renamed-within": shell('echo 0 > "$1.tmp"; mv "$1.tmp" "$1"'),
    "moved-in": shell('echo 0 > "$2/ready"; mv "$2/ready" "$1"'),
    "hard-linked": shell('echo 0 > "$2/linked"; ln "$2/linked" "$1"'),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_sentinel_is_noticed_however_it_is_made(watcher: Daemon, shared_site: Site, way: str) -> None:
    run = shared_site.make_run(way)
    WAYS[way](run)
    shared_site.wait_for(way)
    watcher.wait_for_log(f"{way}: registered .* noticed by event")
    assert_same_tree(run, shared_site.restore(way))


def test_a_linked_sentinel_is_held_until_a_file_takes_its_place(watcher: Daemon, shared_site: Site) -> None:
    run = shared_site.make_run("symbolic")
    (run / SENTINEL).symlink_to("RunInfo.xml")
    watcher.wait_for_log("symbolic: .* is not archived: the sentinel is a symbolic link")
    (run / SENTINEL).unlink()
    shared_site.complete(run)
    shared_site.wait_for("symbolic")


def test_a_run_that_is_moved_in_with_its_sentinel_is_noticed(watcher: Daemon, shared_site: Site) -> None:
    made = shared_site.complete(shared_site.make_run("moved_run", sequencer="../made"))
    run = made.rename(shared_site.sequencing / "sequencer_B" / "moved_run")
    shared_site.wait_for("moved_run")
    assert_same_tree(run, shared_site.restore("moved_run"))


def test_a_whole_sequencer_that_is_copied_in_is_noticed(watcher: Daemon, shared_site: Site) -> None:
    made = shared_site.complete(shared_site.make_run("copied_run", sequencer="../sequencer_C"))
    subprocess.run(["cp", "-a", str(made.parent), str(shared_site.sequencing)], check=True)
    document = shared_site.wait_for("copied_run")
    assert document["path"] == str(shared_site.sequencing / "sequencer_C" / "copied_run")


def test_a_run_and_its_sentinel_that_appear_at_once_are_noticed(watcher: Daemon, shared_site: Site) -> None:
    run = shared_site.sequencing / "sequencer_D" / "sudden"
    subprocess.run(["sh", "-c", f"mkdir -p '{run}' && touch '{run}/{SENTINEL}'"], check=True)
    shared_site.wait_for("sudden")


@pytest.mark.slow
def test_everything_that_a_run_can_hold_comes_back(watcher: Daemon, shared_site: Site) -> None:
    run = shared_site.make_run("everything")
    many = run / "many"
    many.mkdir()
    for number in range(10_000):
        (many / f"{number:05}.txt").write_bytes(b"%d\n" % number)
    with (run / "big").open("wb") as big:
        for _ in range(300):
            big.write(os.urandom(1_000_000))
    with (run / "sparse").open("wb") as sparse:
        sparse.truncate(200_000_000)
        sparse.seek(100_000_000)
        sparse.write(b"in the middle")
    os.link(run / "big", run / "hard link")
    (run / "dangling").symlink_to("nowhere")
    (run / "private").write_bytes(b"secret")
    (run / "private").chmod(0o600)
    (run / "run.sh").write_bytes(b"#!/bin/sh\n")
    (run / "run.sh").chmod(0o755)
    os.utime(run / "run.sh", ns=(1_000_000_000_123_456_789, 1_111_111_111_123_456_789))
    shared_site.complete(run)
    document = shared_site.wait_for("everything")
    restored = shared_site.restore("everything")
    assert_same_tree(run, restored)
    assert (restored / "sparse").stat().st_blocks * 512 < 10_000_000
    assert document["archive"]["members"] == sum(1 for _ in run.rglob("*")) + 1
    assert document["archive"]["size"] < 330_000_000
    shutil.rmtree(restored)
