"""The embedded store: run documents in one SQLite file, for the processes of one machine.

`SQLiteStore` is what others use. `schema` makes the file, `connections` has one connection for each thread,
`rows` turns rows into documents and back, `changes` follows what is written.
"""

from watcher.statusdb.sqlite.changes import LOOK_SECONDS
from watcher.statusdb.sqlite.store import SQLiteStore

__all__ = ["LOOK_SECONDS", "SQLiteStore"]
