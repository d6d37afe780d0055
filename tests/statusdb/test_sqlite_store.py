"""What is SQLite's own: the file, its locks, other processes, and a disk that takes no more."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest
from databases import (
    SQLiteFile,
    in_processes,
    in_threads,
    new_document,
    prepare_and_write,
    spawning,
    statusdb_of,
    stored,
)
from machine import mounted, no_descriptors
from sites import PATIENCE_SECONDS, never_stop, wait_until
from tracing import require_strace, traced

from watcher.errors import ConfigError, StatusDBUnavailable
from watcher.model import Status
from watcher.statusdb import FeedLost, SQLiteStore
from watcher.statusdb.sqlite import LOOK_SECONDS
from watcher.statusdb.store import Conflict

NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> SQLiteFile:
    """A prepared, empty database."""
    made = SQLiteFile(tmp_path / "status.db")
    made.open().prepare()
    return made


class Waits:
    """A stop event's `wait` that takes no time: remembers, does what a test wants, and stops at the end."""

    def __init__(self, *actions: object, stop: bool = False) -> None:
        self.actions = list(actions)
        self.count = 0
        self._stop = stop

    def __call__(self, seconds: float) -> bool:
        self.count += 1
        assert seconds == LOOK_SECONDS
        if self.actions and callable(action := self.actions.pop(0)):
            action()
        return self._stop


def test_processes_that_make_the_file_at_once_all_succeed(tmp_path: Path) -> None:
    place = SQLiteFile(tmp_path / "status.db")
    assert in_processes(prepare_and_write, place, 6) == ["1"] * 6
    assert place.open().count_by_status() == {"pending": 6}


def test_threads_that_make_the_file_at_once_all_succeed(tmp_path: Path) -> None:
    for number in range(10):
        place = SQLiteFile(tmp_path / f"{number}.db")
        in_threads(lambda _thread, place=place: place.open().prepare(), 8)  # type: ignore[misc]
        place.open().verify()


def test_a_missing_directory_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"directory '{tmp_path}/state' of the SQLite file does not exist"):
        SQLiteFile(tmp_path / "state" / "status.db").open().prepare()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to look like one" * 50, b"SQLite format 3\0"]
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "status.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"'{path}': .*is it a writable SQLite file"):
        SQLiteFile(path).open().prepare()
    assert path.read_bytes() == content


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unable to open"):
        SQLiteFile(tmp_path).open().prepare()


@pytest.mark.root
def test_a_full_disk_is_named_with_what_helps(tmp_path: Path) -> None:
    with mounted(tmp_path, "64k"):
        (tmp_path / "rest").write_bytes(bytes(60 << 10))
        with pytest.raises(ConfigError, match=r"(disk is full|I/O error); (free space|look at dmesg)"):
            SQLiteFile(tmp_path / "status.db").open().prepare()


def test_a_process_without_descriptors_is_told_of_its_limit(tmp_path: Path) -> None:
    store = SQLiteFile(tmp_path / "status.db").open()
    with no_descriptors(), pytest.raises(ConfigError, match=r"unable to open database file; .*ulimit -n"):
        store.prepare()


def test_looking_at_a_database_that_does_not_exist_makes_none(tmp_path: Path) -> None:
    store = SQLiteFile(tmp_path / "status.db").open()
    with pytest.raises(ConfigError, match="does not exist yet"):
        store.verify()
    for ask in (store.count_by_status, lambda: store.get("run_001"), lambda: store.put(new_document("run_001"))):
        with pytest.raises(StatusDBUnavailable, match="unable to open"):
            ask()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["with space", "50%25", "what?mode=ro", "no#1", "Größe", "it's"])
def test_a_file_of_any_name_is_that_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    store = SQLiteFile(path).open()
    store.prepare()
    store.put(new_document("run_001"))
    assert path.is_file()
    assert {entry.name.removesuffix("-wal").removesuffix("-shm") for entry in tmp_path.iterdir()} == {name}


def test_a_row_whose_document_says_that_it_is_deleted_is_read_like_any_other(file: SQLiteFile) -> None:
    file.open().put(new_document("run_001"))
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("update documents set body = json_set(body, '$._deleted', json('true'), '$.claim', 7)")
    statusdb = statusdb_of(file.open())
    assert statusdb.with_status(Status.PENDING) == []
    assert [one.reason for one in statusdb.unreadable()] == ["claim is a number"]


def test_a_locked_database_is_waited_for(file: SQLiteFile) -> None:
    with closing(sqlite3.connect(file.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("begin immediate")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(file.open().put, new_document("run_001"))
            assert file.open().count_by_status() == {}  # reading does not wait
            assert not waiting.done()
            other.execute("commit")
            assert waiting.result(PATIENCE_SECONDS).rev == "1"


def test_a_database_that_stays_locked_is_away_and_not_misconfigured(tmp_path: Path) -> None:
    path = tmp_path / "status.db"
    waits = Waits()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("pragma locking_mode = exclusive")
        other.execute("begin exclusive")
        other.execute("create table theirs (id)")
        with pytest.raises(StatusDBUnavailable, match="locked"):
            SQLiteStore(path, waits, busy_seconds=0.0).prepare()
        assert waits.count > 10
        other.execute("commit")
    SQLiteFile(path).open().prepare()


def test_a_write_into_a_database_that_stays_locked_is_not_done_and_the_next_one_is(file: SQLiteFile) -> None:
    store = SQLiteStore(file.path, never_stop, busy_seconds=0.0)
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(StatusDBUnavailable, match="locked"):
            store.put(new_document("run_001"))
        other.execute("rollback")
    assert store.get("run_001") is None
    assert store.put(new_document("run_001")).rev == "1"


FULL_DISK = """
import resource, sys
from pathlib import Path
from databases import SQLiteFile, new_document
from watcher.errors import StatusDBUnavailable

store = SQLiteFile(Path(sys.argv[1])).open()
store.put(new_document("before"))
free = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, free[1]))
failed = 0
for number in range(3):
    try:
        store.put(new_document(f"large_{number}", text="x" * 300_000))
    except StatusDBUnavailable:
        failed += 1
resource.setrlimit(resource.RLIMIT_FSIZE, free)
store.put(new_document("after"))
print(failed, sorted(document["_id"] for document in store.get_many(["before", "large_0", "large_2", "after"])))
"""


def test_a_disk_that_takes_no_more_fails_the_write_and_not_those_after_it(file: SQLiteFile) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(file.path)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert child.stdout.strip() == "3 ['after', 'before']"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200_000


def test_a_conflict_in_the_middle_leaves_no_transaction_open(file: SQLiteFile) -> None:
    store = file.open()
    written = stored(store, new_document("run_001"))
    for _ in range(3):
        with pytest.raises(Conflict):
            store.put(new_document("run_001"))
    assert file.open().put({**written, "status": "failed"}).rev == "2"


def test_an_error_in_the_middle_of_many_inserts_inserts_none(file: SQLiteFile) -> None:
    store = file.open()
    with pytest.raises(TypeError):
        store.insert_many([new_document("run_001"), new_document("run_002", bad={1, 2})])
    assert store.get("run_001") is None
    assert store.insert_many([new_document("run_001")]) == {"run_001"}


def stands_in(function: str) -> bool:
    """Say whether some other thread stands in a function of the store."""
    for frame in (frame for thread, frame in sys._current_frames().items() if thread != threading.get_ident()):
        outer: FrameType | None = frame
        while outer is not None:
            if outer.f_code.co_name == function and outer.f_code.co_filename.endswith("statusdb/sqlite/store.py"):
                return True
            outer = outer.f_back
    return False


def test_closing_waits_for_a_write_that_waits_itself(file: SQLiteFile) -> None:
    store = file.open()
    with closing(sqlite3.connect(file.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("begin immediate")
        with ThreadPoolExecutor(2) as pool:
            writing = pool.submit(store.put, new_document("run_001"))
            wait_until(lambda: stands_in("put"), "the write waits for the file's lock")
            ending = pool.submit(store.close)
            wait_until(lambda: stands_in("close") or ending.done(), "the store is being closed")
            other.execute("commit")
            assert writing.result(PATIENCE_SECONDS).rev == "1"
            ending.result(PATIENCE_SECONDS)
    assert file.open().count_by_status() == {"pending": 1}


@pytest.mark.slow
def test_closing_waits_for_threads_in_the_middle_of_their_work(file: SQLiteFile) -> None:
    store = file.open()
    store.insert_many(new_document(f"run_{number}", text="x" * 1000) for number in range(2000))
    stop = threading.Event()
    told: set[str] = set()

    def work(thread: int) -> int:
        done = 0
        while not stop.is_set():
            try:
                assert len(store.with_status(Status.PENDING)) >= 2000
                store.put(new_document(f"run_of_{thread}_{done}"))
            except StatusDBUnavailable as error:
                told.add(str(error).partition(": ")[2])
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, thread) for thread in range(4)]
        for _ in range(50):
            store.close()
        stop.set()
        assert all(done.result(PATIENCE_SECONDS) for done in working)
    assert told <= {"Cannot operate on a closed database."}


def test_a_file_that_was_replaced_is_the_one_that_is_written(file: SQLiteFile, tmp_path: Path) -> None:
    store = file.open()
    store.put(new_document("old"))
    other = SQLiteFile(tmp_path / "backup.db")
    other.open().prepare()
    with closing(sqlite3.connect(file.path)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    for suffix in ("-wal", "-shm"):
        Path(f"{file.path}{suffix}").unlink(missing_ok=True)
    other.path.rename(file.path)
    assert store.get("old") is None
    store.put(new_document("new"))
    assert file.open().count_by_status() == {"pending": 1}


def test_a_file_that_was_damaged_is_used_again_when_it_is_mended(file: SQLiteFile) -> None:
    store = file.open()
    store.put(new_document("run_001"))
    with closing(sqlite3.connect(file.path)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    good = file.path.read_bytes()
    os.truncate(file.path, len(good) // 2)
    with pytest.raises(StatusDBUnavailable, match="malformed"):
        store.put(new_document("run_002"))
    file.path.write_bytes(good)
    assert store.put(new_document("run_002")).rev == "1"
    assert store.count_by_status() == {"pending": 2}


def test_a_file_that_is_gone_is_away_and_not_made_anew(file: SQLiteFile) -> None:
    store = file.open()
    store.put(new_document("run_001"))
    for path in file.path.parent.iterdir():
        path.unlink()
    for _ in range(2):
        with pytest.raises(StatusDBUnavailable, match=str(file.path)):
            store.put(new_document("run_002"))
    assert list(file.path.parent.iterdir()) == []


@pytest.mark.parametrize("since", ["", "garbage", "-1", "1.0", "0", "0-", "²-0", "0-٣", "1e9", "0-0-0", "0-g1A"])
def test_a_place_that_is_none_is_lost(file: SQLiteFile, since: str) -> None:
    with pytest.raises(FeedLost, match="no place in the changes"):
        file.open().changes(since, 0)


def test_a_place_after_all_changes_is_of_another_file(file: SQLiteFile) -> None:
    store = file.open()
    store.put(new_document("run_001"))
    since = store.changes(None, 0).since
    assert store.changes(since, 0).documents == ()
    seq, _, deletions = since.partition("-")
    for later in (int(seq) + 1, "9" * 30):
        with pytest.raises(FeedLost, match="no place in the changes"):
            store.changes(f"{later}-{deletions}", 0)


def delete_by_hand(file: SQLiteFile, where: str = "") -> None:
    """Delete rows as someone with the `sqlite3` command does."""
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute(f"delete from documents {where}")


@pytest.mark.parametrize("where", ["", "where id = 'run_001'"])
def test_rows_that_are_deleted_by_hand_cost_everybody_their_place_and_a_new_one_goes_on_from_there(
    file: SQLiteFile, where: str
) -> None:
    store = file.open()
    store.insert_many([new_document("run_001"), new_document("run_002")])
    since = store.changes(None, 0).since
    delete_by_hand(file, where)
    with pytest.raises(FeedLost, match="deleted"):
        store.changes(since, 0)
    written = stored(store, new_document("run_003"))
    with pytest.raises(FeedLost, match="deleted"):
        store.changes(since, 0)
    since = store.changes(None, 0).since
    assert store.changes(since, 0).documents == ()
    assert store.changes(since, 0).since == since
    changed = {**written, "status": "failed", "_rev": store.put({**written, "status": "failed"}).rev}
    assert store.changes(since, 0).documents == (changed,)


def test_a_row_that_is_deleted_while_somebody_waits_ends_the_waiting(file: SQLiteFile) -> None:
    file.open().put(new_document("run_001"))
    waits = Waits(None, None, lambda: delete_by_hand(file))
    store = SQLiteStore(file.path, waits)
    since = store.changes(None, 0).since
    with pytest.raises(FeedLost, match="deleted"):
        store.changes(since, 1000.0)
    assert waits.count == 3


def test_a_file_of_an_earlier_version_tells_of_deletions_once_it_is_prepared(file: SQLiteFile) -> None:
    store = file.open()
    store.put(new_document("run_001"))
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("drop trigger documents_deleted")
        connection.execute("drop table deletions")
    store.prepare()
    since = store.changes(None, 0).since
    assert [document["_id"] for document in store.get_many(["run_001"])] == ["run_001"]
    delete_by_hand(file)
    with pytest.raises(FeedLost, match="deleted"):
        store.changes(since, 0)


def test_asking_from_now_on_or_without_patience_does_not_wait(file: SQLiteFile) -> None:
    waits = Waits()
    store = SQLiteStore(file.path, waits)
    since = store.changes(None, 30.0).since
    store.changes(since, 0)
    assert waits.count == 0


def test_waiting_looks_until_the_time_is_over_and_not_longer(file: SQLiteFile) -> None:
    waits = Waits()
    store = SQLiteStore(file.path, waits)
    since = store.changes(None, 0).since
    assert store.changes(since, 10 * LOOK_SECONDS).since == since
    assert waits.count == 10


def test_waiting_ends_at_the_first_look_that_finds_something(file: SQLiteFile) -> None:
    other = file.open()
    waits = Waits(None, None, lambda: other.put(new_document("run_001")))
    store = SQLiteStore(file.path, waits)
    changes = store.changes(store.changes(None, 0).since, 1000.0)
    assert [document["_id"] for document in changes.documents] == ["run_001"]
    assert waits.count == 3


def test_waiting_ends_with_the_stop_event(file: SQLiteFile) -> None:
    waits = Waits(stop=True)
    store = SQLiteStore(file.path, waits)
    since = store.changes(None, 0).since
    assert store.changes(since, 1000.0).documents == ()
    assert waits.count == 1


def test_a_waiting_reader_keeps_nobody_from_writing_or_closing(file: SQLiteFile) -> None:
    released = threading.Event()
    waiting = threading.Event()

    def wait(_seconds: float) -> bool:
        waiting.set()
        return released.wait(PATIENCE_SECONDS)

    store = SQLiteStore(file.path, wait)
    since = store.changes(None, 0).since
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(store.changes, since, 1000.0)
        assert waiting.wait(PATIENCE_SECONDS)
        assert store.put(new_document("run_001")).rev == "1"
        with closing(sqlite3.connect(file.path)) as other:
            busy, _, _ = other.execute("pragma wal_checkpoint(truncate)").fetchone()
            assert not busy
        store.close()
        released.set()
        assert reader.result(PATIENCE_SECONDS).documents == ()


def test_what_was_answered_is_written_through_to_the_disk(
    file: SQLiteFile, unavailable: Callable[[str], NoReturn]
) -> None:
    require_strace(unavailable)
    with closing(sqlite3.connect(file.path)) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    code = "import sys; from pathlib import Path; from databases import SQLiteFile, new_document; " \
        "SQLiteFile(Path(sys.argv[1])).open().put(new_document('run_001'))"  # fmt: skip
    synced = traced(
        [sys.executable, "-c", code, str(file.path)],
        "fdatasync,fsync",
        file.path.with_name("trace"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=PATIENCE_SECONDS,
    )
    assert f"{file.path}-wal>) = 0" in synced


def read_as_nobody(path: str) -> str:
    """In a process of its own, without root's rights: what `dataflow_archive status` asks; then try to write."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    statusdb = statusdb_of(SQLiteFile(Path(path)).open())
    statusdb.verify()
    seen = json.dumps([statusdb.count_by_status(), [document["_id"] for document in statusdb.pending()]])
    with pytest.raises(StatusDBUnavailable, match="readonly"):
        statusdb.retry("run_001")
    return seen


@pytest.mark.root
@pytest.mark.parametrize("watcher_runs", [True, False])
def test_an_operator_who_may_only_read_sees_the_runs(tmp_path: Path, watcher_runs: bool) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)
    file = SQLiteFile(directory / "status.db")
    store = file.open()
    store.prepare()
    store.put(new_document("run_001"))
    if not watcher_runs:
        store.close()
    with spawning.Pool(1) as pool:
        assert json.loads(pool.apply(read_as_nobody, (str(file.path),))) == [{"pending": 1}, ["run_001"]]
    store.close()


def test_a_thread_that_ends_gives_its_connection_back_at_the_latest_with_the_store(file: SQLiteFile) -> None:
    store = file.open()
    in_threads(lambda _thread: store.count_by_status(), 5)
    store.close()
    wait_until(lambda: descriptors(file) == 0, "all descriptors of the database are closed")


def test_descriptors_do_not_grow_with_the_threads_that_have_used_the_store_and_ended(file: SQLiteFile) -> None:
    store = file.open()
    store.put(new_document("run_of_a_thread_that_lives"))
    opened = []
    for number in range(20):
        in_threads(lambda thread, number=number: store.put(new_document(f"run_{number}_{thread}")), 2)  # type: ignore[misc]
        opened.append(descriptors(file))
    # While another connection holds locks on it, SQLite keeps a file open that is closed, for the next one to use.
    assert max(opened) <= opened[0] + 2
    assert store.count_by_status() == {"pending": 41}


def descriptors(file: SQLiteFile) -> int:
    """Return how many of this process's descriptors are of the database's files."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as the descriptor of this very listing
            found += os.readlink(link).startswith(str(file.path))
    return found
