"""Fixtures that every test may ask for."""

import gc
import os
import signal
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import requests
from barrier import Gate
from couchdb_server import Database, PouchServer, Unavailable
from machine import IS_SHARED, the_machine
from sites import Site, Systemd, keyring, make_key

ANSWER_SECONDS = 60


def pytest_configure() -> None:
    """Let Ctrl+C reach what tests start, though a shell that started the tests beside itself ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root where nobody is, in CI too: CI runs these tests as root besides."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """For `-n auto`, let two processes share a core: half of a test's time is waiting. `-n logical` is one a core."""
    return 2 * len(os.sched_getaffinity(0)) if config.option.numprocesses == "auto" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests marked `alone` last: one waits for the tests of the other processes, and holds up the next ones."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


CHILDREN = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")
"""Audit events of the interpreter: a child process is about to be started."""

_unit = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Keep `unit` tests what they are: one that starts a child process fails, unless it is marked `children`."""
    is_unit = item.get_closest_marker("unit") is not None and item.get_closest_marker("children") is None
    if is_unit and _unit not in item.config.stash:
        sys.addaudithook(lambda event, _: _refuse_a_child(event, item.config))  # it can never be taken out again
    item.config.stash[_unit] = is_unit
    try:
        return (yield)
    finally:
        item.config.stash[_unit] = False


def _refuse_a_child(event: str, config: pytest.Config) -> None:
    if event in CHILDREN and config.stash[_unit]:
        raise AssertionError("a unit test starts no child process; mark this one `children`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what a test logged of names that are no UTF-8: pytest-xdist cannot send it."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def share_the_machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep tests in other processes away from one that is marked `alone`."""
    if os.environ.get(IS_SHARED):
        yield
        return
    with the_machine(alone=request.node.get_closest_marker("alone") is not None):
        yield


MANY_DESCRIPTORS = 200
"""Of the 1,024 that a process may have open by default."""


@pytest.fixture(autouse=True)
def give_back_descriptors() -> Iterator[None]:
    """Collect what tests have dropped before descriptors run out.

    A dropped `sqlite3.Connection` is a reference cycle, so its files stay open until the garbage collector finds it.
    Python 3.14 may leave that for minutes.
    """
    yield
    if len(os.listdir("/proc/self/fd")) > MANY_DESCRIPTORS:
        gc.collect()


@pytest.fixture(scope="session")
def unavailable() -> Callable[[str], NoReturn]:
    """Return what a test calls when this machine lacks something: it skips, or fails when `CI` is `true`."""

    def give_up(reason: str) -> NoReturn:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

    return give_up


@pytest.fixture(scope="session")
def couchdb_url(unavailable: Callable[[str], NoReturn]) -> Iterator[str]:
    """The address of a CouchDB: `$COUCHDB_URL` (credentials in it) when set, else of a PouchServer."""
    if url := os.environ.get("COUCHDB_URL"):
        yield url.rstrip("/")
        return
    try:
        server = PouchServer()
    except Unavailable as error:
        unavailable(str(error))
    with server:
        yield server.url


@pytest.fixture
def couchdb_database(couchdb_url: str) -> Iterator[Database]:
    """A new, empty database, deleted afterwards: (address of the server, name)."""
    database = Database(couchdb_url, f"test_{uuid.uuid4().hex}")
    address = f"{database.url}/{database.name}"
    requests.put(address, timeout=ANSWER_SECONDS).raise_for_status()
    yield database
    requests.delete(address, timeout=ANSWER_SECONDS).raise_for_status()


@pytest.fixture(scope="session")
def gnupg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A keyring with one key pair, that of `recipient`."""
    with keyring(tmp_path_factory.mktemp("gpg") / "home") as home:
        make_key(home, "ops@example.org")
        yield home


@pytest.fixture(scope="session")
def recipient(gnupg: Path) -> str:
    """The `gpg_receiver` that the keyring `gnupg` has."""
    return "ops@example.org"


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, gnupg: Path, recipient: str) -> Iterator[Site]:
    """A facility whose configuration names `recipient` and an SQLite file. The slower suites start commands cold."""
    site = Site(tmp_path / "site", gnupg, recipient)
    site.is_warm = not any(request.node.get_closest_marker(name) for name in ("slow", "chaos", "systemd"))
    yield site
    site.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate that is shut; opened at the latest when the test ends."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """What the watcher tells systemd."""
    listener = Systemd(tmp_path / "notify")
    yield listener
    listener.close()
