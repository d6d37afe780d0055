"""What several commands need: the configuration, the parts made from it, the exit codes."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watcher import config, journal, wiring
from watcher.config import Config
from watcher.daemon import Service, worker_lock
from watcher.metrics import Metrics
from watcher.model import Status
from watcher.source import Observation
from watcher.statusdb import StatusDB

OK, FAILED, MISCONFIGURED, CANCELLED, TERMINATED = 0, 1, 3, 130, 143
"""The exit codes. 2 is argparse's, for a wrong command line."""


def config_path(options: argparse.Namespace) -> Path:
    """Return the path of the configuration that the command line, or the environment, names."""
    return config.find(getattr(options, "config", None), os.environ)


def load(options: argparse.Namespace) -> Config:
    """Return the configuration. Raises ConfigError with all its problems."""
    return config.load(config_path(options))


@contextmanager
def service(options: argparse.Namespace) -> Iterator[Service]:
    """Give the daemon, ready to run; while the context lasts no other process works under its `worker_id`.

    Sets up the log. Raises ConfigError for a configuration or a machine that is not fit to archive.
    """
    loaded = load(options)
    journal.configure(loaded.log_level, loaded.log_file)
    wiring.refuse_unusable(loaded)
    with worker_lock(loaded.destination_path, loaded.worker_id):
        yield wiring.service(loaded, Metrics())


def statusdb(loaded: Config) -> StatusDB:
    """Return the status database, which exists. Raises ConfigError, StatusDBUnavailable."""
    database = wiring.statusdb(loaded, pause)
    database.verify()
    return database


def observations(loaded: Config) -> Iterator[Observation]:
    """Yield each run directory that is here, with the state of its sentinel."""
    return wiring.walk(loaded).observations()


def counted(counts: dict[str, int]) -> str:
    """Return how many runs have each status, in words."""
    return ", ".join(f"{counts.get(status, 0)} {status}" for status in Status)


def pause(seconds: float) -> bool:
    """Sleep; return False: nothing tells a command to give up."""
    time.sleep(seconds)
    return False
