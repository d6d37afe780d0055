"""Counters of what this process has seen and done."""

from __future__ import annotations

import threading
from collections import Counter


class Metrics:
    """Named counts, which any thread may add to."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Add `count` to the counter `name`."""
        with self._lock:
            self._counts[name] += count

    def counts(self) -> dict[str, int]:
        """Return all counters as they are now."""
        with self._lock:
            return dict(self._counts)
