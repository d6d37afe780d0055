"""The status database: run documents and claims, over CouchDB, or SQLite for one machine.

`StatusDB` is the state machine: who may write what, and when a claim is lost. The stores below it only keep documents.
Each document comes in through one door, and is a checked value or `Unreadable`. Seconds of trouble are retried here;
what lasts longer is a StatusDBUnavailable, which the caller waits out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from watcher.statusdb.database import StatusDB
from watcher.statusdb.login import Login
from watcher.statusdb.registering import collision
from watcher.statusdb.sqlite import SQLiteStore
from watcher.statusdb.store import Changes, DocumentStore, FeedLost, Unreadable

if TYPE_CHECKING:
    from watcher.statusdb.couchdb import CouchDBStore

__all__ = [
    "Changes",
    "CouchDBStore",
    "DocumentStore",
    "FeedLost",
    "Login",
    "SQLiteStore",
    "StatusDB",
    "Unreadable",
    "collision",
]


def __getattr__(name: str) -> object:
    """Import `CouchDBStore` when it is asked for: its libraries take a tenth of a second, and SQLite needs none."""
    if name != "CouchDBStore":
        raise AttributeError(name)
    from watcher.statusdb.couchdb import CouchDBStore  # noqa: PLC0415

    return CouchDBStore
