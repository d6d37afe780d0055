"""tar's stream against the listing: a tar that gives anything but the run is refused, and the entry is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Bench, read_through
from sites import Site, tar_script

from watcher.archiving import Outcome
from watcher.errors import Incomplete, RunNotSettled
from watcher.job import Job
from watcher.model import Kind, Run
from watcher.source import Rules, Stillness, hold
from watcher.tar import Completeness, Member, TarStream
from watcher.tar.completeness import PROBLEMS_TOLD

SIZE = 2 << 20


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in which nothing is like anything else."""
    path = tmp_path / "sequencer_A" / "run_001"
    (path / "data" / "deeper").mkdir(parents=True)
    (path / "data" / "empty").mkdir()
    for number, name in enumerate(("one", "data/two", "data/deeper/three")):
        (path / name).write_bytes(os.urandom(SIZE + number))
    (path / "link").symlink_to("one")
    os.mkfifo(path / "fifo")
    return Run(path)


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a tar before GNU's: it makes a copy of the run, does something to that, and lets GNU's tar read the copy.

    `REAL` is GNU's tar, and what is done is bash in the copy.
    """
    program, copy = tmp_path / "bin" / "tar", tmp_path / "copy"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def put(script: str) -> None:
        lines = ("set -e", f"cp -a . '{copy}'", f"cd '{copy}'", script)
        program.write_text(tar_script(*lines, interpreter="/bin/bash"))
        program.chmod(0o755)

    return put


@contextmanager
def opened(run: Run, rules: Rules) -> Iterator[tuple[Stillness, TarStream]]:
    with hold(run, rules) as source:
        still = Stillness(source, 0)
        with TarStream(still, Job(run)) as tar:
            yield still, tar


def count(run: Run, rules: Rules | None = None) -> int:
    """Return how many members tar gave of the run."""
    with opened(run, rules or Rules()) as (still, tar):
        _, _, members = read_through(tar, still)
        still.require(with_ends=True)
        return members


def test_the_run_itself_is_complete(run: Run, doctor: Callable[[str], None]) -> None:
    doctor("true")
    assert count(run) == 9


MISSING = "is in the run, and not in the archive"
STRANGER = "in the archive, and not in the run"
WITH_LINKS = 'set -- "${@/--hard-dereference/--no-xattrs}"'
WITH_HOLES = f'set -- --sparse "$@"; {WITH_LINKS}'

DOCTORED = {
    "a file is left out": ("rm data/two", f"'./data/two' {MISSING}"),
    "an empty directory is left out": ("rmdir data/empty", f"'./data/empty' {MISSING}"),
    "a directory is left out": ("rm -r data/deeper", f"'./data/deeper/three' {MISSING}"),
    "a link is left out": ("rm link", f"'./link' {MISSING}"),
    "a fifo is left out": ("rm fifo", f"'./fifo' {MISSING}"),
    "a file is shortened": ("truncate -s -1 one", f"'./one' is a file of {SIZE - 1} bytes {STRANGER}"),
    "a file is emptied": ("truncate -s 0 one", f"'./one' is a file of 0 bytes {STRANGER}"),
    "a file is lengthened": ("truncate -s +1 one", f"'./one' is a file of {SIZE + 1} bytes {STRANGER}"),
    "a file's data is a hole": (
        f"rm one; truncate -s {SIZE} one; {WITH_HOLES}", "'./one' was archived as a hole, and holds data",
    ),
    "a file is added": ("echo x > data/more", f"'./data/more' is a file of 2 bytes {STRANGER}"),
    "a directory is added": ("mkdir more", f"'./more' is a directory of 0 bytes {STRANGER}"),
    "a file is renamed": ("mv one eno", f"'./eno' is a file of {SIZE} bytes {STRANGER}; './one' {MISSING}"),
    "a file is moved": ("mv one data/", f"'./data/one' is a file of {SIZE} bytes {STRANGER}"),
    "a file is a directory": ("rm one; mkdir one", f"'./one' is a directory of 0 bytes {STRANGER}"),
    "a file is a symbolic link": ("mv one eno; ln -s eno one", f"'./one' is a symbolic link of 0 bytes {STRANGER}"),
    "a symbolic link is what it leads to": ("rm link; cp one link", f"'./link' is a file of {SIZE} bytes {STRANGER}"),
    "a fifo is a file": ("rm fifo; touch fifo", f"'./fifo' is a file of 0 bytes {STRANGER}"),
    "a directory is a symbolic link": (
        "mv data/empty data/deeper/; ln -s deeper/empty data/empty",
        f"'./data/empty' is a symbolic link of 0 bytes {STRANGER}",
    ),
    "a file is a hard link to another": (
        f"ln -f one data/two; {WITH_LINKS}", f"is a hard link of 0 bytes {STRANGER}",
    ),
    "a file comes twice": ('set -- "$@" ./data/two', "'./data/two' is in the archive twice"),
    "a directory comes twice": ('set -- "$@" ./data/empty', "'./data/empty' is in the archive twice"),
    "the run has another name": ('set -- "${@/run_001/run_002}"', "'./run_002/one' is not in the run"),
    "the names have nothing before them": ('set -- "${@/--transform=*/--no-xattrs}"', "'./one' is not in the run"),
    "tar stops early and all seems well": (
        'REAL "$@" | head -c 1000000; exit 0', "what tar gave cannot be understood",
    ),
    "tar gives nothing and all seems well": ("exit 0", "what tar gave cannot be understood"),
    "tar gives an empty archive": ("REAL -cf- -T /dev/null; exit 0", f"'./one' {MISSING}"),
    "tar gives the run's directory alone": ('REAL "${@:1:$#-2}" --no-recursion -- .; exit 0', f"'./one' {MISSING}"),
}  # fmt: skip


@pytest.mark.parametrize(("script", "words"), DOCTORED.values(), ids=DOCTORED)
def test_a_tar_that_gives_anything_but_the_run_is_refused(
    script: str, words: str, run: Run, doctor: Callable[[str], None]
) -> None:
    doctor(script)
    with pytest.raises(Incomplete) as refused:
        count(run)
    assert words in str(refused.value)


def test_a_hard_link_that_is_real_is_accepted(run: Run) -> None:
    os.link(run.path / "one", run.path / "data" / "one too")
    with opened(run, Rules()) as (still, tar):
        assert "--hard-dereference" not in still.source.contents.tar_options(still.first, lambda _: None)
        assert read_through(tar, still)[2] == 10


def test_a_hard_link_to_another_file_than_the_one_that_is_linked_is_refused(
    run: Run, doctor: Callable[[str], None]
) -> None:
    os.link(run.path / "one", run.path / "data" / "one too")
    doctor("ln -f data/two 'data/one too'")
    with pytest.raises(Incomplete, match=r"'\./data/(two|one too)' is a hard link of 0 bytes"):
        count(run)


def test_only_some_of_many_problems_are_told(run: Run, doctor: Callable[[str], None]) -> None:
    for number in range(20):
        (run.path / f"file{number}").write_bytes(b"x")
    doctor("rm file*")
    with pytest.raises(Incomplete) as refused:
        count(run)
    assert str(refused.value).count("file") == PROBLEMS_TOLD + 1  # and `file system`
    assert f"and {20 - PROBLEMS_TOLD} more" in str(refused.value)


def test_a_run_that_has_changed_meanwhile_is_not_incomplete(run: Run) -> None:
    with opened(run, Rules()) as (still, tar), pytest.raises(RunNotSettled, match=r"'\./data/new' is new"):
        (run.path / "data" / "new").write_bytes(b"x" * 10_000_000)
        read_through(tar, still)
        still.require()


@pytest.mark.parametrize("script", ["rm rsync.log", "echo more >> rsync.log", "echo x > rsync_2.log"])
def test_tolerated_names_may_be_missing_changed_or_new(script: str, run: Run, doctor: Callable[[str], None]) -> None:
    (run.path / "rsync.log").write_bytes(b"x")
    doctor(script)
    assert count(run, Rules(tolerated=("rsync*.log",))) in (9, 10, 11)


def test_a_tolerated_name_further_down_may_not_be_missing(run: Run, doctor: Callable[[str], None]) -> None:
    (run.path / "data" / "rsync.log").write_bytes(b"x")
    doctor("rm data/rsync.log")
    with pytest.raises(Incomplete, match=r"'\./data/rsync\.log' is in the run, and not in the archive"):
        count(run, Rules(tolerated=("rsync*.log",)))


def test_what_is_excluded_does_not_count_and_nothing_else_may_go_with_it(
    run: Run, doctor: Callable[[str], None]
) -> None:
    doctor("true")
    assert count(run, Rules(exclusions=("deeper",))) == 7


def test_a_tar_that_excludes_more_than_the_patterns_is_refused(run: Run, doctor: Callable[[str], None]) -> None:
    doctor('set -- --exclude=two "$@"')
    with pytest.raises(Incomplete, match=r"'\./data/two' is in the run, and not in the archive"):
        count(run, Rules(exclusions=("deeper",)))


@pytest.mark.parametrize(("exclusions", "excluded"), [((), 0), (("L001",), 1), (("*.xml", "Empty"), 2), (("x",), 0)])
def test_the_document_says_how_many_entries_the_exclusions_left_out(
    exclusions: tuple[str, ...], excluded: int, site: Site
) -> None:
    bench = Bench.of(site).other(rules=Rules(exclusions=exclusions))
    run = bench.ready_run()
    assert bench.work(run) is Outcome.ENCRYPTED
    assert bench.document(run)["archive"].get("excluded", 0) == excluded


# members that no tar writes, and one that has been tampered with may


def member(path: bytes, kind: Kind = Kind.FILE, size: int = 0, link: bytes = b"") -> Member:
    return Member(path, kind, size, link, 0o644, is_hole=False)


def ignored(_count: int) -> None:
    """Take no notice of bytes that have moved."""


FORGED = {
    "a file that tar would extract as a directory": member(b"./run_001/one/", Kind.FILE, SIZE),
    "a link in the place of the run": member(b"./run_001/", Kind.SYMBOLIC_LINK),
    "a file in the place of the run": member(b"./run_001/", Kind.FILE),
    "a path out of the run": member(b"./run_001/../one", Kind.FILE, SIZE),
    "an absolute path": member(b"/run_001/one", Kind.FILE, SIZE),
    "a name that begins like the run's": member(b"./run_0011", Kind.FILE),
    "a hard link to itself": member(b"./run_001/one", Kind.HARD_LINK, 0, b"./run_001/one"),
    "a hard link to nothing": member(b"./run_001/one", Kind.HARD_LINK, 0, b"./run_001/absent"),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_member_that_only_seems_to_be_of_the_run_is_refused(forged: Member, run: Run) -> None:
    with hold(run, Rules()) as source:
        still = Stillness(source, 0)
        complete = Completeness(still)
        complete.saw(member(b"./run_001/", Kind.DIRECTORY), ignored)
        complete.saw(forged, ignored)
        for entry in source.entries():
            if entry.path != b".":
                size = entry.status.st_size if entry.kind is Kind.FILE else 0
                complete.saw(member(b"./run_001" + entry.path[1:], entry.kind, size), ignored)
        with pytest.raises(Incomplete, match=r"not in the run|is in the archive twice"):
            complete.require()
