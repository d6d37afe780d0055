"""The rules of the model, played by hypothesis against the real worker, archive_store and both document stores."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
import requests
from chaos_scale import size
from harness import Bench
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
from sites import Site, assert_same_tree
from stepping import FILE_STEPS, SteppedWorker

from watcher.archiving import ArchiveStore, Outcome
from watcher.model import ARCHIVE_SUFFIX, MANIFEST_SUFFIX, Document, Run, manifest_name
from watcher.statusdb import CouchDBStore, DocumentStore, Login

EXAMPLES = size("PROTOCOL_EXAMPLES", 40)
"""Stories that hypothesis tells on each store. A hundred take about a minute, half of them told twice."""

WORKERS = 3
NAMING = ("publish", "adopt")
NAMING_STEPS = 12
"""From the beginning of `publish`, these lead to the removal of the last staged name."""

RECIPIENT = "ops@example.org"
STRANGE = b"a stranger's"
STRANGERS: dict[str, Callable[[ArchiveStore, str], Path]] = {
    "archive": ArchiveStore.final_archive,
    "key": ArchiveStore.final_key,
    "manifest": lambda archive_store, name: archive_store.destination / manifest_name(name, MANIFEST_SUFFIX),
}
"""Where a stranger's file may stand."""

StoreMaker = Callable[[Site], Callable[[], DocumentStore]]


class Rivals(RuleBasedStateMachine):
    """Workers that share a disk and a database, each going on, sleeping, dying when hypothesis says so.

    At most one misfortune comes to a story: it may need people, who then move away what stands in the way.
    """

    gnupg: ClassVar[Path]
    make_store: ClassVar[StoreMaker]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="rivals-")
        self.site = Site(Path(self.directory.name) / "site", self.gnupg, RECIPIENT)
        self.bench = Bench.of(self.site, type(self).make_store(self.site))
        self.workers: dict[int, SteppedWorker] = {}
        self.recorded: tuple[Document, dict[str, tuple[int, bytes]]] | None = None
        self.had_misfortune = False
        self.strangers: dict[str, str] = {}
        self.announced: set[tuple[str | None, str | None]] = set()
        self.finished: set[str] = set()
        self.run: Run

    @initialize()
    def register(self) -> None:
        """A run is ready."""
        self.run = self.bench.ready_run(size=20_000)

    numbers = st.integers(0, WORKERS - 1)

    @rule(number=numbers, steps=st.integers(1, 12))
    def go_on(self, number: int, steps: int) -> None:
        """A worker does some steps."""
        self._busy(number).let(steps)

    @rule(chance=st.randoms(use_true_random=True))
    def give_names(self, chance: Random) -> None:
        """Each in turn, workers go on to where they give a run's files their names, and fall asleep near there."""
        for _ in range(chance.randint(3, 6)):
            self.let_beyond(chance.randrange(WORKERS), chance.randint(0, NAMING_STEPS))

    def let_beyond(self, number: int, steps: int) -> SteppedWorker:
        """Let a worker come to where it gives files their names, and do so many steps more; return it."""
        worker = self._busy(number)
        worker.let_beyond(NAMING, steps)
        self.final_names_show_what_the_document_says()
        return worker

    def _busy(self, number: int) -> SteppedWorker:
        """Return a worker; one that has nothing to do finds the run, its claim stale if it has one."""
        worker = self.workers.get(number)
        if worker is None or worker.has_ended:
            self.bench.now.advance(3601)  # past what a failed attempt waits for
            self.workers[number] = worker = SteppedWorker(self.bench.other(worker_id=f"worker_{number}"), self.run)
        return worker

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

    @precondition(lambda self: self.bench.document(self.run)["status"] == "processing")
    @rule()
    def cancel(self) -> None:
        """An operator takes the run from its worker, and gives it free again."""
        statusdb = self.bench.statusdb()
        statusdb.cancel(self.run.name)
        statusdb.unhold(self.run.name)

    @rule(number=numbers, arrives=st.booleans())
    def fail_a_write(self, number: int, arrives: bool) -> None:
        """A write will not arrive, or its answer will not."""
        if worker := self.workers.get(number):
            worker.gate.loses_next_answer, worker.gate.refuses_next_write = arrives, not arrives

    @precondition(lambda self: not self.had_misfortune and self.site.staged_files())
    @rule(which=st.sampled_from(sorted(STRANGERS)))
    def meet_a_stranger(self, which: str) -> None:
        """Somebody else's file takes a final name that is free."""
        final = STRANGERS[which](self.bench.archive_store, self.run.name)
        if not final.exists():
            final.write_bytes(STRANGE)
            self.strangers[final.name] = hashlib.sha256(STRANGE).hexdigest()
            self.had_misfortune = True

    @precondition(lambda self: not self.had_misfortune and self.site.staged_files())
    @rule(suffix=st.sampled_from([ARCHIVE_SUFFIX, MANIFEST_SUFFIX]), is_gone=st.booleans())
    def lose_data(self, suffix: str, is_gone: bool) -> None:
        """A staged file vanishes; or the host crashes, and the disk has lost a part of one."""
        staged = sorted(path for path in self.site.staged_files() if path.name.endswith(f"{suffix}.partial"))
        if not staged or staged[0].stat().st_nlink > 1:
            return
        self.had_misfortune = True
        if is_gone:
            staged[0].unlink()
            return
        for number in list(self.workers):
            self.die(number)
        if staged[0].exists():
            os.truncate(staged[0], staged[0].stat().st_size // 2)

    @precondition(lambda self: hasattr(self, "run"))
    @invariant()
    def final_names_show_what_the_document_says(self) -> None:
        """What stands under a final name is the announced file or a stranger's; what was recorded never changes."""
        document, finals = self.bench.document(self.run), self.bench.finals()
        archive = document.get("archive", {})
        ours = {archive.get(f"{part}file"): archive.get(f"{part}sha256") for part in ("", "key_", "manifest_")}
        # Of an archive that was lost when its key had its name, that stays, for people to look at.
        self.announced = ours.items() | (self.announced if self.had_misfortune else set())
        digests = {name: hashlib.sha256(content).hexdigest() for name, (_, content) in finals.items()}
        assert self.strangers.items() <= digests.items()
        assert digests.items() - self.strangers.items() <= self.announced
        if archive.get("file") in digests.keys() - self.strangers.keys():
            assert ours.keys() == digests.keys(), "an archive stands without its key or its manifest"
        if document["status"] == "encrypted":
            assert digests == ours
            self.recorded = self.recorded or (document, finals)
            assert (document, finals) == self.recorded
        assert document["failure_count"] == 0 or self.had_misfortune
        self._finished_archives_are_kept(document)

    def _finished_archives_are_kept(self, document: Document) -> None:
        """What its maker finished while it held the run, or announced, is staged until it is published.

        One who has lost the run may leave a receipt of files that were swept meanwhile.
        """
        archive_store, name = self.bench.archive_store, self.run.name
        token, announced = document.get("claim", {}).get("token"), document.get("archive", {}).get("token")
        wanted = {announced, token if token and archive_store.is_finished(name, token) else None} - {None}
        self.finished |= {one for one in wanted if archive_store.staged_archive(name, one).exists()}
        if not (self.had_misfortune or archive_store.is_published(name)):
            for token in self.finished:
                assert archive_store.staged_archive(name, token).exists(), "a finished archive is thrown away"

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
        if self.bench.document(self.run)["status"] != "encrypted":
            outcome = self._rescue()
            if outcome is not Outcome.ENCRYPTED and self.had_misfortune:
                self._clear_final_names()
                outcome = self._rescue()
            assert outcome is Outcome.ENCRYPTED
        self.final_names_show_what_the_document_says()
        assert_same_tree(self.run.path, self.site.restore(self.run.name))
        assert self.site.staged_files() == []

    def _rescue(self) -> Outcome:
        document = self.bench.document(self.run)
        self.bench.now.advance(3601)
        rescuer = self.bench.other(worker_id="rescuer")
        return rescuer.work(self.run, document["_rev"] if document["status"] == "processing" else None)

    def _clear_final_names(self) -> None:
        """Do what an operator does: move away what stands in the way, and `retry`."""
        self.final_names_show_what_the_document_says()
        for final in STRANGERS.values():
            final(self.bench.archive_store, self.run.name).unlink(missing_ok=True)
        self.strangers.clear()
        self.bench.statusdb().retry(self.run.name)


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


@contextmanager
def story(gnupg: Path) -> Iterator[Rivals]:
    """Register a run on SQLite; what is told of it while the context lasts ends well."""
    told = type("Here", (Rivals,), {"gnupg": gnupg, "make_store": staticmethod(on_sqlite(""))})()
    told.register()
    try:
        yield told
    finally:
        told.teardown()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["maker", "adopter"])
def test_a_maker_and_an_adopter_may_sleep_at_any_two_steps(first: str, gnupg: Path) -> None:
    """Chance seldom meets the few steps in which one makes the other see half of what is done."""
    asleep_before = set()
    for made, adopted in itertools.product(range(NAMING_STEPS + 1), repeat=2):
        with story(gnupg) as told:
            workers = {"maker": told.let_beyond(0, made), "adopter": told.let_beyond(1, adopted)}
            asleep_before |= {worker.gate.next_step for worker in workers.values()}
            workers[first].finish()
    assert asleep_before >= FILE_STEPS - {"os.rename"}


MISFORTUNES: dict[str, Callable[[Rivals], None]] = {
    "a stranger's archive": lambda told: told.meet_a_stranger("archive"),
    "a stranger's key": lambda told: told.meet_a_stranger("key"),
    "a stranger's manifest": lambda told: told.meet_a_stranger("manifest"),
    "an archive that vanishes": lambda told: told.lose_data(ARCHIVE_SUFFIX, is_gone=True),
    "an archive that is damaged": lambda told: told.lose_data(ARCHIVE_SUFFIX, is_gone=False),
    "a manifest that vanishes": lambda told: told.lose_data(MANIFEST_SUFFIX, is_gone=True),
    "a manifest that is damaged": lambda told: told.lose_data(MANIFEST_SUFFIX, is_gone=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("misfortune", MISFORTUNES)
def test_a_misfortune_may_come_at_any_step(misfortune: str, gnupg: Path) -> None:
    came = 0
    for steps in range(NAMING_STEPS + 1):
        with story(gnupg) as told:
            told.let_beyond(0, steps)
            MISFORTUNES[misfortune](told)
            came += told.had_misfortune
    assert came > 1


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
            max_examples=EXAMPLES, stateful_step_count=20, deadline=None, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        ),
    )  # fmt: skip
