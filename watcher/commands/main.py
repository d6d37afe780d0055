"""The command line: which command it names, what its errors look like, and the exit code."""

from __future__ import annotations

import argparse
import io
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

from watcher import process
from watcher.commands.exit_codes import CANCELLED, FAILED, MISCONFIGURED, OK, TERMINATED
from watcher.commands.parser import parser
from watcher.errors import ConfigError, WatcherError
from watcher.text import printable

LONG_RUNNING = ("watch", "once")
"""These obey signals by themselves, and print nothing."""

logger = logging.getLogger(__name__)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: as at Ctrl+C, what a command has begun is tidied up."""


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says; return the exit code. Errors are told on standard error."""
    process.reset_inherited()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a run's name may have what a terminal's charset has not
    # A core file would hold file keys. gpg does the same for itself.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _flushed(_obey(parser().parse_args(arguments)))
    except SystemExit as ending:  # argparse's, after its words about usage or help
        return _flushed(int(ending.code or OK))
    except BrokenPipeError:
        return _muted(FAILED)


def _obey(options: argparse.Namespace) -> int:
    command: str = options.command
    try:
        # The libraries of a command take longer to import than most commands run: only this one's are imported.
        code: int = import_module(f"watcher.commands.{command}").run(options)
        return code
    except ConfigError as error:
        return _complain(error.problems, MISCONFIGURED)
    except WatcherError as error:
        return _complain([str(error)], FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        if command in LONG_RUNNING:
            raise  # a bug: nothing there is written to the standard output
        words = f"'{error.filename}': {error.strerror}" if error.filename else _unwritable(error)
        return _muted(_complain([words], FAILED))
    except KeyboardInterrupt as stop:
        if command in LONG_RUNNING:
            return OK  # so early that nothing runs: from then on the service itself obeys signals
        return TERMINATED if isinstance(stop, _Terminated) else CANCELLED


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _flushed(code: int) -> int:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return _muted(FAILED)
    except OSError as error:
        return _muted(_complain([_unwritable(error)], FAILED))
    return code


def _unwritable(error: OSError) -> str:
    return f"the output cannot be written: {error.strerror}"


def _muted(code: int) -> int:
    # Whoever read our output has left. Python would try once more to flush it when it ends, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _complain(problems: Sequence[str], code: int) -> int:
    for problem in problems:
        if logging.getLogger().handlers:
            logger.critical("%s", problem)  # the log is set up, and goes where people look
        else:
            print(f"dataflow_archive: {printable(problem)}", file=sys.stderr)
    return code
