"""Commands that start at once: Python's fork server has imported everything, and forks a process for each.

The process is the command's own, and runs the same `main` as the installed command. What is missing is the start of an
interpreter: some tenths of a second, hundreds of times. Tests of that start use the installed command.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

from coverage import Coverage

import watcher
from watcher.__main__ import main

AT_START = ("PYTHON", "LC_", "LANG")
"""How variables begin that work at the start of an interpreter: with one of them, the start cannot be left out."""


class WarmProcess:
    """A command at work: as much of a `subprocess.Popen` as tests use. It writes to the files `outputs`."""

    def __init__(
        self, arguments: Sequence[str], outputs: tuple[Path, Path], environment: Mapping[str, str], cwd: Path
    ) -> None:
        given = (tuple(arguments), outputs, dict(environment), cwd, watcher.__file__)
        self._process = _context().Process(target=_become, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or less than zero: the signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Return the exit code. Raises TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired(["dataflow_archive"], timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and the server has not told it yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut does, if it still runs."""
        self._process.kill()


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    names = (module.name for module in pkgutil.walk_packages(watcher.__path__, "watcher."))
    context.set_forkserver_preload(list(names))
    return context


def run_warm(
    arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does; return its code and output."""
    with tempfile.TemporaryDirectory() as directory:
        outputs = (Path(directory, "stdout"), Path(directory, "stderr"))
        process = WarmProcess(arguments, outputs, environment, cwd)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, code, *(path.read_text(encoding="utf-8") for path in outputs))


def _become(
    arguments: Sequence[str], outputs: tuple[Path, Path], environment: Mapping[str, str], cwd: Path, source: str
) -> None:
    """Make this process what a new one would be, and run the command."""
    assert os.path.samefile(watcher.__file__, source), f"the fork server has imported {watcher.__file__}"
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    tempfile.tempdir = None
    for number, path in enumerate(outputs, 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # it lasts as long as the process
    sys.argv = list(arguments)
    try:
        main()
    finally:
        if measurement := Coverage.current():  # where CI measures what the tests run
            measurement.stop()
            measurement.save()
