"""The daemon as the commands `watch` and `once` need it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from watcher import journal
from watcher.commands.shared import load
from watcher.daemon import Service, worker_lock
from watcher.metrics import Metrics
from watcher.wiring import daemon


@contextmanager
def service(options: argparse.Namespace) -> Iterator[Service]:
    """Give the daemon, ready to run; while the context lasts no other process works under its `worker_id`.

    Sets up the log. Raises ConfigError for a configuration or a machine that is not fit to archive.
    """
    loaded = load(options)
    journal.configure(loaded.log_level, loaded.log_file, loaded.worker_id)
    daemon.refuse_unusable(loaded)
    with worker_lock(loaded.destination_path, loaded.worker_id):
        yield daemon.service(loaded, Metrics())
