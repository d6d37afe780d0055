"""Documents as they are read, one by one, many at once, and by their status."""

from __future__ import annotations

import json
from collections.abc import Sequence

from watcher.model import Document, Status
from watcher.statusdb.couchdb.answers import part
from watcher.statusdb.couchdb.connection import Connection, quoted
from watcher.statusdb.couchdb.design import VIEW_PATH
from watcher.statusdb.store import Found, Undecodable, Unreadable

BATCH = 1000
"""Ids in one request."""


def get(connection: Connection, run_id: str) -> Found | None:
    """Return the document, or None. It has `_conflicts` where a cluster has other revisions beside this one."""
    try:
        found: Document | None = connection.ask("GET", quoted(run_id), absent=None, conflicts="true")
    except Undecodable as error:
        return Unreadable(run_id, error.reason)
    if found is not None:
        part(found, "_rev")
    return found


def get_many(connection: Connection, run_ids: Sequence[str]) -> list[Found]:
    """Return those of the documents that exist, a thousand a request."""
    found: list[Found] = []
    for start in range(0, len(run_ids), BATCH):
        found += _some(connection, list(run_ids[start : start + BATCH]))
    return found


def with_status(connection: Connection, status: Status) -> list[Found]:
    """Return all documents of this status."""
    wanted = {"key": json.dumps(status), "reduce": "false"}
    try:
        rows = part(connection.ask("GET", VIEW_PATH, include_docs="true", **wanted), "rows")
    except Undecodable:
        found = get_many(connection, [row["id"] for row in part(connection.ask("GET", VIEW_PATH, **wanted), "rows")])
    else:
        found = [row["doc"] for row in rows if row.get("doc")]
    # The view may trail the documents that come with it.
    return [one for one in found if isinstance(one, Unreadable) or one.get("status") == status]


def count_by_status(connection: Connection) -> dict[str, int]:
    """Return how many documents have each status."""
    try:
        rows = part(connection.ask("GET", VIEW_PATH, group="true"), "rows")
    except Undecodable:
        # Another program's `status` is in the answer. Ours are asked for one by one.
        asked = [part(connection.ask("GET", VIEW_PATH, key=json.dumps(one), group="true"), "rows") for one in Status]
        rows = [row for some in asked for row in some]
    # Another program's `status` may be no text.
    return {row["key"]: row["value"] for row in rows if isinstance(row["key"], str)}


def _some(connection: Connection, run_ids: list[str]) -> list[Found]:
    """Return those of the documents that exist. If the answer cannot be decoded, ask for each half of them."""
    try:
        rows = part(connection.ask("POST", "_all_docs", {"keys": run_ids}, include_docs="true"), "rows")
    except Undecodable as error:
        if len(run_ids) == 1:
            return [Unreadable(run_ids[0], error.reason)]
        half = len(run_ids) // 2
        return _some(connection, run_ids[:half]) + _some(connection, run_ids[half:])
    return [row["doc"] for row in rows if row.get("doc")]
