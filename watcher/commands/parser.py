"""The grammar of the command line: its commands, their options, and their help.

No command is imported here, so that `--help` and `--version` need none of the libraries that a command needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from watcher import __version__
from watcher.text import duration

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

STATUSES = ("pending", "processing", "encrypted", "failed", "held")
"""Those of the model, which is not imported here."""

WITHOUT_COMMAND = "watch"


class _CommandParser(argparse.ArgumentParser):
    """Takes options before, between and behind arguments. By itself argparse refuses an argument behind an option."""

    _is_within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse. `parse_known_intermixed_args` calls this function again, and does not know what `--` means."""
        if self._is_within or "--" in args:
            return super().parse_known_args(args, namespace)
        self._is_within = True
        return self.parse_known_intermixed_args(args, namespace)


class Command(NamedTuple):
    """A command: `watcher.commands.<name>` has its `run(options)`, which returns the exit code."""

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], object] = lambda _: None


def _run_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's name")


def _runs(parser: argparse.ArgumentParser, count: str = "+") -> None:
    parser.add_argument("runs", nargs=count, metavar="RUN", default=[], help="the runs' names")
    parser.add_argument("--yes", action="store_true", help="do not ask, as is done on a terminal")


def _retry(parser: argparse.ArgumentParser) -> None:
    _runs(parser, "*")
    parser.add_argument("--all-failed", action="store_true", help="all runs that have failed")
    parser.set_defaults(refuse=parser.error)


def _explain(parser: argparse.ArgumentParser) -> None:
    _run_name(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="only of this run")
    parser.add_argument("--last", type=_count, metavar="N", default=50, help="the newest N steps (default: 50)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return int(text)


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", action="store_true", help="tell what the watcher would do with each run that is here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="show the encrypted ones too")
    parser.add_argument("--status", choices=STATUSES, help="only runs of this status")
    parser.add_argument("--sequencer", metavar="NAME", help="only runs of this sequencer")
    parser.add_argument("--worker", metavar="ID", help="only runs that this worker had last")
    parser.add_argument("--older-than", type=duration, metavar="TIME", help="only runs unchanged for so long, as in 2h")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    form.add_argument("--watch", action="store_true", help="show it anew every two seconds, until Ctrl+C")


def _list(parser: argparse.ArgumentParser) -> None:
    _run_name(parser)
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", default=[],
        help="only members that match, or lie in a directory that does; as in tar_exclusions",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the manifest's own lines: one about the archive first")
    form.add_argument("--sha256sum", action="store_true", help="print what `sha256sum -c` reads, for regular files")


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", default=[], help="the runs of these names")
    parser.set_defaults(refuse=parser.error)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="all that are encrypted, the longest not verified first")
    which.add_argument(
        "--older-than", type=duration, metavar="TIME", help="those of them that were verified longer ago, as in 150d"
    )
    parser.add_argument("--budget", type=duration, metavar="TIME", help="begin no run after this time, as in 2h")
    parser.add_argument(
        "--content", action="store_true",
        help="decrypt, and compare each member with the manifest; needs the private key",
    )  # fmt: skip


def _restore(parser: argparse.ArgumentParser) -> None:
    _run_name(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the run directory shall appear")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="PATTERN",
        help="restore only members that match, or lie in a directory that does; as in tar_exclusions",
    )  # fmt: skip
    parser.add_argument(
        "--same-owner", action="store_true",
        help="give files the owners that they had, as only root can; otherwise they belong to who restores",
    )  # fmt: skip
    parser.add_argument(
        "--special", action="store_true",
        help="restore device nodes, and the set-uid and set-gid bits of files; otherwise a warning names each",
    )  # fmt: skip


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that will read it")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="leave the directory there to look at")


COMMANDS = (
    Command("once", "archive what is ready now, then exit; for cron and for trying out"),
    Command("check", "tell, a line each, whether this machine and its configuration are fit to archive", _check),
    Command("status", "show the runs that are not encrypted, why, and how many there are of each status", _status),
    Command("explain", "say why a run does not move, and what to do", _explain),
    Command("history", "show what has happened to a run, or lately to all runs", _history),
    Command("retry", "set failed runs to pending, their failures forgotten", _retry),
    Command("rearchive", "archive runs again that have changed since; their old files are moved aside", _runs),
    Command("hold", "let no worker take runs, until `release`", _runs),
    Command("release", "let held runs be taken again", _runs),
    Command("cancel", "take runs from the workers that archive them, and hold them; no attempt counts", _runs),
    Command("list", "show what a run's archive holds, as its manifest says", _list),
    Command("verify", "tell whether archives are still what was recorded", _verify),
    Command("restore", "unwrap, decrypt, compare with what was recorded, and extract a run", _restore),
    Command("completion", "print what lets a shell complete the command line", _completion),
    Command("manpage", "print the manual page, for man(1)"),
    Command("demo", "archive and restore a small run in a temporary directory; needs only gpg and tar", _demo),
)
"""In the order of `--help`."""


def parser() -> argparse.ArgumentParser:
    """Return the parser. What it returns for a command line has the command's name as `command`."""
    shared = _CommandParser(add_help=False)
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
    commands = top.add_subparsers(title="commands", metavar="COMMAND", parser_class=_CommandParser)
    for command in COMMANDS:
        child = commands.add_parser(command.name, help=command.help, description=f"{command.help}.", parents=[shared])
        child.set_defaults(command=command.name)
        command.add_options(child)
    return top
