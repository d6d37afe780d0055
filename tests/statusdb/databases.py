"""Status databases as tests use them: described by a value, and opened as often as other processes would."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import requests
from couchdb_server import Database
from sites import PATIENCE_SECONDS, never_stop

from watcher.errors import StatusDBUnavailable
from watcher.model import Document, Run
from watcher.statusdb import CouchDBStore, DocumentStore, Login, SQLiteStore, StatusDB
from watcher.statusdb.store import Written

RUN = Run(Path("/data/sequencing/sequencer_A/run_001"))

spawning = multiprocessing.get_context("spawn")


class Place(Protocol):
    """A database, wherever it is; may be sent to another process."""

    def open(self) -> DocumentStore:
        """Return a store of its own on this database."""


@dataclass(frozen=True)
class SQLiteFile:
    """An SQLite file."""

    path: Path

    def open(self) -> SQLiteStore:
        """Return a store of its own on this file."""
        return SQLiteStore(self.path, never_stop)


@dataclass(frozen=True)
class CouchDatabase:
    """A database on a CouchDB."""

    login: Login
    timeout_seconds: float = 20.0

    def open(self) -> CouchDBStore:
        """Return a store of its own on this database."""
        return CouchDBStore(self.login, self.timeout_seconds)


def login_of(database: Database, through: str | None = None) -> Login:
    """Return the login for a database whose address may hold credentials; `through` is a proxy's address."""
    parts = urlsplit(database.url)
    address = urlsplit(through or database.url)
    return Login(
        url=address._replace(netloc=address.netloc.rpartition("@")[2]).geturl(),
        database=database.name,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


class Direct:
    """The database as someone with curl sees it, beside our own code."""

    def __init__(self, database: Database) -> None:
        self.address = f"{database.url}/{database.name}"

    def ask(self, method: str, path: str, body: Any = None, **params: str) -> Any:
        """Send a request; return the answer's JSON."""
        url = f"{self.address}/{path}".rstrip("/")
        answer = requests.request(method, url, json=body, params=params, timeout=PATIENCE_SECONDS)
        answer.raise_for_status()
        return answer.json()

    def insert_conflicts(self, *documents: Document) -> None:
        """Write revisions beside those that exist, as replication between a cluster's nodes does."""
        self.ask("POST", "_bulk_docs", {"new_edits": False, "docs": list(documents)})

    def leaves(self, run_id: str) -> list[Document]:
        """Return all revisions of a document that stand beside each other, the current one first."""
        current = self.ask("GET", run_id, conflicts="true")
        return [current, *(self.ask("GET", run_id, rev=rev) for rev in current.get("_conflicts", ()))]


class Faulty:
    """A store whose next writes fail as told: `before` they are done, or `after`, when the answer is lost."""

    def __init__(self, store: DocumentStore) -> None:
        self._store = store
        self.faults: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, document: Document) -> Written:
        """Write, or not."""
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise StatusDBUnavailable("not asked")
        written = self._store.put(document)
        if fault == "after":
            raise StatusDBUnavailable("answer lost")
        return written


class Pauses:
    """A stop event's `wait` that takes no time and remembers how long it should have been."""

    def __init__(self, stop: bool = False) -> None:
        self.asked: list[float] = []
        self._stop = stop

    def __call__(self, seconds: float) -> bool:
        self.asked.append(seconds)
        return self._stop


def statusdb_of(store: DocumentStore, pauses: Pauses | None = None) -> StatusDB:
    """Return the status database over a store; its pauses take no time."""
    return StatusDB(store, pauses or Pauses())


def new_document(run_id: str, **fields: Any) -> Document:
    """Return a document as a run's is, to be written first."""
    return {"_id": run_id, "path": f"/data/{run_id}", "status": "pending", "failure_count": 0, **fields}


def stored(store: DocumentStore, document: Document) -> Document:
    """Write a document; return it with its revision."""
    return {**document, "_rev": store.put(document).rev}


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """Call `work` with 0, 1 ... in so many threads that begin at the same moment; return what each gave."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait(PATIENCE_SECONDS)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


together: Barrier
"""In a process of `in_processes`: where all of them meet."""


def in_processes(work: Callable[[Place, int], Any], place: Place, count: int) -> list[Any]:
    """Call `work` with 0, 1 ... in so many processes, which can meet at `together`; return what each gave."""
    barrier = spawning.Barrier(count)
    with ProcessPoolExecutor(count, mp_context=spawning, initializer=_meet_at, initargs=(barrier,)) as pool:
        return list(pool.map(work, [place] * count, range(count), timeout=PATIENCE_SECONDS))


def _meet_at(barrier: Barrier) -> None:
    global together  # noqa: PLW0603  # a barrier reaches a process only when that begins
    together = barrier


def write_one(place: Place, number: int) -> str:
    """In a process of its own: write a document."""
    store = place.open()
    return store.put(new_document(f"from_process_{number}")).rev


def claim_all(place: Place, number: int) -> list[str]:
    """In a process of its own: claim every pending run, each at the same moment as the other processes do."""
    statusdb = StatusDB(place.open(), never_stop)
    won = []
    for document in sorted(statusdb.pending(), key=lambda document: str(document["_id"])):
        together.wait(PATIENCE_SECONDS)
        if statusdb.claim(Run(Path(document["path"])), f"worker_{number}", document):
            won.append(document["_id"])
    return won


def prepare_and_write(place: Place, number: int) -> str:
    """In a process of its own: make the database, at the same moment as others, and use it."""
    store = place.open()
    together.wait(PATIENCE_SECONDS)
    store.prepare()
    return store.put(new_document(f"run_{number}")).rev
