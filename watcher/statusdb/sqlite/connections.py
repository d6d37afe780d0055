"""Connections to the file, one for each thread that asks."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from watcher.errors import StatusDBUnavailable

BUSY_SECONDS = 10.0
"""How long a write waits for another process's write; each takes milliseconds."""


@dataclass
class _Opened:
    """A thread's connection. Who uses or closes it holds the lock: SQLite must not lose it in the middle of a query."""

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


class Connections:
    """Connections to the file `path`. A write waits up to `busy_seconds` for another process's write."""

    def __init__(self, path: Path, busy_seconds: float) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        self._local = threading.local()
        self._all: list[_Opened] = []
        self._lock = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend this thread's connection. Raises StatusDBUnavailable for what goes wrong with it within."""
        try:
            opened = self._open()
            with opened.lock:
                yield opened.connection
        except (sqlite3.Error, OSError) as error:
            self._forget()
            raise StatusDBUnavailable(f"SQLite file '{self.path}': {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Lend this thread's connection for a write: all that is written within reaches the disk, or nothing."""
        with self.connection() as connection:
            connection.execute("begin immediate")
            try:
                yield connection
                connection.execute("commit")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite rolls some failures back by itself.
                    connection.execute("rollback")
                raise

    def connect(self, mode: str) -> sqlite3.Connection:
        """Open a new connection, for the caller to close. Only mode `rwc` makes a file.

        Elsewhere an empty file in place of one that is gone would hide the loss.
        """
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode={mode}",
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

    def close(self) -> None:
        """Close all connections, each when what it is doing has ended."""
        with self._lock:
            opened, self._all = self._all, []
        for one in opened:
            one.close()

    def _open(self) -> _Opened:
        opened: _Opened | None = getattr(self._local, "opened", None)
        # If another file has the name now, or none has, nobody would ever read what we write into the old one.
        if opened is not None and (opened.is_closed or opened.file != _identity(self.path)):
            self._forget()
            opened = None
        if opened is None:
            self._close_those_of_ended_threads()
            opened = _Opened(self._connect_as_allowed(), _identity(self.path))
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
        """Close this thread's connection. The next use opens another."""
        opened: _Opened | None = getattr(self._local, "opened", None)
        if opened is None:
            return
        del self._local.opened
        with self._lock:
            self._all = [one for one in self._all if one is not opened]
        opened.close()

    def _connect_as_allowed(self) -> sqlite3.Connection:
        try:
            return self.connect("rw")
        except sqlite3.OperationalError as error:
            # A user who may only read cannot make the files that go with a journal. If there is no journal,
            # no watcher runs, and nothing changes while we look.
            if primary_code(error) != sqlite3.SQLITE_READONLY or os.path.lexists(f"{self.path}-wal"):
                raise
            return self.connect("ro&immutable=1")


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, without the details; 0 for an error of Python's."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
