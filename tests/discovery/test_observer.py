"""The observer on the real file system: which observations come, and which directories the kernel watches then."""

import ctypes
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from machine import (
    as_nobody,
    inotify_inodes,
    inotify_limit,
    inotify_masks,
    make_reachable,
    mount,
    mounted,
    unmount,
)
from sites import PATIENCE_SECONDS, wait_until

from watcher.discovery import Observer
from watcher.model import Run
from watcher.source import SENTINEL, Observation, State, Walk

IN_MODIFY, IN_ATTRIB = 0x2, 0x4
OBSERVER_THREADS = 3
MARKER = "marker/run"

Observations = list[tuple[str, State]]


class Watch:
    """An observer on `root`, what it tells, and the way to know that it has told everything so far."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.told: list[Observation] = []
        self.lost: list[str] = []
        self.on_lost: Callable[[str], None] = self.lost.append
        self.handles = True
        close_seconds = options.pop("close_seconds", 3600.0)
        self.observer = Observer(Walk(root, **options), self._observed, self._lost, close_seconds)
        self._marks = 0

    def _observed(self, observation: Observation) -> None:
        self.told.append(observation)
        if observation.state is State.READY and self.handles:
            self.observer.stop_watching(observation.run.path)  # as the registrar does

    def _lost(self, why: str) -> None:
        self.on_lost(why)

    def start(self) -> "Watch":
        """Start with a run of ours among the others; its events come after those that were caused before."""
        (self.root / MARKER).mkdir(parents=True)
        self.observer.start()
        self.sweep()
        return self

    def sweep(self) -> dict[str, State]:
        """Do a sweep; return each run's state."""
        found = {self.name(observation): observation.state for observation in self.observer.sweep()}
        found.pop(MARKER, None)
        return found

    def name(self, observation: Observation) -> str:
        return str(observation.run.path.relative_to(self.root))

    def flush(self) -> None:
        """Return when every event so far has been told, but for what still has to settle."""
        self._marks += 1
        sentinel = self.root / MARKER / SENTINEL
        sentinel.write_text(f"{self._marks}\n")  # an exit code: held, so it stays watched
        reason = f"code {self._marks}:"
        wait_until(
            lambda: any(reason in observation.reason for observation in list(self.told)), "the marker to be told"
        )

    def observations(self) -> Observations:
        """Return what was told about runs, after a flush."""
        self.flush()
        return [
            (self.name(observation), observation.state) for observation in self.told if self.name(observation) != MARKER
        ]

    def wait_for(self, run: str, state: State = State.READY) -> Observations:
        """Wait for a observation; return all of them."""
        wait_until(
            lambda: (run, state) in [(self.name(observation), observation.state) for observation in list(self.told)],
            f"'{run}' to be told as {state}",
        )
        return self.observations()

    def watched(self) -> set[str]:
        """Return the directories that the kernel watches, without the marker's; the observer must count them right."""
        inodes = inotify_inodes()
        assert len(inodes) == self.observer.watches
        names = {path.stat().st_ino: str(path.relative_to(self.root)) for path in self._directories()}
        names[self.root.stat().st_ino] = "."
        return {names.get(inode, f"unknown inode {inode}") for inode in inodes} - {"marker", MARKER}

    def _directories(self) -> list[Path]:
        sequencers = [path for path in self.root.iterdir() if path.is_dir()]
        runs = [path for sequencer in sequencers for path in sequencer.iterdir() if path.is_dir()]
        return sequencers + runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with two sequencers; one has an open run."""
    root = tmp_path / "sequencing"
    (root / "A" / "run").mkdir(parents=True)
    (root / "B").mkdir()
    return root


Observe = Callable[..., Watch]


@pytest.fixture
def observe() -> Iterator[Observe]:
    """Return what makes a `Watch`, not started; all end with the test, and leave nothing behind."""
    watches = []

    def make(root: Path, **options: Any) -> Watch:
        watches.append(Watch(root, **options))
        return watches[-1]

    yield make
    for watch in watches:
        watch.observer.stop()
    assert inotify_inodes() == []


@pytest.fixture
def watch(root: Path, observe: Observe) -> Watch:
    """An observer that has started and swept `root`."""
    watch = observe(root).start()
    assert watch.watched() == {".", "A", "B", "A/run"}
    return watch


def shell(root: Path, script: str) -> None:
    """Run a line of shell in the tree; `$S` is the sentinel's name, `$OUT` a directory on the same file system."""
    outside = root.parent / "outside"
    outside.mkdir(exist_ok=True)
    environment = {**os.environ, "S": SENTINEL, "OUT": str(outside)}
    subprocess.run(["bash", "-euc", script], cwd=root, env=environment, check=True)


# The sentinel


@pytest.mark.parametrize(
    "script",
    [
        "echo 0 > A/run/$S",
        "touch A/run/$S",
        "echo 0 > $OUT/s; mv $OUT/s A/run/$S",
        "echo 0 > A/run/.$S.Xq3Z; mv A/run/.$S.Xq3Z A/run/$S",
        "echo 0 > $OUT/s; ln $OUT/s A/run/$S",
        "touch $OUT/s; ln $OUT/s A/run/$S",
        "echo 0 > $OUT/s; cp -p $OUT/s A/run/$S",
        "(sleep 0.2; echo 0) > A/run/$S",
    ],
)
def test_a_new_sentinel_is_told_once_and_its_run_is_watched_no_more(watch: Watch, script: str) -> None:
    shell(watch.root, script)
    assert watch.wait_for("A/run") == [("A/run", State.READY)]
    assert watch.watched() == {".", "A", "B"}


@pytest.mark.parametrize(
    "script",
    ["ln -s nowhere A/run/$S", "ln -s /dev/zero A/run/$S", "ln -s nowhere $OUT/s; mv $OUT/s A/run/$S"],
)
def test_a_linked_sentinel_is_told_as_held_and_its_run_stays_watched(watch: Watch, script: str) -> None:
    shell(watch.root, script)
    assert watch.wait_for("A/run", State.HELD) == [("A/run", State.HELD)]
    assert watch.watched() == {".", "A", "B", "A/run"}


@pytest.mark.parametrize("before", ["", "0\n", "23\n"])
@pytest.mark.parametrize(
    ("script", "content"),
    [
        ("echo 0 > A/run/$S", "0\n"),
        ("touch A/run/$S", None),
        ("echo 23 > A/run/$S", "23\n"),
        ("printf '' > A/run/$S", ""),
        ("echo 0 > $OUT/s; mv $OUT/s A/run/$S", "0\n"),
        ("echo 0 > $OUT/s; ln -f $OUT/s A/run/$S", "0\n"),
    ],
)
def test_an_existing_sentinel_that_is_touched_or_replaced_is_told_once_as_it_is_then(
    watch: Watch, before: str, script: str, content: str | None
) -> None:
    watch.handles = False  # else a ready run would not be watched any more
    (watch.root / "A" / "run" / SENTINEL).write_text(before)
    watch.wait_for("A/run", state_of(before))
    watch.told.clear()
    shell(watch.root, script)
    state = state_of(before if content is None else content)
    assert watch.wait_for("A/run", state) == [("A/run", state)]
    assert "A/run" in watch.watched()


def state_of(content: str) -> State:
    return State.HELD if content == "23\n" else State.READY


def test_a_held_sentinel_is_told_each_time_and_ready_when_it_is_rewritten_to_0(watch: Watch) -> None:
    shell(watch.root, "echo 23 > A/run/$S")
    assert watch.wait_for("A/run", State.HELD) == [("A/run", State.HELD)]
    shell(watch.root, "echo 12 > A/run/$S")
    assert watch.observations() == [("A/run", State.HELD)] * 2
    assert "A/run" in watch.watched()
    shell(watch.root, "echo 0 > A/run/$S")
    assert watch.wait_for("A/run") == [("A/run", State.HELD), ("A/run", State.HELD), ("A/run", State.READY)]
    assert watch.watched() == {".", "A", "B"}


def test_a_sentinel_that_is_still_being_written_is_read_when_it_is_closed(watch: Watch) -> None:
    (watch.root / "B" / "other").mkdir()
    with open(watch.root / "A" / "run" / SENTINEL, "w") as file:
        watch.flush()
        shell(watch.root, "touch B/other/$S")  # empty too, but closed: told when it has settled
        assert watch.wait_for("B/other") == [("B/other", State.READY)]
        assert watch.sweep()["A/run"] is State.UNSETTLED
        file.write("2")
        file.flush()
        assert watch.sweep()["A/run"] is State.UNSETTLED
        file.write("3\n")
    assert watch.wait_for("A/run", State.HELD) == [("B/other", State.READY), ("A/run", State.HELD)]


@pytest.mark.parametrize("content", [b"", b"0\n"])
def test_a_sentinel_that_nobody_closes_is_read_after_a_while(root: Path, content: bytes, observe: Observe) -> None:
    watch = observe(root, close_seconds=0.3).start()
    with open(root / "A" / "run" / SENTINEL, "wb", buffering=0) as file:
        file.write(content)
        assert watch.wait_for("A/run") == [("A/run", State.READY)]


@pytest.mark.parametrize(("content", "state"), [("0\n", State.READY), ("23\n", State.HELD)])
def test_a_sentinel_that_holds_a_whole_line_is_waited_for_no_longer_than_it_takes_to_settle(
    root: Path, observe: Observe, content: str, state: State
) -> None:
    """One that was linked, and has lost its first name before its event is read, looks as if it were being written."""
    watch = observe(root, close_seconds=3600).start()
    first = root.parent / "first"
    first.write_text(content)
    os.link(first, root / "A" / "run" / SENTINEL)
    first.unlink()
    assert watch.wait_for("A/run", state) == [("A/run", state)]


@pytest.mark.parametrize("handles", [True, False])
def test_a_sentinel_that_was_closed_is_not_told_again_when_those_are_that_nobody_closes(
    root: Path, observe: Observe, handles: bool
) -> None:
    watch = observe(root, close_seconds=0.3).start()
    watch.handles = handles
    shell(root, "mkdir B/open; echo 0 > A/run/$S")
    watch.wait_for("A/run")
    with open(root / "B" / "open" / SENTINEL, "w"):  # its time is over after the other one's
        told = watch.wait_for("B/open")
    assert told == [("A/run", State.READY), ("B/open", State.READY)]


def test_a_sentinel_that_is_a_directory_or_a_pipe_is_told_as_unusable(watch: Watch) -> None:
    shell(watch.root, "mkdir A/run/$S; mkdir B/run; mkfifo B/run/$S")
    assert set(watch.wait_for("B/run", State.UNUSABLE)) == {("A/run", State.UNUSABLE), ("B/run", State.UNUSABLE)}


def test_other_files_in_a_run_are_not_told(watch: Watch) -> None:
    shell(watch.root, "for i in 1 2 3; do echo $i >> A/run/transfer.log; touch A/run/$S.$i; done; mkdir A/run/sub")
    shell(watch.root, "echo 0 > A/run/sub/$S; echo 0 > A/$S; echo 0 > $S")
    assert watch.observations() == []
    assert watch.watched() == {".", "A", "B", "A/run"}


def test_a_run_whose_sentinel_goes_away_is_watched_again_after_a_sweep(watch: Watch) -> None:
    shell(watch.root, "echo 0 > A/run/$S")
    watch.wait_for("A/run")
    shell(watch.root, "rm A/run/$S")
    assert watch.sweep()["A/run"] is State.ABSENT
    assert "A/run" in watch.watched()
    watch.told.clear()
    shell(watch.root, "echo 0 > A/run/$S")
    assert watch.wait_for("A/run") == [("A/run", State.READY)]
    assert watch.sweep()["A/run"] is State.READY
    assert watch.watched() == {".", "A", "B"}


def test_a_run_that_was_dealt_with_is_watched_again_when_that_is_asked_for_and_it_is_not_ready(watch: Watch) -> None:
    run = Run(watch.root / "A" / "run")
    shell(watch.root, "echo 0 > A/run/$S")
    watch.wait_for("A/run")
    assert watch.observer.watch_again(run).state is State.READY
    assert "A/run" not in watch.watched()
    shell(watch.root, "rm A/run/$S")
    assert watch.observer.watch_again(run).state is State.ABSENT
    assert "A/run" in watch.watched()
    watch.told.clear()
    shell(watch.root, "echo 0 > A/run/$S")
    assert watch.wait_for("A/run") == [("A/run", State.READY)]


# Runs and sequencers that come and go


@pytest.mark.parametrize(
    ("script", "ready", "watched"),
    [
        ("mkdir A/new; echo 0 > A/new/$S", "A/new", {"A/run"}),
        ("mkdir $OUT/new; echo 0 > $OUT/new/$S; mv $OUT/new A/new", "A/new", {"A/run"}),
        ("mkdir $OUT/new; echo 0 > $OUT/new/$S; cp -a $OUT/new A/new", "A/new", {"A/run"}),
        ("mkdir $OUT/new; mv $OUT/new A/new; echo 0 > A/new/$S", "A/new", {"A/run"}),
        ("mkdir -p X/Y && touch X/Y/$S", "X/Y", {"A/run", "X"}),
        ("mkdir -p X/Y X/Z && echo 0 > X/Y/$S", "X/Y", {"A/run", "X", "X/Z"}),
        ("mkdir -p $OUT/X/Y $OUT/X/Z; echo 0 > $OUT/X/Y/$S; mv $OUT/X .", "X/Y", {"A/run", "X", "X/Z"}),
        ("mkdir -p $OUT/X/Y $OUT/X/Z; echo 0 > $OUT/X/Y/$S; cp -a $OUT/X .", "X/Y", {"A/run", "X", "X/Z"}),
        ("mkdir -p $OUT/X/Y; mv $OUT/X .; echo 0 > X/Y/$S", "X/Y", {"A/run", "X"}),
        ("mv A/run A/other; echo 0 > A/other/$S", "A/other", set()),
        ("mv A/run B/run; echo 0 > B/run/$S", "B/run", set()),
        ("mv A/run $OUT/run; mv $OUT/run A/run; echo 0 > A/run/$S", "A/run", set()),
        ("rmdir A/run; mkdir A/run; echo 0 > A/run/$S", "A/run", set()),
        ("rmdir A/run; mkdir A/run; rmdir A/run; mkdir A/run; echo 0 > A/run/$S", "A/run", set()),
        ("exec 9< A/run; rmdir A/run; mkdir A/run; echo 0 > A/run/$S", "A/run", set()),
        ("mv A C; echo 0 > C/run/$S", "C/run", set()),
        ("mv A C; mkdir -p A/run; echo 0 > A/run/$S", "A/run", {"C", "C/run"}),
        ("rm -r A; mkdir -p A/run; echo 0 > A/run/$S", "A/run", set()),
        ("exec 9< A; rm -r A; mkdir -p A/run; echo 0 > A/run/$S", "A/run", set()),
        ("mv A $OUT/A; mv $OUT/A A; echo 0 > A/run/$S", "A/run", set()),
        ("mv A B/; mv B/A .; echo 0 > A/run/$S", "A/run", set()),
        ("mv A/run C; mkdir C/run; echo 0 > C/run/$S", "C/run", {"C"}),
        ("mv B A/; echo 0 > A/B/$S", "A/B", {"A/run"}),
    ],
)
def test_a_run_is_told_however_it_arrives(watch: Watch, script: str, ready: str, watched: set[str]) -> None:
    shell(watch.root, script)
    assert set(watch.wait_for(ready)) == {(ready, State.READY)}
    still_there = {name for name in ("A", "B") if (watch.root / name).is_dir()} | {"C"} & set(os.listdir(watch.root))
    assert watch.watched() == {"."} | still_there | watched


@pytest.mark.parametrize(
    ("script", "watched"),
    [
        ("mv A/run $OUT/run; echo 0 > $OUT/run/$S", {".", "A", "B"}),
        ("rmdir A/run", {".", "A", "B"}),
        ("mv A $OUT/A; echo 0 > $OUT/A/run/$S; mkdir $OUT/A/new", {".", "B"}),
        ("rm -r A", {".", "B"}),
        ("rm -r A B", {"."}),
    ],
)
def test_what_has_left_the_tree_is_neither_told_nor_watched(watch: Watch, script: str, watched: set[str]) -> None:
    shell(watch.root, script)
    assert watch.observations() == []
    assert watch.watched() == watched


def test_a_removed_directory_that_somebody_holds_open_is_dropped_by_the_next_sweep(watch: Watch) -> None:
    held = os.open(watch.root / "A" / "run", os.O_RDONLY)
    shell(watch.root, "rmdir A/run")
    watch.sweep()
    assert watch.watched() == {".", "A", "B"}
    os.close(held)


@pytest.mark.root
def test_a_sweep_finds_a_directory_that_took_another_ones_place_unseen(watch: Watch, tmp_path: Path) -> None:
    with mounted(watch.root / "A") as sequencer:
        (sequencer / "run").mkdir()
        assert watch.sweep() == {"A/run": State.ABSENT}
        assert watch.watched() == {".", "A", "B", "A/run"}
        shell(watch.root, "echo 0 > A/run/$S")
        assert watch.wait_for("A/run") == [("A/run", State.READY)]
        unmount(sequencer)
    watch.sweep()
    assert watch.watched() == {".", "A", "B", "A/run"}


EXCHANGE = """python3 -c 'import ctypes, sys
AT_FDCWD, RENAME_EXCHANGE = -100, 2
a, b = (name.encode() for name in sys.argv[1:])
sys.exit(ctypes.CDLL(None).renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE))' """


@pytest.mark.parametrize(
    ("one", "other", "runs"),
    [("A/run", "A/two", ["A/run", "A/two"]), ("A/run", "B/two", ["A/run", "B/two"]), ("A", "B", ["B/run", "A/two"])],
)
def test_directories_that_are_exchanged_stay_watched(watch: Watch, one: str, other: str, runs: list[str]) -> None:
    shell(watch.root, f"mkdir {'A' if other == 'A/two' else 'B'}/two")
    watch.flush()
    shell(watch.root, f"{EXCHANGE} {one} {other}")
    watch.flush()
    assert watch.watched() == {".", "A", "B", *runs}
    for run in runs:
        shell(watch.root, f"echo 0 > {run}/$S")
        watch.wait_for(run)


# Links


def test_a_linked_sequencer_is_watched_where_it_leads(watch: Watch) -> None:
    shell(watch.root, "mkdir -p $OUT/X/run $OUT/X/ready; echo 0 > $OUT/X/ready/$S; ln -s $OUT/X X")
    watch.wait_for("X/ready")
    shell(watch.root, "echo 0 > $OUT/X/run/$S; mkdir $OUT/X/new; echo 0 > $OUT/X/new/$S")
    told = watch.wait_for("X/new")
    assert set(told) == {(f"X/{run}", State.READY) for run in ("ready", "run", "new")}
    assert watch.watched() == {".", "A", "B", "A/run", "X"}


def test_two_links_to_one_sequencer_do_not_silence_each_other(watch: Watch) -> None:
    shell(watch.root, "mkdir -p $OUT/X/run; ln -s $OUT/X X; ln -s $OUT/X Y")
    watch.flush()
    assert watch.sweep() == {"A/run": State.ABSENT, "X/run": State.ABSENT, "Y/run": State.ABSENT}
    shell(watch.root, "rm Y")
    watch.sweep()
    shell(watch.root, "echo 0 > $OUT/X/run/$S")
    assert watch.wait_for("X/run") == [("X/run", State.READY)]


@pytest.mark.parametrize("script", ["echo 0 > A/run/$S", "touch A/run/$S", "echo 0 > $OUT/s; mv $OUT/s A/run/$S"])
@pytest.mark.parametrize(
    "way",
    ["ln -s A/run latest", pytest.param("mkdir latest; mount --bind A/run latest", marks=pytest.mark.root)],
)
@pytest.mark.parametrize("before", [None, "23\n"])
def test_another_way_to_a_run_does_not_silence_it(watch: Watch, way: str, script: str, before: str | None) -> None:
    if before:
        (watch.root / "A" / "run" / SENTINEL).write_text(before)
        watch.wait_for("A/run", State.HELD)
    shell(watch.root, way)
    watch.flush()
    try:
        if "mount" in way:
            watch.sweep()  # no event tells of a mount
        shell(watch.root, script)
        watch.wait_for("A/run", state_of(before) if before and "touch" in script else State.READY)
    finally:
        shell(watch.root, "umount latest 2> /dev/null || true")


def look_again(watch: Watch) -> None:
    """Do what the service does every two seconds."""
    watch.flush()
    watch.observer.look_again(watch.observer.take_missing())


@pytest.mark.parametrize(
    ("before", "then"),
    [
        ("mkdir -p $OUT/X; ln -s $OUT/X X", "rmdir $OUT/X; mkdir -p $OUT/X/run"),
        ("mkdir -p $OUT/X/old; ln -s $OUT/X X", "mv $OUT/X $OUT/Y; rm -r $OUT/Y; mkdir -p $OUT/X/run"),
        ("ln -s $OUT/X X", "mkdir -p $OUT/X/run"),
    ],
)
def test_where_a_link_leads_may_be_made_again_or_later(watch: Watch, before: str, then: str) -> None:
    shell(watch.root, before)
    watch.flush()
    look_again(watch)
    shell(watch.root, then)
    look_again(watch)
    shell(watch.root, "echo 0 > X/run/$S")
    assert watch.wait_for("X/run") == [("X/run", State.READY)]
    assert "X" in watch.watched()
    assert watch.observer.take_missing() == set()


@pytest.mark.root
@pytest.mark.parametrize("where", ["A", "A/run"])
def test_what_is_unmounted_and_mounted_again_at_once_is_watched_again(root: Path, observe: Observe, where: str) -> None:
    """The table of mounts may look as it did before."""
    with mounted(root / where):
        watch = observe(root).start()
        unmount(root / where)
        mount(root / where)
        look_again(watch)
        shell(root, "mkdir -p A/run; echo 0 > A/run/$S")
        assert watch.wait_for("A/run") == [("A/run", State.READY)]


def test_a_link_that_leads_elsewhere_now_is_followed_after_it_was_replaced(watch: Watch) -> None:
    shell(watch.root, "mkdir -p $OUT/X/old $OUT/Y/run; ln -s $OUT/X X")
    watch.flush()
    shell(watch.root, "ln -sfn $OUT/Y X")
    watch.flush()
    shell(watch.root, "echo 0 > X/run/$S")
    assert watch.wait_for("X/run") == [("X/run", State.READY)]
    watch.sweep()
    assert watch.watched() == {".", "A", "B", "A/run", "X"}


def test_a_linked_run_is_told_as_unusable_and_not_watched(watch: Watch) -> None:
    shell(watch.root, "mkdir $OUT/run; echo 0 > $OUT/run/$S; ln -s $OUT/run A/link; ln -s nowhere A/dangling")
    assert watch.wait_for("A/link", State.UNUSABLE) == [("A/link", State.UNUSABLE)]
    assert watch.watched() == {".", "A", "B", "A/run"}


def test_a_root_that_is_a_link_is_watched_where_it_leads(root: Path, observe: Observe) -> None:
    link = root.with_name("link")
    link.symlink_to(root)
    watch = observe(link).start()
    shell(root, "mkdir -p X/run; echo 0 > X/run/$S; echo 0 > A/run/$S")
    assert set(watch.wait_for("A/run")) == {("X/run", State.READY), ("A/run", State.READY)}


def test_ignored_names_are_neither_told_nor_watched(root: Path, observe: Observe) -> None:
    watch = observe(root, ignore=("nosync", "B")).start()
    shell(root, "mkdir -p nosync/run A/nosync B/run; for run in nosync/run A/nosync B/run; do echo 0 > $run/$S; done")
    assert watch.observations() == []
    watch.sweep()
    assert watch.watched() == {".", "A", "A/run"}


# Its cost


def test_watches_are_on_root_sequencers_and_open_runs_whatever_lies_in_the_runs(watch: Watch) -> None:
    shell(watch.root, "mkdir -p A/run/Data/L00{1,2,3,4}/C{1..50} B/r{1..100}/Data/L001; touch B/r{1..90}/$S")
    wait_until(lambda: len(set(watch.observations())) == 90, "all ready runs to be told")
    assert watch.watched() == {".", "A", "B", "A/run"} | {f"B/r{number}" for number in range(91, 101)}
    watch.sweep()
    assert watch.watched() == {".", "A", "B", "A/run"} | {f"B/r{number}" for number in range(91, 101)}


def test_no_watch_hears_of_writing_and_none_on_a_run_of_changed_modes_and_times(watch: Watch) -> None:
    def inode(name: str) -> int:
        return (watch.root / name).stat().st_ino

    masks = inotify_masks()
    assert set(masks) == {inode(name) for name in (".", "A", "B", "A/run", "marker", MARKER)}
    assert [mask & IN_MODIFY for mask in masks.values()] == [0] * 6
    assert [masks[inode(run)] & IN_ATTRIB for run in ("A/run", MARKER)] == [0, 0]
    assert masks[inode("A")] & IN_ATTRIB


def test_threads_and_descriptors_do_not_grow_with_the_directories(root: Path, observe: Observe) -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    watch = observe(root).start()
    assert threading.active_count() == threads + OBSERVER_THREADS
    opened = len(os.listdir("/proc/self/fd"))
    shell(root, "mkdir -p {C..H}/r{1..50}")
    watch.flush()
    assert len(watch.watched()) == 2 + 6 + 300 + 2
    assert threading.active_count() == threads + OBSERVER_THREADS
    assert len(os.listdir("/proc/self/fd")) == opened
    watch.observer.stop()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


# Loss


@pytest.mark.root
@pytest.mark.alone
def test_an_overflow_is_counted_and_told_and_a_sweep_finds_what_was_lost(
    root: Path, caplog: pytest.LogCaptureFixture, observe: Observe
) -> None:
    with inotify_limit("max_queued_events", 1):  # a descriptor keeps the limit that it was made under
        watch = observe(root).start()
    before = 0
    while not watch.observer.overflows:
        before += 500
        shell(root, f"mkdir A/r{{{before}..{before + 500}}} 2>/dev/null || true")
    shell(root, "rm -r B; mkdir -p B/made_again; for run in A/r[0-9]*; do echo 0 > $run/$S; done")
    wait_until(lambda: inotify_is_drained(watch), "all events to be read")
    assert watch.lost == ["the kernel's event queue overflowed"] * watch.observer.overflows
    assert [record for record in caplog.records if record.name.startswith("watchdog")] == []
    states = watch.sweep()
    assert {run for run, state in states.items() if state is State.READY} == {
        f"A/{path.name}" for path in (root / "A").iterdir() if path.name != "run"
    }
    assert watch.watched() == {".", "A", "B", "A/run", "B/made_again"}
    watch.told.clear()
    shell(root, "echo 0 > $OUT/s; mv $OUT/s B/made_again/$S")  # one event, for which there is room
    wait_until(lambda: ("B/made_again", State.READY) in [(watch.name(one), one.state) for one in watch.told], "B")


def inotify_is_drained(watch: Watch) -> bool:
    """Ask whether events come through again; with room for one only, a single one must be enough."""
    told = len(watch.told)
    (watch.root / MARKER / SENTINEL).write_text(f"{told + 1}\n")
    limit = time.monotonic() + 1
    while time.monotonic() < limit:
        if len(watch.told) > told:
            return True
    return False


@pytest.mark.root
@pytest.mark.alone
def test_a_run_that_is_swept_under_its_new_name_before_its_move_is_read_stays_watched(
    root: Path, observe: Observe
) -> None:
    with inotify_limit("max_queued_events", 50):
        watch = observe(root).start()
    with reader_held(watch):
        shell(root, "mv A/run B/moved")
        watch.sweep()  # the kernel gives it the descriptor that it has as A/run
    shell(root, "mv B/moved B/again; mv B/again B/moved")
    watch.flush()
    assert watch.watched() == {".", "A", "B", "B/moved"}
    shell(root, "echo 0 > B/moved/$S")
    assert ("B/moved", State.READY) in watch.wait_for("B/moved")


@contextmanager
def reader_held(watch: Watch) -> Iterator[None]:
    """Keep the thread that reads inotify from going on, by an overflow whose telling takes as long as the context."""
    release, held = threading.Event(), threading.Event()

    def hold(why: str) -> None:
        held.set()
        release.wait(PATIENCE_SECONDS)

    watch.on_lost = hold
    while not held.is_set():
        shell(watch.root, "mkdir marker/x{1..500}; rmdir marker/x*")
    watch.on_lost = watch.lost.append
    yield
    release.set()


@pytest.mark.root
@pytest.mark.alone
def test_a_sweep_of_many_open_runs_causes_no_overflow_itself(root: Path, observe: Observe) -> None:
    shell(root, "mkdir A/r{1..2000}")
    with inotify_limit("max_queued_events", 8):
        watch = observe(root).start()
    for _ in range(3):
        assert len(watch.sweep()) == 2001
        watch.flush()
    assert watch.observer.overflows == 0
    assert len(watch.watched()) == 2001 + 3


@pytest.mark.root
@pytest.mark.alone
def test_at_the_watch_limit_a_warning_says_what_to_do_and_sweeps_find_the_rest(
    root: Path, caplog: pytest.LogCaptureFixture, observe: Observe
) -> None:
    shell(root, "mkdir B/r{1..20}")
    watch = observe(root).start()
    held = watch.observer.watches
    shell(root, "mkdir C C/r{1..10}")
    with inotify_limit("max_user_watches", 10):
        watch.observer.restart()
        watch.sweep()
        warned = list(caplog.records)
        watch.sweep()
        assert list(caplog.records) == warned
    needed = held + 11
    assert [record.levelno for record in warned] == [logging.WARNING]
    said = warned[0].getMessage()
    assert f"{needed} watches are needed, {watch.observer.watches} are held" in said
    assert "fs.inotify.max_user_watches is 10 " in said
    assert f"sysctl -w fs.inotify.max_user_watches={4 * needed}" in said
    assert watch.observer.unwatched == needed - watch.observer.watches
    shell(root, "for run in B/r*; do echo 0 > $run/$S; done")
    assert {run for run, state in watch.sweep().items() if state is State.READY} == {f"B/r{n}" for n in range(1, 21)}
    assert watch.observer.unwatched == 0
    assert "C/r10" in watch.watched()


@pytest.mark.root
@pytest.mark.alone
def test_without_an_inotify_instance_a_warning_says_so_and_sweeps_go_on_until_there_is_one(
    root: Path, caplog: pytest.LogCaptureFixture, observe: Observe
) -> None:
    (root / "marker" / "run").mkdir(parents=True)
    watch = observe(root)
    with inotify_limit("max_user_instances", 0):
        watch.observer.start()
        assert watch.sweep() == {"A/run": State.ABSENT}
        assert watch.sweep() == {"A/run": State.ABSENT}
    assert watch.observer.trouble() is None
    assert watch.observer.watches == 0
    assert len(caplog.records) == 1
    assert "fs.inotify.max_user_instances is 0 " in caplog.text
    assert "sysctl -w fs.inotify.max_user_instances=" in caplog.text
    watch.sweep()
    assert watch.watched() == {".", "A", "B", "A/run"}
    shell(root, "echo 0 > A/run/$S")
    assert watch.wait_for("A/run") == [("A/run", State.READY)]


@pytest.mark.root
@pytest.mark.parametrize(("mode", "state"), [(0, State.UNUSABLE), (0o711, State.ABSENT)])
def test_an_unreadable_run_is_not_taken_for_watched_and_is_as_soon_as_it_can_be(
    root: Path, mode: int, state: State, observe: Observe
) -> None:
    make_reachable(root / "A" / "run")
    (root / "A" / "run").chmod(mode)
    (root / MARKER).mkdir(parents=True)
    later = time.time() + 3600
    watch = observe(root, now=lambda: later)
    with as_nobody():
        watch.observer.start()
        assert watch.sweep()["A/run"] is state
    assert watch.watched() == {".", "A", "B"}
    (root / "A" / "run").chmod(0o755)
    watch.flush()
    assert watch.watched() == {".", "A", "B", "A/run"}
    shell(root, "echo 0 > A/run/$S")
    assert watch.wait_for("A/run") == [("A/run", State.READY)]


@pytest.mark.root
@pytest.mark.parametrize(("mode", "closed"), [("0", "X"), ("711", "X"), ("744", "X"), ("0", "X/run"), ("744", "X/run")])
def test_what_is_opened_to_us_is_looked_at_again_and_told_by_events_alone(
    root: Path, mode: str, closed: str, observe: Observe
) -> None:
    make_reachable(root / "A" / "run")
    shell(root, f"mkdir -p X/run; echo 0 > X/run/$S; chmod {mode} {closed}")
    watch = observe(root, now=lambda: time.time() + 3600)
    (root / MARKER).mkdir(parents=True)
    with as_nobody():
        watch.observer.start()
        watch.sweep()
    shell(root, f"chmod 755 {closed}")
    watch.wait_for("X/run")
    shell(root, "mkdir X/other; echo 0 > X/other/$S")
    watch.wait_for("X/other")


@pytest.mark.root
def test_where_a_linked_sequencer_leads_may_be_opened_to_us_later(root: Path, observe: Observe) -> None:
    make_reachable(root / "A" / "run")
    (root / MARKER).mkdir(parents=True)
    shell(root, "mkdir -p $OUT/X/run; echo 0 > $OUT/X/run/$S; ln -s $OUT/X X; chmod 744 $OUT/X")
    watch = observe(root)
    with as_nobody():
        watch.observer.start()
        assert watch.sweep()["X/run"] is State.UNUSABLE
    shell(root, "chmod 755 $OUT/X")
    assert watch.wait_for("X/run") == [("X/run", State.READY)]


def watch_as_nobody(root: Path, observe: Observe) -> Watch:
    """Let another user than this one watch the root, which both may read."""
    make_reachable(root / "A" / "run")
    (root / MARKER).mkdir(parents=True)
    watch = observe(root)
    with as_nobody():
        watch.observer.start()
        watch.sweep()
    return watch


@pytest.mark.root
@pytest.mark.parametrize("copied", ["run", "X"])
def test_what_another_user_copies_in_is_told_when_the_copy_is_complete_and_not_as_unusable(
    root: Path, copied: str, observe: Observe
) -> None:
    watch = watch_as_nobody(root, observe)
    shell(root, "mkdir -p $OUT/X/run/Data; touch $OUT/X/run/Data/{1..300}; echo 0 > $OUT/X/run/$S")
    destination, told = ("B/run", "B/run") if copied == "run" else ("X", "X/run")
    source = "$OUT/X/run" if copied == "run" else "$OUT/X"
    shell(root, f"umask 077; cp -a {source} {destination}")
    assert set(watch.wait_for(told)) == {(told, State.READY)}
    assert told not in watch.watched()


@pytest.mark.root
def test_a_run_that_stays_closed_to_us_is_told_after_a_while_once(root: Path, observe: Observe) -> None:
    watch = watch_as_nobody(root, observe)
    shell(root, "mkdir -m 700 B/closed B/opened; chmod 755 B/opened")
    assert watch.wait_for("B/closed", State.UNUSABLE) == [("B/closed", State.UNUSABLE)]
    assert watch.watched() == {".", "A", "B", "A/run", "B/opened"}


@pytest.mark.root
def test_a_sequencer_that_is_opened_to_us_between_our_try_to_watch_it_and_our_look_is_watched(
    root: Path, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watch_as_nobody(root, observe)
    look = os.access

    def access(path: str, *arguments: Any, **options: Any) -> bool:
        if path == str(root / "X"):
            subprocess.run(["chmod", "755", path], check=True)
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "access", access)
    (root / "X").mkdir(mode=0o700)  # mkdir(1) looks again, and would set a mode that is another by then back
    shell(root, "mkdir X/run")
    watch.flush()
    shell(root, "echo 0 > X/run/$S")
    assert watch.wait_for("X/run") == [("X/run", State.READY)]


# The root


@pytest.mark.root
def test_a_root_that_is_opened_to_us_later_is_noticed(root: Path, observe: Observe) -> None:
    make_reachable(root / "A" / "run")
    (root / MARKER).mkdir(parents=True)
    root.chmod(0o700)
    watch = observe(root)
    with as_nobody():
        watch.observer.start()
        assert watch.sweep() == {}
        assert watch.observer.trouble() is None
    root.chmod(0o755)
    assert watch.observer.trouble() == f"'{root}' may be looked into now"
    watch.observer.restart()
    assert watch.observer.trouble() is None
    assert watch.sweep()["A/run"] is State.ABSENT
    assert "A/run" in watch.watched()


@pytest.mark.root
def test_an_unmounted_root_is_told_and_watched_again_when_it_is_back(tmp_path: Path, observe: Observe) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    with mounted(root):
        watch = observe(root).start()
        assert watch.observer.is_alive()
        unmount(root)
        wait_until(lambda: watch.lost, "the unmount to be told")
        assert watch.lost == [f"'{root}' was unmounted, moved or removed"]
        assert watch.observer.trouble() == f"'{root}' is another directory now"
        assert watch.sweep() == {}
        assert watch.observer.is_alive()
        mount(root)
        shell(root, "mkdir -p A/run marker/run; echo 0 > A/run/$S")
        assert watch.observer.trouble() == f"'{root}' is another directory now"
        watch.observer.restart()
        assert watch.observer.is_alive()
        assert watch.sweep() == {"A/run": State.READY}
        shell(root, "mkdir -p B/run; echo 0 > B/run/$S")
        assert set(watch.wait_for("B/run")) == {("B/run", State.READY)}


@pytest.mark.root
def test_a_root_that_is_mounted_over_is_noticed_though_no_event_tells_it(watch: Watch) -> None:
    with mounted(watch.root):
        assert watch.observer.trouble() == f"'{watch.root}' is another directory now"
        watch.observer.restart()
        assert watch.observer.is_alive()
        assert watch.watched() == {"."}
    assert not watch.observer.is_alive()


@pytest.mark.parametrize("leave", ["rm -r ../sequencing", "mv ../sequencing ../away", "mv ../../parent ../../away"])
def test_a_root_that_goes_away_is_noticed_and_watched_again_when_it_is_back(
    tmp_path: Path, leave: str, observe: Observe
) -> None:
    root = tmp_path / "parent" / "sequencing"
    (root / "A" / "run").mkdir(parents=True)
    watch = observe(root).start()
    subprocess.run(["bash", "-ec", leave], cwd=root, check=True)
    assert watch.observer.trouble() == f"'{root}' is gone"
    watch.observer.restart()
    assert watch.observer.is_alive()
    assert watch.sweep() == {}
    (root / "B" / "run").mkdir(parents=True)
    assert watch.observer.trouble() == f"'{root}' is back"
    watch.observer.restart()
    assert watch.sweep() == {"B/run": State.ABSENT}
    (root / MARKER).mkdir(parents=True)
    shell(root, "echo 0 > B/run/$S")
    assert watch.wait_for("B/run") == [("B/run", State.READY)]
    assert watch.watched() == {".", "B"}


def test_a_root_that_is_removed_and_made_again_at_once_is_watched_after_a_sweep(watch: Watch) -> None:
    """Even if the new directory has the old one's inode number, which `trouble` could not tell apart."""
    shell(watch.root.parent, f"rm -r {watch.root}; mkdir -p {watch.root}/A/run {watch.root}/marker/run")
    wait_until(lambda: watch.lost, "the removal to be told")
    watch.sweep()
    assert watch.observer.is_alive()
    assert watch.watched() == {".", "A", "A/run"}
    shell(watch.root, "echo 0 > A/run/$S")
    assert watch.wait_for("A/run") == [("A/run", State.READY)]


def test_an_observer_that_starts_without_its_root_finds_it_later(tmp_path: Path, observe: Observe) -> None:
    root = tmp_path / "later"
    watch = observe(root)
    watch.observer.start()
    assert watch.observer.is_alive()
    assert watch.sweep() == {}
    (root / "A" / "run").mkdir(parents=True)
    assert watch.sweep() == {"A/run": State.ABSENT}
    assert watch.observer.is_alive()
    assert watch.watched() == {".", "A", "A/run"}


# Its threads


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("callback", ["on_observation", "on_lost"])
def test_a_thread_that_dies_of_an_exception_is_noticed_and_a_restart_mends_it(root: Path, callback: str) -> None:
    """`on_observation` is called by the thread that dispatches, `on_lost` by the one that reads inotify."""
    broken = threading.Event()
    broken.set()
    told = []

    def call(what: object) -> None:
        if broken.is_set():
            raise RuntimeError(callback)
        told.append(what)

    calls = {"on_observation": told.append, "on_lost": told.append} | {callback: call}
    observer = Observer(Walk(root), calls["on_observation"], calls["on_lost"])
    observer.start()
    list(observer.sweep())
    if callback == "on_observation":
        shell(root, "echo 0 > A/run/$S")
    else:
        shell(root, "mv ../sequencing ../away; cp -a ../away ../sequencing")
    wait_until(lambda: observer.trouble() == "one of its threads has ended", "the death to be noticed")
    broken.clear()
    observer.restart()
    assert observer.is_alive()
    list(observer.sweep())
    told.clear()
    (root / "B" / "run").mkdir()
    shell(root, "echo 0 > B/run/$S")
    wait_until(lambda: told, "the observer to tell again")
    observer.stop()
    assert inotify_inodes() == []


def test_an_observer_that_was_not_started_or_is_stopped_is_not_alive(root: Path, observe: Observe) -> None:
    watch = observe(root)
    assert watch.observer.trouble() == "it was not started"
    watch.start()
    assert watch.observer.trouble() is None
    watch.observer.stop()
    assert not watch.observer.is_alive()
    watch.observer.stop()
    watch.observer.stop_watching(root / "A" / "run")


def test_a_run_may_be_done_with_while_the_observer_is_started_anew(watch: Watch) -> None:
    ended, failures = threading.Event(), []

    def handle() -> None:
        try:
            while not ended.is_set():
                watch.observer.stop_watching(watch.root / "A" / "run")
        except Exception as error:  # noqa: BLE001  # the thread's, for the test to show
            failures.append(error)

    thread = threading.Thread(target=handle)
    thread.start()
    for _ in range(30):
        watch.observer.restart()
        watch.sweep()
    ended.set()
    thread.join()
    assert failures == []


# Everything at once


@pytest.mark.parametrize("seed", range(10))
def test_after_any_order_of_changes_every_ready_run_was_told_and_only_open_ones_are_watched(
    root: Path, seed: int, observe: Observe
) -> None:
    watch = observe(root).start()
    changes = Changes(root, random.Random(seed))
    for _ in range(300):
        changes.one()
    ready = {str(path.relative_to(root)) for path in changes.runs() if os.path.lexists(path / SENTINEL)}
    wait_until(lambda: ready <= {watch.name(one) for one in list(watch.told)}, f"all of {ready} to be told")
    sequencers = {path.name for path in changes.sequencers()}
    runs = {str(path.relative_to(root)) for path in changes.runs()}
    assert len(ready) > 20
    watch.flush()
    assert watch.watched() == {"."} | sequencers | (runs - ready)


class Changes:
    """Random changes to a tree. No name is used twice, so that a ready run can only be told after it became so."""

    def __init__(self, root: Path, dice: random.Random) -> None:
        self._root = root
        self._dice = dice
        self._count = 0

    def one(self) -> None:
        """Change something; a change that has nothing to work on is left out."""
        try:
            self._dice.choice(3 * [self.new_run, self.complete] + 2 * [self.move] + [self.sequencer, self.remove])()
        except IndexError:
            return

    def sequencers(self) -> list[Path]:
        return [path for path in self._root.iterdir() if path.name != "marker"]

    def runs(self) -> list[Path]:
        return [run for sequencer in self.sequencers() for run in sequencer.iterdir()]

    def _name(self) -> str:
        self._count += 1
        return f"n{self._count}"

    def new_run(self) -> None:
        (self._dice.choice(self.sequencers()) / self._name()).mkdir()

    def complete(self) -> None:
        sentinel = self._dice.choice([run for run in self.runs() if not os.path.lexists(run / SENTINEL)]) / SENTINEL
        temporary = sentinel.with_name("temporary")
        match self._dice.randrange(3):
            case 0:
                sentinel.write_text("0\n")
            case 1:
                temporary.write_text("0\n")
                temporary.rename(sentinel)
            case 2:
                temporary.write_text("0\n")
                sentinel.hardlink_to(temporary)

    def move(self) -> None:
        self._dice.choice(self.runs()).rename(self._dice.choice(self.sequencers()) / self._name())

    def sequencer(self) -> None:
        if len(self.sequencers()) < 6:
            (self._root / self._name() / self._name()).mkdir(parents=True)
        else:
            self._dice.choice(self.sequencers()).rename(self._root / self._name())

    def remove(self) -> None:
        subprocess.run(["rm", "-r", str(self._dice.choice(self.runs()))], check=True)


MAKER = """
import os, sys
root, sentinel = sys.argv[1:]
for number in range(2000):
    path = f"{root}/made_{number}"
    os.mkdir(path)
    with open(f"{path}/{sentinel}", "w") as file:
        file.write("0\\n")
"""


def test_runs_made_as_fast_as_can_be_are_all_told_by_events_alone(watch: Watch) -> None:
    subprocess.run([sys.executable, "-c", MAKER, str(watch.root / "B"), SENTINEL], check=True)
    wait_until(lambda: len({watch.name(one) for one in list(watch.told)}) >= 2000, "all runs to be told")
    assert set(watch.observations()) == {(f"B/made_{number}", State.READY) for number in range(2000)}
    assert watch.watched() == {".", "A", "B", "A/run"}


def test_no_sentinel_is_missed_while_sweeps_and_events_run_at_once(root: Path, observe: Observe) -> None:
    watch = observe(root).start()
    ended = threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            watch.sweep()

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    shell(root, "for i in {1..400}; do mkdir -p S$((i % 7))/r$i; echo 0 > S$((i % 7))/r$i/$S; done")
    ended.set()
    sweeping.join()
    ready = {run for run, state in watch.sweep().items() if state is State.READY}
    assert len(ready) == 400
    told = {run for run, _ in watch.observations()}
    assert told <= ready
    assert watch.watched() == {".", "A", "B", "A/run", *(f"S{number}" for number in range(7))}


def test_this_files_helper_counts_what_the_kernel_watches(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None)
    descriptor = libc.inotify_init()
    assert inotify_inodes() == []
    libc.inotify_add_watch(descriptor, os.fsencode(tmp_path), 0x100)
    assert inotify_inodes() == [tmp_path.stat().st_ino]
    os.close(descriptor)
