"""The rules of the model, played by hypothesis against the real worker, shelf and both document stores."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import requests
from facility import Site, assert_same_tree
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from stepping import SteppedWorker
from workbench import Bench

from watcher.model import Document, Run
from watcher.statusdb.couchdb import CouchDBStore, Login
from watcher.statusdb.store import DocumentStore
from watcher.worker import Outcome

EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "12"))
"""Stories that hypothesis tells on each store; CI's size. A hundred take about ten minutes."""

WORKERS = 3
StoreMaker = Callable[[Site], Callable[[], DocumentStore]]


class Rivals(RuleBasedStateMachine):
    """Workers that share a disk and a database, each going on, sleeping, dying when hypothesis says so."""

    gnupg: ClassVar[Path]
    make_store: ClassVar[StoreMaker]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="rivals-")
        self.site = Site(Path(self.directory.name) / "site", self.gnupg, "ops@example.org")
        self.bench = Bench.of(self.site, type(self).make_store(self.site))
        self.workers: dict[int, SteppedWorker] = {}
        self.recorded: tuple[Document, dict[str, tuple[int, bytes]]] | None = None
        self.run: Run

    @initialize()
    def register(self) -> None:
        """A run is ready."""
        self.run = self.bench.ready_run(size=20_000)

    numbers = st.integers(0, WORKERS - 1)

    @rule(number=numbers, steps=st.integers(1, 12))
    def go_on(self, number: int, steps: int) -> None:
        """A worker does some steps; one that has nothing to do finds the run, its claim stale if it has one."""
        worker = self.workers.get(number)
        if worker is None or worker.has_ended:
            self.workers[number] = worker = SteppedWorker(self.bench.other(worker_id=f"worker_{number}"), self.run)
        worker.let(steps)

    @rule(number=numbers)
    def die(self, number: int) -> None:
        """A worker's process is killed."""
        if worker := self.workers.pop(number, None):
            worker.die()

    @rule(number=numbers)
    def stop(self, number: int) -> None:
        """A worker is told to stop, at once."""
        if worker := self.workers.get(number):
            worker.stop()

    @rule(number=numbers)
    def lose_an_answer(self, number: int) -> None:
        """A write will arrive, and its answer will not."""
        if worker := self.workers.get(number):
            worker.gate.loses_next_answer = True

    @rule(number=numbers)
    def refuse_a_write(self, number: int) -> None:
        """A write will not arrive."""
        if worker := self.workers.get(number):
            worker.gate.refuses_next_write = True

    @precondition(lambda self: hasattr(self, "run"))
    @invariant()
    def final_names_show_what_the_document_says(self) -> None:
        """Whatever stands under a final name is the announced file; and what was recorded never changes."""
        document, finals = self.bench.document(self.run), self.bench.finals()
        archive = document.get("archive", {})
        digests = {archive.get("file"): archive.get("sha256"), archive.get("key_file"): archive.get("key_sha256")}
        for name, (_, content) in finals.items():
            assert hashlib.sha256(content).hexdigest() == digests[name]
        if document["status"] == "encrypted":
            assert len(finals) == 2
            self.recorded = self.recorded or (document, finals)
            assert (document, finals) == self.recorded
        assert document["failure_count"] == 0

    def teardown(self) -> None:
        """Let those who sleep wake up late, then let somebody work undisturbed: the run ends encrypted."""
        try:
            if hasattr(self, "run"):
                self._end_well()
        finally:
            for worker in self.workers.values():
                worker.die()
            self.directory.cleanup()

    def _end_well(self) -> None:
        for worker in self.workers.values():
            worker.finish()
            assert worker.bug is None
            self.final_names_show_what_the_document_says()
        document = self.bench.document(self.run)
        if document["status"] != "encrypted":
            stale = document["_rev"] if document["status"] == "processing" else None
            self.bench.now.advance(3601)
            rescuer = self.bench.other(worker_id="rescuer")
            assert rescuer.work(self.run, stale) is Outcome.ENCRYPTED
        self.final_names_show_what_the_document_says()
        assert_same_tree(self.run.path, self.site.restore(self.run.name))
        assert self.site.debris() == []


def on_sqlite(_url: str) -> StoreMaker:
    """Return what makes SQLite stores."""
    return lambda site: site.store


def on_couchdb(url: str) -> StoreMaker:
    """Return what makes stores on the server, each site's in a new database."""

    def maker(_site: Site) -> Callable[[], DocumentStore]:
        name = f"test_{uuid.uuid4().hex}"
        requests.put(f"{url}/{name}", timeout=60).raise_for_status()
        return lambda: CouchDBStore(Login(url, name))

    return maker


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "couchdb"])
def test_workers_that_interfere_at_every_step_end_the_run_once(
    store: str, gnupg: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("couchdb_url") if store == "couchdb" else ""
    machine = type("Here", (Rivals,), {"gnupg": gnupg, "make_store": staticmethod(
        on_couchdb(url) if store == "couchdb" else on_sqlite(url))})  # fmt: skip
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=25, deadline=None, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        ),
    )  # fmt: skip
