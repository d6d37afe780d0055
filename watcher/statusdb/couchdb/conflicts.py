"""A cluster's nodes that were cut off from each other may each have a revision of a document: one must stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from watcher import model
from watcher.model import Document, Status
from watcher.statusdb.couchdb.connection import Connection, quoted
from watcher.statusdb.store import Conflict, Written


def settle(connection: Connection, put: Callable[[Document], Written], document: Document) -> Document:
    """Make our branch the longest where others conflict with it, then delete the others' leaves.

    If another branch says that the run is recorded, that branch stays and ours is deleted: while the nodes were
    apart, two workers may have gone on. Called again after a lost answer, it goes on from what is left.
    Returns the document that stays. Raises Conflict if somebody else writes meanwhile.
    """
    path = quoted(document["_id"])
    current = connection.ask("GET", path, absent=None, conflicts="true")
    if current is None:
        return document
    leaves = {current["_rev"], *current.pop("_conflicts", ())}
    ours = document if document["_rev"] in leaves else current
    if len(leaves) == 1 or not model.is_same_claim(ours, document):
        return document  # if another worker wrote it, our next write conflicts
    kept = _recorded(connection, path, leaves) or ours
    settled = kept if kept is not ours else {**ours, "_rev": put(ours).rev}
    for rev in leaves - {kept["_rev"]}:
        with suppress(Conflict):  # deleted already, or another worker wrote over it: our next write conflicts
            connection.ask("DELETE", path, absent={}, rev=rev)
    return settled


def _recorded(connection: Connection, path: str, leaves: Iterable[str]) -> Document | None:
    found = (connection.ask("GET", path, absent={}, rev=rev) for rev in leaves)
    return next((leaf for leaf in found if model.status_of(leaf) is Status.ENCRYPTED), None)
