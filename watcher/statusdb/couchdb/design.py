"""The database and the view in it by which runs are found by their status."""

from __future__ import annotations

import json
import shlex
from urllib.parse import quote

from watcher.errors import ConfigError
from watcher.model import Document
from watcher.statusdb.couchdb.answers import Absent, DatabaseMissing, Forbidden
from watcher.statusdb.couchdb.connection import Connection
from watcher.statusdb.store import Conflict

DESIGN = "dataflow_archive"
VIEW = "by_status"
DESIGN_PATH = f"_design/{DESIGN}"
VIEW_PATH = f"{DESIGN_PATH}/_view/{VIEW}"
DESIGN_DOCUMENT: Document = {
    "_id": DESIGN_PATH,
    "language": "javascript",
    "views": {VIEW: {"map": "function (doc) { if (doc.status) emit(doc.status, null); }", "reduce": "_count"}},
}


def prepare(connection: Connection) -> None:
    """Create the database and our view where they are missing and our rights allow it.

    A design document of our name that lacks our view gets it, and keeps what else is in it. Raises
    ConfigError with the command for an administrator where our rights do not allow it, and
    StatusDBRefused for a wrong user or password.
    """
    try:
        connection.ask("GET", "")
    except DatabaseMissing:
        _create(connection, "", f"database '{connection.login.database}' does not exist", None)
    design = connection.ask("GET", DESIGN_PATH, absent={})
    if not _has_our_view(design):
        _create(connection, DESIGN_PATH, f"view '{DESIGN}/{VIEW}' does not exist", _with_our_view(design))


def verify(connection: Connection) -> None:
    """Raise ConfigError if the database or our view is missing."""
    try:
        connection.ask("GET", "")
        _require_view(connection)
    except (DatabaseMissing, Absent) as error:
        raise ConfigError(f"statusdb: {error}; the watcher makes it when it starts, if it may") from error


def _require_view(connection: Connection) -> None:
    login = connection.login
    if not _has_our_view(connection.ask("GET", DESIGN_PATH)):
        raise Absent(f"'{login.url}' has no view '{login.database}/{DESIGN_PATH}/{VIEW}'")


def _create(connection: Connection, path: str, what: str, body: Document | None) -> None:
    login = connection.login
    try:
        connection.ask("PUT", path, body)
    except Forbidden as error:
        target = f"{login.url}/{quote(login.database, safe='')}/{path}".rstrip("/")
        command = ["curl", "-u", "ADMIN", "-X", "PUT", target]
        if body:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        raise ConfigError(
            f"statusdb: {what} and {login.who} may not create it; an administrator runs: {shlex.join(command)}"
        ) from error
    except Conflict:
        return  # another worker has made it at the same moment


def _has_our_view(design: Document) -> bool:
    return VIEW in (design.get("views") or {})


def _with_our_view(design: Document) -> Document:
    return {**DESIGN_DOCUMENT, **design, "views": {**(design.get("views") or {}), **DESIGN_DOCUMENT["views"]}}
