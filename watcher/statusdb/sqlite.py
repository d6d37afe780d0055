"""The embedded store: one SQLite file, for the processes of one machine."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import quote

from watcher import model
from watcher.errors import ConfigError, StatusDBUnavailable
from watcher.model import Document, Status
from watcher.statusdb.store import Changes, Conflict, FeedLost, Found, Unreadable, Written, why_undecodable

BUSY_SECONDS = 10.0
"""How long a write waits for another process's write; each takes milliseconds."""

LOOK_SECONDS = 0.5
"""How often a waiting `changes` looks: some 20 microseconds each time."""

CHANGES_LIMIT = 1000
"""Changes taken at once; the rest comes with the next question."""

PREPARE_TRIES = 40
"""Made LOOK_SECONDS apart when another process makes the file at the same moment: SQLite does not wait by itself
where the journal's mode is set."""

_ROW = "cast(id as blob), cast(body as blob), case typeof(rev) when 'integer' then rev end"
"""What `_found` takes. A column may hold any type, and a text that is not UTF-8 would fail the whole query."""

_SCHEMA = """
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


@dataclass(frozen=True)
class _Place:
    """Where in the changes somebody stands: the last write, and how many documents had been deleted by then."""

    seq: int
    deletions: int

    @classmethod
    def of(cls, since: str) -> _Place | None:
        """Return the place that `str` made this text of; None if it is no such text."""
        parts = since.split("-")
        if len(parts) != len(fields(cls)) or not all(part.isascii() and part.isdigit() for part in parts):
            return None
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.seq}-{self.deletions}"


@dataclass
class _Opened:
    """A thread's connection. Whoever uses or closes it holds the lock: SQLite must not lose it in the middle."""

    connection: sqlite3.Connection
    file: tuple[int, int]
    thread: threading.Thread = field(default_factory=threading.current_thread)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_closed: bool = False

    def close(self) -> None:
        """Close it when what is being done with it has ended."""
        with self.lock:
            self.connection.close()
            self.is_closed = True


class SQLiteStore:
    """Run documents in the file `path`. `wait` is a stop event's `wait`: true means give up waiting."""

    def __init__(self, path: Path, wait: Callable[[float], bool], busy_seconds: float = BUSY_SECONDS) -> None:
        self._path = path
        self._wait = wait
        self._busy_seconds = busy_seconds
        self._local = threading.local()
        self._all: list[_Opened] = []
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Create the file and its table. Raises ConfigError where that is not possible."""
        if not self._path.parent.is_dir():
            raise ConfigError(
                f"statusdb.url: directory '{self._path.parent}' of the SQLite file does not exist; create it"
            )
        for _ in range(PREPARE_TRIES):
            try:
                return self._create()
            except sqlite3.Error as error:
                if _primary(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    hint = _HINTS.get(_primary(error), "is it a writable SQLite file?")
                    raise ConfigError(f"statusdb.url: SQLite file '{self._path}': {error}; {hint}") from error
            if self._wait(LOOK_SECONDS):
                break
        raise StatusDBUnavailable(f"SQLite file '{self._path}' is locked by another process")

    def _create(self) -> None:
        with closing(self._connect("rwc")) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.executescript(_SCHEMA)

    def verify(self) -> None:
        """Raise ConfigError if the file or its table is missing."""
        if not self._path.is_file():
            raise ConfigError(f"statusdb.url: '{self._path}' does not exist yet; the watcher makes it")
        self.count_by_status()

    def describe(self) -> str:
        """Return the file and SQLite's version."""
        return f"SQLite {sqlite3.sqlite_version} in '{self._path}'"

    def get(self, run_id: str) -> Found | None:
        """Return the document, or None."""
        found = self.get_many([run_id])
        return found[0] if found else None

    def get_many(self, run_ids: Sequence[str]) -> list[Found]:
        """Return those of the documents that exist."""
        with self._connection() as connection:
            wanted = "select value from json_each(?)"
            rows = connection.execute(
                f"select {_ROW} from documents where id in ({wanted})",  # noqa: S608  # nothing of it is given
                (json.dumps(list(run_ids)),),
            )
            return [_found(*row) for row in rows]

    def with_status(self, status: Status) -> list[Found]:
        """Return all documents of this status."""
        with self._connection() as connection:
            rows = connection.execute(
                f"select {_ROW} from documents where status = ? order by seq",  # noqa: S608  # nothing of it is given
                (status,),
            )
            return [_found(*row) for row in rows]

    def count_by_status(self) -> dict[str, int]:
        """Return how many documents have each status."""
        with self._connection() as connection:
            rows = connection.execute(
                "select cast(status as blob), count(*) from documents where status not null group by status"
            )
            return {status.decode(errors="backslashreplace"): count for status, count in rows}

    def put(self, document: Document) -> Written:
        """Write a document over the revision that it names. Raises Conflict."""
        with self._transaction() as connection:
            current = connection.execute(
                "select case typeof(rev) when 'integer' then rev end from documents where id = ?", (document["_id"],)
            ).fetchone()
            if (str(current[0]) if current else None) != document.get("_rev"):
                raise Conflict(f"run '{document['_id']}' has another revision")
            return Written(_write(connection, document, current[0] + 1 if current else 1))

    def insert_many(self, documents: Iterable[Document]) -> set[str]:
        """Write new documents in one transaction; return the ids of those that were new."""
        new: set[str] = set()
        with self._transaction() as connection:
            for document in documents:
                known = connection.execute("select 1 from documents where id = ?", (document["_id"],)).fetchone()
                if known is None:
                    _write(connection, document, 1)
                    new.add(document["_id"])
        return new

    def settle(self, document: Document) -> Document:
        """Return the document: one file has no conflicting revisions."""
        return document

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since`, looking a few times a second for up to `wait_seconds`."""
        now = self._now()
        if since is None:
            return Changes((), str(now))
        place = _Place.of(since)
        if place is None or place.seq > now.seq:
            raise FeedLost(f"'{since}' is no place in the changes of '{self._path}'")
        waited = 0.0
        while not (found := self._after(place)) and waited < wait_seconds and not self._wait(LOOK_SECONDS):
            waited += LOOK_SECONDS
        last = replace(place, seq=found[-1][0]) if found else place
        return Changes(
            tuple(document for _, document in found if not isinstance(document, Unreadable)),
            str(last),
            tuple(document for _, document in found if isinstance(document, Unreadable)),
        )

    def close(self) -> None:
        """Close all connections, each when what it is doing has ended."""
        with self._lock:
            opened, self._all = self._all, []
        for one in opened:
            one.close()

    def _now(self) -> _Place:
        with self._connection() as connection:
            row = connection.execute("select seq from sqlite_sequence where name = 'documents'").fetchone()
            return _Place(int(row[0]) if row else 0, _deletions(connection))

    def _after(self, place: _Place) -> list[tuple[int, Found]]:
        """Return what was written after the place. Raises FeedLost if documents were deleted since."""
        with self._connection() as connection:
            if _deletions(connection) != place.deletions:
                raise FeedLost(f"documents were deleted from '{self._path}' by hand: all are looked at anew")
            rows = connection.execute(
                f"select seq, {_ROW} from documents where seq > ? order by seq limit ?",  # noqa: S608  # as above
                (place.seq, CHANGES_LIMIT),
            )
            return [(seq, _found(*row)) for seq, *row in rows]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            opened = self._open()
            with opened.lock:
                yield opened.connection
        except (sqlite3.Error, OSError) as error:
            self._forget()
            raise StatusDBUnavailable(f"SQLite file '{self._path}': {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("begin immediate")
            try:
                yield connection
                connection.execute("commit")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled some failures back by itself
                    connection.execute("rollback")
                raise

    def _open(self) -> _Opened:
        opened: _Opened | None = getattr(self._local, "opened", None)
        # Where another file has the name now, or none has, nobody would ever read what we write into the old one.
        if opened is not None and (opened.is_closed or opened.file != _identity(self._path)):
            self._forget()
            opened = None
        if opened is None:
            self._close_those_of_ended_threads()
            opened = _Opened(self._connect_as_allowed(), _identity(self._path))
            with self._lock:
                self._all.append(opened)
            self._local.opened = opened
        return opened

    def _close_those_of_ended_threads(self) -> None:
        with self._lock:
            ended = [one for one in self._all if not one.thread.is_alive()]
            self._all = [one for one in self._all if one not in ended]
        for one in ended:
            one.close()

    def _forget(self) -> None:
        """Close this thread's connection: whatever has befallen it, the next use begins anew."""
        opened: _Opened | None = getattr(self._local, "opened", None)
        if opened is None:
            return
        del self._local.opened
        with self._lock:
            self._all = [one for one in self._all if one is not opened]
        opened.close()

    def _connect_as_allowed(self) -> sqlite3.Connection:
        try:
            return self._connect("rw")
        except sqlite3.OperationalError as error:
            # Who may only read cannot make the files that go with a journal; without one, no watcher runs
            # and nothing changes while we look.
            if _primary(error) != sqlite3.SQLITE_READONLY or os.path.lexists(f"{self._path}-wal"):
                raise
            return self._connect("ro&immutable=1")

    def _connect(self, mode: str) -> sqlite3.Connection:
        # Only `prepare` makes a file: elsewhere an empty one in place of what is gone would hide the loss.
        connection = sqlite3.connect(
            f"file:{quote(str(self._path))}?mode={mode}",
            uri=True,
            timeout=self._busy_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # Each commit reaches the disk: a claim or a record that was answered must outlive the power.
            connection.execute("pragma synchronous = full")
        except sqlite3.Error:
            connection.close()
            raise
        return connection


_HINTS = {
    sqlite3.SQLITE_FULL: "free space on its file system, or raise this user's quota",
    sqlite3.SQLITE_IOERR: "look at dmesg for its disk, and at this user's limits: ulimit -a",
    sqlite3.SQLITE_CANTOPEN: "let this user make files in its directory, and see that ulimit -n is not too low",
    sqlite3.SQLITE_READONLY: "let this user write the file and its directory",
    sqlite3.SQLITE_NOMEM: "this machine has no memory left, or a limit is too low: ulimit -v",
}
"""What to do about SQLite's words when a file cannot be prepared."""


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _primary(error: sqlite3.Error) -> int:
    """Return SQLite's own number for what is wrong, without the details; 0 for an error of Python's."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _found(run_id: bytes, body: bytes, rev: int | None) -> Found:
    """Return a row's document, or why there is none in it. `rev` is None for one that is no integer."""
    name = run_id.decode(errors="backslashreplace")
    try:
        document = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        return Unreadable(name, why_undecodable(error))
    if not isinstance(document, dict):
        return Unreadable(name, "it is not a JSON object")
    if model.status_of(document) is None:
        document["_id"] = name  # another program's, which need not repeat it
    if document.get("_id") != name:
        return Unreadable(name, "its _id is not the id of its row")
    if rev is None:
        return Unreadable(name, "the rev of its row is not an integer")
    document.pop("_deleted", None)  # what has a row is not deleted, whatever it says
    return {**document, "_rev": str(rev)}


def _write(connection: sqlite3.Connection, document: Document, rev: int) -> str:
    body = json.dumps({key: value for key, value in document.items() if key != "_rev"})
    connection.execute(
        "insert or replace into documents (id, rev, status, body) values (?, ?, ?, ?)",
        (document["_id"], rev, document.get("status"), body),
    )
    return str(rev)


def _deletions(connection: sqlite3.Connection) -> int:
    row = connection.execute("select number from deletions where id = 1").fetchone()
    return int(row[0]) if row else 0
