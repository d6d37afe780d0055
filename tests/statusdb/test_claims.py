"""Registering and claims, on every store; what is cut off in the middle is done once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from couchdb_replay import Exchange, ReplayServer
from couchdb_server import Database
from databases import (
    RUN,
    CouchDatabase,
    Direct,
    Faulty,
    Pauses,
    Place,
    SQLiteFile,
    login_of,
    new_document,
    statusdb_of,
    stored,
)
from fault_proxy import Fault, FaultProxy, Request

from watcher.errors import ClaimLost, NoSpace, RunNotSettled, StatusDBUnavailable, TarFailed, UnknownRun
from watcher.model import Archive, Claim, Document, Phase, Progress, Run, Status, path_of
from watcher.statusdb import DocumentStore, StatusDB
from watcher.statusdb.database import PAUSES_SECONDS

ARCHIVE = Archive("run_001.tar.gpg", 1, "a" * 64, "b" * 64, 2, "run_001.key.gpg", "c" * 64, "F" * 40, 3, token="d" * 32)

Operation = Callable[[StatusDB, Claim], Document]

OPERATIONS: Mapping[str, Operation] = {
    "renew": lambda statusdb, claim: statusdb.renew(
        claim.document, claim.token, Progress(Phase.ARCHIVING, bytes_done=5, bytes_total=9)
    ),
    "announce": lambda statusdb, claim: statusdb.announce(claim.document, claim.token, ARCHIVE),
    "release": lambda statusdb, claim: statusdb.release(claim.document, claim.token, NoSpace("full"), 60),
    "unsettled": lambda statusdb, claim: statusdb.unsettled(claim.document, claim.token, RunNotSettled("grows"), 60),
    "fail": lambda statusdb, claim: statusdb.fail(claim.document, claim.token, TarFailed("unreadable"), 60),
    "record": lambda statusdb, claim: statusdb.record(claim.document, claim.token, ARCHIVE),
}
"""Everything that the holder of a claim writes."""

ENDINGS = ("release", "unsettled", "fail", "record")

every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@dataclass
class Line:
    """The way to a database, and a knife: the next writes are lost before they arrive, or their answers are."""

    place: Place
    store: DocumentStore
    pauses: Pauses
    cut: Callable[[str, int], None]

    @property
    def statusdb(self) -> StatusDB:
        """The status database at the other end."""
        return StatusDB(self.store, self.pauses)

    def lose_requests(self, count: int = 1) -> None:
        """Let so many writes never arrive."""
        self.cut("before", count)

    def lose_answers(self, count: int = 1) -> None:
        """Let so many writes be done and their answers lost."""
        self.cut("after", count)

    def claim(self, worker_id: str = "worker_1") -> Claim | None:
        """Register the run and claim it."""
        self.statusdb.register([RUN])
        document = self.statusdb.claimable(RUN)
        assert document is not None
        return self.statusdb.claim(RUN, worker_id, document)

    def held(self) -> Claim:
        """Register the run and claim it, which cannot fail."""
        claim = self.claim()
        assert claim is not None
        return claim

    def document(self) -> Document:
        """Return the run's document as others see it."""
        found = self.place.open().get(RUN.name)
        assert found is not None
        return found

    def edit(self, **fields: Any) -> Document:
        """Change the document as another program does."""
        return stored(self.place.open(), {**self.document(), **fields})


def is_write(request: Request) -> bool:
    return request.method == "PUT"


@contextmanager
def through_proxy(database: Database) -> Iterator[tuple[CouchDatabase, FaultProxy]]:
    direct = CouchDatabase(login_of(database))
    direct.open().prepare()
    with FaultProxy(database.url) as proxy:
        yield CouchDatabase(login_of(database, proxy.url)), proxy


@pytest.fixture(params=["sqlite", "couchdb"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    """A line to a database of each kind."""
    if request.param == "sqlite":
        file = SQLiteFile(tmp_path / "status.db")
        file.open().prepare()
        faulty = Faulty(file.open())
        yield Line(file, faulty, Pauses(), lambda when, count: faulty.faults.extend([when] * count))
        return
    database = request.getfixturevalue("couchdb_database")
    kinds = {"before": Fault.RESET, "after": Fault.RESET_AFTER}
    with through_proxy(database) as (place, proxy):
        yield Line(
            CouchDatabase(login_of(database)),
            place.open(),
            Pauses(),
            lambda when, count: proxy.next(kinds[when], count, when=is_write),
        )


@pytest.fixture
def couch_line(couchdb_database: Database) -> Iterator[tuple[Line, FaultProxy]]:
    """A line to a CouchDB, and the proxy in it."""
    with through_proxy(couchdb_database) as (place, proxy):
        direct = CouchDatabase(login_of(couchdb_database))
        yield Line(direct, place.open(), Pauses(), lambda when, count: None), proxy


def essence(document: Document) -> Document:
    """Return what two documents share that were made by the same operations at different moments."""
    different = {
        "_rev",
        "_conflicts",
        "created_at",
        "updated_at",
        "not_before",
        "last_claim",
        "claim",
        "unsettled_since",
    }
    essence = {key: value for key, value in document.items() if key not in different}
    if "last_error" in document:
        essence["last_error"] = {**document["last_error"], "at": None}
    essence["history"] = [{**step, "at": None} for step in document["history"]]
    return {**essence, "claim": {**document.get("claim", {}), "token": None}}


def test_a_new_run_is_registered_and_pending(store: DocumentStore) -> None:
    now = datetime(2026, 4, 28, 10, 0, tzinfo=UTC)
    registration = StatusDB(store, Pauses(), now=lambda: now).register([RUN])
    assert (registration.new, registration.collisions) == ((RUN,), ())
    found = store.get("run_001")
    assert found is not None
    assert {key: value for key, value in found.items() if key != "_rev"} == {
        "_id": "run_001",
        "path": str(RUN.path),
        "status": "pending",
        "failure_count": 0,
        "created_at": "2026-04-28T10:00:00+00:00",
        "updated_at": "2026-04-28T10:00:00+00:00",
        "history": [{"at": "2026-04-28T10:00:00+00:00", "event": "register", "status": "pending"}],
    }


def test_a_known_run_is_left_as_it_is(store: DocumentStore) -> None:
    there = stored(store, {**new_document("run_001", status="encrypted"), "path": str(RUN.path)})
    registration = statusdb_of(store).register([RUN, RUN])
    assert (registration.new, registration.known, registration.collisions) == ((), (there,), ())
    assert store.get("run_001") == there


def test_a_run_whose_name_another_path_has_is_a_collision_and_overwrites_nothing(store: DocumentStore) -> None:
    there = stored(store, new_document("run_001"))
    registration = statusdb_of(store).register([RUN])
    assert (registration.new, registration.collisions) == ((), ((RUN, there),))
    assert store.get("run_001") == there
    assert statusdb_of(store).claimable(RUN) is None


def test_of_two_new_runs_with_one_name_the_first_is_registered_and_the_second_a_collision(
    store: DocumentStore,
) -> None:
    twin = Run(Path("/data/sequencing/sequencer_B/run_001"))
    statusdb = statusdb_of(store)
    registration = statusdb.register([RUN, twin])
    assert registration.new == (RUN,)
    assert [run for run, _ in registration.collisions] == [twin]
    assert path_of(registration.collisions[0][1]) == RUN.path
    again = statusdb.register([twin, RUN])
    assert (again.new, [run for run, _ in again.collisions]) == ((), [twin])


@pytest.mark.parametrize(
    "fields",
    [{"status": None}, {"status": "archived"}, {"status": ["pending"]}, {"status": 5, "path": 5}],
    ids=str,
)
def test_a_document_that_is_no_runs_collides_and_stays(couch: CouchDatabase, fields: dict[str, Any]) -> None:
    store = couch.open()
    there = stored(store, new_document("run_001", **fields))
    registration = statusdb_of(store).register([RUN])
    assert (registration.new, registration.collisions) == ((), ((RUN, there),))
    assert store.get("run_001") == there
    assert statusdb_of(store).claimable(RUN) is None


def test_a_document_without_path_or_status_names_no_run(store: DocumentStore) -> None:
    store.put({"_id": "run_001", "colour": "blue"})
    statusdb = statusdb_of(store)
    registration = statusdb.register([RUN, Run(Path("/data/sequencing/sequencer_A/run_002"))])
    assert [run.name for run in registration.new] == ["run_002"]
    assert [run for run, _ in registration.collisions] == [RUN]
    assert [document["_id"] for document in registration.known] == ["run_002"]
    assert statusdb.known([RUN]) == {}
    assert path_of(registration.collisions[0][1]) == Path()


def test_a_path_that_is_no_text_keeps_no_other_run_from_being_registered(store: DocumentStore) -> None:
    strange = Run(Path("/data/sequencing/sequencer_\udcff/run_002"))
    registration = statusdb_of(store).register([strange, RUN])
    assert registration.new == (RUN,)
    assert registration.collisions == ((strange, {}),)
    assert store.get("run_002") is None


def test_a_run_that_the_database_refuses_keeps_no_other_from_being_registered(
    couch_line: tuple[Line, FaultProxy],
) -> None:
    """As a validation function of the site's own does: CouchDB then answers per document."""
    line, proxy = couch_line
    refused = {"id": "run_001", "error": "forbidden", "reason": "not this one"}
    answers = json.dumps([refused, {"ok": True, "id": "run_002", "rev": "1-a"}])
    written = Exchange("", "", "POST", "/", True, None, 201, (("Content-Type", "application/json"),), answers)
    real = proxy.upstream
    with ReplayServer(lambda request: written) as refusing:

        def divert(request: Request) -> Fault:
            proxy.upstream = urlsplit(refusing.url) if "_bulk_docs" in request.path else real
            return Fault.PASS

        proxy.plan = divert
        other = Run(Path("/data/sequencing/sequencer_A/run_002"))
        registration = line.statusdb.register([RUN, other])
    assert registration.new == (other,)
    assert registration.collisions == ((RUN, {}),)


def test_runs_are_registered_a_thousand_in_two_requests_and_known_ones_in_one(
    couch_line: tuple[Line, FaultProxy],
) -> None:
    line, proxy = couch_line
    runs = [Run(Path(f"/data/sequencer_A/run_{number:04}")) for number in range(2500)]
    assert len(line.statusdb.register(runs).new) == 2500
    assert [request.path.rpartition("/")[2] for request in proxy.requests] == [
        "_all_docs?include_docs=true",
        "_bulk_docs",
    ] * 3
    assert len(line.statusdb.register(runs).known) == 2500
    assert len(proxy.requests) == 6 + 3


def test_registering_whose_answer_was_lost_registers_once(couch_line: tuple[Line, FaultProxy]) -> None:
    line, proxy = couch_line
    runs = [Run(Path(f"/data/sequencer_A/run_{number}")) for number in range(10)]
    proxy.next(Fault.RESET_AFTER, when=lambda request: "_bulk_docs" in request.path)
    registration = line.statusdb.register(runs)
    assert len(registration.known) == 10
    assert registration.collisions == ()
    assert {document["_rev"].partition("-")[0] for document in line.place.open().with_status(Status.PENDING)} == {"1"}


def test_a_run_that_another_worker_registers_at_the_same_moment_is_known(
    couch_line: tuple[Line, FaultProxy],
) -> None:
    line, proxy = couch_line

    def other_is_quicker(request: Request) -> Fault:
        if "_bulk_docs" in request.path:
            statusdb_of(line.place.open()).register([RUN])
        return Fault.PASS

    proxy.plan = other_is_quicker
    registration = line.statusdb.register([RUN])
    assert registration.new == ()
    assert [path_of(document) for document in registration.known] == [RUN.path]


def test_a_pending_run_is_claimed_with_worker_and_token(line: Line) -> None:
    claim = line.held()
    document = line.document()
    assert (document["status"], document["worker_id"]) == ("processing", "worker_1")
    assert document["claim"] == {"token": claim.token, "phase": "claimed"}
    assert claim.document == document
    assert claim.previous["status"] == "pending"


def test_no_two_claims_have_the_same_token(line: Line) -> None:
    first = line.held()
    line.statusdb.release(first.document, first.token, None, 0)
    assert line.held().token != first.token


def test_a_claim_over_an_old_revision_is_none(line: Line) -> None:
    line.statusdb.register([RUN])
    document = line.statusdb.claimable(RUN)
    assert document is not None
    line.edit(note="somebody was here")
    assert line.statusdb.claim(RUN, "worker_1", document) is None
    assert line.document()["status"] == "pending"


def test_a_claim_that_another_worker_has_is_none_and_stays_theirs(line: Line) -> None:
    line.statusdb.register([RUN])
    document = line.statusdb.claimable(RUN)
    assert document is not None
    theirs = statusdb_of(line.place.open()).claim(RUN, "worker_2", document)
    assert theirs is not None
    assert line.statusdb.claim(RUN, "worker_1", document) is None
    assert line.document() == theirs.document


@pytest.mark.parametrize("status", [Status.PROCESSING, Status.ENCRYPTED, Status.FAILED])
def test_a_run_that_is_not_pending_is_not_claimable(store: DocumentStore, status: Status) -> None:
    store.put({**new_document("run_001", status=str(status)), "path": str(RUN.path)})
    assert statusdb_of(store).claimable(RUN) is None


def test_a_run_that_is_not_registered_is_not_claimable(store: DocumentStore) -> None:
    assert statusdb_of(store).claimable(RUN) is None


def test_a_run_is_not_claimable_before_its_time_and_is_then(store: DocumentStore) -> None:
    now = datetime(2026, 4, 28, 10, 0, tzinfo=UTC)
    statusdb = StatusDB(store, Pauses(), now=lambda: now)
    statusdb.register([RUN])
    document = statusdb.claimable(RUN)
    assert document is not None
    claim = statusdb.claim(RUN, "worker_1", document)
    assert claim is not None
    statusdb.release(claim.document, claim.token, NoSpace("full"), 60)
    assert statusdb.claimable(RUN) is None
    assert statusdb.seconds_until_due(statusdb.pending()[0]) == 60
    later = StatusDB(store, Pauses(), now=lambda: now + timedelta(seconds=60))
    assert later.claimable(RUN) is not None


def test_a_stale_claim_is_taken_over_only_over_the_revision_that_was_found_stale(line: Line) -> None:
    dead = line.held()
    rev = dead.document["_rev"]
    assert line.statusdb.claimable(RUN) is None
    document = line.statusdb.claimable(RUN, stale_rev=rev)
    assert document is not None
    taken = line.statusdb.claim(RUN, "worker_2", document)
    assert taken is not None
    assert (taken.previous["worker_id"], taken.document["worker_id"]) == ("worker_1", "worker_2")
    assert line.statusdb.claimable(RUN, stale_rev=rev) is None


def test_a_claim_that_never_arrived_is_made_again(line: Line) -> None:
    line.lose_requests(2)
    claim = line.held()
    assert claim.document == line.document()
    assert line.pauses.asked == list(PAUSES_SECONDS[:2])


@pytest.mark.parametrize("lost", [1, 2])
def test_a_claim_whose_answer_was_lost_is_ours(line: Line, lost: int) -> None:
    line.lose_answers(lost)
    claim = line.held()
    assert claim.document == line.document()
    assert claim.document["claim"]["token"] == claim.token


def test_a_claim_that_was_lost_while_another_worker_claimed_is_theirs(
    couch_line: tuple[Line, FaultProxy],
) -> None:
    line, proxy = couch_line
    line.statusdb.register([RUN])
    theirs: list[Claim | None] = []

    def other_is_quicker(request: Request) -> Fault:
        if theirs or not is_write(request):
            return Fault.PASS
        other = statusdb_of(line.place.open())
        document = other.claimable(RUN)
        assert document is not None
        theirs.append(other.claim(RUN, "worker_2", document))
        return Fault.RESET

    proxy.plan = other_is_quicker
    assert line.claim() is None
    assert theirs[0] is not None
    assert line.document() == theirs[0].document


def test_a_claim_that_too_few_nodes_confirm_is_none(couch_line: tuple[Line, FaultProxy]) -> None:
    line, proxy = couch_line
    proxy.next(Fault.ACCEPTED, when=is_write)
    assert line.claim() is None
    assert line.document()["status"] == "processing"
    assert sum(map(is_write, proxy.requests)) == 1


def recorded_by_others(rev: str) -> Document:
    """Return the run as recorded by a worker on nodes that were cut off from ours."""
    return {**new_document("run_001", status="encrypted", last_claim="theirs", worker_id="theirs"), "_rev": rev}


def test_a_run_that_cut_off_nodes_have_recorded_is_not_claimed(
    couch_line: tuple[Line, FaultProxy], direct: Direct
) -> None:
    line, _ = couch_line
    line.statusdb.register([RUN])
    document = line.statusdb.claimable(RUN)
    assert document is not None
    direct.insert_conflicts(recorded_by_others("1-0000"))
    assert line.statusdb.claim(RUN, "worker_1", document) is None
    assert [leaf["status"] for leaf in direct.leaves("run_001")] == ["encrypted"]


def test_a_holder_learns_before_it_publishes_that_cut_off_nodes_have_recorded_the_run(
    couch_line: tuple[Line, FaultProxy], direct: Direct
) -> None:
    line, _ = couch_line
    claim = line.claim()
    assert claim is not None
    direct.insert_conflicts(recorded_by_others("2-0000"))
    with pytest.raises(ClaimLost, match="is 'encrypted' with worker 'theirs' now"):
        line.statusdb.announce(claim.document, claim.token, ARCHIVE)
    assert [leaf["status"] for leaf in direct.leaves("run_001")] == ["encrypted"]


def test_a_claim_whose_answer_was_lost_is_none_until_enough_nodes_confirm_it(
    couch_line: tuple[Line, FaultProxy],
) -> None:
    line, proxy = couch_line
    proxy.next(Fault.RESET_AFTER, when=is_write)
    proxy.next(Fault.PASS, when=is_write)  # the same write once more: refused, for the first one is there
    proxy.next(Fault.ACCEPTED, when=is_write)
    assert line.claim() is None
    assert line.document()["status"] == "processing"


def test_a_claim_whose_answer_was_lost_is_none_when_another_stands_beside_it(
    couch_line: tuple[Line, FaultProxy], direct: Direct
) -> None:
    line, proxy = couch_line
    proxy.next(Fault.RESET_AFTER, when=is_write)
    beside = {**new_document("run_001", status="processing", claim={"token": "theirs"}), "_rev": "2-0000"}

    def another_nodes_claim_arrives(request: Request) -> Fault:
        if request.method == "GET" and sum(map(is_write, proxy.requests)) == 2:
            direct.insert_conflicts(beside)
        return Fault.PASS

    line.statusdb.register([RUN])
    proxy.plan = another_nodes_claim_arrives
    assert line.claim() is None
    assert {leaf["claim"]["token"] for leaf in direct.leaves("run_001") if "claim" in leaf} >= {"theirs"}


def test_a_claim_is_ours_though_its_conflicts_cannot_be_looked_for(
    couch_line: tuple[Line, FaultProxy], caplog: pytest.LogCaptureFixture
) -> None:
    line, proxy = couch_line
    line.statusdb.register([RUN])
    document = line.statusdb.claimable(RUN)
    assert document is not None
    proxy.next(Fault.ERROR_500, times=4, when=lambda request: request.method == "GET")
    claim = line.statusdb.claim(RUN, "worker_1", document)
    assert claim is not None
    assert claim.document == line.document()
    assert "conflicting revisions may stay" in caplog.text


def test_a_claim_that_cannot_be_asked_for_is_the_databases_fault(line: Line) -> None:
    line.statusdb.register([RUN])
    line.lose_requests(10)
    with pytest.raises(StatusDBUnavailable):
        line.claim()
    assert line.pauses.asked == list(PAUSES_SECONDS)
    assert line.document()["status"] == "pending"


@every_operation
def test_what_a_holder_writes_is_what_others_read(line: Line, operation: Operation) -> None:
    written = operation(line.statusdb, line.held())
    assert written == line.document()


@every_operation
@pytest.mark.parametrize("lost", ["before", "after", "before, after", "after, after, after"])
def test_a_write_that_was_cut_off_is_done_once(line: Line, operation: Operation, lost: str, tmp_path: Path) -> None:
    control = SQLiteFile(tmp_path / "control.db")
    control.open().prepare()
    wanted = operation(
        statusdb_of(control.open()),
        Line(control, control.open(), Pauses(), lambda when, count: None).held(),
    )
    claim = line.held()
    for when in lost.split(", "):
        line.cut(when, 1)
    written = operation(line.statusdb, claim)
    assert written == line.document()
    assert essence(written) == essence(wanted)


def test_a_failure_whose_answer_was_lost_counts_once(line: Line) -> None:
    claim = line.held()
    line.lose_answers(2)
    line.statusdb.fail(claim.document, claim.token, TarFailed("unreadable"), 60)
    assert line.document()["failure_count"] == 1


@pytest.mark.parametrize("name", ENDINGS)
def test_an_ending_given_up_and_tried_again_later_is_done_once(line: Line, name: str) -> None:
    claim = line.held()
    line.lose_answers(1)
    line.lose_requests(3)
    with pytest.raises(StatusDBUnavailable):
        OPERATIONS[name](line.statusdb, claim)
    before = line.document()
    # Written once more, since nobody knows whether enough nodes had confirmed it.
    again = OPERATIONS[name](line.statusdb, claim)
    assert again == line.document()
    assert {**again, "_rev": before["_rev"]} == before


def test_a_failure_whose_answer_was_lost_counts_once_though_another_has_claimed_the_run_since(line: Line) -> None:
    claim = line.held()
    line.lose_answers(1)
    line.lose_requests(3)
    with pytest.raises(StatusDBUnavailable):
        line.statusdb.fail(claim.document, claim.token, TarFailed("unreadable"), 0)
    other = statusdb_of(line.place.open())
    document = other.claimable(RUN)
    assert document is not None
    theirs = other.claim(RUN, "worker_2", document)
    assert theirs is not None
    line.statusdb.fail(claim.document, claim.token, TarFailed("unreadable"), 0)
    assert line.document() == theirs.document
    assert line.document()["failure_count"] == 1


@every_operation
def test_what_others_have_changed_meanwhile_is_kept(line: Line, operation: Operation) -> None:
    claim = line.held()
    line.edit(comment="sample swapped", worker_id="renamed")
    written = operation(line.statusdb, claim)
    assert written == line.document()
    assert (written["comment"], written["worker_id"]) == ("sample swapped", "renamed")


@every_operation
def test_a_write_for_a_claim_that_another_has_now_is_lost_and_changes_nothing(line: Line, operation: Operation) -> None:
    claim = line.held()
    taken = line.edit(claim={"token": "theirs"}, worker_id="worker_2")
    with pytest.raises(ClaimLost, match="'processing' with worker 'worker_2'"):
        operation(line.statusdb, claim)
    assert line.document() == taken


@every_operation
@pytest.mark.parametrize("status", ["pending", "failed", "encrypted", "paused"])
def test_a_write_for_a_run_that_an_operator_has_set_otherwise_is_lost(
    line: Line, operation: Operation, status: str
) -> None:
    claim = line.held()
    changed = line.edit(status=status)
    with pytest.raises(ClaimLost, match=status):
        operation(line.statusdb, claim)
    assert line.document() == changed


@every_operation
def test_a_write_for_a_deleted_document_is_lost_and_does_not_bring_it_back(
    couch: CouchDatabase, direct: Direct, operation: Operation
) -> None:
    line = Line(couch, couch.open(), Pauses(), lambda when, count: None)
    claim = line.held()
    direct.ask("DELETE", "run_001", rev=claim.document["_rev"])
    with pytest.raises(ClaimLost, match="deleted"):
        operation(line.statusdb, claim)
    assert couch.open().get("run_001") is None


@every_operation
def test_a_write_for_a_document_that_is_gone_is_lost(place: Place, operation: Operation) -> None:
    line = Line(place, place.open(), Pauses(), lambda when, count: None)
    claim = line.held()
    gone = dataclasses.replace(claim, document={**claim.document, "_id": "run_404"})
    with pytest.raises(ClaimLost, match="deleted"):
        operation(line.statusdb, gone)


@every_operation
def test_a_database_that_stays_away_is_said_to_be_after_the_pauses_and_is_used_again_then(
    line: Line, operation: Operation
) -> None:
    claim = line.held()
    line.lose_requests(len(PAUSES_SECONDS) + 1)
    with pytest.raises(StatusDBUnavailable):
        operation(line.statusdb, claim)
    assert line.pauses.asked == list(PAUSES_SECONDS)
    assert line.document() == claim.document
    assert operation(line.statusdb, claim) == line.document()


def test_a_stop_ends_the_pauses(line: Line) -> None:
    claim = line.held()
    line.lose_requests(2)
    stopping = Pauses(stop=True)
    with pytest.raises(StatusDBUnavailable):
        StatusDB(line.store, stopping).renew(claim.document, claim.token, Progress(Phase.ARCHIVING))
    assert stopping.asked == [PAUSES_SECONDS[0]]


@every_operation
@pytest.mark.parametrize("times", [1, 3])
def test_a_write_that_too_few_nodes_confirm_is_done_again_until_they_do_and_once(
    couch_line: tuple[Line, FaultProxy], operation: Operation, times: int
) -> None:
    line, proxy = couch_line
    claim = line.held()
    proxy.next(Fault.ACCEPTED, times, when=is_write)
    written = operation(line.statusdb, claim)
    assert written == line.document()
    assert written["failure_count"] == (1 if written.get("last_error", {}).get("kind") == "TarFailed" else 0)


@every_operation
def test_a_write_that_too_few_nodes_confirm_for_long_is_not_said_to_be_done(
    couch_line: tuple[Line, FaultProxy], operation: Operation
) -> None:
    line, proxy = couch_line
    claim = line.held()
    proxy.next(Fault.ACCEPTED, 4, when=is_write)
    with pytest.raises(StatusDBUnavailable, match="too few nodes"):
        operation(line.statusdb, claim)


@pytest.mark.parametrize("name", ENDINGS)
def test_an_end_that_too_few_nodes_had_and_lost_again_is_written_anew(
    couch_line: tuple[Line, FaultProxy], direct: Direct, name: str
) -> None:
    line, proxy = couch_line
    claim = line.held()

    def the_other_nodes_know_nothing_of_it(request: Request) -> Fault:
        if is_write(request) and line.document()["_rev"].startswith("3-"):
            direct.insert_conflicts({**claim.document, "_rev": "9-0000"})
            ended = next(leaf for leaf in direct.leaves("run_001") if leaf["_rev"].startswith("3-"))
            direct.ask("DELETE", "run_001", rev=ended["_rev"])
        return Fault.PASS

    proxy.next(Fault.ACCEPTED, when=is_write)
    proxy.plan = the_other_nodes_know_nothing_of_it
    written = OPERATIONS[name](line.statusdb, claim)
    assert written["status"] == {"record": "encrypted"}.get(name, "pending")
    assert written["_rev"].startswith("10-")


def test_a_failure_is_written_once_by_each_of_a_runs_three_claims(line: Line) -> None:
    for count in (1, 2, 3):
        claim = line.held()
        line.lose_answers(1)
        line.statusdb.fail(claim.document, claim.token, TarFailed("unreadable"), 0)
        assert line.document()["failure_count"] == count
    assert line.document()["status"] == "failed"


def test_a_note_shows_why_a_run_waits_and_is_written_once(line: Line) -> None:
    line.statusdb.register([RUN])
    line.statusdb.note(line.document(), NoSpace("full"))
    noted = line.document()
    assert noted["last_error"]["kind"] == "NoSpace"
    line.statusdb.note(noted, NoSpace("still full"))
    assert line.document() == noted


def test_a_note_on_a_run_that_somebody_has_taken_changes_nothing(line: Line) -> None:
    line.statusdb.register([RUN])
    before = line.document()
    claim = line.held()
    line.statusdb.note(before, NoSpace("full"))
    line.statusdb.note(claim.document, NoSpace("full"))
    assert line.document() == claim.document


def test_a_retry_sets_a_failed_run_to_pending(line: Line) -> None:
    claim = line.held()
    line.edit(failure_count=2)
    line.statusdb.fail(claim.document, claim.token, TarFailed("unreadable"), 60)
    assert line.document()["status"] == "failed"
    line.lose_answers(1)
    assert line.statusdb.retry("run_001") == line.document()
    assert (line.document()["status"], line.document()["failure_count"]) == ("pending", 0)


def test_a_retry_of_a_run_that_does_not_allow_it_says_so(line: Line) -> None:
    with pytest.raises(UnknownRun, match="run 'run_404' is not in the status database"):
        line.statusdb.retry("run_404")
    claim = line.held()
    with pytest.raises(UnknownRun, match="'processing': only a failed run"):
        line.statusdb.retry("run_001")
    assert line.document() == claim.document


@pytest.mark.parametrize("loss", ["none", "request", "answer"])
def test_a_run_that_is_held_is_not_claimed_until_it_is_released(loss: str, line: Line) -> None:
    line.statusdb.register([RUN])
    for change, status in ((line.statusdb.hold, "held"), (line.statusdb.unhold, "pending")):
        {"none": lambda: None, "request": line.lose_requests, "answer": line.lose_answers}[loss]()
        assert change("run_001", "ops@host") == line.document()
        assert line.document()["status"] == status
        assert (line.statusdb.claimable(RUN) is None) == (status == "held")
    steps = line.document()["history"]
    assert [step["event"] for step in steps] == ["register", "hold", "unhold"], "what was lost was done once"
    assert steps[-1]["by"] == "ops@host"


def test_a_worker_that_asked_before_the_run_was_held_does_not_get_it(line: Line) -> None:
    line.statusdb.register([RUN])
    seen = line.document()
    line.statusdb.hold("run_001")
    assert line.statusdb.claim(RUN, "worker_1", seen) is None
    assert line.document()["status"] == "held"


def test_a_run_can_be_held_before_it_is_registered_and_is_not_registered_again(line: Line) -> None:
    assert line.statusdb.hold_unregistered(RUN, "ops@host")
    assert line.document()["status"] == "held"
    assert line.statusdb.register([RUN]).new == ()
    assert not line.statusdb.hold_unregistered(RUN)
    assert line.document()["status"] == "held"


@pytest.mark.parametrize("loss", ["none", "request", "answer"])
def test_a_cancelled_claim_is_lost_whatever_its_holder_writes_next(loss: str, line: Line) -> None:
    for operation in OPERATIONS.values():
        claim = line.held()
        {"none": lambda: None, "request": line.lose_requests, "answer": line.lose_answers}[loss]()
        assert line.statusdb.cancel("run_001", "ops@host") == line.document()
        with pytest.raises(ClaimLost, match="run 'run_001' is 'held'"):
            operation(line.statusdb, claim)
        assert (line.document()["status"], line.document()["failure_count"]) == ("held", 0)
        line.statusdb.unhold("run_001")
    assert sum(step.get("times", 1) for step in line.document()["history"] if step["event"] == "cancel") == len(
        OPERATIONS
    )


def test_a_cancel_goes_on_while_the_holder_renews(line: Line) -> None:
    claim = line.held()
    renewed = line.statusdb.renew(claim.document, claim.token, Progress(Phase.ARCHIVING, 5, 9))
    line.statusdb.cancel("run_001")
    with pytest.raises(ClaimLost):
        line.statusdb.renew(renewed, claim.token, Progress(Phase.ARCHIVING, 6, 9))


def test_what_an_operator_may_not_do_says_what_may_be_done(line: Line) -> None:
    line.held()
    with pytest.raises(UnknownRun, match=r"'processing': only a run that waits.*`cancel`"):
        line.statusdb.hold("run_001")
    with pytest.raises(UnknownRun, match="'processing': only a held run"):
        line.statusdb.unhold("run_001")
    line.statusdb.cancel("run_001")
    with pytest.raises(UnknownRun, match="'held': only a run that a worker has"):
        line.statusdb.cancel("run_001")
    with pytest.raises(UnknownRun, match="'held': only a failed run"):
        line.statusdb.retry("run_001")


def test_an_unsettled_run_is_remembered_over_claims(line: Line) -> None:
    first = line.held()
    line.statusdb.unsettled(first.document, first.token, RunNotSettled("it grows"), 0)
    since = line.document()["unsettled_since"]
    second = line.held()
    line.statusdb.unsettled(second.document, second.token, RunNotSettled("it grows"), 0)
    document = line.document()
    assert (document["unsettled_since"], document["failure_count"]) == (since, 0)
    assert line.statusdb.unsettled_seconds(document) >= 0
