"""What several commands need: the configuration, and the parts made from it."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

from watcher import config
from watcher.config import Config
from watcher.model import Status
from watcher.source import Observation
from watcher.statusdb import StatusDB
from watcher.wiring import sites


def config_path(options: argparse.Namespace) -> Path:
    """Return the path of the configuration that the command line, or the environment, names."""
    return config.find(getattr(options, "config", None), os.environ)


def load(options: argparse.Namespace) -> Config:
    """Return the configuration. Raises ConfigError with all its problems."""
    return config.load(config_path(options))


def statusdb(loaded: Config) -> StatusDB:
    """Return the status database, which exists. Raises ConfigError, StatusDBUnavailable."""
    database = sites.statusdb(loaded, pause)
    database.verify()
    return database


def observations(loaded: Config) -> Iterator[Observation]:
    """Yield each run directory that is here, with the state of its sentinel."""
    return sites.walk(loaded).observations()


def counted(counts: dict[str, int]) -> str:
    """Return how many runs have each status, in words."""
    return ", ".join(f"{counts.get(status, 0)} {status}" for status in Status)


def pause(seconds: float) -> bool:
    """Sleep; return False: nothing tells a command to give up."""
    time.sleep(seconds)
    return False
