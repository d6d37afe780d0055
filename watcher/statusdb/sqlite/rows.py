"""Documents as rows of the table, and rows as documents."""

from __future__ import annotations

import json
import sqlite3

from watcher import model
from watcher.model import Document
from watcher.statusdb.store import Found, Unreadable, why_undecodable

REV = "case typeof(rev) when 'integer' then rev end"
"""A row's revision; null if the column holds something else, as any column of SQLite's may."""

ROW = f"cast(id as blob), cast(body as blob), {REV}"
"""What `found` takes. As blobs, since one text that is not UTF-8 would fail the whole query."""


def found(run_id: bytes, body: bytes, rev: int | None) -> Found:
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
    document.pop("_deleted", None)  # a document that has a row is not deleted, whatever it says
    return {**document, "_rev": str(rev)}


def write(connection: sqlite3.Connection, document: Document, rev: int) -> str:
    """Write the document's row, new or over the old one; return the revision as documents have it."""
    body = json.dumps({key: value for key, value in document.items() if key != "_rev"})
    connection.execute(
        "insert or replace into documents (id, rev, status, body) values (?, ?, ?, ?)",
        (document["_id"], rev, document.get("status"), body),
    )
    return str(rev)
