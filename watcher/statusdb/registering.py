"""Registering: runs that have no document get one, a thousand in one request."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from watcher import model
from watcher.model import Document, Run, Status
from watcher.statusdb.access import Access
from watcher.statusdb.door import is_utf8
from watcher.statusdb.store import Found, Unreadable

BATCH = 1000
"""Runs asked for in one request."""


@dataclass(frozen=True)
class Registration:
    """What `register` found: runs that are new, runs that are known, and runs whose name another path has already.

    A run collides, too, if the document of its name belongs to no run, or if the database refuses its document.
    A run whose document is unreadable is in none of these.
    """

    new: tuple[Run, ...]
    known: tuple[Document, ...]
    collisions: tuple[tuple[Run, Document], ...]


def register(access: Access, runs: Iterable[Run], now: datetime) -> Registration:
    """Make a pending document for each run that has none, a thousand in one request.

    Two of `runs` with the same name collide. A run whose path is not UTF-8 collides as well: CouchDB would refuse the
    whole request.
    """
    wanted: dict[str, Run] = {}
    seen: dict[Path, Run] = {}
    for run in runs:
        seen[run.path] = run
        if is_utf8(str(run.path)):
            wanted.setdefault(run.name, run)
    found, new = _known_or_new(access, list(wanted.values()), now)
    documents = {name: one for name, one in found.items() if not isinstance(one, Unreadable)}
    return Registration(
        new=tuple(wanted[name] for name in new),
        known=tuple(document for document in documents.values() if model.status_of(document)),
        collisions=tuple(
            (run, documents.get(run.name, {}))
            for run in seen.values()
            if not isinstance(found.get(run.name), Unreadable) and not is_of(documents.get(run.name, {}), run)
        ),
    )


def _known_or_new(access: Access, runs: Sequence[Run], now: datetime) -> tuple[dict[str, Found], list[str]]:
    found: dict[str, Found] = {}
    new: list[str] = []
    for start in range(0, len(runs), BATCH):
        batch = runs[start : start + BATCH]
        found |= access.read([run.name for run in batch])
        unknown = [model.registered(run, now) for run in batch if run.name not in found]
        if unknown:
            inserted = access.patiently(partial(access.store.insert_many, unknown))
            found |= {document["_id"]: document for document in unknown if document["_id"] in inserted}
            new += [document["_id"] for document in unknown if document["_id"] in inserted]
            # Another worker inserted it since we asked, or we did, and the answer was lost.
            found |= access.read([document["_id"] for document in unknown if document["_id"] not in inserted])
    return found, new


def is_of(document: Document, run: Run) -> bool:
    """Say whether a document is a run's, and this run's."""
    return model.status_of(document) is not None and document.get("path") == str(run.path)


def collision(run: Run, document: Document) -> str:
    """Return the words for a run whose name another path, or a document that is no run's, has."""
    if not document:
        return "the status database takes no document for it: its path is no UTF-8, or the database forbids it"
    if model.status_of(document) is None:
        return f"collision: document '{run.name}' in the status database is no run's; rename the run, or remove it"
    words = f"collision: '{model.path_of(document)}' has the same name and is registered; rename one of them"
    if model.status_of(document) in (Status.PENDING, Status.FAILED) and not os.path.lexists(model.path_of(document)):
        words += f" (that one is not here: if it was moved, document '{run.name}' may be deleted)"
    return words
