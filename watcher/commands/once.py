"""`once`: archive what is ready now."""

from __future__ import annotations

import argparse

from watcher.commands.serving import service


def run(options: argparse.Namespace) -> int:
    """Archive each run that is ready; return the exit code, 1 if one of them failed."""
    with service(options) as daemon:
        return daemon.run_once()
