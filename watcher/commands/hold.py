"""`hold`: let nobody take a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from watcher.commands.operator import change_each, who
from watcher.commands.shared import load, statusdb
from watcher.config import Config
from watcher.errors import UnknownRun
from watcher.model import Run
from watcher.source import unusable_name
from watcher.statusdb import StatusDB
from watcher.wiring import sites


def run(options: argparse.Namespace) -> int:
    """Hold each run; return the exit code. Raises StatusDBUnavailable, ConfigError."""
    config = load(options)
    database = statusdb(config)

    def hold(name: str) -> str:
        try:
            database.hold(name, who())
        except UnknownRun:
            _hold_unregistered(database, config, name)
        return "is held: no worker takes it until `release`"

    return change_each(options.runs, hold, "hold", options)


def _hold_unregistered(database: StatusDB, config: Config, name: str) -> None:
    """Hold a run that is here, and that is not registered yet. Raises again if there is no such run."""
    is_new = database.look(name) is None and not unusable_name(name)
    here = [Run(Path(path)) for path, is_ignored in sites.walk(config).named(name) if is_new and not is_ignored]
    if len(here) != 1 or not database.hold_unregistered(here[0], who()):
        database.hold(name, who())
