"""tar's stream of a run: the archive's content while it is made, and what tar says of it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import BinaryIO

from blake3 import blake3

from watcher.errors import CannotRun, RunNotSettled, TarFailed
from watcher.job import Job, enlarge, enough_threads, start_child
from watcher.model import Content, TarReport
from watcher.process import ProgramFile, program_file, tar_environment
from watcher.source import Source, Stillness

WORDS_KEPT = 20
"""So many of tar's messages go into an error or the run document."""

_SPECIAL = re.compile(r"[\\&]")
"""The characters with a meaning in the replacement of tar's `--transform`."""

_DELIMITERS = ",|!#%:;=@~^" + "".join(map(chr, range(1, 9)))
"""`--transform` needs a delimiter that is not in the run's name."""

_BACKSLASHED = r"\\\g<0>"
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


class TarStream:
    """tar's output while it reads a held run: a source for `crypto.encrypt`, and afterwards tar's report."""

    def __init__(self, still: Stillness, job: Job) -> None:
        self._job = job
        self._version = tar_version()
        self._messages = _TarMessages(still.source)
        self._hash = blake3()
        self._size = 0
        self._process = job.start(
            tar_command(still.source, still.source.contents.tar_options(still.first, job.moved)),
            cwd=still.source.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=tar_environment(),
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        enlarge(self._process.stdout)
        self._stdout: BinaryIO = self._process.stdout  # type: ignore[assignment]
        self._listener = threading.Thread(
            target=self._messages.read, args=(self._process.stderr,), name=f"tar {still.source.run.name}", daemon=True
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
        self._hash.update(data)
        self._size += len(data)
        self._job.moved(len(data))
        return data

    def report(self) -> TarReport:
        """Wait for tar to end; return what it gave, as far as its exit status and its words say that this is the run.

        Raises TarFailed with tar's words, and RunNotSettled when the run changed while tar read it.
        """
        code = self._process.wait()
        self._listener.join()
        self._job.check()
        self._messages.judge(code)
        stream = Content(self._size, self._hash.hexdigest())
        return TarReport(stream, tuple(self._messages.warnings), self._version)


def tar_command(source: Source, options: Sequence[str]) -> list[str]:
    """Return the command that writes the archive of the run in the working directory to standard output.

    Members get names as if tar had been given the run's name in its parent directory.
    """
    name = source.run.name
    mark = next(delimiter for delimiter in _DELIMITERS if delimiter not in name)
    return [
        "tar", "--create", "--format=posix", "--file=-", "--quoting-style=escape", "--no-unquote", *options,
        *(f"--exclude={pattern}" for pattern in source.rules.exclusions),
        # `S`: targets of symbolic links are not transformed.
        f"--transform=s{mark}^\\.{mark}./{_SPECIAL.sub(_BACKSLASHED, name)}{mark}S", "--", ".",
    ]  # fmt: skip


def tar_version() -> str:
    """Return the first line of what tar says about itself. Raises CannotRun when it is missing, or not GNU tar."""
    return _version_of(program_file("tar"))


@lru_cache(maxsize=1)
def _version_of(_file: ProgramFile | None) -> str:
    """Ask tar for its version: once for each program file."""
    command = ["tar", "--version"]
    with start_child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=tar_environment()) as process:
        words = os.fsdecode(process.communicate()[0]).partition("\n")[0]
    if process.returncode != 0 or "GNU tar" not in words:
        raise CannotRun(f"tar is not GNU tar, but '{words}'; install GNU tar, and put it on the PATH before any other")
    return words


class _TarMessages:
    """tar's standard error: messages (`tar: ...`), sorted by what they mean."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.warnings: list[str] = []
        self._unsettled: list[str] = []
        self._last: list[str] = []

    def read(self, stderr: BinaryIO) -> None:
        """Sort all lines until tar ends."""
        with stderr:
            for line in stderr:
                self._sort(os.fsdecode(line.strip()).removeprefix("tar: "))

    def judge(self, code: int) -> None:
        """Raise TarFailed or RunNotSettled if tar's exit status and words mean failure."""
        if code == 1 and self._unsettled:
            raise RunNotSettled(f"the run changed while tar read it: {_join(self._unsettled)}")
        if code == 0:
            self.warnings += self._unsettled
        elif code != 1 or not self.warnings:
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
            raise TarFailed(f"tar {ended}: {_join(self._last) or 'it said nothing'}")

    def _sort(self, words: str) -> None:
        path, _, what = words.rpartition(": ")
        is_about_a_member = path == "." or path.startswith("./")
        if is_about_a_member:
            words = f"./{self._source.run.name}{words[1:]}"  # as the archive has it
        _keep_last(self._last, words)
        if not is_about_a_member:
            return
        if what.endswith(" ignored") or self._is_harmless(_unescape(path), what):
            _keep_last(self.warnings, words)
        else:
            _keep_last(self._unsettled, words)

    def _is_harmless(self, path: bytes, what: str) -> bool:
        if what == "file changed as we read it" and self._is_directory(path):
            return True  # the next listing shows what has changed in it
        return path.count(b"/") == 1 and self._source.rules.tolerates(os.fsdecode(path[2:]))

    def _is_directory(self, path: bytes) -> bool:
        try:
            return stat.S_ISDIR(self._source.status(path).st_mode)
        except OSError:
            return False


def _unescape(path: str) -> bytes:
    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code, 8)]) if code.isdigit() else _ESCAPED.get(code, code)

    return _ESCAPE.sub(plain, os.fsencode(path))


def _keep_last(words: list[str], new: str) -> None:
    words.append(new)
    del words[:-WORDS_KEPT]


def _join(words: Sequence[str]) -> str:
    return "; ".join(words)
