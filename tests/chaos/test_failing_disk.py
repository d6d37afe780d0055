"""A disk that answers with EIO, at a write or at an fsync; and in which order things reach a good one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from failing_disk import Disk, failing_disk
from fuse_server import Unavailable
from harness import Bench, no_pauses
from sites import Site, assert_same_tree

from watcher.archiving import Outcome

pytestmark = [pytest.mark.chaos, pytest.mark.root]

Mounting = Callable[[Path], Disk]


@pytest.fixture
def disk(tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> Iterator[Mounting]:
    """Mount a disk that can fail on a directory until the test ends."""
    with ExitStack() as stack:

        def at(path: Path) -> Disk:
            try:
                return stack.enter_context(failing_disk(path, tmp_path / f"disk_{path.name}"))
            except Unavailable as error:
                unavailable(str(error))

        yield at


@pytest.mark.parametrize(
    ("operation", "code"),
    [(operation, errno.EIO) for operation in ("create", "write", "fsync", "read")]
    + [(operation, errno.EDQUOT) for operation in ("create", "write", "fsync")],
)
def test_an_error_while_staging_removes_the_partial_file_and_costs_no_attempt(
    site: Site, disk: Mounting, operation: str, code: int
) -> None:
    archives = disk(site.archives)
    bench = Bench.of(site)
    run = bench.ready_run()
    failing = bench.with_archive_store("staged_archive", lambda: archives.fail(operation, code=code))
    assert failing.work(run) is Outcome.RELEASED
    document = bench.document(run)
    assert (document["failure_count"], document["last_error"]["kind"]) == (0, "NoSpace")
    assert os.strerror(code) in document["last_error"]["message"]
    assert site.staged_files() == []
    assert bench.finals() == {}
    archives.fail()
    bench.now.advance(61)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_same_tree(run.path, site.restore(run.name))


def test_what_cannot_be_removed_is_left_for_the_next_claim_and_costs_no_attempt(site: Site, disk: Mounting) -> None:
    archives = disk(site.archives)
    bench = Bench.of(site)
    run = bench.ready_run()
    failing = bench.with_archive_store(
        "staged_archive", lambda: archives.fail("write", "unlink", "rename")
    )  # libfuse renames an open file
    assert failing.work(run) is Outcome.RELEASED
    assert bench.document(run)["failure_count"] == 0
    assert len(site.staged_files()) == 1
    archives.fail()
    bench.now.advance(61)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert site.staged_files() == []
    assert_same_tree(run.path, site.restore(run.name))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_hard_links_takes_archives_and_no_file_there_is_overwritten(
    site: Site, disk: Mounting, code: int
) -> None:
    disk(site.archives).fail("link", code=code)
    bench = Bench.of(site)
    run, hindered = bench.ready_run(), bench.ready_run("run_002")
    foreign = site.archives / "run_002.tar.gpg"
    assert bench.with_archive_store("publish", lambda: foreign.write_text("foreign")).work(hindered) is Outcome.FAILED
    assert foreign.read_text() == "foreign"
    assert bench.document(hindered)["last_error"]["kind"] == "PublishFailed"
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_same_tree(run.path, site.restore(run.name))
    assert all("run_002" in path.name for path in site.staged_files()), "finished, and waiting for people"


@pytest.mark.parametrize("operation", ["create", "write", "fsync"])
def test_an_error_of_the_keys_disk_is_waited_for(site: Site, disk: Mounting, operation: str) -> None:
    keys = disk(site.keys)
    bench = Bench.of(site)
    run = bench.ready_run()

    def pauses() -> Iterator[float]:
        yield 0.0
        yield 0.0
        keys.fail()
        yield from no_pauses()

    failing = bench.with_archive_store("stage_key", lambda: keys.fail(operation))
    assert replace(failing, pauses=pauses).work(run) is Outcome.ENCRYPTED
    assert bench.document(run)["failure_count"] == 0
    assert site.staged_files() == []
    assert_same_tree(run.path, site.restore(run.name))


@pytest.mark.parametrize("operation", ["link", "fsyncdir", "unlink"])
def test_an_error_at_publication_is_waited_for_and_nothing_is_recorded_before(
    site: Site, disk: Mounting, operation: str
) -> None:
    archives = disk(site.archives)
    bench = Bench.of(site)
    run = bench.ready_run()
    statuses: list[str] = []

    def pauses() -> Iterator[float]:
        yield 0.0
        yield 0.0
        statuses.append(bench.document(run)["status"])
        archives.fail()
        yield from no_pauses()

    failing = bench.with_archive_store("publish", lambda: archives.fail(operation))
    assert replace(failing, pauses=pauses).work(run) is Outcome.ENCRYPTED
    assert set(statuses) == {"processing"}
    assert bench.document(run)["failure_count"] == 0
    assert site.staged_files() == []


def test_nothing_is_announced_before_it_is_on_the_disk_nor_recorded_before_its_names_are(
    site: Site, disk: Mounting
) -> None:
    archives, keys = disk(site.archives), disk(site.keys)
    bench = Bench.of(site)
    run = bench.ready_run()
    seen: list[tuple[list[str], list[str]]] = []

    def look() -> None:
        seen.append((archives.log(), keys.log()))

    watched = bench.with_store("put", look, nth=2).with_store("put", look, nth=3)
    assert watched.work(run) is Outcome.ENCRYPTED
    (archive_log, key_log), (archive_end, key_end) = seen
    (archive,) = {line.split(" ", 1)[1] for line in archive_log if line.endswith(".tar.gpg.partial")}
    (receipt,) = {line.split(" ", 1)[1] for line in archive_log if line.endswith(".manifest.partial")}
    (key,) = {line.split(" ", 1)[1] for line in key_log if line.endswith(".key.gpg.partial")}
    for log, name in ((archive_log, archive), (archive_log, receipt), (key_log, key)):
        assert _last(log, f"write {name}") < _last(log, f"fsync {name}"), "before the announcement"
    assert _last(archive_log, f"fsync {archive}") < archive_log.index(f"create {receipt}")
    assert _last(archive_log, f"fsync {receipt}") < _last(archive_log, "fsyncdir /")
    assert _last(key_log, f"fsync {key}") < _last(key_log, "fsyncdir /")
    for log, name in ((archive_end, "run_001.tar.gpg"), (key_end, "run_001.key.gpg")):
        assert log.index(f"link {name}") < _last(log, "fsyncdir /"), "before the record"
    assert f"unlink {archive}" in archive_end[_last(archive_end, "fsyncdir /") :], "staged names go last"


def test_a_destination_that_cannot_be_listed_keeps_no_run_from_being_noticed(site: Site, disk: Mounting) -> None:
    archives = disk(site.archives)
    archives.fail("readdir")
    run = site.complete(site.make_run())
    daemon = site.start().wait_ready()
    assert "garbage is left until the next rescan: cannot read" in daemon.log
    assert "run_001: registered" in daemon.log
    daemon.wait_for_log("run_001: waits: cannot read")
    archives.fail()
    assert site.command("once").returncode == 3, "the watcher is there"
    assert daemon.stop() == 0
    assert site.command("once").returncode == 0
    assert_same_tree(run, site.restore())


def _last(log: list[str], line: str) -> int:
    return len(log) - 1 - log[::-1].index(line)
