"""The process that systemd runs: its threads, its signals, its lock, and what it tells systemd.

`Service` puts discovery and archiving together, and ends them in order. `worker_lock` lets one process run under a
`worker_id`. Only `watcher.wiring` and the commands use this folder.
"""

from __future__ import annotations

from watcher.daemon.flow import Parts
from watcher.daemon.lock import lock_file, mark, worker_lock
from watcher.daemon.service import Service
from watcher.daemon.settings import Settings
from watcher.daemon.systemd import Notifier, watchdog_seconds

__all__ = ["Notifier", "Parts", "Service", "Settings", "lock_file", "mark", "watchdog_seconds", "worker_lock"]
