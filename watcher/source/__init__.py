"""A run directory, as it lies on the sequencer's disk: whether it is ready, what is in it, whether it stands still.

`inspect` judges a sentinel. `hold` opens a run directory once; what is asked afterwards is asked of that directory,
whatever its name leads to by then. Discovery and archiving use this folder. It never writes below `sequencing_path`.
"""

from __future__ import annotations

from watcher.source.directory import Source, hold
from watcher.source.entry import Entry
from watcher.source.rules import Rules
from watcher.source.sentinel import (
    NOT_THERE,
    RACY_SECONDS,
    SENTINEL,
    SETTLE_SECONDS,
    Observation,
    Policy,
    State,
    inspect,
    inspect_directory,
    is_ready,
    unusable_name,
)
from watcher.source.stillness import Stillness
from watcher.source.top import has_same_top

__all__ = [
    "NOT_THERE",
    "RACY_SECONDS",
    "SENTINEL",
    "SETTLE_SECONDS",
    "Entry",
    "Observation",
    "Policy",
    "Rules",
    "Source",
    "State",
    "Stillness",
    "has_same_top",
    "hold",
    "inspect",
    "inspect_directory",
    "is_ready",
    "unusable_name",
]
