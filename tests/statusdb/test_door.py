"""The door: what is unreadable is set aside, named once, and costs nothing else."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from couchdb_server import Database
from databases import RUN, CouchDatabase, Pauses, SQLiteFile, login_of, new_document, statusdb_of
from forged import DEEP, HUGE, INFINITE, SURROGATE, ForgingProxy, forge

from watcher import model
from watcher.archiving import ArchiveStore, GarbageCollector
from watcher.errors import ClaimLost, UnknownRun
from watcher.model import Archive, Document, Phase, Progress, Run, Status
from watcher.statusdb import Changes, DocumentStore, StatusDB, Unreadable, door
from watcher.statusdb.door import MAX_REMEMBERED, Door, checked

ARCHIVE = Archive(
    "run_001.tar.gpg", 1, "a" * 64, "b" * 64, 2, "run_001.key.gpg", "c" * 64, "F" * 40, 3, ("w",), "d" * 32, "1-2"
)
GOOD: Document = {**new_document("run_001"), "path": str(RUN.path), "_rev": "1-a"}


@dataclasses.dataclass
class Cluster:
    """A database; `write` stores documents with marks, and whoever opens it afterwards finds what these stand for."""

    store: DocumentStore
    open: Callable[[], DocumentStore]
    forge: Callable[[], None]

    def write(self, *documents: Document) -> None:
        for document in documents:
            self.store.put(document)
        self.forge()


@pytest.fixture(params=["sqlite", "couchdb"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A prepared, empty database of each kind."""
    if request.param == "sqlite":
        file = SQLiteFile(tmp_path / "status.db")
        file.open().prepare()
        yield Cluster(file.open(), file.open, lambda: forge(file.path))
        return
    database: Database = request.getfixturevalue("couchdb_database")
    CouchDatabase(login_of(database)).open().prepare()
    with ForgingProxy(database.url) as proxy:
        through = CouchDatabase(login_of(database, proxy.url))
        yield Cluster(CouchDatabase(login_of(database)).open(), through.open, lambda: None)


def names(documents: list[Document]) -> set[str]:
    return {document["_id"] for document in documents}


def test_a_document_that_this_program_writes_is_readable_in_every_status() -> None:
    run, now = RUN, StatusDB(SQLiteFile(Path("unused")).open(), Pauses())._now()
    pending = {**model.registered(run, now), "_rev": "1-a"}
    held = model.claimed(pending, "worker_1", "e" * 32, now)
    renewed = model.renewed(held, Progress(Phase.ARCHIVING, 1, 2), now)
    announced = model.announced(renewed, ARCHIVE, now)
    failed = model.failed(announced, ValueError("words"), 60, now)
    unsettled = model.released(model.unsettled(announced, now), None, 60, now)
    for document in (pending, held, renewed, announced, failed, unsettled, model.recorded(announced, ARCHIVE, now)):
        assert checked(document) is document


@pytest.mark.parametrize(
    "fields",
    [
        {"failure_count": "many"},
        {"failure_count": None, "worker_id": None, "claim": None, "archive": None, "last_error": None},
        {"not_before": "soon", "last_error": {"words": "none of ours"}, "comment": ["[" * 200, "{" * 200]},
        {"status": "encrypted", "archive": {}},
        {"status": "encrypted", "archive": {"file": "run_001.tar.gpg", "signature": [1, {"by": "us"}]}},
        {"status": "archived", "path": 5, "comment": float("inf")},
        {"status": None, "path": "\ud800"},
    ],
    ids=str,
)
def test_a_document_of_an_earlier_version_or_another_program_is_readable(fields: Document) -> None:
    document = {**GOOD, **fields}
    assert checked(document) is document


def within(depth: int) -> Any:
    """Return so many arrays within each other."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"path": 5}, "path is a number"),
        ({"path": None}, "path is missing"),
        ({"path": ""}, "path is not an absolute path"),
        ({"path": "run_001"}, "path is not an absolute path"),
        ({"path": "/data//A/run_001"}, "path is not an absolute path"),
        ({"path": "/data/\0/run_001"}, "path is not an absolute path"),
        ({"path": "/data/A/../run_001"}, "path does not end in _id"),
        ({"path": "/data/A/run_002"}, "path does not end in _id"),
        ({"path": "/data/\ud800/run_001"}, "a text in it is not valid Unicode"),
        ({"_id": "..", "path": "/data/A/.."}, "_id is not the name of a run"),
        ({"_id": "_run", "path": "/data/A/_run"}, "_id is not the name of a run"),
        ({"_id": "A/run", "path": "/data/A/run"}, "_id is not the name of a run"),
        ({"_id": "x" * 248, "path": "/data/A/" + "x" * 248}, "_id is not the name of a run"),
        ({"_rev": 1}, "no _rev"),
        ({"worker_id": 5}, "worker_id is a number"),
        ({"updated_at": ["today"]}, "updated_at is an array"),
        ({"last_claim": {}}, "last_claim is an object"),
        ({"last_error": "bad luck"}, "last_error is a text"),
        ({"claim": "mine"}, "claim is a text"),
        ({"claim": {"token": 5}}, "claim.token is a number"),
        ({"claim": {"bytes_total": "many"}}, "claim.bytes_total is a text"),
        ({"claim": {"bytes_done": -1}}, "claim.bytes_done is a number that is negative"),
        ({"archive": []}, "archive is an array"),
        ({"archive": {"size": "1"}}, "archive.size is a text"),
        ({"archive": {"size": True}}, "archive.size is true or false"),
        ({"archive": {"tar_size": 2**63}}, "archive.tar_size is a number that is negative or too large"),
        ({"archive": {"file": "../run_001.tar.gpg"}}, "archive.file is not <_id>.tar.gpg"),
        ({"archive": {"key_file": "run_001.tar.gpg"}}, "archive.key_file is not <_id>.key.gpg"),
        ({"archive": {"token": "d" * 300}}, "archive.token is not 32 hexadecimal digits"),
        ({"archive": {"token": "d" * 32 + "\n"}}, "archive.token is not 32 hexadecimal digits"),
        ({"archive": {"token": ""}}, "archive.token is not 32 hexadecimal digits"),
        ({"archive": {"recipient": "\udfff"}}, "a text in it is not valid Unicode"),
        ({"archive": {"warnings": [5]}}, "archive.warnings is an array"),
        ({"comment": float("nan")}, "a number in it is not finite"),
        ({"comment": {"\ud800": 1}}, "a text in it is not valid Unicode"),
        ({"comment": within(110)}, "it is nested too deeply"),
        ({"comment": within(900)}, "it is nested too deeply"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_run_document_in_another_form_than_ours_is_unreadable(fields: Document, words: str) -> None:
    found = checked({**GOOD, **fields})
    assert isinstance(found, Unreadable)
    assert words in found.reason


@pytest.mark.parametrize("mark", [DEEP, HUGE, INFINITE, SURROGATE])
def test_one_unreadable_document_keeps_no_other_from_being_read(mark: str, cluster: Cluster) -> None:
    statusdb = statusdb_of(cluster.open())
    since = statusdb.changes(None, 0).since
    cluster.write(*(new_document(f"run_{number}") for number in range(5)), new_document("bad", comment=mark))
    honest = {f"run_{number}" for number in range(5)}
    runs = [Run(Path("/data") / name) for name in ("bad", *sorted(honest), "fresh")]
    assert names(statusdb.pending()) == honest
    assert statusdb.processing() == []
    changes = statusdb.changes(since, 0)
    assert names(list(changes.documents)) == honest
    assert statusdb.changes(changes.since, 0) == Changes((), changes.since)
    assert statusdb.known(runs).keys() == honest
    registration = statusdb.register(runs)
    assert ([run.name for run in registration.new], registration.collisions) == (["fresh"], ())
    assert names(list(registration.known)) == honest | {"fresh"}
    assert (statusdb.get("bad"), statusdb.claimable(runs[0])) == (None, None)
    assert [one.run_id for one in statusdb.unreadable()] == ["bad"]
    assert statusdb.count_by_status()["pending"] == 7


@pytest.mark.parametrize("mark", [DEEP, HUGE, SURROGATE])
def test_a_command_about_an_unreadable_document_ends_with_what_is_wrong(mark: str, cluster: Cluster) -> None:
    cluster.write(new_document("bad", status="failed", comment=mark))
    statusdb = statusdb_of(cluster.open())
    for ask in (statusdb.demand, statusdb.retry):
        with pytest.raises(UnknownRun, match=r"document of run 'bad' is unreadable: .*; mend or delete it"):
            ask("bad")
    for name in ("absent", "\udcff"):
        with pytest.raises(UnknownRun, match="is not in the status database"):
            statusdb.retry(name)


def test_an_unreadable_document_is_named_once_and_again_when_it_was_mended(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    cluster.write(new_document("bad", comment=DEEP))
    statusdb = statusdb_of(cluster.open())
    for _ in range(3):
        assert statusdb.pending() == []
        statusdb.register([Run(Path("/data/bad"))])
    assert told() == ["the document of run 'bad' is unreadable: it is nested too deeply; mend or delete it"]
    there = cluster.store.get("bad")  # the CouchDB holds a mark, and may say the revision; the SQLite file has begun
    cluster.write(new_document("bad", _rev="1" if isinstance(there, Unreadable) or there is None else there["_rev"]))
    assert names(statusdb.pending()) == {"bad"}
    assert statusdb.unreadable() == ()
    cluster.write(new_document("bad", _rev=statusdb.demand("bad")["_rev"], comment=DEEP))
    assert statusdb.pending() == []
    assert len(told()) == 2


@pytest.mark.parametrize("mark", [SURROGATE, INFINITE])
def test_another_programs_document_is_not_checked(mark: str, cluster: Cluster) -> None:
    cluster.write({"_id": "theirs", "comment": mark}, {"_id": "theirs_too", "status": mark, "path": 5})
    statusdb = statusdb_of(cluster.open())
    runs = [Run(Path("/data/theirs")), Run(Path("/data/theirs_too"))]
    assert [run for run, _ in statusdb.register(runs).collisions] == runs
    assert statusdb.unreadable() == ()


@pytest.mark.parametrize("mark", [DEEP, HUGE])
def test_counts_are_told_whatever_status_another_program_has_written(mark: str, couchdb_database: Database) -> None:
    store = CouchDatabase(login_of(couchdb_database)).open()
    store.prepare()
    store.put(new_document("run_001"))
    store.put({"_id": "theirs", "status": mark})
    with ForgingProxy(couchdb_database.url) as proxy:
        assert CouchDatabase(login_of(couchdb_database, proxy.url)).open().count_by_status() == {"pending": 1}


@pytest.mark.parametrize("cluster", ["couchdb"], indirect=True)  # what is deleted in SQLite is counted, not listed
def test_a_deletion_is_heard_beside_an_unreadable_document(cluster: Cluster) -> None:
    statusdb = statusdb_of(cluster.open())
    since = statusdb.changes(None, 0).since
    cluster.write(new_document("bad", comment=DEEP), new_document("run_1"), new_document("run_2"))
    rev = statusdb.demand("run_1")["_rev"]
    cluster.store.put({"_id": "run_1", "_rev": rev, "_deleted": True})
    documents = statusdb.changes(since, 0).documents
    assert {(one["_id"], bool(one.get("_deleted"))) for one in documents} == {("run_1", True), ("run_2", False)}


@pytest.mark.parametrize("fields", [{"comment": DEEP}, {"comment": HUGE}, {"archive": {"size": "text"}}], ids=str)
def test_a_claim_whose_document_becomes_unreadable_is_lost(fields: Document, cluster: Cluster) -> None:
    statusdb = statusdb_of(cluster.open())
    statusdb.register([RUN])
    document = statusdb.demand("run_001")
    claim = statusdb.claim(RUN, "worker_1", document)
    assert claim is not None
    cluster.write({**claim.document, **fields})
    renew = Progress(Phase.ARCHIVING)
    with pytest.raises(ClaimLost, match=r"is unreadable: .*: the claim is lost"):
        statusdb.renew({**claim.document, "_rev": document["_rev"]}, claim.token, renew)


def test_a_claim_over_an_unreadable_document_is_none(cluster: Cluster) -> None:
    statusdb = statusdb_of(cluster.open())
    statusdb.register([RUN])
    document = statusdb.demand("run_001")
    cluster.write({**document, "comment": DEEP})
    assert statusdb.claim(RUN, "worker_1", document) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("body = '{broken'", "it is not JSON"),
        ("body = '[1, 2]'", "it is not a JSON object"),
        ("body = 5", "it is not a JSON object"),
        ("body = json_remove(body, '$._id')", "its _id is not the id of its row"),
        ("body = json_set(body, '$._id', 'run_2')", "its _id is not the id of its row"),
        ("body = cast(x'7b22ff227d' as text)", "it is not UTF-8"),
        ("body = x'ff'", "it is not UTF-8"),
        ("rev = 'first'", "the rev of its row is not an integer"),
        ("rev = cast(x'ff' as text)", "the rev of its row is not an integer"),
    ],
)
def test_an_sqlite_row_that_is_no_document_is_set_aside(change: str, words: str, tmp_path: Path) -> None:
    file = SQLiteFile(tmp_path / "status.db")
    statusdb = statusdb_of(file.open())
    statusdb.prepare()
    since = statusdb.changes(None, 0).since
    statusdb.register([Run(Path("/data/A/run_1")), Run(Path("/data/A/bad"))])
    with sqlite3.connect(file.path) as connection:
        connection.execute(f"update documents set {change} where id = 'bad'")
    connection.close()
    assert names(statusdb.pending()) == names(list(statusdb.changes(since, 0).documents)) == {"run_1"}
    assert statusdb.unreadable() == (Unreadable("bad", words),)
    registration = statusdb.register([Run(Path("/data/A/run_1")), Run(Path("/data/A/bad"))])
    assert (registration.new, registration.collisions) == ((), ())


def test_an_sqlite_column_of_another_type_keeps_no_other_row_from_being_read(tmp_path: Path) -> None:
    file = SQLiteFile(tmp_path / "status.db")
    statusdb = statusdb_of(file.open())
    statusdb.prepare()
    since = statusdb.changes(None, 0).since
    statusdb.register([Run(Path("/data/A/run_1"))])
    with sqlite3.connect(file.path) as connection:
        connection.execute("insert into documents (id, rev, status, body) values (x'ff', 1, 'pending', x'ff')")
        connection.execute("insert into documents (id, rev, status, body) values (cast(x'fe' as text), 1, x'ff', '{}')")
    connection.close()
    assert names(statusdb.pending()) == {"run_1"}
    assert "run_1" in names(list(statusdb.changes(since, 0).documents))
    assert statusdb.count_by_status()["pending"] == 2


def test_what_is_staged_for_a_run_with_an_unreadable_document_is_no_garbage(tmp_path: Path, cluster: Cluster) -> None:
    (tmp_path / "keys").mkdir()
    archive_store, token = ArchiveStore(tmp_path, tmp_path / "keys"), "a" * 32
    kept = [archive_store.staged_archive("bad", token), archive_store.staged_key("bad", token)]
    swept = archive_store.staged_archive("gone", "b" * 32)
    for path in (*kept, swept):
        path.touch()
        os.utime(path, (0, 0))
    cluster.write(new_document("bad", status="failed", comment=DEEP))
    GarbageCollector(statusdb_of(cluster.open()), archive_store).collect()
    assert all(path.exists() for path in kept)
    assert not swept.exists()


def test_the_memory_of_unreadable_documents_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, door.__name__)
    full = Door()
    assert full.readable(Unreadable(str(number), "bad") for number in range(MAX_REMEMBERED)) == []
    assert not full.is_full
    caplog.set_level(logging.WARNING, door.__name__)
    for _ in range(2):
        assert full.readable(Unreadable(f"more_{number}", "bad") for number in range(3)) == []
    assert (len(full.set_aside()), full.is_full) == (MAX_REMEMBERED, True)
    assert len(caplog.records) == 1


def test_a_status_that_the_view_has_and_the_document_has_not_is_not_listed(tmp_path: Path) -> None:
    file = SQLiteFile(tmp_path / "status.db")
    statusdb = statusdb_of(file.open())
    statusdb.prepare()
    statusdb.register([RUN])
    with sqlite3.connect(file.path) as connection:
        connection.execute("update documents set body = ?", (json.dumps({**GOOD, "status": "encrypted"}),))
    connection.close()
    assert statusdb.with_status(Status.PENDING) == []
