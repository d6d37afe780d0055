"""What others change in the status database, and what becomes of a watcher whose events end."""

import itertools
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import pytest
import requests
from couchdb_server import Database, PouchServer, Unavailable
from fault_proxy import Client, Fault, FaultProxy, Request, head
from faults import prefix
from machine import (
    inotify_inodes,
    inotify_limit,
    limited_command,
    mount,
    mounted,
    require_namespace,
    unmount,
)
from sites import Site, never_stop, wait_until

from watcher import model
from watcher.discovery import Feed
from watcher.discovery.changes import CHECK_SECONDS, FEED_PAUSES_SECONDS, SPIN_SECONDS
from watcher.model import Document, Run
from watcher.source import SENTINEL
from watcher.statusdb import CouchDBStore, DocumentStore, Login, SQLiteStore, StatusDB
from watcher.statusdb.store import Conflict

ANSWER_SECONDS = 60
OVERFLOWED = "the kernel's event queue overflowed: a rescan finds what events did not tell"
OPTIONS = {"rescan_interval": "1 h"}


class Clockwork(threading.Event):
    """A stop event on which every pause is over at once, and written down."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        return self.is_set()


class Listener:
    """A feed in a thread of its own, and what it tells."""

    def __init__(
        self,
        store: DocumentStore,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.statusdb = StatusDB(store, never_stop, pauses_seconds=())
        self.heard: list[Document] = []
        self.missed = 0
        self.stop = stop or threading.Event()
        self.returns = 0
        self.feed = Feed(self.statusdb, self.heard.append, self._missed, self._returned, clock)
        self._thread = threading.Thread(target=self.feed.follow, args=(self.stop,), daemon=True)

    def _missed(self) -> None:
        self.missed += 1

    def _returned(self) -> None:
        self.returns += 1

    def start(self) -> "Listener":
        self.feed.begin()
        self._thread.start()
        return self

    def wait_for(self, name: str) -> None:
        wait_until(lambda: name in [document["_id"] for document in list(self.heard)], f"'{name}' to be heard")

    def end(self) -> None:
        self.stop.set()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Return what makes a listener; it ends with the test."""
    listeners = []

    def start(*arguments: Any) -> Listener:
        listeners.append(Listener(*arguments))
        return listeners[-1].start()

    yield start
    for listener in listeners:
        listener.end()


Listen = Callable[..., Listener]


def couchdb(url: str, name: str, timeout_seconds: float = ANSWER_SECONDS) -> CouchDBStore:
    scheme, _, rest = url.rpartition("://")
    credentials, _, host = rest.rpartition("@")
    user, _, password = credentials.partition(":")
    return CouchDBStore(Login(f"{scheme}://{host}", name, user or None, password or None), timeout_seconds)


@pytest.fixture(params=["sqlite", "couchdb"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], DocumentStore]:
    """Return what makes one more connection to a prepared store, as another process would have."""
    if request.param == "sqlite":
        SQLiteStore(tmp_path / "status.db", never_stop).prepare()
        return lambda: SQLiteStore(tmp_path / "status.db", never_stop)
    database: Database = request.getfixturevalue("couchdb_database")
    couchdb(*database).prepare()
    return lambda: couchdb(*database)


def put(store: DocumentStore, *names: str) -> None:
    run_of = {name: Run(Path(f"/data/sequencing/A/{name}")) for name in names}
    store.insert_many([model.registered(run, datetime.now(UTC)) for run in run_of.values()])


# The feed


def test_what_changes_is_heard_from_the_beginning_on_and_in_order(
    stores: Callable[[], DocumentStore], listen: Listen
) -> None:
    other = stores()
    put(other, "before")
    listener = listen(stores())
    put(other, "one")
    put(other, "two")
    document = other.get("one")
    assert document is not None
    other.put({**document, "status": "failed"})
    wait_until(lambda: any(one["status"] == "failed" for one in list(listener.heard)), "the last change")
    names = [document["_id"] for document in listener.heard]
    assert [name for name, _ in itertools.groupby(names)] in (["one", "two", "one"], ["two", "one"])
    assert listener.missed == 0


def test_thousands_of_changes_are_all_heard(stores: Callable[[], DocumentStore], listen: Listen) -> None:
    listener = listen(stores())
    names = [f"run_{number:04}" for number in range(2500)]
    put(stores(), *names)
    wait_until(lambda: {document["_id"] for document in list(listener.heard)} >= set(names), "all of them")


def test_a_deleted_document_is_heard_as_deleted(couchdb_database: Database, listen: Listen) -> None:
    store = couchdb(*couchdb_database)
    put(store, "run_001")
    listener = listen(couchdb(*couchdb_database))
    document = store.get("run_001")
    assert document is not None
    address = f"{couchdb_database.url}/{couchdb_database.name}/run_001"
    requests.delete(address, params={"rev": document["_rev"]}, timeout=ANSWER_SECONDS).raise_for_status()
    listener.wait_for("run_001")
    assert listener.heard[-1]["_deleted"] is True


def is_changes(request: Request) -> bool:
    return "/_changes" in request.path and "since=now" not in request.path


def replace_by_an_empty_one(database: Database) -> None:
    """Do what a restored backup does."""
    address = f"{database.url}/{database.name}"
    requests.delete(address, timeout=ANSWER_SECONDS).raise_for_status()
    couchdb(*database).prepare()


def test_a_database_that_comes_back_with_less_is_followed_from_its_beginning(
    couchdb_database: Database, listen: Listen
) -> None:
    direct = couchdb(*couchdb_database)
    put(direct, *(f"run_{number}" for number in range(20)))
    with FaultProxy(couchdb_database.url) as proxy:
        listener = listen(couchdb(proxy.url, couchdb_database.name, timeout_seconds=1.0), Clockwork())
        proxy.plan = lambda _request: Fault.RESET
        replace_by_an_empty_one(couchdb_database)
        proxy.plan = lambda _request: Fault.PASS
        wait_until(lambda: listener.missed, "it to notice")
        put(direct, "after")
        listener.wait_for("after")


def test_a_database_that_was_replaced_unseen_by_one_with_less_is_noticed_after_a_while(
    couchdb_database: Database, listen: Listen
) -> None:
    direct = couchdb(*couchdb_database)
    put(direct, *(f"run_{number}" for number in range(20)))
    now = itertools.count(0, CHECK_SECONDS / 4)  # so much passes at each look
    listener = listen(couchdb(*couchdb_database, timeout_seconds=1.0), Clockwork(), lambda: next(now))
    listener.statusdb.get("run_0")
    assert listener.missed == 0
    replace_by_an_empty_one(couchdb_database)
    wait_until(lambda: listener.missed, "it to notice")


def test_a_database_that_was_away_may_have_come_back_with_less_and_that_is_told(
    couchdb_database: Database, listen: Listen
) -> None:
    with FaultProxy(couchdb_database.url) as proxy:
        listener = listen(couchdb(proxy.url, couchdb_database.name, timeout_seconds=1.0), Clockwork())
        assert listener.returns == 0
        proxy.next(Fault.RESET, when=is_changes)
        wait_until(lambda: listener.returns, "it to be told")
        assert listener.missed == 0


def test_runs_whose_documents_were_lost_while_the_database_was_away_are_registered_again(
    site: Site, couchdb_database: Database
) -> None:
    with FaultProxy(couchdb_database.url) as proxy:
        site.use_couchdb(couchdb_database.url, couchdb_database.name, through=proxy.url)
        site.configure(**OPTIONS)
        site.statusdb()
        daemon = site.start().wait_ready()
        site.complete(site.make_run())
        daemon.wait_for_log("run_001: encrypted")
        proxy.plan = lambda _request: Fault.RESET
        put(site.store(), "elsewhere")  # ends the request for changes that is being held
        daemon.wait_for_log("cannot follow the database's changes")
        replace_by_an_empty_one(couchdb_database)
        site.remove_published()
        proxy.plan = lambda _request: Fault.PASS
        site.wait_for()


@pytest.mark.parametrize(
    "fault",
    [
        Fault.RESET, Fault.RESET_AFTER, Fault.HANG, Fault.HANG_AFTER, Fault.ERROR_500, Fault.ERROR_503,
        Fault.CUT_BODY, Fault.BROKEN_JSON,
    ],
)  # fmt: skip
def test_the_feed_survives_a_broken_request_and_misses_nothing(
    couchdb_database: Database, listen: Listen, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    direct = couchdb(*couchdb_database)
    with FaultProxy(couchdb_database.url) as proxy:
        proxy.next(fault, times=2, when=is_changes)
        listener = listen(couchdb(proxy.url, couchdb_database.name, timeout_seconds=1.0), Clockwork())
        wait_until(lambda: proxy.faults and fault in proxy.faults.values(), "the fault")
        put(direct, "run_001")
        listener.wait_for("run_001")
        put(direct, "run_002")
        listener.wait_for("run_002")
        assert listener.missed == 0
        told = [message.split(":")[0] for message in caplog.messages]
        # An answer that does not come in time is no trouble: nothing may have changed.
        hung = fault in (Fault.HANG, Fault.HANG_AFTER)
        once = ["cannot follow the database's changes", "the database's changes are followed again"]
        assert told == ([] if hung else once)
        listener.end()
        proxy.down()


def test_the_feed_survives_an_outage_with_bounded_pauses(couchdb_database: Database, listen: Listen) -> None:
    direct = couchdb(*couchdb_database)
    stop = Clockwork()
    with FaultProxy(couchdb_database.url) as proxy:
        listener = listen(couchdb(proxy.url, couchdb_database.name), stop)
        put(direct, "before")
        listener.wait_for("before")
        proxy.down()
        wait_until(lambda: FEED_PAUSES_SECONDS[-1] in stop.pauses, "some pauses")
        put(direct, "meanwhile")
        proxy.up()
        listener.wait_for("meanwhile")
        assert listener.missed == 0
        listener.end()
        proxy.down()
    waited = [pause for pause in stop.pauses if pause != SPIN_SECONDS]
    assert waited == sorted(waited)
    assert max(waited) <= 5


def test_the_feed_follows_a_server_that_was_restarted(
    tmp_path: Path, listen: Listen, unavailable: Callable[[str], NoReturn]
) -> None:
    try:
        server = PouchServer(tmp_path)
    except Unavailable as error:
        unavailable(str(error))
    with server:
        store = couchdb(server.url, "restarted")
        store.prepare()
        listener = listen(couchdb(server.url, "restarted"))
        put(store, "one")
        listener.wait_for("one")
        server.kill()
        server.start()
        put(couchdb(server.url, "restarted"), "two")
        listener.wait_for("two")
        listener.end()


class OwnAnswers(FaultProxy):
    """Answers what follows the changes by itself, while `reply` has an answer: status and body."""

    reply: tuple[int, bytes] | None = None

    def answer(self, client: Client, request: Request) -> None:
        if self.reply is None or not is_changes(request):
            return super().answer(client, request)
        status, body = self.reply
        return client.send(
            head(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]) + body
        )


def test_a_place_that_the_server_refuses_leads_to_a_fresh_start_that_says_so(
    couchdb_database: Database, listen: Listen
) -> None:
    direct = couchdb(*couchdb_database)
    with OwnAnswers(couchdb_database.url) as proxy:
        proxy.reply = (400, b'{"error":"bad_request","reason":"Malformed sequence supplied in \'since\' parameter."}')
        listener = listen(couchdb(proxy.url, couchdb_database.name))
        wait_until(lambda: any(is_changes(request) for request in proxy.requests), "the refusal")
        assert listener.missed == 0
        proxy.reply = None
        wait_until(lambda: listener.missed, "the fresh start")
        put(direct, "run_001")
        listener.wait_for("run_001")
        listener.end()
        proxy.down()


@pytest.mark.parametrize("body", [b'{"results":[],"last_seq":"7"}', b'{"results":[],"last_seq":"0"}'])
def test_the_feed_pauses_after_each_answer_that_comes_at_once_and_leads_nowhere(
    couchdb_database: Database, listen: Listen, body: bytes
) -> None:
    stop = Clockwork()
    with OwnAnswers(couchdb_database.url) as proxy:
        proxy.reply = (200, body)
        listener = listen(couchdb(proxy.url, couchdb_database.name), stop)
        wait_until(lambda: len(stop.pauses) > 20, "some answers")
        listener.end()
        proxy.down()
    asked = len([request for request in proxy.requests if is_changes(request)])
    assert set(stop.pauses) - set(FEED_PAUSES_SECONDS[1:]) == {SPIN_SECONDS}
    assert asked <= len(stop.pauses) + 1


def test_a_same_change_that_is_told_again_and_again_does_not_make_the_feed_spin(
    couchdb_database: Database, listen: Listen
) -> None:
    stop = Clockwork()
    row = b'{"id":"x","seq":"7","changes":[],"doc":{"_id":"x","_rev":"1-a","status":"pending"}}'
    with OwnAnswers(couchdb_database.url) as proxy:
        proxy.reply = (200, b'{"results":[' + row + b'],"last_seq":"7"}')
        listener = listen(couchdb(proxy.url, couchdb_database.name), stop)
        wait_until(lambda: len(stop.pauses) > 20, "some answers")
        listener.end()
        proxy.down()
    asked = len([request for request in proxy.requests if is_changes(request)])
    assert asked <= len(stop.pauses) + 2


def test_a_database_that_is_away_at_the_beginning_is_followed_when_it_is_there_and_something_was_missed(
    couchdb_database: Database, listen: Listen
) -> None:
    with FaultProxy(couchdb_database.url) as proxy:
        proxy.down()
        listener = listen(couchdb(proxy.url, couchdb_database.name), Clockwork())
        proxy.up()
        wait_until(lambda: listener.missed == 1, "the beginning")
        put(couchdb(*couchdb_database), "run_001")
        listener.wait_for("run_001")
        assert listener.missed == 1
        listener.end()
        proxy.down()


Limited = Callable[[str, int], tuple[str, ...]]


@pytest.fixture
def limited(unavailable: Callable[[str], NoReturn]) -> Limited:
    """Return what gives the command that runs a program under a limit of inotify: a user namespace has its own."""
    require_namespace(unavailable)
    return limited_command


# The whole watcher. Its rescans are an hour apart: what it takes up, it was told.


def fail_by_hand(site: Site, name: str = "run_001") -> Path:
    """Make a complete run whose document says `failed`."""
    run = site.complete(site.make_run(name))
    site.statusdb()
    document = model.registered(Run(run), datetime.now(UTC))
    site.store().put({**document, "status": "failed", "failure_count": 3})
    return run


def test_a_retry_by_another_process_is_taken_up_at_once(site: Site) -> None:
    fail_by_hand(site)
    site.configure(**OPTIONS)
    daemon = site.start().wait_ready()
    assert site.command("retry", "run_001").returncode == 0
    retried = datetime.now(UTC)
    assert site.wait_for()["failure_count"] == 0
    claimed = daemon.wait_for_log("claimed").split()[0].replace("Z", "+00:00")
    assert (datetime.fromisoformat(claimed) - retried).total_seconds() < 1


def test_a_run_that_another_worker_registered_is_taken_up_though_no_event_came(site: Site, limited: Limited) -> None:
    site.configure(**OPTIONS)
    daemon = site.start(prefix=limited("max_inotify_instances", 0)).wait_ready()
    run = site.complete(site.make_run())
    site.statusdb().register([Run(run)])
    site.wait_for()
    assert "is pending, noticed by database" in daemon.log
    assert daemon.stop() == 0
    assert "0 by event, 0 by rescan, 1 by database" in daemon.log


@pytest.mark.parametrize(("name", "limit", "held"), [("max_inotify_instances", 0, 0), ("max_inotify_watches", 1, 1)])
def test_at_a_limit_of_inotify_the_watcher_says_what_to_do_and_rescans_find_every_run(
    site: Site, limited: Limited, name: str, limit: int, held: int
) -> None:
    site.configure(rescan_interval="0.2 s")
    daemon = site.start(prefix=limited(name, limit)).wait_ready()
    warning = daemon.wait_for_log("watches are needed")
    assert " WARNING inotify " in warning
    assert f": 3 watches are needed, {held} are held; rescans cover the rest. user.{name} is {limit} " in warning
    assert f"sysctl -w user.{name}=" in warning
    site.complete(site.make_run())
    site.wait_for()
    assert daemon.stop() == 0
    assert "0 by event, 1 by rescan, 0 by database" in daemon.log
    assert daemon.log.count("watches are needed") == 1


class Couch:
    """A database's documents over plain HTTP, as someone edits them in the web interface."""

    def __init__(self, database: Database) -> None:
        self._address = f"{database.url}/{database.name}"

    def edit(self, name: str, **changes: Any) -> None:
        address = f"{self._address}/{quote(name, safe='')}"
        while True:
            document = requests.get(address, timeout=ANSWER_SECONDS).json()
            answer = requests.put(address, json={**document, **changes}, timeout=ANSWER_SECONDS)
            if answer.status_code != 409:
                answer.raise_for_status()
                return


def test_a_document_set_to_pending_by_hand_is_taken_up_at_once(site: Site, couchdb_database: Database) -> None:
    site.use_couchdb(*couchdb_database)
    fail_by_hand(site)
    site.configure(**OPTIONS)
    daemon = site.start().wait_ready()
    Couch(couchdb_database).edit("run_001", status="pending", failure_count=0)
    edited = datetime.now(UTC)
    site.wait_for()
    claimed = daemon.wait_for_log("claimed").split()[0].replace("Z", "+00:00")
    assert (datetime.fromisoformat(claimed) - edited).total_seconds() < 1
    assert daemon.stop() == 0


def test_a_document_deleted_by_hand_is_registered_again_by_the_next_rescan(
    site: Site, couchdb_database: Database
) -> None:
    site.use_couchdb(*couchdb_database)
    site.configure(rescan_interval="0.3 s", sentinel_policy="presence")
    run = site.complete(site.make_run())
    site.start().wait_ready()
    site.wait_for()
    site.remove_published()
    Couch(couchdb_database).edit("run_001", _deleted=True)
    site.wait_for()
    assert run.is_dir()


def test_a_row_deleted_by_hand_is_registered_again_at_once_and_its_run_archived_again(site: Site) -> None:
    site.configure(**OPTIONS)
    site.complete(site.make_run())
    daemon = site.start().wait_ready()
    site.wait_for()
    site.remove_published()
    with closing(sqlite3.connect(site.database)) as connection, connection:
        assert connection.execute("delete from documents where id = 'run_001'").rowcount == 1
    daemon.wait_for_log("documents were deleted")
    site.wait_for()
    assert (site.archives / "run_001.tar.gpg").exists()
    assert daemon.stop() == 0
    assert daemon.log.count("registered '") == 2


def test_the_watcher_hears_the_database_after_cuts_and_restarts(
    site: Site, tmp_path: Path, unavailable: Callable[[str], NoReturn]
) -> None:
    try:
        server = PouchServer(tmp_path / "couchdb")
    except Unavailable as error:
        unavailable(str(error))
    with server, FaultProxy(server.url) as proxy:
        site.use_couchdb(server.url, "restarted", through=proxy.url)
        site.configure(**OPTIONS)
        for number in range(5):
            fail_by_hand(site, f"run_{number}")
        daemon = site.start().wait_ready()
        couch = Couch(Database(server.url, "restarted"))
        troubles: list[Callable[[], None]] = [
            lambda: None,
            proxy.down,
            proxy.up,
            server.restart,
            lambda: proxy.next(Fault.CUT_BODY, when=is_changes),
        ]
        for number, trouble in enumerate(troubles):
            trouble()
            couch.edit(f"run_{number}", status="pending", failure_count=0)
            if trouble != proxy.down:
                site.wait_for(f"run_{number}")
        site.wait_for("run_1")
        assert daemon.stop() == 0
    assert "rescan: " not in daemon.log.partition("watching '")[2]


@pytest.mark.root
def test_an_unmounted_sequencing_path_is_watched_again_after_the_mount_with_what_is_ready_there(site: Site) -> None:
    site.configure(**OPTIONS)
    with mounted(site.sequencing, "64m"):
        daemon = site.start().wait_ready()
        site.complete(site.make_run("run_001"))
        site.wait_for("run_001")
        unmount(site.sequencing)
        daemon.wait_for_log(f"'{site.sequencing}' was unmounted, moved or removed")
        mount(site.sequencing, "64m")
        site.complete(site.make_run("run_002"))
        site.wait_for("run_002")
        site.complete(site.make_run("run_003", "sequencer_new"))
        site.wait_for("run_003")  # by an event: the directory that is mounted now is watched
        assert daemon.stop() == 0


def test_a_sequencing_path_that_is_removed_and_made_again_is_watched_again(site: Site) -> None:
    site.configure(**OPTIONS)
    daemon = site.start().wait_ready()
    shutil.rmtree(site.sequencing)
    daemon.wait_for_log(f"no run in '{site.sequencing}' is seen: No such file or directory")
    site.complete(site.make_run("run_001"))
    site.wait_for("run_001")
    site.complete(site.make_run("run_002"))
    site.wait_for("run_002")
    assert daemon.stop() == 0


BURST = """
import os, sys
root, sentinel, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(first, first + 200):
    path = f"{root}/run_{number}"
    os.mkdir(path)
    with open(f"{path}/{sentinel}", "w") as file:
        file.write("0\\n")
"""


@pytest.mark.root
@pytest.mark.alone
def test_an_overflow_of_the_queue_is_counted_and_told_once_for_the_rescan_that_it_leads_to_at_once(site: Site) -> None:
    site.configure(**OPTIONS)
    with inotify_limit("max_queued_events", 8):
        daemon = site.start().wait_ready()
    made = 0
    while OVERFLOWED not in daemon.log:
        burst = [sys.executable, "-c", BURST, str(site.sequencing / "sequencer_B"), SENTINEL, str(made)]
        subprocess.run(burst, check=True)
        made += 200
    wait_until(lambda: sum(site.statusdb().count_by_status().values()) == made, "all runs to be registered")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    told, rescans = daemon.log.count(OVERFLOWED), daemon.log.count(" rescan: ") - 1
    counted = re.search(r"ended; .* events were lost (\d+) times", daemon.log)
    assert counted is not None
    assert told <= int(counted[1])
    assert rescans in (told, told - 1)  # the stop may come before the last one
    assert daemon.log.count("registered '") == made


def test_a_dead_reader_of_inotify_is_told_and_replaced_and_the_next_sentinel_is_noticed_by_an_event(site: Site) -> None:
    site.configure(**OPTIONS)
    daemon = site.start(prefix=prefix("thread_ends"), THREAD="inotify").wait_ready()
    daemon.signal(signal.SIGUSR1)
    daemon.wait_for_log("'inotify' is to end")
    site.make_run("run_001")  # its event is the last thing that the thread sees
    line = daemon.wait_for_log("the observer is started anew: one of its threads has ended")
    assert "ERROR" in line
    wait_until(lambda: daemon.log.count(" rescan: ") == 2, "the rescan")
    assert len(inotify_inodes(daemon.pid)) == 4
    site.complete(site.sequencing / "sequencer_A" / "run_001")
    site.wait_for("run_001")
    daemon.wait_for_log("run_001: registered .* noticed by event")
    assert daemon.stop() == 0
    assert daemon.log.count("the observer is started anew") == 1


def test_a_dead_settling_thread_is_told_and_replaced_and_the_next_empty_sentinel_is_noticed_by_an_event(
    site: Site,
) -> None:
    site.configure(**OPTIONS)
    runs = [site.make_run("run_001"), site.make_run("run_002")]
    daemon = site.start(prefix=prefix("thread_ends"), THREAD="settle").wait_ready()
    daemon.signal(signal.SIGUSR1)
    daemon.wait_for_log("'settle' is to end")
    site.complete(runs[0], "")  # the thread wakes for it, and ends
    line = daemon.wait_for_log("the observer is started anew: one of its threads has ended")
    assert "ERROR" in line
    wait_until(lambda: daemon.log.count(" rescan: ") == 2, "the rescan")
    site.complete(runs[1], "")
    for run in runs:
        site.wait_for(run.name)
    daemon.wait_for_log("run_002: registered .* noticed by event")
    assert daemon.stop() == 0
    assert daemon.log.count("the observer is started anew") == 1
    assert daemon.log.count(" rescan: ") == 2


def test_the_watchers_threads_and_watches_do_not_grow_with_what_lies_in_the_runs(site: Site) -> None:
    daemon = site.start().wait_ready()
    threads = len(os.listdir(f"/proc/{daemon.pid}/task"))
    assert len(inotify_inodes(daemon.pid)) == 3
    for number in range(200):
        run = site.sequencing / "sequencer_A" / f"open_{number}"
        for lane in range(5):
            (run / "Data" / f"L00{lane}").mkdir(parents=True)
    wait_until(lambda: len(inotify_inodes(daemon.pid)) == 203, "all runs to be watched")
    assert len(os.listdir(f"/proc/{daemon.pid}/task")) == threads
    assert daemon.stop() == 0


def test_a_document_that_makes_no_sense_is_survived(site: Site, couchdb_database: Database) -> None:
    site.use_couchdb(*couchdb_database)
    site.statusdb()
    site.configure(**OPTIONS)
    site.start().wait_ready()
    store = site.store()
    nonsense: list[Document] = [
        {"_id": "a", "status": "pending"},
        {"_id": "b", "status": "pending", "path": 7},
        {"_id": "c", "status": ["pending"], "path": None},
        {"_id": "d", "status": "pending", "path": "/data\0/d", "not_before": "soon", "claim": "mine"},
        {"_id": "e", "status": "pending", "path": "x" * 10_000},
        {"_id": "f"},
        {"_id": "g", "status": "pending", "path": ["/data"]},
        {"_id": "h", "status": "pending", "path": {"is": "/data"}},
    ]
    for document in nonsense:
        try:
            store.put(document)
        except Conflict:
            raise AssertionError(document) from None
    for name in ("g", "h", "run_001"):
        site.complete(site.make_run(name))
    site.wait_for()
    assert "died of a bug" not in site.logs()
