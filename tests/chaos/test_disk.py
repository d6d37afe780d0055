"""Disks that are full or read-only: the partial file is removed, no attempt spent, and all is well when the disk is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from cluster import Cluster, mounted
from harness import Bench, no_pauses
from sites import Site, assert_same_tree, gpg, wait_until

from watcher.archiving import ArchiveStore, Outcome

pytestmark = [pytest.mark.chaos, pytest.mark.root]

Mount = Callable[[Path, str], Path]


@pytest.fixture
def mount(unavailable: Callable[[str], NoReturn]) -> Iterator[Mount]:
    """Mount a tmpfs on a directory until the test ends."""
    with ExitStack() as stack:

        def at(path: Path, options: str) -> Path:
            try:
                return stack.enter_context(mounted(path, options))
            except (subprocess.CalledProcessError, OSError) as error:
                unavailable(f"no tmpfs can be mounted here: {error}")

        yield at


def remount(path: Path, option: str) -> None:
    """Change a mounted tmpfs, as soon as no file there is open for writing."""
    command = ["mount", "-o", f"remount,{option}", str(path)]
    wait_until(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, f"it is {option}")


def fill(path: Path, leaving: int = 0) -> Path:
    """Fill a file system but for so many bytes; return the file that does it."""
    filler = path / "filler"
    room = os.statvfs(path)
    filler.write_bytes(bytes(max(room.f_bavail * room.f_frsize - leaving, 0)))
    return filler


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_trouble_in_staging_costs_no_attempt_and_others_go_on(site: Site, mount: Mount, trouble: str) -> None:
    place = mount(site.archives, "size=30m")
    bench = Bench.of(site)
    big, small = bench.ready_run("run_001", 10_000_000), bench.ready_run("run_002", 50_000)

    def spoil() -> None:
        if trouble == "full":
            fill(place, leaving=3_000_000)
        else:
            remount(place, "ro")

    assert bench.with_archive_store("staged_archive", spoil).work(big) is Outcome.RELEASED
    document = bench.document(big)
    assert (document["failure_count"], document["last_error"]["kind"]) == (0, "NoSpace")
    assert site.staged_files() == []
    if trouble == "full":
        assert bench.work(small) is Outcome.ENCRYPTED, "there is room for a small one"
        (place / "filler").unlink()
    else:
        assert bench.work(small) is Outcome.RELEASED
        remount(place, "rw")
    bench.now.advance(61)
    for run in (big, small):
        bench.work(run)
        assert bench.document(run)["status"] == "encrypted"
        assert bench.document(run)["failure_count"] == 0
        assert_same_tree(run.path, site.restore(run.name))


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_trouble_with_the_wrapped_keys_is_waited_for_and_the_archive_kept(
    site: Site, mount: Mount, trouble: str
) -> None:
    keys = mount(site.keys, "size=1m")
    bench = Bench.of(site)
    run = bench.ready_run()
    archives: list[str] = []

    def spoil() -> None:
        if trouble == "full":
            fill(keys)
        else:
            remount(keys, "ro")

    def pauses() -> Iterator[float]:
        yield 0.0
        yield 0.0
        (staged,) = site.archives.glob(".*.tar.gpg.partial")
        archives.append(staged.name)
        if trouble == "full":
            (keys / "filler").unlink()
        else:
            remount(keys, "rw")
        yield from no_pauses()

    assert replace(bench.with_archive_store("stage_key", spoil), pauses=pauses).work(run) is Outcome.ENCRYPTED
    assert bench.document(run)["archive"]["token"] in archives[0], "it was not made again"
    assert bench.document(run)["failure_count"] == 0
    assert site.staged_files() == []


def test_trouble_at_publication_is_waited_for(site: Site, mount: Mount) -> None:
    place = mount(site.archives, "size=30m")
    bench = Bench.of(site)
    run = bench.ready_run()

    def pauses() -> Iterator[float]:
        yield 0.0
        yield 0.0
        remount(place, "rw")
        yield from no_pauses()

    spoilt = bench.with_archive_store("publish", lambda: remount(place, "ro"))
    assert replace(spoilt, pauses=pauses).work(run) is Outcome.ENCRYPTED
    assert bench.document(run)["failure_count"] == 0
    assert site.staged_files() == []
    assert_same_tree(run.path, site.restore(run.name))


@pytest.fixture
def gpgs_home(site: Site, mount: Mount) -> Path:
    """A small disk with a keyring that has the recipient's public key, and no agent that runs."""
    home = mount(site.root / "gnupg", "size=1m,mode=700")
    gpg(home, "--import", data=gpg(site.gnupg, "--export", site.recipient))
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True, capture_output=True)
    return home


def test_a_read_only_home_of_gpgs_is_all_that_is_needed(site: Site, gpgs_home: Path) -> None:
    bench = Bench.of(site).other(gnupg_home=gpgs_home)
    run = bench.ready_run()
    remount(gpgs_home, "ro")
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_same_tree(run.path, site.restore(run.name))


def test_a_full_home_of_gpgs_is_waited_for_and_the_archive_kept(site: Site, gpgs_home: Path) -> None:
    """gpg locks a keyring that it takes a key from."""
    bench = Bench.of(site).other(gnupg_home=gpgs_home)
    run = bench.ready_run()
    archives: list[str] = []

    def pauses() -> Iterator[float]:
        yield 0.0
        yield 0.0
        (staged,) = site.archives.glob(".*.tar.gpg.partial")
        archives.append(staged.name)
        (gpgs_home / "filler").unlink()
        yield from no_pauses()

    spoilt = bench.with_archive_store("staged_archive", lambda: fill(gpgs_home))
    assert replace(spoilt, pauses=pauses).work(run) is Outcome.ENCRYPTED
    assert bench.document(run)["archive"]["token"] in archives[0], "it was not made again"
    assert bench.document(run)["failure_count"] == 0
    assert_same_tree(run.path, site.restore(run.name))


def test_a_staged_file_on_a_read_only_disk_is_removed_when_it_can_be(site: Site, mount: Mount) -> None:
    place = mount(site.archives, "size=30m")
    bench = Bench.of(site)
    run = bench.ready_run()

    def spoil() -> None:
        remount(place, "ro")
        raise KeyboardInterrupt  # whatever ends the attempt here

    with pytest.raises(KeyboardInterrupt):
        bench.with_archive_store("stage_key", spoil).work(run)
    assert site.staged_files() != []
    remount(place, "rw")
    assert bench.take_over(run) is Outcome.ENCRYPTED
    assert site.staged_files() == []


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_log_that_cannot_be_written_stops_nothing(site: Site, mount: Mount, trouble: str) -> None:
    place = mount(site.root / "log", "size=1m")
    cluster = Cluster(site, log_file=str(place / "watcher.log"))
    cluster.start().wait_ready()
    if trouble == "full":
        fill(place)
    else:
        (place / "watcher.log").rename(place / "rotated.log")
        subprocess.run(["mount", "--bind", str(place), str(place)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True, capture_output=True)
    try:
        cluster.add_run("run_001")
        cluster.await_encrypted()
        cluster.stop_all()
        cluster.assert_whole()
    finally:
        if trouble == "read-only":
            subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


def test_a_crowded_disk_makes_runs_wait_in_pending_until_there_is_room(site: Site, mount: Mount) -> None:
    place = mount(site.archives, "size=20m")
    cluster = Cluster(site, minimum_free_space="5 MB")
    site.configure(rescan_interval=0.5)
    filler = fill(place, leaving=6_000_000)
    cluster.start().wait_ready()
    cluster.add_run("run_001", size=4_000_000)
    cluster.daemons["worker_1"].wait_for_log("run_001: waits: ")
    document = site.document("run_001")
    assert document is not None
    assert (document["status"], document["failure_count"]) == ("pending", 0)
    filler.unlink()
    cluster.await_encrypted()
    cluster.stop_all()
    cluster.assert_whole()
    assert ArchiveStore(site.archives, site.keys).is_published("run_001")
