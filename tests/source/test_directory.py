"""A held run directory: what its rules leave out, what a listing notices, and when it stands still."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Bench, read_through
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from sites import Site, assert_same_tree, tar_script

from watcher.archiving import Outcome
from watcher.config import Config
from watcher.errors import Incomplete, Interrupted, RunNotSettled, TarFailed
from watcher.job import Job
from watcher.model import Kind, Run
from watcher.process import tar_environment
from watcher.source import Entry, Rules, Stillness, has_same_top, hold
from watcher.source.listing import MAX_MEMBER_PATH_BYTES, SPARSE_BYTES, Listing, Survey
from watcher.tar import MemberWalk, TarStream
from watcher.tar.stream import tar_command

pytestmark = pytest.mark.unit

ENTRY_BYTES = 12
"""What a listing may keep of each entry: its hash has eight, and an array grows in steps."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    path = tmp_path / "sequencer_A" / "run_001"
    (path / "data" / "L001").mkdir(parents=True)
    (path / "Empty").mkdir()
    (path / "small").write_bytes(b"content")
    (path / "data" / "L001" / "one").write_bytes(b"1")
    (path / "link").symlink_to("small")
    return Run(path)


def listed(run: Run, rules: Rules | None = None) -> Listing:
    with hold(run, rules or Rules()) as source:
        return source.list()


def ignored(_count: int) -> None:
    """Take no notice of bytes that have moved."""


def options(run: Run) -> tuple[str, ...]:
    with hold(run, Rules()) as source:
        return source.contents.tar_options(source.list(), ignored)


def archive(run: Run, rules: Rules | None = None) -> bytes:
    with hold(run, rules or Rules()) as source:
        still = Stillness(source, 0)
        with TarStream(still, Job(run)) as tar:
            return read_through(tar, still)[0]


def extracted(data: bytes, to: Path) -> Path:
    to.mkdir()
    subprocess.run(["tar", "-x", "-C", str(to)], input=data, check=True)
    return to / "run_001"


# what is excluded

BITS = (
    b"a", b"b", b"B", b".", b"\xff", b"\xc3\xa9", b"\n", b" ", b"*", b"?", b"[", b"]", b"\\", b"!", b"^", b"-", b"{",
    b",", b"}", b"~", b"(", b"|", b"@", b"+",
)  # fmt: skip
PIECES = (
    *BITS, b"/", b"./", b"[ab]", b"[!a]", b"[^a]", b"[a-c]", b"[]a]", b"[[:alpha:]]", b"[\\]]", b"\\*", b"**", b"*/",
    b"/*", b"**/", b"?(a)", b"!(a)",
)  # fmt: skip
NAMES = st.lists(st.sampled_from(BITS), min_size=1, max_size=3).map(b"".join).filter(lambda name: name.strip(b"."))
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=3).map(b"/".join), min_size=1, max_size=8)
PATTERNS = st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join), min_size=1, max_size=2)
BACKWARDS = re.compile(rb"\[.*(.)-(.)", re.DOTALL)
"""What may be a range that runs backwards, which POSIX leaves open."""


def plant(top: Path, paths: list[bytes]) -> None:
    """Make an empty file at each path; where that is in another's way, none."""
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir()
    for path in paths:
        whole = os.path.join(os.fsencode(top), path)
        try:
            os.makedirs(os.path.dirname(whole), exist_ok=True)
            os.close(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except OSError:
            continue


def of_tar(run: Run, rules: Rules) -> set[bytes]:
    """Return the paths that tar archives when it is given the very options of an archive."""
    found: set[bytes] = set()
    with hold(run, rules) as source:
        command = tar_command(source, ("--hard-dereference",))
    done = subprocess.run(command, cwd=run.path, env=tar_environment(), capture_output=True, check=False)
    if done.stdout:
        MemberWalk(lambda member: found.add(b"." + member.path.removeprefix(b"./run_001").removesuffix(b"/"))).feed(
            done.stdout
        )
    return found


def of_ours(run: Run, rules: Rules) -> set[bytes]:
    with hold(run, rules) as source:
        return set() if source.list().trouble else {entry.path for entry in source.entries()}


@pytest.mark.children
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(paths=TREES, patterns=PATTERNS)
@example(paths=[b"a\n", b"a", b"\n"], patterns=[b"a"])
@example(paths=[b"a\n", b"\n"], patterns=[b""])
@example(paths=[b"a\\", b"a", b"\\"], patterns=[b"a\\"])
@example(paths=[b"a\\", b"a", b"\\"], patterns=[b"\\"])
@example(paths=[b"a\\", b"a", b"ab\\"], patterns=[b"*\\"])
@example(paths=[b"a\\b", b"ab"], patterns=[b"a\\\\b"])
@example(paths=[b"data/a/b", b"a/b"], patterns=[b"./a"])
@example(paths=[b"data/a/b", b"a/b"], patterns=[b"a/"])
@example(paths=[b"data/a/b", b"a/b"], patterns=[b"data/a"])
@example(paths=[b"data/a/b", b"a/b"], patterns=[b"/a"])
@example(paths=[b"data/a/b", b"a/b"], patterns=[b"*a*b"])
@example(paths=[b".hidden/a", b"a"], patterns=[b"*"])
@example(paths=[b".hidden/a", b"a"], patterns=[b"?hidden"])
@example(paths=[b"\xff", b"\xc3\xa9", b"\xc3"], patterns=[b"?"])
@example(paths=[b"\xff", b"\xc3\xa9", b"\xc3"], patterns=[b"\xff"])
@example(paths=[b"\xff", b"a", b"B"], patterns=[b"[[:alpha:]]"])
@example(paths=[b"[a", b"a", b"]"], patterns=[b"[a"])
@example(paths=[b"{a,b}", b"a", b"b"], patterns=[b"{a,b}"])
@example(paths=[b"~", b"a"], patterns=[b"~"])
@example(paths=[b"!a", b"a"], patterns=[b"!a", b"-"])
def test_what_is_listed_is_what_tar_archives_whatever_the_patterns(
    tmp_path_factory: pytest.TempPathFactory, paths: list[bytes], patterns: list[bytes]
) -> None:
    for pattern in patterns:
        assume(not any(match[1] > match[2] for match in BACKWARDS.finditer(pattern)))
    top = tmp_path_factory.getbasetemp() / "excluded" / "run_001"
    top.parent.mkdir(exist_ok=True)
    plant(top, paths)
    rules = Rules(tuple(map(os.fsdecode, patterns)))
    assert of_ours(Run(top), rules) == of_tar(Run(top), rules)


def test_what_lies_in_an_excluded_directory_is_not_looked_at(run: Run) -> None:
    (run.path / "data" / "L001").chmod(0)
    assert listed(run, Rules(("data",))).excluded == 1
    assert listed(run, Rules(("data",))).trouble is None


# what a listing notices


def replaced(run: Path) -> None:
    """Make a file anew, with the same size and time of change, as a transfer would."""
    path = run / "small"
    status = path.stat()
    path.unlink()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new file": lambda run: (run / "data" / "new").touch(),
    "a new directory": lambda run: (run / "data" / "new").mkdir(),
    "a file that is gone": lambda run: (run / "data" / "L001" / "one").unlink(),
    "another name": lambda run: (run / "small").rename(run / "large"),
    "another place": lambda run: (run / "small").rename(run / "data" / "small"),
    "another size": lambda run: os.truncate(run / "small", 3),
    "another content": lambda run: (run / "small").write_bytes(b"CONTENT"),
    "another content at the same time": replaced,
    "another time": lambda run: os.utime(run / "small", (1, 1)),
    "another mode": lambda run: (run / "small").chmod(0o600),
    "another type": lambda run: (
        (run / "Empty").rmdir(),
        (run / "Empty").touch(),
    ),
    "another link": lambda run: (
        (run / "link").unlink(),
        (run / "link").symlink_to("Empty"),
    ),
    "a further name": lambda run: os.link(run / "small", run / "too"),
    "another time of a directory": lambda run: os.utime(run / "data", (1, 1)),
    "a fifo": lambda run: os.mkfifo(run / "fifo"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_listing_after_a_change_has_another_digest(change: Callable[[Path], object], run: Run) -> None:
    with hold(run, Rules()) as source:
        before, still = source.list(), Stillness(source, 0)
        assert source.list() == before
        change(run.path)
        assert source.list().digest != before.digest
        with pytest.raises(RunNotSettled, match="the run has changed since tar began: "):
            still.require()


@pytest.mark.parametrize("name", ["new", "data/new"])
def test_a_change_names_what_is_new(name: str, run: Run) -> None:
    with hold(run, Rules()) as source:
        still = Stillness(source, 0)
        (run.path / name).write_bytes(b"x")
        with pytest.raises(RunNotSettled, match=f"'./{name}' is new, or has another type or size"):
            still.require()


def entries(count: int, status: os.stat_result) -> Iterator[Entry]:
    for number in range(count):
        name = f"file_{number:09}.cbcl"
        yield Entry(b"./Data/Intensities/L001/" + name.encode(), name, Kind.FILE, status, is_top=False)


def surveyed(found: list[Entry]) -> Listing:
    survey = Survey(Rules(), with_hashes=True)
    for entry in found:
        survey.add(entry)
    return survey.listing(7)


def test_the_order_of_the_entries_makes_no_difference_and_each_of_them_does(run: Run) -> None:
    found = list(entries(50, os.stat(run.path / "small")))
    digest = surveyed(found).digest
    assert surveyed(found[::-1]).digest == digest
    assert surveyed(found[25:] + found[:25]).digest == digest
    assert surveyed(found[1:]).digest != digest
    assert surveyed([*found, found[0]]).digest != digest


@pytest.mark.slow
def test_a_listing_keeps_a_few_bytes_of_each_entry(run: Run) -> None:
    count, status = 100_000, os.stat(run.path / "small")
    tracemalloc.start()
    try:
        survey = Survey(Rules(), with_hashes=True)
        for entry in entries(count, status):
            survey.add(entry)
        listing = survey.listing(7)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert listing.members == count
    assert kept <= peak < count * ENTRY_BYTES


def test_a_place_is_that_of_one_path_kind_and_size(run: Run) -> None:
    listing = listed(run)
    places = {
        listing.place_of(b"./small", Kind.FILE, 7), listing.place_of(b"./link", Kind.SYMBOLIC_LINK, 5),
        listing.place_of(b"./Empty", Kind.DIRECTORY, 4096), listing.place_of(b"./data", Kind.DIRECTORY, 0),
        listing.place_of(b"./data/L001", Kind.DIRECTORY, 0), listing.place_of(b"./data/L001/one", Kind.FILE, 1),
    }  # fmt: skip
    assert places == set(range(listing.members)) == set(range(6))
    assert listing.place_of(b"./small", Kind.FILE, 8) is None
    assert listing.place_of(b"./small", Kind.DIRECTORY, 7) is None
    assert listing.place_of(b"./absent", Kind.FILE, 7) is None


def test_tolerated_names_change_nothing_in_the_top_directory_and_count_below(run: Run) -> None:
    rules = Rules(tolerated=("rsync*.log",))
    with hold(run, rules) as source:
        before = source.list()
        (run.path / "rsync_1.log").write_bytes(b"x")
        assert source.list().digest == before.digest
        (run.path / "data" / "rsync_1.log").write_bytes(b"x")
        assert source.list().digest != before.digest


@pytest.mark.children
@pytest.mark.parametrize("kind", ["fifo", "socket", pytest.param("device", marks=pytest.mark.root)])
def test_special_entries_are_listed_and_never_opened(kind: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path)
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "fifo":
            os.mkfifo("special")
        elif kind == "socket":
            server.bind("special")
        else:
            os.mknod("special", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        with hold(run, Rules()) as source:
            still = Stillness(source, 0)
            assert still.first.entries == 7
            assert still.first.members == (6 if kind == "socket" else 7)
            with TarStream(still, Job(run)) as tar:
                assert read_through(tar, still)[2] == 1 + still.first.members
            still.require(with_ends=True)


# what cannot be read


UNREADABLE = """
    import os, sys
    from pathlib import Path
    from watcher.model import Run
    from watcher.source import Rules, hold
    with hold(Run(Path(sys.argv[1])), Rules()) as source:
        listing = source.list()
        print("trouble", listing.trouble)
        try:
            print("options", source.contents.tar_options(listing, lambda _: None))
        except Exception as error:
            print(type(error).__name__, error)
"""


def as_somebody(run: Run) -> str:
    """Run UNREADABLE as a user for whom modes count, though it may be root."""
    prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-c", textwrap.dedent(UNREADABLE), str(run.path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.children
def test_a_directory_that_cannot_be_read_is_trouble_and_named(run: Run) -> None:
    (run.path / "data" / "L001").chmod(0)
    words = as_somebody(run)
    (run.path / "data" / "L001").chmod(0o700)
    assert words.startswith("trouble cannot read './data/L001': Permission denied; give this user the right")


@pytest.mark.children
def test_a_linked_file_that_cannot_be_read_is_named_and_no_bug(run: Run) -> None:
    os.link(run.path / "small", run.path / "too")
    (run.path / "small").chmod(0)
    words = as_somebody(run)
    assert re.search(r"^TarFailed cannot read '\./(small|too)': Permission denied; give this user", words, re.MULTILINE)


def test_a_file_that_has_just_gone_when_it_is_looked_into_means_that_the_run_has_not_settled(run: Run) -> None:
    with hold(run, Rules()) as source, pytest.raises(RunNotSettled, match=r"'\./absent' was removed or replaced"):
        source.contents.has_data(b"./absent", ignored)
    with hold(run, Rules()) as source, pytest.raises(RunNotSettled, match=r"'\./link' was removed or replaced"):
        source.contents.has_data(b"./link", ignored)


def test_a_directory_is_never_read_as_a_file(run: Run) -> None:
    with hold(run, Rules()) as source, pytest.raises(TarFailed, match=r"cannot read '\./data': Is a directory"):
        source.contents.has_data(b"./data", ignored)


def test_a_run_that_is_removed_while_it_is_held_is_empty_and_not_settled(run: Run) -> None:
    with hold(run, Rules()) as source:
        still = Stillness(source, 0)
        shutil.rmtree(run.path)
        assert source.list().entries == 0
        assert source.list().trouble is None
        with pytest.raises(RunNotSettled, match="was replaced by another directory, or moved"):
            still.require()


# holes and hard links


def hole(path: Path, size: int, *data: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for place in data:
            file.seek(place)
            file.write(b"data")


@pytest.mark.children
@pytest.mark.parametrize("data", [(), (0,), (4 << 20,), (0, 3 << 20, (8 << 20) - 4)], ids=str)
def test_holes_stay_holes_and_data_stays_data(data: tuple[int, ...], run: Run, tmp_path: Path) -> None:
    hole(run.path / "holes", 8 << 20, *data)
    stream = archive(run)
    assert len(stream) < 1 << 20
    restored = extracted(stream, tmp_path / "restored")
    assert_same_tree(run.path, restored)
    assert (restored / "holes").stat().st_blocks * 512 < 1 << 20


@pytest.mark.children
def test_a_file_of_zeros_is_restored_with_its_size(run: Run, tmp_path: Path) -> None:
    (run.path / "zeros").write_bytes(bytes(4 << 20))
    hole(run.path / "holes", 8 << 20)
    assert_same_tree(run.path, extracted(archive(run), tmp_path / "restored"))


def test_holes_are_looked_for_when_a_file_has_large_ones_only(run: Run) -> None:
    hole(run.path / "holes", SPARSE_BYTES - 1)
    assert "--sparse" not in options(run)
    hole(run.path / "holes", SPARSE_BYTES)
    assert "--sparse" in options(run)


def test_data_is_found_wherever_it_is_and_bytes_that_are_read_are_told(run: Run) -> None:
    told: list[int] = []
    with hold(run, Rules()) as source:
        for place in (0, (1 << 20) - 4, (1 << 20) - 2, 3 << 20, (4 << 20) - 4):
            hole(run.path / "file", 4 << 20, place)
            assert source.contents.has_data(b"./file", told.append)
        hole(run.path / "file", (4 << 20) + 1)
        told.clear()
        assert not source.contents.has_data(b"./file", told.append)
    assert len(told) == 5


def test_reading_for_holes_ends_when_the_job_does(run: Run) -> None:
    hole(run.path / "holes", 8 << 20)

    def stop(_count: int) -> None:
        raise Interrupted("stopped by a test")

    with hold(run, Rules()) as source, pytest.raises(Interrupted):
        source.contents.tar_options(source.list(), stop)


@pytest.mark.children
def test_hard_links_stay_links(run: Run, tmp_path: Path) -> None:
    os.link(run.path / "small", run.path / "too")
    os.link(run.path / "small", run.path / "data" / "three")
    assert "--hard-dereference" not in options(run)
    assert_same_tree(run.path, extracted(archive(run), tmp_path / "restored"))


@pytest.mark.children
def test_a_file_with_a_further_name_outside_the_run_is_archived_as_a_file(run: Run, tmp_path: Path) -> None:
    os.link(run.path / "small", tmp_path / "outside")
    assert (extracted(archive(run), tmp_path / "restored") / "small").read_bytes() == b"content"


def test_the_size_of_a_link_is_known_only_when_the_contents_have_been_compared(run: Run) -> None:
    os.link(run.path / "small", run.path / "too")
    with hold(run, Rules()) as source:
        assert source.contents.size_of_linked(b"./small", b"./too") is None
        source.contents.tar_options(source.list(), ignored)
        assert source.contents.size_of_linked(b"./small", b"./too") == 7
        assert source.contents.size_of_linked(b"./small", b"./data/L001/one") is None
        assert source.contents.size_of_linked(b"./small", b"./absent") is None
        (run.path / "too").unlink()
        os.link(run.path / "data" / "L001" / "one", run.path / "too")
        assert source.contents.size_of_linked(b"./data/L001/one", b"./too") is None


# standing still


class Clocks:
    """A monotonic and a wall clock that a test moves."""

    def __init__(self, run: Run) -> None:
        self.monotonic = 1000.0
        self.wall = max(path.lstat().st_ctime for path in (run.path, *run.path.rglob("*")))

    def pass_(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


@contextmanager
def stillness(run: Run, quiet_seconds: float, rules: Rules | None = None) -> Iterator[tuple[Stillness, Clocks]]:
    clocks = Clocks(run)
    with hold(run, rules or Rules()) as source:
        yield Stillness(source, quiet_seconds, lambda: clocks.monotonic, lambda: clocks.wall), clocks


def test_a_run_is_quiet_when_nothing_in_it_has_changed_for_so_long(run: Run) -> None:
    with stillness(run, 60) as (still, clocks):
        clocks.pass_(59)
        with pytest.raises(RunNotSettled, match=r"changed 59 s ago, and quiet_period is 60 s"):
            still.require_quiet()
        clocks.pass_(1.1)
        still.require_quiet()


def test_the_entry_that_changed_last_is_named(run: Run) -> None:
    last, before = run.path / "data" / "L001" / "one", (run.path / "link").lstat().st_ctime_ns
    while last.stat().st_ctime_ns <= before:  # the file system's clock has coarse steps
        last.chmod(0o600)
    with stillness(run, 60) as (still, _), pytest.raises(RunNotSettled, match=r"'\./data/L001/one' changed 0 s ago"):
        still.require_quiet()


def test_a_time_of_change_in_the_future_is_not_quiet(run: Run) -> None:
    with stillness(run, 60) as (still, clocks):
        clocks.wall -= 1_000_000
        with pytest.raises(RunNotSettled, match=r"changed 0 s ago"):
            still.require_quiet()
        assert still.seconds_left() == 60
        clocks.monotonic += 60
        assert still.seconds_left() == 0


def test_what_is_left_to_wait_is_counted_from_the_listing_and_the_wall_clock_only_shortens_it(run: Run) -> None:
    with stillness(run, 60) as (still, clocks):
        assert still.seconds_left() == 60
        clocks.pass_(25)
        assert still.seconds_left() == pytest.approx(35)
        clocks.wall += 60
        assert still.seconds_left() == 0


def test_a_quiet_time_of_nothing_is_never_waited_for(run: Run) -> None:
    with stillness(run, 0) as (still, clocks):
        still.require_quiet()
        clocks.wall -= 10  # the file system's clock is ahead of ours
        still.require_quiet()
        assert still.seconds_left() == 0


def test_a_tolerated_name_does_not_make_a_run_restless(run: Run) -> None:
    with stillness(run, 60, Rules(tolerated=("rsync*.log",))) as (_, clocks):
        pass
    (run.path / "rsync.log").write_bytes(b"x")
    with hold(run, Rules(tolerated=("rsync*.log",))) as source:
        still = Stillness(source, 60, now=lambda: clocks.wall + 61)
        still.require_quiet()
        (run.path / "rsync.log").write_bytes(b"more")
        (run.path / "rsync_2.log").write_bytes(b"more")
        still.require(with_ends=True)


def test_a_sentinel_that_is_written_again_is_a_new_transfer(site: Site) -> None:
    path = site.complete(site.make_run())
    with hold(Run(path), Rules()) as source:
        still = Stillness(source, 0)
        still.require()
        (path / ".metadata_rsync_exitcode").unlink()
        with pytest.raises(RunNotSettled, match="the sentinel was written again"):
            still.require()


def usual_rules() -> Rules:
    """The rules of a configuration that says nothing of them."""
    return Rules((), Config.tolerated_changes, Config.transfer_names)


TRANSFERS = (
    ".C1.cbcl.Xa3dE9", ".~tmp~", ".rsync-partial", "C1.cbcl.partial", "C1.cbcl.filepart", "C1.part", "C1.tmp",
)  # fmt: skip


@pytest.mark.parametrize("name", TRANSFERS)
@pytest.mark.parametrize("where", [".", "data/L001"])
def test_a_name_that_a_transfer_in_progress_leaves_is_named(where: str, name: str, run: Run) -> None:
    path = run.path / where / name
    path.mkdir() if name in (".~tmp~", ".rsync-partial") else path.touch()
    with stillness(run, 60, usual_rules()) as (still, clocks):
        clocks.pass_(1_000_000)
        for require in (still.require_no_transfer, still.require_quiet):
            with pytest.raises(RunNotSettled, match=f"{re.escape(name)}' has a name that a transfer in progress"):
                require()


@pytest.mark.parametrize("name", ["C1.cbcl", ".hidden", "partial", "C1.part1", ".metadata_rsync_exitcode", "rsync.log"])
def test_usual_names_are_of_no_transfer(name: str, run: Run) -> None:
    (run.path / name).touch()
    with stillness(run, 0, usual_rules()) as (still, _):
        still.require_no_transfer()


def test_a_file_that_is_longer_than_its_size_says_is_found_when_ends_are_asked_for(run: Run) -> None:
    """/proc has such files: a size of 0, and a content."""
    proc = Run(Path("/proc/self/fdinfo"))
    with hold(proc, Rules()) as source:
        assert source.list().trouble is None
        assert isinstance(source.list(with_ends=True).trouble, Incomplete)
        assert "holds more than the 0 bytes" in str(source.list(with_ends=True).trouble)
    with hold(run, Rules()) as source:
        assert source.list(with_ends=True).trouble is None


# another directory in the run's place


def another(run: Run, elsewhere: Path) -> None:
    shutil.copytree(elsewhere, run.path, symlinks=True)


def linked(run: Run, elsewhere: Path) -> None:
    run.path.symlink_to(elsewhere)


def linked_to_itself(run: Run, elsewhere: Path) -> None:
    run.path.symlink_to(elsewhere.parent / "moved")


INSTEAD = [another, linked, linked_to_itself]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "foreign").write_bytes(b"not of this run")
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("instead", INSTEAD)
def test_a_directory_that_was_exchanged_is_listed_as_it_was_held(
    instead: Callable[[Run, Path], None], run: Run, elsewhere: Path, tmp_path: Path
) -> None:
    with hold(run, Rules()) as source:
        still = Stillness(source, 0)
        paths = {entry.path for entry in source.entries()}
        run.path.rename(tmp_path / "moved")
        instead(run, elsewhere)
        assert not source.is_in_place()
        assert {entry.path for entry in source.entries()} == paths
        with pytest.raises(RunNotSettled, match="was replaced by another directory, or moved"):
            still.require()
        run.path.unlink() if run.path.is_symlink() else shutil.rmtree(run.path)
        (tmp_path / "moved").rename(run.path)
        assert source.is_in_place()
        still.require()


@pytest.mark.children
@pytest.mark.parametrize("instead", INSTEAD)
def test_the_archive_is_of_the_directory_that_was_inspected_though_another_stood_there_while_tar_started(
    instead: Callable[[Run, Path], None],
    site: Site,
    elsewhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench.of(site)
    run = bench.ready_run(size=5 << 20)
    moved, prepared = tmp_path / "moved", Run(tmp_path / "instead")
    instead(prepared, elsewhere)
    program = tmp_path / "bin" / "tar"
    program.parent.mkdir()
    lines = (
        f"mv '{run.path}' '{moved}'", f"mv '{prepared.path}' '{run.path}'", 'REAL "$@"; code=$?',
        f"mv '{run.path}' '{prepared.path}'", f"mv '{moved}' '{run.path}'",
    )  # fmt: skip
    program.write_text(tar_script(*lines, after="exit $code"))
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        assert bench.work(run) is Outcome.ENCRYPTED
    assert os.path.lexists(prepared.path)
    assert_same_tree(run.path, site.restore(run.name))


@pytest.mark.children
def test_tar_reads_the_held_directory_though_another_has_its_name_when_tar_is_started(
    site: Site, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench.of(site)
    run = bench.ready_run()
    moved = tmp_path / "moved"

    def exchange() -> None:
        run.path.rename(moved)
        shutil.copytree(elsewhere, run.path)

    program = tmp_path / "bin" / "tar"
    program.parent.mkdir()
    put_back = f"rm -r '{run.path}'; mv '{moved}' '{run.path}'"
    program.write_text(tar_script(put_back))
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        assert bench.with_archive_store("staged_archive", exchange).work(run) is Outcome.ENCRYPTED
    assert_same_tree(run.path, site.restore(run.name))


@pytest.mark.children
def test_a_run_that_is_exchanged_and_not_put_back_is_given_back(
    site: Site, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench.of(site)
    run = bench.ready_run()
    program = tmp_path / "bin" / "tar"
    program.parent.mkdir()
    exchange = f"mv '{run.path}' '{tmp_path}/moved'; cp -a '{elsewhere}' '{run.path}'"
    program.write_text(tar_script(exchange))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert bench.work(run) is Outcome.RELEASED
    error = bench.document(run)["last_error"]
    assert (error["kind"], bench.finals()) == ("RunNotSettled", {})
    assert f"'{run.path}' was replaced by another directory, or moved" in error["message"]


@pytest.mark.parametrize("change", ["data/new", "new"])
def test_the_top_directory_has_another_version_for_a_new_name_in_it_and_for_none_below(change: str, run: Run) -> None:
    with hold(run, Rules()) as source:
        before = source.top()
        (run.path / change).write_bytes(b"x")
        assert (source.top() == before) == (change == "data/new")
        same = has_same_top(run.path, os.stat(run.path).st_mtime_ns, before, Rules())
        assert same == (change == "data/new")


def test_a_tolerated_or_excluded_name_leaves_the_top_directory_the_same(run: Run) -> None:
    rules = Rules(exclusions=("*.bak",), tolerated=("*.log",))
    with hold(run, rules) as source:
        before = source.top()
        for name in ("rsync.log", "old.bak"):
            (run.path / name).touch()
        assert has_same_top(run.path, os.stat(run.path).st_mtime_ns, before, rules)
        assert not has_same_top(run.path, os.stat(run.path).st_mtime_ns, before, Rules())


# long paths


@contextmanager
def down(top: Path, *names: str) -> Iterator[None]:
    """Be in a directory that is made step by step: its path may be longer than the kernel takes."""
    before = os.open(".", os.O_RDONLY)
    os.chdir(top)
    try:
        for name in names:
            os.mkdir(name)
            os.chdir(name)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def removed(run: Run) -> None:
    """Remove a run: pytest could not, it is too deep."""
    subprocess.run(["rm", "-r", str(run.path)], check=True)


def path_of(length: int) -> list[str]:
    """Return names, each of 255 bytes but the last, that make a member path of this length in a run `run_001`."""
    left = length - len("./run_001")
    names = ["d" * 255] * (left // 256)
    rest = left - 256 * len(names)
    return [*names, "f" * (rest - 1)]


@pytest.mark.children
def test_the_longest_path_that_tar_can_restore_is_archived(run: Run) -> None:
    *directories, name = path_of(MAX_MEMBER_PATH_BYTES)
    with down(run.path, *directories):
        Path(name).write_bytes(b"x")
    assert len("/".join((".", "run_001", *directories, name))) == MAX_MEMBER_PATH_BYTES
    found: list[int] = []
    MemberWalk(lambda member: found.append(len(member.path))).feed(archive(run))
    assert max(found) == MAX_MEMBER_PATH_BYTES


@pytest.mark.children
@pytest.mark.parametrize("length", [MAX_MEMBER_PATH_BYTES + 1, 4096 + len("run_001/"), 4300, 10_000])
def test_a_path_that_tar_could_not_restore_is_refused_and_named(length: int, run: Run) -> None:
    *directories, name = path_of(length)
    with down(run.path, *directories):
        Path(name).write_bytes(b"x")
    listing = listed(run)
    removed(run)
    assert isinstance(listing.trouble, Incomplete)
    words = str(listing.trouble)
    assert words.startswith(f"tar could not restore './{'/'.join(directories[:10])}")
    assert re.search(r"its path has \d{4} bytes, and Linux takes 4095; shorten it, or exclude it$", words)


@pytest.mark.children
@pytest.mark.parametrize("levels", [2100, 2050])
def test_a_directory_deeper_than_the_kernel_takes_is_refused_and_named(levels: int, run: Run) -> None:
    with down(run.path, *"d" * levels):
        Path("file").write_bytes(b"x")
    listing = listed(run)
    removed(run)
    assert "tar could not restore './d/d/d/" in str(listing.trouble)


@pytest.mark.children
def test_a_long_path_that_is_excluded_is_no_trouble(run: Run) -> None:
    *directories, name = path_of(5000)
    with down(run.path, *directories):
        Path(name).write_bytes(b"x")
    listing = listed(run, Rules(("d" * 255,)))
    removed(run)
    assert (listing.trouble, listing.excluded) == (None, 1)
