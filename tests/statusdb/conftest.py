"""Fixtures of the status database's tests: one database, on each kind of store."""

from __future__ import annotations

from pathlib import Path

import pytest
from couchdb_server import Database
from databases import CouchDatabase, Direct, Place, SQLiteFile, login_of

from watcher.statusdb import DocumentStore


@pytest.fixture(params=["sqlite", "couchdb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A prepared, empty status database."""
    if request.param == "sqlite":
        made: Place = SQLiteFile(tmp_path / "status.db")
    else:
        made = CouchDatabase(login_of(request.getfixturevalue("couchdb_database")))
    made.open().prepare()
    return made


@pytest.fixture
def store(place: Place) -> DocumentStore:
    """A store on that database."""
    return place.open()


@pytest.fixture
def couch(couchdb_database: Database) -> CouchDatabase:
    """A prepared, empty status database on a CouchDB."""
    made = CouchDatabase(login_of(couchdb_database))
    made.open().prepare()
    return made


@pytest.fixture
def direct(couchdb_database: Database) -> Direct:
    """The CouchDB database itself, beside our own code."""
    return Direct(couchdb_database)
