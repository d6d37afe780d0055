"""The command line: which command it names, what its errors look like, and the exit code."""

from __future__ import annotations

import argparse
import io
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from watcher import __version__, process
from watcher.commands import check, demo, once, restore, retry, status, watch
from watcher.commands.shared import CANCELLED, FAILED, MISCONFIGURED, OK, TERMINATED
from watcher.errors import ConfigError, WatcherError
from watcher.journal import printable

EXIT_CODES = """\
exit codes:
  0    done, or ended by one signal after finishing the runs in progress
  1    a run failed (once), a check failed (check), or the command could not do what it was asked
  2    the command line is wrong
  3    the configuration is wrong, or this machine does not fit it; systemd does not restart
  130  cancelled by Ctrl+C (SIGINT); the watcher and `once`: by the second
  143  cancelled by SIGTERM; the watcher and `once`: by the second
"""

DESCRIPTION = """\
Watch sequencing runs, and archive each one that is complete: tar, encrypt with a key of its own,
prove that the stored file decrypts to what tar read, wrap the key for gpg_receiver, record it.

Without a command it runs the watcher, until Ctrl+C or SIGTERM.
"""

COMMANDS = (once, check, status, retry, restore, demo)
"""In the order of `--help`. Each module has NAME, HELP, `add_options(parser)` and `run(options)`."""

LONG_RUNNING = (watch.run, once.run)
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
        return _flushed(_obey(_parser().parse_args(arguments)))
    except SystemExit as ending:  # argparse's, after its words about usage or help
        return _flushed(int(ending.code or OK))
    except BrokenPipeError:
        return _muted(FAILED)


def _obey(options: argparse.Namespace) -> int:
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
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


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "-c", "--config", type=Path, metavar="FILE", default=argparse.SUPPRESS,
        help="the configuration; without it $ARCHIVE_CONFIG, else ~/conf/df_archive.yaml",
    )  # fmt: skip
    parser = argparse.ArgumentParser(
        prog="dataflow_archive", description=DESCRIPTION, epilog=EXIT_CODES, parents=[shared],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(command=watch.run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    for command in COMMANDS:
        child = commands.add_parser(command.NAME, help=command.HELP, description=f"{command.HELP}.", parents=[shared])
        child.set_defaults(command=command.run)
        command.add_options(child)
    return parser


def _complain(problems: Sequence[str], code: int) -> int:
    for problem in problems:
        if logging.getLogger().handlers:
            logger.critical("%s", problem)  # the log is set up, and goes where people look
        else:
            print(f"dataflow_archive: {printable(problem)}", file=sys.stderr)
    return code
