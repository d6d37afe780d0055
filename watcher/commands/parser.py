"""The grammar of the command line: its commands, their options, and their help.

No command is imported here, so that `--help` and `--version` need none of the libraries that a command needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from watcher import __version__

DESCRIPTION = """\
Watch sequencing runs, and archive each one that is complete: tar, encrypt with a key of its own,
prove that the stored file decrypts to what tar read, wrap the key for gpg_receiver, record it.

Without a command it runs the watcher, until Ctrl+C or SIGTERM.
"""

EXIT_CODES = """\
exit codes:
  0    done, or ended by one signal after finishing the runs in progress
  1    a run failed (once), a check failed (check), or the command could not do what it was asked
  2    the command line is wrong
  3    the configuration is wrong, or this machine does not fit it; systemd does not restart
  130  cancelled by Ctrl+C (SIGINT); the watcher and `once`: by the second
  143  cancelled by SIGTERM; the watcher and `once`: by the second
"""

WITHOUT_COMMAND = "watch"


class Command(NamedTuple):
    """A command: `watcher.commands.<name>` has its `run(options)`, which returns the exit code."""

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], object] = lambda _: None


def _run_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's name")


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="show the encrypted ones too")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _restore(parser: argparse.ArgumentParser) -> None:
    _run_name(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the run directory shall appear")
    parser.add_argument(
        "--same-owner", action="store_true",
        help="give files the owners that they had, as only root can; otherwise they belong to who restores",
    )  # fmt: skip
    parser.add_argument(
        "--special", action="store_true",
        help="restore device nodes, and the set-uid and set-gid bits of files; otherwise a warning names each",
    )  # fmt: skip


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="leave the directory there to look at")


COMMANDS = (
    Command("once", "archive what is ready now, then exit; for cron and for trying out"),
    Command("check", "tell, a line each, whether this machine and its configuration are fit to archive"),
    Command("status", "show the runs that are not encrypted, why, and how many there are of each status", _status),
    Command("retry", "set a failed run to pending, its failures forgotten", _run_name),
    Command("restore", "unwrap, decrypt, compare with what was recorded, and extract a run", _restore),
    Command("demo", "archive and restore a small run in a temporary directory; needs only gpg and tar", _demo),
)
"""In the order of `--help`."""


def parser() -> argparse.ArgumentParser:
    """Return the parser. What it returns for a command line has the command's name as `command`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "-c", "--config", type=Path, metavar="FILE", default=argparse.SUPPRESS,
        help="the configuration; without it $ARCHIVE_CONFIG, else ~/conf/df_archive.yaml",
    )  # fmt: skip
    top = argparse.ArgumentParser(
        prog="dataflow_archive", description=DESCRIPTION, epilog=EXIT_CODES, parents=[shared],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    top.set_defaults(command=WITHOUT_COMMAND)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        child = commands.add_parser(command.name, help=command.help, description=f"{command.help}.", parents=[shared])
        child.set_defaults(command=command.name)
        command.add_options(child)
    return top
