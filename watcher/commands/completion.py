"""`completion`: what lets a shell complete the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from watcher.commands.exit_codes import OK
from watcher.commands.parser import parser

COMPLETED = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
"""How an argument is completed that is shown so in the help."""


def run(options: argparse.Namespace) -> int:
    """Print the shell's completion; return the exit code."""
    top = parser()
    for action in _actions(top):
        if action.metavar in COMPLETED:
            action.complete = COMPLETED[action.metavar]  # type: ignore[attr-defined]  # so says shtab's manual
    print(shtab.complete(top, shell=options.shell))
    return OK


def _actions(of: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield each argument and option of a parser, and of its commands."""
    for action in of._actions:  # argparse has no public list of them
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
