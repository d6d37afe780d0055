"""What a sentinel says, and what a sweep sees, with no events at all."""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine import as_nobody, make_reachable

from watcher.source import (
    RACY_SECONDS,
    SENTINEL,
    SETTLE_SECONDS,
    Observation,
    Policy,
    State,
    Walk,
    inspect,
    unusable_name,
)

pytestmark = pytest.mark.unit

PATIENCE_SECONDS = 60


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory without a sentinel."""
    path = tmp_path / "sequencing" / "sequencer_A" / "run_001"
    path.mkdir(parents=True)
    return path


def look(run: Path, policy: Policy = Policy.EXIT_CODE, age: float = 60.0) -> Observation:
    """Inspect the run as if its sentinel had last been changed `age` seconds ago; fail if that does not end."""

    def now() -> float:
        return os.lstat(run / SENTINEL).st_ctime + age

    found: list[Observation] = []
    thread = threading.Thread(target=lambda: found.append(inspect(run, policy, now)), daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert found, "inspect hangs, or raised"
    return found[0]


def test_a_run_without_a_sentinel_is_not_ready(run: Path) -> None:
    assert look(run).state is State.ABSENT


@pytest.mark.parametrize("content", [b"0\n", b"0", b" 0 \n", b"0\r\n"])
def test_exit_code_zero_is_ready(run: Path, content: bytes) -> None:
    (run / SENTINEL).write_bytes(content)
    assert look(run, age=0).state is State.READY


NO_CODES = {
    b"-15\n": "-15", b"+23": "+23", b"23.0\n": "23.0", b"0x17": "0x17", b"FAILED\n": "FAILED",
    b"23 (partial transfer)": "23 (partial transfer)", b"\xff\xfe2\x003\x00": r"\xff\xfe2\x00",
    b"\xef\xbb\xbf0\n": r"\xef\xbb\xbf0", b"0\x00": r"0\x00", b"0\n0\n": r"0\n0", b"0\n23\n": r"0\n23",
    b"00\n": "00", b"\n": r"\n", b"  ": "  ", b"0" + b" " * 100: "...", b"\xc2\xb2\n": r"\xc2\xb2", b"2_3\n": "2_3",
}  # fmt: skip


@pytest.mark.parametrize("content", NO_CODES)
def test_anything_else_is_held_and_shown_with_what_it_holds(run: Path, content: bytes) -> None:
    (run / SENTINEL).write_bytes(content)
    observation = look(run)
    assert observation.state is State.HELD
    assert NO_CODES[content] in observation.reason
    assert observation.reason.isprintable()
    assert len(observation.reason) < 160


@pytest.mark.parametrize(("content", "code"), [(b"23\n", "23"), (b"1", "1"), (b" 255 \r\n", "255"), (b"011\n", "11")])
def test_another_exit_code_is_held_and_the_reason_names_it(run: Path, content: bytes, code: str) -> None:
    (run / SENTINEL).write_bytes(content)
    observation = look(run)
    assert observation.state is State.HELD
    assert f"exit code {code}:" in observation.reason


def test_an_empty_sentinel_is_ready_once_it_is_old_enough_and_not_before(run: Path) -> None:
    (run / SENTINEL).touch()
    assert look(run, age=0).state is State.UNSETTLED
    assert look(run, age=SETTLE_SECONDS * 0.9).state is State.UNSETTLED
    assert look(run, age=SETTLE_SECONDS * 1.1).state is State.READY


def test_a_sentinel_that_was_emptied_while_this_process_was_held_up_is_not_ready(run: Path) -> None:
    (run / SENTINEL).touch()
    emptied = (run / SENTINEL).stat().st_ctime
    before_and_after = iter((emptied - 10 * SETTLE_SECONDS, emptied + SETTLE_SECONDS / 2))
    assert inspect(run, now=lambda: next(before_and_after)).state is State.UNSETTLED


def test_an_empty_sentinel_from_a_clock_ahead_of_ours_is_ready(run: Path) -> None:
    (run / SENTINEL).touch()
    assert look(run, age=-3600).state is State.READY


def test_of_a_huge_sentinel_only_the_beginning_is_read(run: Path) -> None:
    (run / SENTINEL).write_bytes(b"23\n")
    os.truncate(run / SENTINEL, 1 << 40)
    before = bytes_read()
    assert look(run).state is State.HELD
    assert bytes_read() - before < 64 * 1024


def bytes_read() -> int:
    """What this thread has read: others of this process may read at the same time."""
    return int(Path("/proc/thread-self/io").read_text().split("rchar: ")[1].split()[0])


def make_directory(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")  # the path itself may be longer than a socket's may
    os.close(here)


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("make", [make_directory, os.mkfifo, make_socket])
def test_a_sentinel_that_is_no_file_is_unusable_and_hangs_nothing(
    run: Path, policy: Policy, make: Callable[[Path], None]
) -> None:
    make(run / SENTINEL)
    observation = look(run, policy)
    assert observation.state is State.UNUSABLE
    assert "not a file" in observation.reason


@pytest.mark.parametrize("target", ["sentinel_with_23", "pipe", "/dev/zero", "nowhere", SENTINEL, "."])
def test_a_linked_sentinel_is_held_and_not_followed(run: Path, target: str) -> None:
    (run / "sentinel_with_23").write_text("23\n")
    os.mkfifo(run / "pipe")
    (run / SENTINEL).symlink_to(target)
    assert look(run).state is State.HELD
    assert "symbolic link" in look(run).reason
    assert look(run, Policy.PRESENCE).state is State.READY


@pytest.mark.parametrize("content", [b"", b"0\n", b"23\n", b"\xff"])
def test_with_policy_presence_the_content_does_not_matter(run: Path, content: bytes) -> None:
    (run / SENTINEL).write_bytes(content)
    assert look(run, Policy.PRESENCE, age=0).state is State.READY


def test_a_run_that_is_a_link_is_unusable_however_ready_it_looks(run: Path, tmp_path: Path) -> None:
    (run / SENTINEL).write_text("0\n")
    link = run.with_name("link")
    link.symlink_to(run)
    observation = look(link)
    assert observation.state is State.UNUSABLE
    assert "symbolic link" in observation.reason


@pytest.mark.parametrize("target", ["nowhere", "loop", "file", "open_run"])
def test_a_link_without_a_sentinel_behind_it_is_no_run(run: Path, target: str) -> None:
    run.with_name("file").touch()
    run.with_name("open_run").mkdir()
    link = run.with_name("loop")
    link.symlink_to(target)
    assert look(link).state is State.ABSENT


def test_what_is_not_there_or_no_directory_is_no_run(run: Path) -> None:
    run.with_name("file").touch()
    assert look(run.with_name("file")).state is State.ABSENT
    assert look(run.with_name("vanished")).state is State.ABSENT
    assert look(run / "not" / "there" / "either").state is State.ABSENT


@contextmanager
def hammering(action: Callable[[], None]) -> Iterator[None]:
    """Do `action` again and again in another process while the context lasts."""
    pid = os.fork()
    if pid == 0:
        try:
            while os.getppid() != 1:
                action()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.children
def test_a_sentinel_that_is_being_rewritten_with_23_is_never_ready(run: Path) -> None:
    def rewrite() -> None:
        (run / SENTINEL).write_text("23\n")

    rewrite()
    with hammering(rewrite):
        # "Now" is the moment of the last change, so that a writer held up by a busy machine fails nothing.
        states = {look(run, age=0).state for _ in range(3000)}
    assert State.HELD in states
    assert states <= {State.HELD, State.UNSETTLED}


@pytest.mark.children
def test_a_run_that_comes_and_goes_is_ready_or_not_there_and_raises_nothing(run: Path) -> None:
    away = run.with_name("away")
    (run / SENTINEL).write_text("0\n")

    def come_and_go() -> None:
        run.rename(away)
        away.rename(run)

    with hammering(come_and_go):
        states = {inspect(run).state for _ in range(20_000)}
    assert states == {State.READY, State.ABSENT}


@pytest.mark.root
def test_an_unreadable_sentinel_is_unusable_unless_its_presence_is_enough(run: Path) -> None:
    make_reachable(run)
    (run / SENTINEL).write_text("0\n")
    (run / SENTINEL).chmod(0)
    with as_nobody():
        observation = inspect(run, now=long_after(run))
        assert inspect(run, Policy.PRESENCE).state is State.READY
    assert observation.state is State.UNUSABLE
    assert "Permission denied" in observation.reason


@pytest.mark.root
@pytest.mark.parametrize("levels_above", [0, 1])
def test_a_run_that_may_not_be_searched_is_unusable(run: Path, levels_above: int) -> None:
    make_reachable(run)
    (run / SENTINEL).write_text("0\n")
    now = long_after(run)
    [run, *run.parents][levels_above].chmod(0)
    with as_nobody():
        observation = inspect(run, now=now)
    assert observation.state is State.UNUSABLE
    assert observation.is_denied
    assert "Permission denied" in observation.reason


@pytest.mark.root
def test_a_run_that_was_closed_to_us_just_now_is_unsettled(run: Path) -> None:
    make_reachable(run)
    (run / SENTINEL).write_text("0\n")
    run.chmod(0o700)
    with as_nobody():
        observation = inspect(run, now=lambda: run.stat().st_ctime + RACY_SECONDS)
    assert observation.state is State.UNSETTLED
    assert (observation.is_denied, observation.reason) == (True, "")


def long_after(run: Path) -> Callable[[], float]:
    """Return a clock on which everything about the run has long been as it is."""
    later = run.stat().st_ctime + 3600
    return lambda: later


@pytest.mark.parametrize("name", ["run_001", "a b", "-rf", "100%", "run+1", "a:b?c#d", "a\nb", "ü" * 99, "x" * 247])
def test_any_name_that_utf8_can_write_is_usable(name: str) -> None:
    assert unusable_name(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (os.fsdecode(b"run_\xff"), "not valid UTF-8"),
        ("_design", "starts with '_'"),
        ("x" * 248, "has 248 bytes and may have 247"),
        ("ü" * 124, "has 248 bytes and may have 247"),
    ],
)
def test_an_unusable_name_is_given_its_reason(name: str, reason: str) -> None:
    assert reason in str(unusable_name(name))


# What a sweep sees


def swept(root: Path, ignore: tuple[str, ...] = (), policy: Policy = Policy.EXIT_CODE) -> dict[str, State]:
    """Walk over a sequencing path; return each run's state by its path below the root."""
    walk = Walk(root, ignore, policy)
    observations = list(walk.observations())
    found = {str(observation.run.path.relative_to(root)): observation.state for observation in observations}
    assert len(found) == len(observations)
    return found


def make(root: Path, path: str, content: str | None = None) -> None:
    (root / path).mkdir(parents=True)
    if content is not None:
        (root / path / SENTINEL).write_text(content)


def test_a_sweep_sees_every_run_of_every_sequencer_once_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, "A/ready", "0\n")
    make(tmp_path, "A/open")
    make(tmp_path, "B/held", "23\n")
    make(tmp_path, "B/deep/below", "0\n")
    make(tmp_path, "empty")
    (tmp_path / "file").touch()
    (tmp_path / SENTINEL).write_text("0\n")
    (tmp_path / "A" / SENTINEL).write_text("0\n")
    os.mkfifo(tmp_path / "A" / "pipe")
    assert swept(tmp_path) == {
        "A/ready": State.READY,
        "A/open": State.ABSENT,
        "B/held": State.HELD,
        "B/deep": State.ABSENT,
    }


def test_names_in_ignore_are_skipped_on_both_levels(tmp_path: Path) -> None:
    make(tmp_path, "A/nosync", "0\n")
    make(tmp_path, "A/run", "0\n")
    make(tmp_path, "nosync/run", "0\n")
    make(tmp_path, "transferring/nosync", "0\n")
    assert swept(tmp_path, ("nosync", "transferring")) == {"A/run": State.READY}


def test_a_sweep_follows_a_linked_sequencer_and_reports_a_linked_run(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make(tmp_path, "elsewhere/run", "0\n")
    make(root, "A")
    (root / "B").symlink_to(tmp_path / "elsewhere")
    (root / "A" / "link").symlink_to(tmp_path / "elsewhere" / "run")
    (root / "A" / "dangling").symlink_to("nowhere")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    assert swept(root) == {"B/run": State.READY, "A/link": State.UNUSABLE}


def test_a_sweep_by_presence_takes_a_held_run(tmp_path: Path) -> None:
    make(tmp_path, "A/run", "23\n")
    assert swept(tmp_path, policy=Policy.PRESENCE) == {"A/run": State.READY}


def test_a_missing_root_has_no_runs_and_is_told_once_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    walk = Walk(root)
    assert list(walk.observations()) == []
    assert list(walk.observations()) == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"'{root}'" in caplog.text
    make(root, "A/run", "0\n")
    assert len(list(walk.observations())) == 1
    root.rename(tmp_path / "away")
    assert list(walk.observations()) == []
    assert len(caplog.records) == 2


@pytest.mark.root
def test_an_unreadable_sequencer_is_told_and_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "sequencing"
    for sequencer in ("A", "B", "C"):
        make(root, f"{sequencer}/run", "0\n")
    make_reachable(root / "A" / "run")
    (root / "B").chmod(0)
    with as_nobody():
        assert set(swept(root)) == {"A/run", "C/run"}
    assert f"'{root / 'B'}' is seen: Permission denied" in caplog.text


@pytest.mark.root
def test_a_run_behind_links_that_may_not_be_followed_breaks_no_sweep(tmp_path: Path) -> None:
    root = tmp_path / "sequencing"
    make(root, "A/run", "0\n")
    make_reachable(root / "A" / "run")
    make(tmp_path, "private/sequencer/run", "0\n")
    (root / "link").symlink_to(tmp_path / "private" / "sequencer")
    (root / "A" / "link").symlink_to(tmp_path / "private" / "sequencer" / "run")
    (tmp_path / "private").chmod(0)
    with as_nobody():
        assert swept(root) == {"A/run": State.READY}


OPENED = """
import os, sys, time
from pathlib import Path
from watcher.source import Walk
seen = []
sys.addaudithook(lambda event, args: seen.append(f"{event} {args[0]}") if event in ("open", "os.scandir") else None)
walk = Walk(Path(sys.argv[1]), now=lambda: time.time() + 60)
for _ in range(2):
    print(len(list(walk.observations())), *sorted(line for line in seen if sys.argv[1] in line), sep="\\n")
    seen.clear()
"""


@pytest.mark.children
def test_a_sweep_lists_two_levels_and_opens_nothing_but_sentinels_and_those_only_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make(root, "A/ready/Data/L001", None)
    (root / "A" / "ready" / SENTINEL).write_text("0\n")
    (root / "A" / "ready" / "RunInfo.xml").touch()
    make(root, "A/empty", "")
    make(root, "A/held", "23\n")
    make(root, "B/open/Data/L001")
    command = [sys.executable, "-c", OPENED, str(root)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    listed = [f"os.scandir {path}" for path in (root, root / "A", root / "B")]
    held, empty, ready = (f"open {root / 'A' / run / SENTINEL}" for run in ("held", "empty", "ready"))
    assert output == ["4", empty, held, ready, *listed, "4", held, *listed]


@pytest.mark.parametrize("age", [60.0, 0.0])
def test_a_sentinel_that_was_ready_is_read_again_when_it_has_changed(tmp_path: Path, age: float) -> None:
    make(tmp_path, "A/run", "0\n")
    sentinel = tmp_path / "A" / "run" / SENTINEL
    walk = Walk(tmp_path, now=lambda: sentinel.stat().st_ctime + age)
    states = []
    for content in ("0\n", "1\n", "0\n", "2\n"):
        before = sentinel.stat().st_ctime_ns
        sentinel.write_text(content)
        while age and sentinel.stat().st_ctime_ns == before:  # the clock of a file system may be coarse
            sentinel.write_text(content)
        states += [observation.state for observation in walk.observations()]
    assert states == [State.READY, State.HELD, State.READY, State.HELD]
