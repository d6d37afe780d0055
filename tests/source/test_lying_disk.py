"""A file system that says what is not so: the archive has the content all the same, or the run fails and says where."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from fuse_server import Unavailable
from harness import Bench
from lying_disk import Liar, lying_disk
from sites import Site, assert_same_tree, tar_script

from watcher.archiving import Outcome
from watcher.model import Run
from watcher.source import SENTINEL

pytestmark = pytest.mark.root

LARGE = 3 << 20
"""Enough that holes are looked for."""

RUN = "run_001"


@pytest.fixture
def bench(site: Site, tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> Iterator[tuple[Bench, Liar]]:
    """A worker whose sequencers write to a lying disk, with a run that is ready."""
    try:
        with lying_disk(site.sequencing / "sequencer_A", tmp_path / "disk") as disk:
            run = disk.real / RUN
            (run / "data").mkdir(parents=True)
            (run / SENTINEL).write_text("0\n")
            (run / "data" / "one").write_bytes(os.urandom(LARGE))
            (run / "data" / "two").write_bytes(os.urandom(LARGE))
            bench = Bench.of(site)
            bench.statusdb().register([Run(disk.path / RUN)])
            yield bench, disk
    except Unavailable as error:
        unavailable(str(error))


def work(bench: tuple[Bench, Liar]) -> Outcome:
    return bench[0].work(Run(bench[1].path / RUN))


def assert_restores(bench: tuple[Bench, Liar]) -> None:
    """Assert that plain gpg and tar restore from the archive what lies on the disk in truth."""
    assert work(bench) is Outcome.ENCRYPTED
    assert_same_tree(bench[1].real / RUN, bench[0].site.restore("run_001"))


def assert_refused(bench: tuple[Bench, Liar], kind: str, words: str) -> None:
    """Assert that the run is not encrypted, for a reason of this kind that has these words."""
    assert work(bench) in (Outcome.FAILED, Outcome.RELEASED)
    error = bench[0].document(Run(bench[1].path / RUN))["last_error"]
    assert (error["kind"], words in error["message"]) == (kind, True), error["message"]
    assert bench[0].finals() == {}
    assert bench[0].site.staged_files() == []


def make_hole(disk: Liar, name: str = "hole", data: bytes = b"") -> None:
    with (disk.real / RUN / name).open("wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(data)


def test_a_disk_that_does_not_lie_is_archived(bench: tuple[Bench, Liar]) -> None:
    assert_restores(bench)


@pytest.mark.parametrize("beside", ["no hole", "a hole"])
@pytest.mark.parametrize("blocks", [0, 8])
def test_a_file_whose_blocks_are_not_counted_is_no_hole(bench: tuple[Bench, Liar], beside: str, blocks: int) -> None:
    bench[1].lie(f"{RUN}/data/one", st_blocks=blocks)
    if beside == "a hole":
        make_hole(bench[1])
    assert_restores(bench)


def test_a_file_system_that_counts_no_blocks_at_all_loses_nothing(bench: tuple[Bench, Liar]) -> None:
    make_hole(bench[1], "partly", b"data")
    for name in ("data/one", "data/two", "partly", SENTINEL):
        bench[1].lie(f"{RUN}/{name}", st_blocks=0)
    assert_restores(bench)


def test_holes_that_are_real_are_restored_and_take_no_room(bench: tuple[Bench, Liar]) -> None:
    make_hole(bench[1])
    make_hole(bench[1], "partly", b"data")
    assert_restores(bench)
    assert bench[0].document(Run(bench[1].path / RUN))["archive"]["tar_size"] < 2 * LARGE + (1 << 20)


def test_a_file_that_seems_to_be_a_hole_only_to_tar_is_refused(
    bench: tuple[Bench, Liar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_hole(bench[1])
    lie_to_tar(bench[1], tmp_path, monkeypatch, {f"{RUN}/data/one": {"st_blocks": 0}})
    assert_refused(bench, "Incomplete", "'./data/one' was archived as a hole, and holds data")


@pytest.mark.parametrize("content", ["another", "the same"])
def test_two_files_with_one_inode_number_both_keep_their_content(bench: tuple[Bench, Liar], content: str) -> None:
    one, two = (bench[1].real / RUN / "data" / name for name in ("one", "two"))
    if content == "the same":
        two.write_bytes(one.read_bytes())
    for name in ("one", "two"):
        bench[1].lie(f"{RUN}/data/{name}", st_ino=77, st_nlink=2)
    assert work(bench) is Outcome.ENCRYPTED
    restored = bench[0].site.restore("run_001")
    for name in ("one", "two"):
        assert (restored / "data" / name).read_bytes() == (bench[1].real / RUN / "data" / name).read_bytes()


def test_files_of_different_lengths_with_one_inode_number_both_keep_their_content(bench: tuple[Bench, Liar]) -> None:
    one, two = (bench[1].real / RUN / "data" / name for name in ("one", "two"))
    two.write_bytes(one.read_bytes() + b"more")
    for name in ("one", "two"):
        bench[1].lie(f"{RUN}/data/{name}", st_ino=77, st_nlink=2)
    assert_restores(bench)


def test_files_that_seem_to_be_one_only_to_tar_are_refused(
    bench: tuple[Bench, Liar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.link(bench[1].real / RUN / SENTINEL, bench[1].real / RUN / "data" / "a real link")
    lies = {f"{RUN}/data/{name}": {"st_ino": 77, "st_nlink": 2} for name in ("one", "two")}
    lie_to_tar(bench[1], tmp_path, monkeypatch, lies)
    assert_refused(bench, "Incomplete", "is a hard link of 0 bytes in the archive, and not in the run")


def test_directories_with_one_inode_number_are_all_archived(bench: tuple[Bench, Liar]) -> None:
    for name in (RUN, f"{RUN}/data", f"{RUN}/data/deeper"):
        (bench[1].real / name).mkdir(exist_ok=True)
        bench[1].lie(name, st_ino=77)
    (bench[1].real / RUN / "data" / "deeper" / "file").write_bytes(b"content")
    assert_restores(bench)


@pytest.mark.parametrize("beside", ["no hole", "a hole"])
@pytest.mark.parametrize("size", [0, 1, LARGE - 1])
def test_a_file_with_more_content_than_its_size_says_is_refused(
    bench: tuple[Bench, Liar], size: int, beside: str
) -> None:
    bench[1].lie(f"{RUN}/data/one", st_size=size)
    if beside == "a hole":
        make_hole(bench[1])
    assert_refused(bench, "Incomplete", f"'./data/one' holds more than the {size} bytes")


def test_a_file_with_less_content_than_its_size_says_is_refused(bench: tuple[Bench, Liar]) -> None:
    bench[1].lie(f"{RUN}/data/one", st_size=LARGE + 1)
    assert_refused(bench, "RunNotSettled", "data/one: File shrank by 1 byte; padding with zeros")


@pytest.mark.parametrize("size", [LARGE + 1, 2 * LARGE])
def test_a_sparse_file_with_less_content_than_its_size_says_is_restored(bench: tuple[Bench, Liar], size: int) -> None:
    bench[1].lie(f"{RUN}/data/one", st_size=size, st_blocks=8)
    make_hole(bench[1])
    assert_restores(bench)


@pytest.mark.parametrize("kind", [0, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK], ids=stat.filemode)
def test_a_file_whose_directory_gives_it_another_type_is_archived_as_what_it_is(
    bench: tuple[Bench, Liar], kind: int
) -> None:
    bench[1].lie(f"{RUN}/data/one", type=kind)
    assert_restores(bench)


@pytest.mark.parametrize("kind", [0, stat.S_IFREG, stat.S_IFLNK, stat.S_IFSOCK], ids=stat.filemode)
def test_a_directory_that_is_listed_with_another_type_is_archived_with_all_that_it_holds(
    bench: tuple[Bench, Liar], kind: int
) -> None:
    bench[1].lie(f"{RUN}/data", type=kind)
    assert_restores(bench)


def test_a_link_whose_size_is_wrong_leads_where_it_led(bench: tuple[Bench, Liar]) -> None:
    (bench[1].real / RUN / "link").symlink_to("data/one")
    bench[1].lie(f"{RUN}/link", st_size=3)
    assert_restores(bench)


# the first listing of a directory is before tar, the second is tar's own, the third comes after it


@pytest.mark.parametrize("name", ["data/one", "data"])
def test_a_name_that_is_left_out_of_the_first_listing_is_named(bench: tuple[Bench, Liar], name: str) -> None:
    bench[1].lie(f"{RUN}/{name}", hidden=[1])
    assert_refused(bench, "RunNotSettled", f"'./{name}' is new")


@pytest.mark.parametrize("name", ["data/one", "data"])
def test_a_name_that_is_left_out_of_tars_listing_is_named(bench: tuple[Bench, Liar], name: str) -> None:
    bench[1].lie(f"{RUN}/{name}", hidden=[2])
    assert_refused(bench, "Incomplete", f"'./{name}' is in the run, and not in the archive")


def test_a_name_that_is_left_out_of_the_last_listing_is_a_change(bench: tuple[Bench, Liar]) -> None:
    bench[1].lie(f"{RUN}/data/one", hidden=[3])
    assert_refused(bench, "RunNotSettled", "the run has changed since tar began: 3 entries then, 2 now")


def test_a_name_that_is_listed_twice_is_named(bench: tuple[Bench, Liar]) -> None:
    bench[1].lie(f"{RUN}/data/one", twice=True)
    assert_refused(bench, "Incomplete", "'./data/one' is in the archive twice")


def lie_to_tar(
    disk: Liar, directory: Path, monkeypatch: pytest.MonkeyPatch, lies: dict[str, dict[str, int]]
) -> None:  # fmt: skip
    """Let the disk lie from the moment on at which tar starts."""
    program, told = directory / "bin" / "tar", directory / "lies for tar"
    told.write_text(disk.with_lies(lies))
    program.parent.mkdir()
    program.write_text(tar_script(f"cp '{told}' '{disk.orders}'"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
