"""The commands: what an operator types, reads, and gets as an exit code."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from watcher import __version__, assembly, config, demo, inspection, journal, process
from watcher.config import Config
from watcher.errors import ConfigError, WatcherError
from watcher.lock import worker_lock
from watcher.metrics import Metrics
from watcher.restore import Manner, restore
from watcher.statusdb import StatusDB

OK, FAILED, MISCONFIGURED, CANCELLED, TERMINATED = 0, 1, 3, 130, 143

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
        if command in (_watch, _once):
            raise  # a bug: nothing there is written to the standard output
        words = f"'{error.filename}': {error.strerror}" if error.filename else _unwritable(error)
        return _muted(_complain([words], FAILED))
    except KeyboardInterrupt as stop:
        if command in (_watch, _once):
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
    parser.set_defaults(command=_watch)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        child = commands.add_parser(name, help=words, description=f"{words}.", parents=[shared])
        child.set_defaults(command=command)
        return child

    add("once", _once, "archive what is ready now, then exit; for cron and for trying out")
    add("check", _check, "tell, a line each, whether this machine and its configuration are fit to archive")
    status = add("status", _status, "show the runs that are not encrypted, why, and how many there are of each status")
    status.add_argument("--all", action="store_true", help="show the encrypted ones too")
    status.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    retry = add("retry", _retry, "set a failed run to pending, its failures forgotten")
    retry.add_argument("run", metavar="RUN", help="the run's name")
    back = add("restore", _restore, "unwrap, decrypt, compare with what was recorded, and extract a run")
    back.add_argument("run", metavar="RUN", help="the run's name")
    back.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the run directory shall appear")
    back.add_argument(
        "--same-owner", action="store_true",
        help="give files the owners that they had, as only root can; otherwise they belong to who restores",
    )  # fmt: skip
    back.add_argument(
        "--special", action="store_true",
        help="restore device nodes, and the set-uid and set-gid bits of files; otherwise a warning names each",
    )  # fmt: skip
    show = add("demo", _demo, "archive and restore a small run in a temporary directory; needs only gpg and tar")
    show.add_argument("--keep", action="store_true", help="leave the directory there to look at")
    return parser


def _load(options: argparse.Namespace) -> Config:
    return config.load(_config_path(options))


def _config_path(options: argparse.Namespace) -> Path:
    return config.find(getattr(options, "config", None), os.environ)


def _prepared(options: argparse.Namespace) -> Config:
    loaded = _load(options)
    journal.configure(loaded.log_level, loaded.log_file)
    assembly.refuse_unusable(loaded)
    return loaded


def _watch(options: argparse.Namespace) -> int:
    loaded = _prepared(options)
    with worker_lock(loaded.destination_path, loaded.worker_id):
        return assembly.service(loaded, Metrics()).run()


def _once(options: argparse.Namespace) -> int:
    loaded = _prepared(options)
    with worker_lock(loaded.destination_path, loaded.worker_id):
        return assembly.service(loaded, Metrics()).run_once()


def _check(options: argparse.Namespace) -> int:
    loaded = _load(options)
    print(f"ok    config: {_config_path(options)}")
    findings = inspection.check(loaded)
    for finding in findings:
        print(f"{finding.mark:<5} {finding.what}: {finding.detail}")
    return FAILED if any(finding.mark == inspection.FAIL for finding in findings) else OK


def _status(options: argparse.Namespace) -> int:
    report = inspection.status(_load(options), everything=options.all)
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        report.show()
    return OK


def _retry(options: argparse.Namespace) -> int:
    _statusdb(_load(options)).retry(options.run)
    print(f"run '{journal.printable(options.run)}' is pending again, with no failures counted")
    return OK


def _restore(options: argparse.Namespace) -> int:
    loaded = _load(options)
    document = _statusdb(loaded).demand(options.run)
    manner = Manner(same_owner=options.same_owner, special=options.special)
    restored = restore(document, assembly.shelf(loaded), options.to.absolute(), loaded.gnupg_home, manner, _warn)
    print(f"restored '{journal.printable(str(restored))}': its digests are those that were recorded")
    return OK


def _warn(words: str) -> None:
    print(f"dataflow_archive: warning: {journal.printable(words)}", file=sys.stderr)


def _demo(options: argparse.Namespace) -> int:
    return demo.run(keep=options.keep)


def _statusdb(loaded: Config) -> StatusDB:
    statusdb = assembly.statusdb(loaded, _sleep)
    statusdb.verify()
    return statusdb


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _complain(problems: Sequence[str], code: int) -> int:
    for problem in problems:
        if logging.getLogger().handlers:
            logger.critical("%s", problem)  # the log is set up, and goes where people look
        else:
            print(f"dataflow_archive: {journal.printable(problem)}", file=sys.stderr)
    return code
