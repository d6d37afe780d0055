"""A plaintext file key is nowhere but in memory: not in a file, a command line, an environment or a log."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sites import Site, gpg, wait_until
from tracing import require_strace, traced

WHOLE_BYTES = 1 << 20
"""What strace shows of a string: all that is written at once, whatever stands before a key in it."""

TO_A_PIPE = re.compile(r"\d+ +writev?\(\d+<pipe:\[\d+\]>, ")


class ProcessWatch:
    """Collects what /proc shows of all processes' command lines and environments, as fast as it can."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._seen: set[bytes] = set()
        self.looks = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.is_set():
            for entry in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        self._seen.add((entry / name).read_bytes())
                    except OSError:
                        continue
            self.looks += 1

    def end(self) -> None:
        self._end.set()
        self._thread.join()

    def saw(self, secret: bytes) -> bool:
        return any(secret in shown for shown in self._seen)


@contextmanager
def watched() -> Iterator[ProcessWatch]:
    watch = ProcessWatch()
    try:
        yield watch
    finally:
        watch.end()


def unwrapped(site: Site, run: str) -> bytes:
    key = gpg(site.gnupg, "--decrypt", str(site.keys / f"{run}.key.gpg")).split(b"\n")[0]
    assert len(key) == 64
    return key


def files_with(root: Path, secret: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_no_file_key_is_seen_anywhere_while_runs_are_archived(site: Site) -> None:
    site.is_warm = False  # /proc shows the environment with which a process was started
    site.configure(log_level="DEBUG", log_file=str(site.root / "df_archive.log"))
    daemon = site.start().wait_ready()
    with watched() as watch:
        for name in ("run_001", "run_002"):
            site.complete(site.make_run(name, size=30_000_000))
        for name in ("run_001", "run_002"):
            site.wait_for(name)
        assert daemon.stop() == 0
    assert watch.saw(b"--symmetric"), "the watch has not seen our gpg at all"
    for name in ("run_001", "run_002"):
        key = unwrapped(site, name)
        assert not watch.saw(key)
        assert files_with(site.root, key) == []
        assert files_with(site.gnupg, key) == []


def test_the_watch_would_see_a_key_on_a_command_line_in_an_environment_and_in_a_file(tmp_path: Path) -> None:
    on_the_line, in_the_environment = "a" * 64, "b" * 64
    with watched() as watch:
        process = subprocess.Popen(["sleep", "100"], env={"KEY": in_the_environment, "PATH": "/usr/bin:/bin"})
        other = subprocess.Popen(["sh", "-c", "read line", on_the_line], stdin=subprocess.PIPE)
        wait_until(lambda: watch.saw(on_the_line.encode()) and watch.saw(in_the_environment.encode()), "both are seen")
        process.kill()
        process.wait()
        other.communicate(b"\n")
    (tmp_path / "leak").write_bytes(b"key: " + on_the_line.encode())
    assert files_with(tmp_path, on_the_line.encode()) == [tmp_path / "leak"]


def given_away(command: Sequence[str], trace: Path, **options: Any) -> str:
    """Return what a command and its children wrote, and executed with which environment, as strace saw it."""
    calls = "write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendmmsg,execve,execveat"
    return traced(command, calls, trace, longest=WHOLE_BYTES, **options)


def calls_with(trace: str, secret: bytes) -> tuple[list[str], list[str]]:
    """Return the calls that have the secret: writes to a pipe, which nothing keeps, and all others."""
    found = [line for line in trace.splitlines() if secret.decode() in line]
    to_a_pipe = [line for line in found if TO_A_PIPE.match(line)]
    return to_a_pipe, [line for line in found if line not in to_a_pipe]


@pytest.fixture
def strace(unavailable: Callable[[str], NoReturn]) -> None:
    """Make sure that there is one."""
    require_strace(unavailable)


@pytest.mark.usefixtures("strace")
def test_a_file_key_goes_to_pipes_and_nowhere_else(site: Site) -> None:
    site.configure(log_level="DEBUG", log_file=str(site.root / "df_archive.log"))
    site.complete(site.make_run(size=1000))
    trace = given_away(site.once(), site.root / "trace", env=site.environment)
    to_gpg, elsewhere = calls_with(trace, unwrapped(site, "run_001"))
    assert len(to_gpg) == 5, "on its way to gpg: to encrypt and to validate archive and manifest, and to be wrapped"
    assert elsewhere == []


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    ("command", "call"),
    [
        ('read key; echo "$key" > kept; rm kept', "write"),
        ('read key; env true "$key"', "execve"),
        ('read key; KEY="$key" env true', "execve"),
    ],
)
def test_the_trace_would_see_a_key_in_a_file_for_a_moment_and_in_what_is_executed(
    command: str, call: str, tmp_path: Path
) -> None:
    key = b"a" * 64
    trace = given_away(["sh", "-c", command], tmp_path / "trace", input=key + b"\n", cwd=tmp_path)
    _, elsewhere = calls_with(trace, key)
    assert elsewhere
    assert all(f" {call}(" in line for line in elsewhere)


@pytest.mark.usefixtures("strace")
def test_the_trace_takes_a_pipe_for_a_pipe(tmp_path: Path) -> None:
    key = b"a" * 64
    trace = given_away(["sh", "-c", 'read key; echo "$key" | wc -c'], tmp_path / "trace", input=key + b"\n")
    to_a_pipe, elsewhere = calls_with(trace, key)
    assert (len(to_a_pipe), elsewhere) == (1, [])


def test_two_runs_have_different_keys(site: Site) -> None:
    for name in ("run_001", "run_002"):
        site.complete(site.make_run(name))
    assert site.command("once").returncode == 0
    assert unwrapped(site, "run_001") != unwrapped(site, "run_002")
