"""How much the larger suites do: what fits CI, or more of it."""

from __future__ import annotations

import os


def size(variable: str, default: int) -> int:
    """Return how often a test does what it does: `CHAOS_SCALE` times what fits CI, or what `variable` says."""
    return int(os.environ.get(variable) or default * int(os.environ.get("CHAOS_SCALE", "1")))
