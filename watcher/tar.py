"""tar's stream of a run: the archive's content while it is made, and what tar says of it."""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import os
import re
import stat
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

from watcher.errors import CannotRun, RunNotSettled, TarFailed
from watcher.job import Job, enough_threads, start_child
from watcher.model import Digest, Run, TarReport
from watcher.process import tar_environment

HEADER_BYTES = 2048
"""What tar adds to a member in its posix format: a header, an extended header with its data, padding."""

WORDS_KEPT = 20
"""Of tar's messages so many go into an error or the run document."""

PIPE_BYTES = 1 << 20
"""tar's pipe; Linux's default of 64 KiB makes tar and gpg wait for each other."""

_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


class TarStream:
    """tar's output while it reads a run: a source for `crypto.encrypt`, and afterwards tar's report."""

    def __init__(self, run: Run, exclusions: Sequence[str], tolerated_changes: Sequence[str], job: Job) -> None:
        self._run = run
        self._job = job
        self._identity = _identity(run)
        self._messages = _TarMessages(run, tolerated_changes)
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._process = job.start(
            tar_command(run, exclusions),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=tar_environment(),
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        _enlarge(self._process.stdout)
        self._stdout: BinaryIO = self._process.stdout  # type: ignore[assignment]
        self._listener = threading.Thread(
            target=self._messages.read, args=(self._process.stderr,), name=f"tar {run.name}", daemon=True
        )
        try:
            with enough_threads():
                self._listener.start()
        except BaseException:
            self._job.end(self._process)
            self._stdout.close()
            raise

    def __enter__(self) -> TarStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self._job.end(self._process)
        self._listener.join()
        self._stdout.close()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes of the archive. Raises the job's reason once it is cancelled."""
        data = os.read(self._stdout.fileno(), size)
        self._sha256.update(data)
        self._size += len(data)
        self._job.moved(len(data))
        return data

    def report(self) -> TarReport:
        """Wait for tar to end; return what it gave if it gave the whole run.

        Raises TarFailed with tar's words, or RunNotSettled when the run changed while tar read it.
        """
        code = self._process.wait()
        self._listener.join()
        self._job.check()
        self._messages.judge(code)
        if _identity(self._run) != self._identity:
            raise TarFailed(f"'{self._run.path}' was replaced by another directory while tar read it")
        if self._messages.members == 0:
            raise TarFailed("tar found nothing to archive: tar_exclusions exclude the whole run")
        stream = Digest(self._size, self._sha256.hexdigest())
        return TarReport(stream, self._messages.members, tuple(self._messages.warnings))


def tar_command(run: Run, exclusions: Sequence[str]) -> list[str]:
    """Return the command that writes the run's archive to standard output, and its members' names to standard error."""
    return [
        "tar", "--create", "--verbose", "--format=posix", "--sparse", "--file=-",
        "--quoting-style=escape", "--no-unquote",
        *(f"--exclude={pattern}" for pattern in exclusions),
        # `./` keeps a name that starts with a hyphen from being an option.
        f"--directory={run.path.parent}", "--", f"./{run.name}",
    ]  # fmt: skip


def tar_version() -> str:
    """Return the first line of what tar says about itself. Raises CannotRun when it is missing, or not GNU tar."""
    command = ["tar", "--version"]
    with start_child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=tar_environment()) as process:
        words = os.fsdecode(process.communicate()[0]).partition("\n")[0]
    if process.returncode != 0 or "GNU tar" not in words:
        raise CannotRun(f"tar is not GNU tar, but '{words}'; install GNU tar, and put it on the PATH before any other")
    return words


class _TarMessages:
    """tar's standard error: members' names (`./...`), and messages (`tar: ...`) sorted by what they mean."""

    def __init__(self, run: Run, tolerated_changes: Sequence[str]) -> None:
        self._run = run
        self._tolerated = tuple(tolerated_changes)
        self.members = 0
        self.warnings: list[str] = []
        self._unsettled: list[str] = []
        self._last: list[str] = []

    def read(self, stderr: BinaryIO) -> None:
        """Sort all lines until tar ends."""
        with stderr:
            for line in stderr:
                if line.startswith(b"./"):
                    self.members += 1
                else:
                    self._sort(os.fsdecode(line.strip()).removeprefix("tar: "), line)

    def judge(self, code: int) -> None:
        """Raise what tar's exit status and words amount to, if it is not success."""
        if code == 1 and self._unsettled:
            raise RunNotSettled(f"the run changed while tar read it: {_join(self._unsettled)}")
        if code == 0:
            self.warnings += self._unsettled
        elif code != 1 or not self.warnings:
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
            raise TarFailed(f"tar {ended}: {_join(self._last) or 'it said nothing'}")

    def _sort(self, words: str, line: bytes) -> None:
        _keep_last(self._last, words)
        path, _, what = words.rpartition(": ")
        if not path.startswith("./"):
            return
        if what.endswith(" ignored") or self._is_harmless(_unescape(path), what):
            _keep_last(self.warnings, words)
        else:
            _keep_last(self._unsettled, words)

    def _is_harmless(self, path: Path, what: str) -> bool:
        full = self._run.path.parent / path
        if what == "file changed as we read it" and full.is_dir() and not full.is_symlink():
            return True
        in_top = full.parent == self._run.path
        return in_top and any(fnmatch.fnmatchcase(full.name, pattern) for pattern in self._tolerated)


def run_size(run: Run) -> int:
    """Return about how many bytes the run takes in an archive, without looking at exclusions.

    `HEADER_BYTES` are added for each member. What cannot be read counts nothing here; tar will say so.
    """
    total, waiting = 0, [run.path]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += HEADER_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        # A sparse file is archived without its holes.
                        total += min(status.st_size, status.st_blocks * 512)
        except OSError:
            continue
    return total


def _identity(run: Run) -> tuple[int, int]:
    try:
        status = os.lstat(run.path)
    except OSError as error:
        raise TarFailed(f"'{run.path}' cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise TarFailed(f"'{run.path}' is not a directory: nothing outside the run is read")
    return status.st_dev, status.st_ino


def _unescape(path: str) -> Path:
    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code, 8)]) if code.isdigit() else _ESCAPED.get(code, code)

    return Path(os.fsdecode(_ESCAPE.sub(plain, os.fsencode(path))))


def _keep_last(words: list[str], new: str) -> None:
    words.append(new)
    del words[:-WORDS_KEPT]


def _join(words: Sequence[str]) -> str:
    return "; ".join(words)


def _enlarge(pipe: IO[bytes]) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return  # above the user's own limit: slower, not wrong
