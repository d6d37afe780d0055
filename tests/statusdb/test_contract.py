"""What every document store promises: one suite for SQLite, for a CouchDB-compatible server, and for a real one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from databases import Place, claim_all, in_processes, in_threads, new_document, statusdb_of, stored, write_one
from sites import PATIENCE_SECONDS

from watcher.model import Claim, Document, Run, Status
from watcher.statusdb import DocumentStore, StatusDB
from watcher.statusdb.store import Conflict

AWKWARD_IDS = (
    "run 001",
    "run+001",
    "run%20001",
    "run%2B001",
    "it's",
    'a "quoted" one',
    "'; drop table documents; --",
    "-rf",
    "--help",
    "+",
    "100%",
    "a:b",
    "what?",
    "what?rev=1-a",
    "no#1",
    "a&b=c;d",
    "back\\slash",
    "two\nlines",
    "tab\there",
    "{}[]<>|^`",
    "~",
    "...",
    "Größe_跑_🧬",
    "x" * 200,
    "ü" * 100,
)

WAIT_SECONDS = 30.0
"""How long `changes` may wait in a test that ends the waiting."""


def test_a_document_is_read_back_as_it_was_written(store: DocumentStore) -> None:
    document = new_document("run_001", theirs={"list": [1, 2.5, None, True], "text": "Größe 🧬\n"}, empty={})
    assert store.get("run_001") is None
    written = stored(store, document)
    assert store.get("run_001") == written


def test_two_stores_on_one_database_see_the_same(place: Place) -> None:
    written = stored(place.open(), new_document("run_001"))
    assert place.open().get("run_001") == written


def test_every_awkward_name_is_a_document_of_its_own(store: DocumentStore) -> None:
    written = {name: stored(store, new_document(name)) for name in AWKWARD_IDS}
    assert {name: store.get(name) for name in AWKWARD_IDS} == written
    assert {document["_id"]: document for document in store.get_many(AWKWARD_IDS)} == written
    assert sorted(document["_id"] for document in store.with_status(Status.PENDING)) == sorted(AWKWARD_IDS)


def test_a_document_with_an_awkward_name_changes_like_any_other(store: DocumentStore) -> None:
    for name in AWKWARD_IDS:
        first = stored(store, new_document(name))
        second = stored(store, {**first, "status": "failed"})
        with pytest.raises(Conflict):
            store.put(first)
        assert store.get(name) == second


def test_awkward_names_are_inserted_together(store: DocumentStore) -> None:
    assert store.insert_many(new_document(name) for name in AWKWARD_IDS) == set(AWKWARD_IDS)
    assert store.insert_many(new_document(name) for name in AWKWARD_IDS) == set()


def test_a_new_document_over_an_existing_one_is_a_conflict_and_changes_nothing(store: DocumentStore) -> None:
    written = stored(store, new_document("run_001"))
    with pytest.raises(Conflict, match="run_001"):
        store.put(new_document("run_001", status="failed"))
    assert store.get("run_001") == written


def test_a_write_over_an_old_revision_is_a_conflict_and_changes_nothing(store: DocumentStore) -> None:
    old = stored(store, new_document("run_001"))
    new = stored(store, {**old, "status": "processing"})
    with pytest.raises(Conflict):
        store.put({**old, "status": "failed"})
    assert store.get("run_001") == new


def test_each_write_gives_another_revision_and_confirms_it(store: DocumentStore) -> None:
    document = new_document("run_001")
    revisions = []
    for _ in range(3):
        written = store.put(document)
        assert written.confirmed
        document["_rev"] = written.rev
        revisions.append(written.rev)
    assert len(set(revisions)) == 3


def test_a_write_does_not_change_the_value_that_it_is_given(store: DocumentStore) -> None:
    document = new_document("run_001")
    store.put(document)
    assert document == new_document("run_001")


def test_many_are_read_at_once_and_the_missing_are_left_out(store: DocumentStore) -> None:
    names = [f"run_{number:04}" for number in range(2500)]
    store.insert_many(map(new_document, names[::2]))
    found = store.get_many(names)
    assert sorted(document["_id"] for document in found) == names[::2]
    assert found[0]["_rev"]
    assert store.get_many([]) == []


def test_many_are_inserted_at_once_and_those_that_exist_stay_as_they_are(store: DocumentStore) -> None:
    there = stored(store, new_document("run_002", status="encrypted"))
    new = store.insert_many([new_document("run_001"), new_document("run_002"), new_document("run_003")])
    assert new == {"run_001", "run_003"}
    assert store.get("run_002") == there
    assert store.insert_many([]) == set()


def test_of_two_new_documents_with_one_name_one_is_inserted(store: DocumentStore) -> None:
    assert store.insert_many([new_document("run_001"), new_document("run_001")]) == {"run_001"}
    found = store.get("run_001")
    assert found is not None
    assert found["status"] == "pending"


def test_documents_are_found_by_their_status_of_now(store: DocumentStore) -> None:
    first, second = stored(store, new_document("run_001")), stored(store, new_document("run_002"))
    assert store.with_status(Status.PENDING) == [first, second]
    changed = stored(store, {**first, "status": "processing"})
    assert store.with_status(Status.PENDING) == [second]
    assert store.with_status(Status.PROCESSING) == [changed]
    assert store.with_status(Status.FAILED) == []


def test_documents_are_counted_by_status(store: DocumentStore) -> None:
    assert store.count_by_status() == {}
    store.insert_many(new_document(f"run_{number}") for number in range(5))
    store.put(new_document("done", status="encrypted"))
    store.put({"_id": "no_run_s", "colour": "blue"})
    assert store.count_by_status() == {"pending": 5, "encrypted": 1}


def test_changes_from_now_on_are_none_of_what_was_before(store: DocumentStore) -> None:
    store.put(new_document("before"))
    now = store.changes(None, WAIT_SECONDS)
    assert now.documents == ()
    assert store.changes(now.since, 0).documents == ()


def test_changes_tell_each_documents_last_state_once(store: DocumentStore) -> None:
    since = store.changes(None, 0).since
    first = stored(store, new_document("run_001"))
    second = stored(store, new_document("run_002"))
    last = stored(store, {**first, "status": "processing"})
    changes = store.changes(since, WAIT_SECONDS)
    assert list(changes.documents) == [second, last]
    assert store.changes(changes.since, 0).documents == ()


def test_changes_go_on_from_where_they_were_left_by_another_process(place: Place) -> None:
    one, other = place.open(), place.open()
    since = one.changes(None, 0).since
    one.put(new_document("run_001"))
    seen = one.changes(since, WAIT_SECONDS)
    later = stored(one, new_document("run_002"))
    assert list(other.changes(seen.since, WAIT_SECONDS).documents) == [later]


def test_more_changes_than_one_answer_takes_come_with_the_next(store: DocumentStore) -> None:
    since = store.changes(None, 0).since
    names = [f"run_{number:04}" for number in range(2300)]
    store.insert_many(map(new_document, names))
    told: list[str] = []
    while changes := store.changes(since, 0).documents:
        told += [document["_id"] for document in changes]
        since = store.changes(since, 0).since
    assert sorted(told) == names


def test_waiting_for_changes_ends_with_a_write_of_another_process(place: Place) -> None:
    store = place.open()
    since = store.changes(None, 0).since
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.changes, since, WAIT_SECONDS)
        assert len(in_processes(write_one, place, 1)) == 1
        changes = waiting.result(PATIENCE_SECONDS)
    assert [document["_id"] for document in changes.documents] == ["from_process_0"]


def test_waiting_for_changes_ends_with_a_write_of_the_same_store(store: DocumentStore) -> None:
    since = store.changes(None, 0).since
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.changes, since, WAIT_SECONDS)
        written = stored(store, new_document("run_001"))
        assert list(waiting.result(PATIENCE_SECONDS).documents) == [written]


def test_a_document_that_nobody_conflicts_with_is_settled_as_it_is(store: DocumentStore) -> None:
    written = stored(store, new_document("run_001", claim={"token": "a"}))
    assert store.settle(written) == written
    assert store.get("run_001") == written


def test_preparing_again_changes_nothing(place: Place) -> None:
    store = place.open()
    written = stored(store, new_document("run_001"))
    store.prepare()
    place.open().prepare()
    store.verify()
    assert store.with_status(Status.PENDING) == [written]


def test_a_closed_store_opens_again_when_it_is_used(store: DocumentStore) -> None:
    written = stored(store, new_document("run_001"))
    store.close()
    store.close()
    assert store.get("run_001") == written


def test_a_store_says_what_it_is(store: DocumentStore) -> None:
    assert store.describe().startswith(("SQLite 3.", "CouchDB "))


def write_over(store: DocumentStore, document: Document, thread: int) -> bool:
    try:
        return store.put({**document, "writer": thread}).confirmed
    except Conflict:
        return False


def test_of_threads_that_write_one_revision_at_once_one_is_confirmed(store: DocumentStore) -> None:
    for number in range(20):
        document = stored(store, new_document(f"run_{number}"))

        won = in_threads(partial(write_over, store, document), 6)
        assert sorted(won) == [False] * 5 + [True]
        found = store.get(str(document["_id"]))
        assert found is not None
        assert found["writer"] == won.index(True)


def claim_for(statusdb: StatusDB, run: Run, document: Document, thread: int) -> Claim | None:
    return statusdb.claim(run, f"worker_{thread}", document)


def test_of_threads_that_claim_a_run_at_once_one_has_it(store: DocumentStore) -> None:
    statusdb = statusdb_of(store)
    for number in range(20):
        run = Run(Path(f"/data/sequencer_A/run_{number}"))
        statusdb.register([run])
        document = statusdb.claimable(run)
        assert document is not None
        [claim] = filter(None, in_threads(partial(claim_for, statusdb, run, document), 6))
        assert statusdb.get(run.name) == claim.document


def test_of_processes_that_claim_a_run_at_once_one_has_it(place: Place) -> None:
    statusdb = statusdb_of(place.open())
    names = [f"run_{number:02}" for number in range(40)]
    statusdb.register(Run(Path(f"/data/sequencer_A/{name}")) for name in names)
    won = in_processes(claim_all, place, 4)
    assert sorted(name for names in won for name in names) == names
    assert len(statusdb.processing()) == len(names)


def test_threads_share_a_store_for_reading_and_writing(store: DocumentStore) -> None:
    def work(thread: int) -> int:
        for number in range(10):
            document = stored(store, new_document(f"run_{thread}_{number}"))
            assert store.get(str(document["_id"])) == document
            store.put({**document, "status": "processing"})
        return len(store.with_status(Status.PROCESSING))

    assert max(in_threads(work, 5)) == 50
    assert store.count_by_status() == {"processing": 50}


def test_those_who_follow_see_every_change_of_many_writers(place: Place) -> None:
    store, since = place.open(), place.open().changes(None, 0).since
    told: set[str] = set()
    writers = threading.Thread(
        target=in_threads,
        args=(lambda thread: [store.put(new_document(f"run_{thread}_{number}")) for number in range(20)], 4),
    )
    writers.start()
    follower = place.open()
    while len(told) < 80:
        changes = follower.changes(since, WAIT_SECONDS)
        assert changes.documents, f"waited in vain for more than {len(told)}"
        told |= {document["_id"] for document in changes.documents}
        since = changes.since
    writers.join(PATIENCE_SECONDS)
    assert follower.changes(since, 0).documents == ()
