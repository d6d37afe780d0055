"""The status database: run documents and claims, over CouchDB, or SQLite for one machine.

`StatusDB` is the state machine: who may write what, and when a claim is lost. The stores below it only keep documents.
Each document comes in through one door, and is a checked value or `Unreadable`. Seconds of trouble are retried here;
what lasts longer is a StatusDBUnavailable, which the caller waits out.
"""

from __future__ import annotations

from watcher.statusdb.couchdb import CouchDBStore, Login
from watcher.statusdb.database import StatusDB
from watcher.statusdb.sqlite import SQLiteStore
from watcher.statusdb.store import Changes, DocumentStore, FeedLost, Unreadable

__all__ = ["Changes", "CouchDBStore", "DocumentStore", "FeedLost", "Login", "SQLiteStore", "StatusDB", "Unreadable"]
