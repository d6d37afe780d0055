"""`manpage`: the manual page, for man(1)."""

from __future__ import annotations

import argparse

from argparse_manpage.manpage import Manpage

from watcher import __version__
from watcher.commands.exit_codes import OK
from watcher.commands.parser import parser


def run(_options: argparse.Namespace) -> int:
    """Print the page; return the exit code."""
    page = Manpage(parser())
    page.source, page.manual = f"dataflow_archive {__version__}", "User Commands"
    page.description = "archive sequencing runs: watch, encrypt, prove, record"
    print(page)
    return OK
