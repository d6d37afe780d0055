"""A run directory, as it lies on the sequencer's disk: whether it is ready, what is in it, whether it stands still.

`Walk` lists the sequencing path. `inspect` judges a sentinel. `hold` opens a run directory once; what is asked
afterwards is asked of that directory, whatever its name leads to by then. Discovery, archiving and the commands use
this folder. It never writes below `sequencing_path`.
"""

from __future__ import annotations

from watcher.source.directory import Source, hold
from watcher.source.entry import Entry
from watcher.source.mounts import MOUNT_TABLE, NETWORK_FILE_SYSTEMS, file_system_type, type_of
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
from watcher.source.walk import Walk, is_directory, is_link

__all__ = [
    "MOUNT_TABLE",
    "NETWORK_FILE_SYSTEMS",
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
    "Walk",
    "file_system_type",
    "has_same_top",
    "hold",
    "inspect",
    "inspect_directory",
    "is_directory",
    "is_link",
    "is_ready",
    "type_of",
    "unusable_name",
]
