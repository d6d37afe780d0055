"""How the daemon comes to know of ready runs: by events, by rescans, and by changes of the database.

`Walk` lists what is there, `Observer` watches it. `Registrar` turns what was seen into registered runs, each once.
`Feed` follows the database's changes. `Places` says where events do not come. Nothing here claims a run.
"""

from __future__ import annotations

from watcher.discovery.changes import Feed
from watcher.discovery.mounts import NETWORK_FILE_SYSTEMS, Places, file_system_type, network_places
from watcher.discovery.observer import Observer
from watcher.discovery.registration import Arrivals, Noticed, Registrar, collision
from watcher.discovery.walk import Walk

__all__ = [
    "NETWORK_FILE_SYSTEMS",
    "Arrivals",
    "Feed",
    "Noticed",
    "Observer",
    "Places",
    "Registrar",
    "Walk",
    "collision",
    "file_system_type",
    "network_places",
]
