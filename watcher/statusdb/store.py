"""What the status database asks of a document store: little enough for CouchDB and SQLite alike.

The contract, which one suite of tests holds against every store:

- `put` compares `_rev` and writes in one step; a stale or missing `_rev` raises Conflict.
- What a store cannot do now raises StatusDBUnavailable. The write may then have happened or not.
- Documents are plain JSON mappings with `_id` and, once stored, `_rev`. A store promises nothing else about them.
- One document that cannot be decoded costs no other: it comes as an `Unreadable` in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from watcher.errors import StatusDBUnavailable, WatcherError
from watcher.model import Document, Status


class Conflict(WatcherError):
    """The document has another revision than the one that the write was made for."""


class FeedLost(WatcherError):
    """The place in the changes from which to go on is not known to the store any more."""


class Undecodable(StatusDBUnavailable):
    """The answer is whole, but holds something that Python's JSON decoder does not take. Asking again does not help."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Unreadable:
    """A document that is set aside, and what is wrong with it."""

    run_id: str
    reason: str

    def __str__(self) -> str:
        return f"the document of run '{self.run_id}' is unreadable: {self.reason}; mend or delete it"


Found = Document | Unreadable


@dataclass(frozen=True)
class Written:
    """A write's new revision. `confirmed` is False when too few nodes of a cluster have it to be sure of it."""

    rev: str
    confirmed: bool = True


@dataclass(frozen=True)
class Changes:
    """Documents that changed (`_deleted` among them), from where to ask for the next, and what is set aside."""

    documents: tuple[Document, ...]
    since: str
    unreadable: tuple[Unreadable, ...] = ()


class DocumentStore(Protocol):
    """A store of run documents. Safe to use from several threads."""

    def prepare(self) -> None:
        """Create what is missing (database, views), or raise ConfigError with what an administrator must do."""

    def verify(self) -> None:
        """Raise ConfigError if something is missing; create nothing."""

    def describe(self) -> str:
        """Return one line for people: which server or file this is, and its version."""

    def get(self, run_id: str) -> Found | None:
        """Return the document, or None."""

    def get_many(self, run_ids: Sequence[str]) -> list[Found]:
        """Return those of the documents that exist, in one request if all can be decoded."""

    def with_status(self, status: Status) -> list[Found]:
        """Return all documents of this status."""

    def count_by_status(self) -> dict[str, int]:
        """Return how many documents have each status."""

    def put(self, document: Document) -> Written:
        """Write a document over the revision that it names (none: it must be new). Raises Conflict."""

    def insert_many(self, documents: Iterable[Document]) -> set[str]:
        """Write new documents in one request; return the ids of those that were new."""

    def settle(self, document: Document) -> Document:
        """Make the document's revision the current one and delete its conflicting ones; return what then stands.

        Where a conflicting one says that the run is recorded, that one stays instead.
        """

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since`, waiting up to `wait_seconds` for something; None: from now on.

        Raises FeedLost when the store refuses `since`.
        """

    def close(self) -> None:
        """Give back connections."""


def why_undecodable(error: Exception) -> str:
    """Return the words for what Python's JSON decoder raised."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return "it is not JSON"
    return "it holds a number with too many digits"
