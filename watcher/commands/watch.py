"""The watcher itself: what `dataflow_archive` does without a command."""

from __future__ import annotations

import argparse

from watcher.commands.serving import service


def run(options: argparse.Namespace) -> int:
    """Watch and archive until a signal ends it; return the exit code."""
    with service(options) as daemon:
        return daemon.run()
