"""How the daemon comes to know of ready runs: by events, by rescans, and by changes of the database.

`Observer` watches what `watcher.source.Walk` finds. `Registrar` turns what was seen into registered runs, each once.
`Feed` follows the database's changes. `Places` says where events do not come. Nothing here claims a run.
"""

from __future__ import annotations

from watcher.discovery.changes import Feed
from watcher.discovery.observer import Observer
from watcher.discovery.places import Places, network_places
from watcher.discovery.registration import Arrivals, Noticed, Registrar

__all__ = [
    "Arrivals",
    "Feed",
    "Noticed",
    "Observer",
    "Places",
    "Registrar",
    "network_places",
]
