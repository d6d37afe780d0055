"""What the daemon needs to know beside its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from watcher.source import Rules


@dataclass(frozen=True)
class Settings:
    """Times are in seconds. `watchdog_seconds` is what systemd gives the daemon; None without a watchdog."""

    worker_id: str
    sequencing_path: Path
    rescan_interval: float
    network_rescan_interval: float
    stall_limit: float
    lease_seconds: float
    jobs: int
    rules: Rules = field(default_factory=Rules)
    watchdog_seconds: float | None = None
