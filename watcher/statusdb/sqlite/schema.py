"""The file's tables, and how they are made."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from watcher.errors import ConfigError, StatusDBUnavailable
from watcher.statusdb.sqlite.connections import Connections, primary_code

PREPARE_TRIES = 40
PREPARE_PAUSE_SECONDS = 0.5
"""Another process may make the file at the same moment. SQLite does not wait by itself where the journal's mode is
set, so we try again for 20 seconds."""

SCHEMA = """
create table if not exists documents (
    seq integer primary key autoincrement,
    id text not null unique,
    rev integer not null,
    status text,
    body text not null
);
create index if not exists documents_by_status on documents (status);
create table if not exists deletions (id integer primary key, number integer not null);
create trigger if not exists documents_deleted after delete on documents begin
    insert or replace into deletions values (1, coalesce((select number from deletions where id = 1), 0) + 1);
end;
"""
"""Each write takes a new `seq`, never one that was used before: the place of a change for those who follow.

We delete nothing; someone with the `sqlite3` command may. What is gone has no `seq` to be found by, so it is
counted. A replaced row is no deletion: SQLite calls no trigger for it unless `recursive_triggers` is on.
"""

_REMEDIES = {
    sqlite3.SQLITE_FULL: "free space on its file system, or raise this user's quota",
    sqlite3.SQLITE_IOERR: "look at dmesg for its disk, and at this user's limits: ulimit -a",
    sqlite3.SQLITE_CANTOPEN: "let this user make files in its directory, and see that ulimit -n is not too low",
    sqlite3.SQLITE_READONLY: "let this user write the file and its directory",
    sqlite3.SQLITE_NOMEM: "this machine has no memory left, or a limit is too low: ulimit -v",
}
"""What to do when a file cannot be prepared, by SQLite's primary code."""


def prepare(connections: Connections, path: Path, wait: Callable[[float], bool]) -> None:
    """Create the file and its tables. Raises ConfigError where that is not possible.

    Raises StatusDBUnavailable if another process holds the file for too long, or `wait` says to give up.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"statusdb.url: directory '{path.parent}' of the SQLite file does not exist; create it")
    for _ in range(PREPARE_TRIES):
        try:
            return _create(connections)
        except sqlite3.Error as error:
            if primary_code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                remedy = _REMEDIES.get(primary_code(error), "is it a writable SQLite file?")
                raise ConfigError(f"statusdb.url: SQLite file '{path}': {error}; {remedy}") from error
        if wait(PREPARE_PAUSE_SECONDS):
            break
    raise StatusDBUnavailable(f"SQLite file '{path}' is locked by another process")


def _create(connections: Connections) -> None:
    with closing(connections.connect("rwc")) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.executescript(SCHEMA)
