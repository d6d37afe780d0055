"""From observations to registered runs, on a real SQLite file."""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sites import PATIENCE_SECONDS, never_stop, wait_until

from watcher.discovery import Arrivals, Noticed, Registrar
from watcher.discovery.registration import BATCH
from watcher.errors import StatusDBUnavailable
from watcher.metrics import Metrics
from watcher.model import Document, Run, path_of
from watcher.source import SENTINEL, Observation, Policy, Rules, State, hold, inspect
from watcher.statusdb import SQLiteStore, StatusDB

pytestmark = pytest.mark.unit

ROOT = Path("/data/sequencing")
T = TypeVar("T")


class CountingStore(SQLiteStore):
    """Counts the calls that ask or write; is away for the next `away` of them, or at one whose number is given."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, never_stop)
        self.calls: list[str] = []
        self.away = 0
        self.away_at = 0
        self.answer_lost_at = 0
        self._counting = threading.Lock()
        self.after_get: Callable[[], object] = lambda: None
        self.after_insert: Callable[[str], None] = lambda name: None

    def get_many(self, run_ids: Sequence[str]) -> list[Document]:
        call = self._count("get_many")
        found = super().get_many(run_ids)
        self.after_get()
        return self._answered(call, found)

    def insert_many(self, documents: Iterable[Document]) -> set[str]:
        call = self._count("insert_many")
        new = super().insert_many(documents)
        for name in new:
            self.after_insert(name)
        return self._answered(call, new)

    def put(self, document: Document) -> Any:
        self._count("put")
        return super().put(document)

    def _count(self, what: str) -> int:
        with self._counting:
            self.calls.append(what)
            call = len(self.calls)
            is_away = self.away > 0 or call == self.away_at
            self.away = max(self.away - 1, 0)
        if is_away:
            raise StatusDBUnavailable("away, for a test")
        return call

    def _answered(self, call: int, answer: T) -> T:
        if call == self.answer_lost_at:
            raise StatusDBUnavailable("answer lost, for a test")
        return answer


class Impatient(threading.Event):
    """A stop event that is not waited on: time passes at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


class Desk:
    """A registrar, its store, and what it hands on."""

    def __init__(self, path: Path) -> None:
        self.store = CountingStore(path)
        self.statusdb = StatusDB(self.store, lambda seconds: False, pauses_seconds=())
        self.statusdb.prepare()
        self.submitted: list[str] = []
        self.stop_watching: list[Path] = []
        self.metrics = Metrics()
        self.arrivals = Arrivals()
        self.registrar = Registrar(self.statusdb, self._submit, self.stop_watching.append, self.metrics)

    def _submit(self, document: Document) -> None:
        self.registrar.is_here(Run(path_of(document)), "pending")  # as the service does
        self.submitted.append(document["_id"])

    def rescan(self, *observations: Observation) -> int:
        return self.registrar.register(observations, Noticed.RESCAN)

    def event(self, *observations: Observation) -> int:
        return self.registrar.register(observations, Noticed.EVENT)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "status.db")
    yield desk
    desk.store.close()


def observation(
    name: str = "run_001", state: State = State.READY, reason: str = "", sequencer: str = "A"
) -> Observation:
    return Observation(Run(ROOT / sequencer / name), state, reason)


def many(count: int) -> list[Observation]:
    return [observation(f"run_{number:05}") for number in range(count)]


def test_a_ready_run_becomes_a_pending_document_and_is_submitted(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert desk.event(observation()) == 1
    document = desk.statusdb.get("run_001")
    assert document is not None
    assert (document["status"], document["path"]) == ("pending", "/data/sequencing/A/run_001")
    assert document["failure_count"] == 0
    assert desk.submitted == ["run_001"]
    assert desk.stop_watching == [ROOT / "A" / "run_001"]
    assert desk.metrics.counts() == {"noticed_by_event": 1}
    assert caplog.messages == ["registered '/data/sequencing/A/run_001', noticed by event"]
    assert vars(caplog.records[0])["run"] == "run_001"


def test_a_run_is_not_watched_any_more_before_it_is_submitted(tmp_path: Path) -> None:
    """A run that is not ready when its turn comes is watched again. To end the watch after that would lose it."""
    store = CountingStore(tmp_path / "status.db")
    store.prepare()
    done: list[str] = []
    registrar = Registrar(
        StatusDB(store, lambda seconds: False),
        lambda document: done.append("submitted"),
        lambda path: done.append("not watched any more"),
        Metrics(),
    )
    registrar.register([observation()], Noticed.EVENT)
    assert done == ["not watched any more", "submitted"]
    store.close()


def test_a_run_that_is_observed_again_is_submitted_again_but_not_registered_again(desk: Desk) -> None:
    desk.event(observation(), observation())
    before = desk.statusdb.get("run_001")
    desk.event(observation())
    assert desk.statusdb.get("run_001") == before
    assert desk.submitted == ["run_001"] * 2
    assert desk.metrics.counts() == {"noticed_by_event": 1}


def test_a_run_that_is_done_is_not_submitted(desk: Desk) -> None:
    desk.event(observation())
    document = desk.statusdb.get("run_001")
    assert document is not None
    desk.store.put({**document, "status": "encrypted"})
    desk.submitted.clear()
    desk.event(observation())
    assert desk.submitted == []
    assert desk.stop_watching == [ROOT / "A" / "run_001"] * 2


@pytest.mark.parametrize("state", [State.ABSENT, State.UNSETTLED])
def test_a_run_that_is_not_complete_leads_to_nothing(
    desk: Desk, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    desk.event(observation(state=state))
    assert desk.rescan(observation(state=state)) == 1
    assert desk.store.calls == []
    assert desk.stop_watching == []
    assert caplog.messages == []


def test_a_rescan_asks_and_writes_in_bulk_and_the_next_one_not_at_all(desk: Desk) -> None:
    assert desk.rescan(*many(2 * BATCH + 500)) == 2 * BATCH + 500
    assert sorted(desk.store.calls) == ["get_many"] * 3 + ["insert_many"] * 3
    assert len(set(desk.submitted)) == 2 * BATCH + 500
    assert desk.metrics.counts() == {"noticed_by_rescan": 2 * BATCH + 500}
    desk.store.calls.clear()
    assert desk.rescan(*many(2 * BATCH + 500)) == 2 * BATCH + 500
    assert desk.store.calls == []


def test_a_new_process_asks_for_registered_runs_once_and_writes_nothing(desk: Desk, tmp_path: Path) -> None:
    desk.rescan(*many(BATCH + 1))
    restarted = Desk(tmp_path / "status.db")
    restarted.rescan(*many(BATCH + 1))
    assert restarted.store.calls == ["get_many"] * 2
    assert restarted.metrics.counts() == {}
    restarted.rescan(*many(BATCH + 2))
    assert restarted.store.calls == ["get_many"] * 3 + ["insert_many"]
    restarted.store.close()


def test_a_run_whose_document_is_deleted_is_registered_again_by_the_rescan_after_the_news(
    desk: Desk, tmp_path: Path
) -> None:
    desk.rescan(observation("one"), observation("two"))
    with sqlite3.connect(tmp_path / "status.db") as connection:
        connection.execute("delete from documents")
    desk.registrar.forget("one")
    desk.rescan(observation("one"), observation("two"))
    assert desk.statusdb.get("one") is not None
    assert desk.statusdb.get("two") is None
    desk.registrar.forget_all()
    desk.rescan(observation("one"), observation("two"))
    assert desk.statusdb.get("two") is not None


def forget_one(registrar: Registrar) -> None:
    registrar.forget("run_00001")


@pytest.mark.parametrize("forget", [forget_one, Registrar.forget_all])
@pytest.mark.parametrize("status", ["pending", "encrypted"])
def test_a_deletion_that_is_heard_between_an_answer_and_its_taking_is_not_forgotten(
    desk: Desk, tmp_path: Path, forget: Callable[[Registrar], None], status: str
) -> None:
    desk.rescan(*many(3))
    document = desk.statusdb.get("run_00001")
    assert document is not None
    desk.store.put({**document, "status": status})
    restarted = Desk(tmp_path / "status.db")

    def delete() -> None:
        delete_by_hand(tmp_path / "status.db", "run_00001")
        forget(restarted.registrar)

    restarted.store.after_get = delete
    restarted.rescan(*many(3))
    restarted.store.after_get = lambda: None
    assert restarted.statusdb.get("run_00001") is None
    restarted.rescan(*many(3))
    assert restarted.statusdb.count_by_status() == {"pending": 3}
    restarted.store.calls.clear()
    restarted.rescan(*many(3))
    assert restarted.store.calls == []
    restarted.store.close()


@pytest.mark.parametrize("forget", [forget_one, Registrar.forget_all])
def test_a_new_document_whose_deletion_is_heard_before_its_own_registration_has_ended_is_not_forgotten(
    desk: Desk, tmp_path: Path, forget: Callable[[Registrar], None]
) -> None:
    def delete(name: str) -> None:
        if name == "run_00001":
            delete_by_hand(tmp_path / "status.db", name)
            forget(desk.registrar)

    desk.store.after_insert = delete
    desk.rescan(*many(3))
    desk.store.after_insert = lambda name: None
    desk.rescan(*many(3))
    assert desk.statusdb.count_by_status() == {"pending": 3}
    assert desk.metrics.counts() == {"noticed_by_rescan": 4}


def test_a_pending_document_that_was_read_before_its_deletion_was_heard_is_registered_again(
    desk: Desk, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run_001")
    run.path.mkdir()
    desk.rescan(Observation(run, State.READY))
    delete_by_hand(tmp_path / "status.db", "run_001")
    desk.registrar.forget("run_001")
    assert desk.registrar.is_here(run, "pending")
    desk.rescan(Observation(run, State.READY))
    assert desk.statusdb.get("run_001") is not None


def delete_by_hand(database: Path, name: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("delete from documents where id = ?", (name,))


@pytest.mark.parametrize("between", [0, BATCH])
def test_two_runs_of_one_name_are_an_error_that_names_both_and_the_first_keeps_its_document(
    desk: Desk, between: int, caplog: pytest.LogCaptureFixture
) -> None:
    both = [observation("same", sequencer="A"), *many(between), observation("same", sequencer="B")]
    desk.rescan(*both)
    desk.rescan(*both)
    desk.event(both[-1])
    document = desk.statusdb.get("same")
    assert document is not None
    assert document["path"] == "/data/sequencing/A/same"
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "'/data/sequencing/A/same'" in errors[0]
    assert "'/data/sequencing/B/same'" in errors[0]


@pytest.mark.parametrize(
    ("is_there", "status", "is_told"),
    [
        (False, "pending", True),
        (False, "failed", True),
        (False, "processing", False),
        (False, "encrypted", False),
        (True, "pending", False),
    ],
)
def test_of_a_collision_with_a_run_that_is_not_there_and_has_no_archive_it_is_said_that_it_may_have_been_moved(
    desk: Desk, tmp_path: Path, is_there: bool, status: str, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = tmp_path / "A" / "moved", tmp_path / "B" / "moved"
    desk.event(Observation(Run(before), State.READY))
    document = desk.statusdb.get("moved")
    assert document is not None
    desk.store.put({**document, "status": status})
    if is_there:
        before.mkdir(parents=True)
    desk.event(Observation(Run(after), State.READY))
    assert f"collision: '{before}' has the same name" in caplog.text
    assert ("if it was moved, document 'moved' may be deleted" in caplog.text) is is_told


@pytest.mark.parametrize("name", [os.fsdecode(b"run_\xff"), "_design", "x" * 250])
def test_an_unusable_name_is_told_once_and_others_go_on(
    desk: Desk, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        desk.rescan(observation(name), observation("fine"))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "is not archived: its name" in caplog.text
    assert desk.submitted == ["fine"]


def test_an_unusable_run_is_told_with_its_reason(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.event(observation(state=State.UNUSABLE, reason="the sentinel is not a file"))
    assert caplog.messages == ["'/data/sequencing/A/run_001' is not archived: the sentinel is not a file"]
    assert caplog.records[0].levelno == logging.ERROR
    assert desk.store.calls == []


def test_a_held_run_is_a_warning_once_and_again_after_it_was_ready(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    held = observation(state=State.HELD, reason="the sentinel holds exit code 23: the transfer failed")
    desk.event(held)
    desk.rescan(held)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "exit code 23" in caplog.text
    assert desk.statusdb.get("run_001") is None
    desk.event(observation())
    desk.event(held)
    assert len(caplog.records) == 2


def test_events_wait_for_a_database_that_is_away_and_none_is_lost(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.store.away = 5
    for one in many(3):
        desk.arrivals.put(one)
    desk.arrivals.end()
    desk.registrar.follow(desk.arrivals, Impatient())
    assert sorted(desk.submitted) == ["run_00000", "run_00001", "run_00002"]
    assert desk.metrics.counts() == {"noticed_by_event": 3}
    assert "3 runs wait to be registered: away, for a test" in caplog.messages


def test_a_rescan_that_the_database_broke_off_finds_the_same_again(desk: Desk) -> None:
    desk.store.away = 1
    with pytest.raises(StatusDBUnavailable):
        desk.rescan(*many(3))
    desk.rescan(*many(3))
    assert len(desk.submitted) == 3


CALLS = 8
"""What the store is asked for `3 * BATCH + 1` new runs, two calls a batch."""


@pytest.mark.parametrize("call", range(1, CALLS + 1))
@pytest.mark.slow
def test_a_rescan_whose_requests_fail_at_any_place_raises_and_the_next_one_registers_the_rest_once(
    desk: Desk, call: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runs = many(3 * BATCH + 1)
    desk.store.away_at = call
    with pytest.raises(StatusDBUnavailable, match="away"):
        desk.rescan(*runs)
    desk.store.away_at = 0
    assert desk.rescan(*runs) == len(runs)
    registered = [message for message in caplog.messages if message.startswith("registered")]
    assert len(registered) == len(set(registered)) == len(runs)
    assert desk.metrics.counts() == {"noticed_by_rescan": len(runs)}
    assert desk.statusdb.count_by_status() == {"pending": len(runs)}
    assert sorted(desk.submitted) == [one.run.name for one in runs]
    assert set(desk.stop_watching) == {one.run.path for one in runs}


@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_a_rescan_that_did_not_get_one_of_its_answers_raises_and_the_next_one_submits_the_rest_once(
    desk: Desk, call: int
) -> None:
    runs = many(3 * BATCH + 1)
    desk.store.answer_lost_at = call
    with pytest.raises(StatusDBUnavailable, match="answer lost"):
        desk.rescan(*runs)
    desk.store.answer_lost_at = 0
    assert desk.rescan(*runs) == len(runs)
    assert desk.statusdb.count_by_status() == {"pending": len(runs)}
    assert sorted(desk.submitted) == [one.run.name for one in runs]


def test_a_rescan_has_two_requests_under_way_at_a_time(desk: Desk) -> None:
    both = threading.Barrier(2)
    desk.store.after_get = lambda: both.wait(PATIENCE_SECONDS)
    desk.rescan(*many(4 * BATCH))
    assert desk.statusdb.count_by_status() == {"pending": 4 * BATCH}


def test_a_storm_of_events_becomes_few_requests(desk: Desk) -> None:
    for one in many(2 * BATCH):
        desk.arrivals.put(one)
    desk.arrivals.end()
    desk.registrar.follow(desk.arrivals, threading.Event())
    assert len(desk.store.calls) == 4
    assert len(set(desk.submitted)) == 2 * BATCH


def test_following_ends_when_it_is_told_to_though_the_database_stays_away(desk: Desk) -> None:
    desk.store.away = 1_000_000_000
    stop = Impatient()
    desk.arrivals.put(observation())
    thread = threading.Thread(target=desk.registrar.follow, args=(desk.arrivals, stop))
    thread.start()
    wait_until(lambda: len(desk.store.calls) > 2, "some tries")
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_what_the_database_tells_is_counted_once_and_only_if_it_is_news(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    desk.event(observation("ours"))
    theirs = Run(tmp_path / "theirs")
    theirs.path.mkdir()
    caplog.clear()
    for run in (observation("ours").run, theirs, theirs):
        assert desk.registrar.is_here(run, "pending")
    assert desk.metrics.counts() == {"noticed_by_event": 1, "noticed_by_database": 1}
    assert caplog.messages == [f"'{theirs.path}' is pending, noticed by database"]
    desk.rescan(Observation(theirs, State.READY))
    assert desk.statusdb.get("theirs") is not None  # what the database told may have been deleted since


def test_another_machines_run_is_not_here_and_nothing_to_speak_of(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    desk.event(observation(sequencer="A"))
    caplog.clear()
    assert not desk.registrar.is_here(observation(sequencer="B").run, "pending")
    assert not desk.registrar.is_here(observation("run_002").run, "stale")
    assert caplog.messages == []
    assert "noticed_by_database" not in desk.metrics.counts()


def test_a_run_that_was_here_and_has_vanished_is_still_told_of(desk: Desk) -> None:
    desk.event(observation())
    assert desk.registrar.is_here(observation().run, "pending")


def test_our_own_registration_is_no_news_even_while_it_is_being_written(desk: Desk) -> None:
    desk.store.after_insert = lambda name: desk.registrar.is_here(observation(name).run, "pending")
    desk.event(*many(3))
    assert desk.metrics.counts() == {"noticed_by_event": 3}


def test_events_and_rescans_at_once_register_each_run_exactly_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runs = many(600)
    threads = [threading.Thread(target=desk.rescan, args=runs) for _ in range(2)]
    threads += [
        threading.Thread(target=lambda part=part: [desk.event(one) for one in part]) for part in (runs[::2], runs[1::2])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registered = [message for message in caplog.messages if message.startswith("registered")]
    assert len(registered) == len(set(registered)) == 600
    assert sum(desk.metrics.counts().values()) == 600
    assert desk.statusdb.count_by_status() == {"pending": 600}


def archived(desk: Desk, directory: Path) -> tuple[Run, Path]:
    """Make a run that is archived, as far as its document says; return it, and its sentinel."""
    run = Run(directory / "A" / "run_001")
    run.path.mkdir(parents=True)
    (run.path / SENTINEL).touch()
    os.utime(run.path / SENTINEL, (1, 1))
    desk.rescan(seen(run))
    pending = desk.statusdb.get(run.name)
    assert pending is not None
    with hold(run, Rules()) as source:
        archive = {"sentinel": source.sentinel(), "top": source.top()}
    desk.store.put({**pending, "status": "encrypted", "archive": archive})
    desk.rescan(seen(run))
    return run, run.path / SENTINEL


def seen(run: Run) -> Observation:
    found = inspect(run.path, Policy.PRESENCE)
    assert found.version is not None
    return found


def is_marked(desk: Desk) -> bool:
    document = desk.statusdb.get("run_001")
    return document is not None and "changed_since" in document


@pytest.mark.parametrize("noticed", ["rescan", "event"])
def test_an_archived_run_that_changes_is_marked_and_told_once(
    noticed: str, desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, sentinel = archived(desk, tmp_path)
    assert not is_marked(desk)
    sentinel.touch()
    getattr(desk, noticed)(seen(run))
    assert is_marked(desk)
    calls = len(desk.store.calls)
    desk.rescan(seen(run))
    assert len(desk.store.calls) == calls  # a rescan asks the database nothing about what has not changed
    assert caplog.messages == [
        f"'{run.path}' is not what was archived any more: its sentinel was written again; keep it, and see 'changed' "
        "in docs/operation.md"
    ]


def test_a_change_is_marked_by_the_next_rescan_where_the_database_was_away(desk: Desk, tmp_path: Path) -> None:
    run, sentinel = archived(desk, tmp_path)
    sentinel.touch()
    for away_at in (1, 2):  # at the question, at the write
        desk.store.away_at = len(desk.store.calls) + away_at
        with pytest.raises(StatusDBUnavailable):
            desk.rescan(seen(run))
        assert not is_marked(desk)
    desk.rescan(seen(run))
    assert is_marked(desk)


def test_a_run_of_the_same_name_elsewhere_is_not_compared(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archived(desk, tmp_path)
    other = Run(tmp_path / "B" / "run_001")
    other.path.mkdir(parents=True)
    (other.path / SENTINEL).touch()
    desk.rescan(seen(other))
    assert not is_marked(desk)
    (said,) = caplog.messages
    assert "collision" in said


def test_a_document_of_an_earlier_version_says_nothing_of_a_change(desk: Desk, tmp_path: Path) -> None:
    run, sentinel = archived(desk, tmp_path)
    document = desk.statusdb.get("run_001")
    assert document is not None
    desk.store.put({**document, "archive": {}})
    sentinel.touch()
    (run.path / "late").touch()
    desk.event(seen(run))
    assert not is_marked(desk)
