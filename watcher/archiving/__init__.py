"""From a claim to a record: one run is packed, encrypted, proven, and given its final names.

`Worker.work` is the whole story of a run. `ArchiveStore` is the one place that names, adopts and removes archives;
`LeaseKeeper` keeps claims alive, and `StaleClaims` finds those whose holder has died. `GarbageCollector` removes
what no claim wants any more. The daemon calls this folder; the folder knows nothing of how runs are discovered.
"""

from __future__ import annotations

from watcher.archiving.attempt import Settings, growing_pauses
from watcher.archiving.endings import Outcome
from watcher.archiving.garbage import GarbageCollector
from watcher.archiving.lease import LeaseKeeper, StaleClaims
from watcher.archiving.publication import ArchiveStore
from watcher.archiving.worker import Worker

__all__ = [
    "ArchiveStore",
    "GarbageCollector",
    "LeaseKeeper",
    "Outcome",
    "Settings",
    "StaleClaims",
    "Worker",
    "growing_pauses",
]
