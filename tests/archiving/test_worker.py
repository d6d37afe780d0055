"""The story of one run, with real gpg and tar on SQLite, and what each class of error leads to."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Action, Bench, always, die, no_pauses
from sites import PATIENCE_SECONDS, Site, assert_same_tree, gpg, keyring, wait_until

from watcher.archiving import LeaseKeeper, Outcome, Worker, growing_pauses
from watcher.errors import ClaimLost, Interrupted, NoSpace, Stalled, StatusDBUnavailable
from watcher.model import KEY_SUFFIX, MANIFEST_SUFFIX, Archive, Document, Run, ValidationMode
from watcher.source import SENTINEL

AWAY = StatusDBUnavailable("the database is away, says the test")


@pytest.fixture
def bench(site: Site) -> Bench:
    """A worker on SQLite."""
    return Bench.of(site)


def assert_restores(bench: Bench, run: Run) -> None:
    """Assert that the run is encrypted, and that archive and key are the recorded ones and restore to its source."""
    document = bench.document(run)
    assert document["status"] == "encrypted"
    assert "claim" not in document
    assert_same_tree(run.path, bench.site.restore(run.name))
    assert bench.site.staged_files() == []


def made_by(bench: Bench, run: Run) -> str:
    """Return the token of the claim that made the archive which is recorded."""
    token = bench.document(run)["archive"]["token"]
    assert token
    return str(token)


def staged_token(bench: Bench, run: Run) -> str:
    """Return the token of the only staged archive."""
    (token,) = bench.archive_store.staged_tokens(run.name)
    return str(token)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a script before a program of that name on the PATH; `REAL` in it is the program itself.

    It does not stand in where tar is asked for its version.
    """
    directory = tmp_path / "bin"
    directory.mkdir()
    original = os.environ["PATH"]

    def put(name: str, script: str) -> None:
        real = shutil.which(name, path=original)
        path = directory / name
        asked = 'if [ "$1" = --version ]; then exec REAL "$@"; fi\n' if name == "tar" else ""
        path.write_text("#!/bin/bash\n" + (asked + script).replace("REAL", str(real)), encoding="ascii")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{directory}:{original}")
    return put


# The story


def test_a_ready_run_becomes_an_archive_that_restores(bench: Bench) -> None:
    run = bench.ready_run()
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)
    document = bench.document(run)
    assert (document["worker_id"], document["failure_count"]) == ("worker_1", 0)
    assert document["archive"]["token"] == document["last_claim"]


def test_a_run_whose_sentinel_is_not_ready_is_not_claimed(bench: Bench) -> None:
    run = bench.ready_run()
    bench.site.complete(run.path, "23\n")
    assert bench.work(run) is Outcome.NOT_READY
    assert bench.document(run)["status"] == "pending"


def test_an_encrypted_run_whose_source_is_deleted_is_not_ours_rather_than_not_ready(bench: Bench) -> None:
    run = bench.ready_run()
    bench.work(run)
    shutil.rmtree(run.path)
    assert bench.work(run) is Outcome.NOT_OURS


def test_a_worker_that_was_closed_while_it_looked_at_a_run_does_not_claim_it(bench: Bench) -> None:
    run = bench.ready_run()
    workers: list[Worker] = []

    def close() -> None:
        workers[0].close()

    workers.append(bench.with_archive_store("free_bytes", close).worker())
    assert workers[0].work(run) is Outcome.NOT_OURS
    assert bench.document(run)["status"] == "pending"


def test_an_encrypted_run_is_not_archived_again(bench: Bench) -> None:
    run = bench.ready_run()
    bench.work(run)
    before = bench.finals()
    assert bench.work(run) is Outcome.NOT_OURS
    assert bench.finals() == before


def test_a_claim_that_somebody_else_was_quicker_to_take_is_not_ours(bench: Bench) -> None:
    run = bench.ready_run()
    rival = bench.other(worker_id="worker_2")
    loser = bench.with_store("put", lambda: rival.work(run))
    assert loser.work(run) is Outcome.NOT_OURS
    assert bench.document(run)["worker_id"] == "worker_2"
    assert_restores(bench, run)


# The run's own failures

FAULTS = {
    "TarFailed": ("tar", 'REAL "$@"; echo "tar: ./run_001/x: Cannot open: Permission denied" >&2; exit 2'),
    "EncryptFailed": (
        "gpg",
        '[[ " $* " = *" --symmetric "* ]] && { echo "gpg: no luck" >&2; exit 2; }; exec REAL "$@"',
    ),
    "ValidateFailed": ("gpg", '[[ " $* " = *" --decrypt "* ]] && { cat >/dev/null; exit 2; }; exec REAL "$@"'),
    "ValidateFailed, since gpg lost the end of what tar gave": (
        "gpg",
        '[[ " $* " = *" --symmetric "* ]] && { { head -c 20000; cat >/dev/null; } | REAL "$@"; exit; }; exec REAL "$@"',
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_runs_own_failure_counts_to_three_and_leaves_no_partial_file(
    bench: Bench, program: Callable[[str, str], None], fault: str
) -> None:
    run = bench.ready_run()
    program(*FAULTS[fault])
    for count, status in ((1, "pending"), (2, "pending"), (3, "failed")):
        assert bench.work(run) is Outcome.FAILED
        document = bench.document(run)
        assert (document["failure_count"], document["status"]) == (count, status)
        assert document["last_error"]["kind"] == fault.partition(",")[0]
        assert bench.site.staged_files() == []
        bench.now.advance(3601)
    assert bench.work(run) is Outcome.NOT_OURS
    assert bench.finals() == {}


def test_tars_own_words_are_in_the_error(bench: Bench, program: Callable[[str, str], None]) -> None:
    run = bench.ready_run()
    program(*FAULTS["TarFailed"])
    bench.work(run)
    assert "Permission denied" in bench.document(run)["last_error"]["message"]


def test_the_pause_after_a_failure_doubles(bench: Bench, program: Callable[[str, str], None]) -> None:
    run = bench.ready_run()
    program(*FAULTS["TarFailed"])
    waits = []
    for _ in range(2):
        bench.work(run)
        waits.append(bench.statusdb().seconds_until_due(bench.document(run)))
        assert bench.work(run) is Outcome.NOT_OURS, "it is not due yet"
        bench.now.advance(waits[-1])
    assert waits == [60.0, 120.0]


def test_a_run_that_moved_away_before_tar_read_it_is_given_back(bench: Bench) -> None:
    run = bench.ready_run()
    gone = bench.with_store("put", lambda: shutil.move(run.path, bench.site.root / "elsewhere"))
    assert gone.work(run) is Outcome.RELEASED
    assert bench.document(run)["last_error"]["kind"] == "RunNotSettled"
    assert bench.site.staged_files() == []


def test_a_bug_is_shown_with_its_traceback_and_counted(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    run = bench.ready_run()
    buggy = bench.with_archive_store("stage_key", always(ZeroDivisionError("a bug, says the test")))
    assert buggy.work(run) is Outcome.FAILED
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    document = bench.document(run)
    assert (document["failure_count"], document["last_error"]["kind"]) == (1, "ZeroDivisionError")
    assert bench.site.staged_files() == []


# What is not the run's fault


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: a write fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_costs_no_attempt(bench: Bench) -> None:
    run = bench.ready_run(size=3_000_000)
    with files_of_at_most(1_000_000):
        assert bench.work(run) is Outcome.RELEASED
    document = bench.document(run)
    assert (document["status"], document["failure_count"]) == ("pending", 0)
    assert document["last_error"]["kind"] == "NoSpace"
    assert bench.site.staged_files() == []
    bench.now.advance(61)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


@pytest.mark.parametrize("step", ["stage_key", "stage_receipt", "publish"])
def test_a_finished_archive_waits_for_a_disk_that_fails_at_its_last_steps(bench: Bench, step: str) -> None:
    run = bench.ready_run()
    assert bench.with_archive_store(step, always(NoSpace("no room, says the test"))).work(run) is Outcome.ENCRYPTED
    assert bench.document(run)["failure_count"] == 0
    assert_restores(bench, run)


@pytest.mark.parametrize("write", ["announcement", "record"])
@pytest.mark.parametrize("after", [False, True], ids=["lost", "answer lost"])
def test_a_database_that_is_away_at_the_end_costs_nothing(bench: Bench, write: str, after: bool) -> None:
    run = bench.ready_run()
    number = {"announcement": 2, "record": 3}[write]
    assert bench.with_store("put", always(AWAY), nth=number, after=after).work(run) is Outcome.ENCRYPTED
    document = bench.document(run)
    assert document["failure_count"] == 0
    assert document["archive"]["token"] == document["last_claim"]
    assert_restores(bench, run)


def test_a_claim_whose_answer_was_lost_is_ours_all_the_same(bench: Bench) -> None:
    run = bench.ready_run()
    assert bench.with_store("put", always(AWAY), after=True).work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


def test_a_claim_that_did_not_arrive_is_none(bench: Bench) -> None:
    run = bench.ready_run()
    away = replace(bench, make_store=lambda: _EveryPut(bench.make_store(), always(AWAY)))
    with pytest.raises(StatusDBUnavailable):
        away.work(run)
    assert bench.document(run)["status"] == "pending"
    assert bench.site.staged_files() == []


def test_the_record_waits_with_growing_pauses_however_long_the_database_is_away(bench: Bench) -> None:
    run = bench.ready_run()
    waited: list[float] = []

    def pauses() -> Iterator[float]:
        for pause in growing_pauses():
            waited.append(pause)
            yield 0.0

    def away_once_it_is_published() -> None:
        if bench.archive_store.is_published(run.name) and len(waited) < 40:
            raise AWAY

    away = replace(bench, make_store=lambda: _EveryPut(bench.make_store(), away_once_it_is_published))
    assert replace(away, pauses=pauses).work(run) is Outcome.ENCRYPTED
    record = waited[-(40 - 3) :]  # wrap, receipt and publication had one try each
    assert record == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0] + [60.0] * 31
    assert bench.document(run)["failure_count"] == 0
    assert_restores(bench, run)


class _EveryPut:
    """A document store that asks `action` before each `put`."""

    def __init__(self, real: object, action: Action) -> None:
        self._real = real
        self._action = action

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def put(self, document: Document) -> object:
        self._action()
        return self._real.put(document)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["staged_archive", "stage_key", "stage_receipt"])
def test_a_cancelled_run_is_given_back_at_once_and_costs_nothing(bench: Bench, method: str) -> None:
    run = bench.ready_run()
    workers: list[Worker] = []
    bench_then = bench.with_archive_store(method, lambda: workers[0].cancel(Interrupted("cancelled, says the test")))
    workers.append(bench_then.worker())
    assert workers[0].work(run) is Outcome.RELEASED
    document = bench.document(run)
    assert (document["status"], document["failure_count"]) == ("pending", 0)
    assert "not_before" not in document
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


def test_a_stall_is_counted_though_the_database_is_away_when_it_ends(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    run = bench.ready_run()
    workers: list[Worker] = []
    tries: list[int] = []

    def away_after_the_claim() -> None:
        tries.append(len(tries))
        if 0 < len(tries) - 1 < 4:
            raise AWAY

    stalling = replace(bench, make_store=lambda: _EveryPut(bench.make_store(), away_after_the_claim))
    stalled = Stalled("gpg hangs, says the test")
    workers.append(stalling.with_archive_store("staged_archive", lambda: workers[0].cancel(stalled)).worker())
    assert workers[0].work(run) is Outcome.FAILED
    document = bench.document(run)
    assert (document["failure_count"], document["last_error"]["kind"]) == (1, "Stalled")
    assert len(tries) > 4
    assert "a bug" not in caplog.text
    assert "cannot count the failure yet" in caplog.text


# Room


def test_a_run_without_room_waits_with_the_reason_shown_and_no_attempt_spent(bench: Bench) -> None:
    run = bench.ready_run()
    before = bench.document(run)
    crowded = bench.other(minimum_free_space=1 << 60)
    assert crowded.work(run) is Outcome.NO_ROOM
    noted = bench.document(run)
    assert (noted["status"], noted["failure_count"]) == ("pending", 0)
    assert noted["last_error"]["kind"] == "NoSpace"
    assert str(1 << 60) in noted["last_error"]["message"]
    assert "claim" not in noted
    crowded.work(run)
    assert bench.document(run)["_rev"] == noted["_rev"] != before["_rev"], "the same reason is written once"
    assert bench.work(run) is Outcome.ENCRYPTED
    assert "last_error" not in bench.document(run)


def test_running_jobs_keep_their_room_reserved(bench: Bench) -> None:
    first, second = bench.ready_run("run_001", 20_000_000), bench.ready_run("run_002", 20_000_000)
    free = bench.archive_store.free_bytes("run_002")
    outcomes: list[Outcome] = []
    workers: list[Worker] = []
    tight = bench.other(minimum_free_space=free - 30_000_000)
    tight = tight.with_archive_store("refuse_foreign", lambda: outcomes.append(workers[0].work(second)))
    workers.append(tight.worker())
    assert workers[0].work(first) is Outcome.ENCRYPTED
    assert outcomes == [Outcome.NO_ROOM], "30 MB for two runs of 20 MB"
    assert bench.document(second)["last_error"]["kind"] == "NoSpace"


def test_what_a_dead_worker_left_behind_counts_as_room_for_its_run(bench: Bench) -> None:
    run = bench.ready_run(size=100_000)
    bench.with_archive_store("stage_key", die).dies(run)
    left_behind = bench.archive_store.staged_archive(run.name, staged_token(bench, run))
    with left_behind.open("ab") as file:
        file.write(bytes(40_000_000))
    free = bench.archive_store.free_bytes("another run")
    crowded = bench.other(minimum_free_space=free + 10_000_000)
    assert crowded.take_over(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


# Runs that change


SHRINKS = 'REAL "$@"; echo "tar: ./run_001/Data/x: File shrank by 5 bytes; padding with zeros" >&2; exit 1'


def test_a_run_that_changes_is_given_back_with_growing_pauses_until_the_settle_limit(
    bench: Bench, program: Callable[[str, str], None]
) -> None:
    run = bench.ready_run()
    program("tar", SHRINKS)
    waits: list[float] = []
    elapsed = 0.0
    while (outcome := bench.work(run)) is Outcome.RELEASED:
        document = bench.document(run)
        assert (document["status"], document["failure_count"]) == ("pending", 0)
        assert document["last_error"]["kind"] == "RunNotSettled"
        assert "File shrank" in document["last_error"]["message"]
        waits.append(bench.statusdb().seconds_until_due(document))
        elapsed += waits[-1]
        bench.now.advance(waits[-1])
        assert elapsed <= 86400 + 3600
    assert outcome is Outcome.FAILED
    assert waits[0] == 60.0
    assert waits == sorted(waits)
    assert waits[-1] == 3600.0
    assert elapsed >= 86400
    document = bench.document(run)
    assert (document["status"], document["failure_count"]) == ("pending", 1)
    assert bench.site.staged_files() == []


def test_a_run_that_has_settled_after_all_is_archived_and_forgets_its_trouble(
    bench: Bench, program: Callable[[str, str], None]
) -> None:
    run = bench.ready_run()
    program("tar", SHRINKS)
    bench.work(run)
    program("tar", 'exec REAL "$@"')
    bench.now.advance(3600)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert not {"unsettled_since", "last_error", "not_before"} & bench.document(run).keys()
    assert_restores(bench, run)


# The recipient


@pytest.fixture
def own_keyring(bench: Bench, tmp_path: Path) -> Iterator[Bench]:
    """The worker with a keyring of its own, which has only the public key, and may lose it."""
    with keyring(tmp_path / "own") as home:
        gpg(home, "--import", data=gpg(bench.site.gnupg, "--export", bench.site.recipient))
        yield bench.other(gnupg_home=home)


def forget_key(bench: Bench) -> None:
    """Remove the recipient's public key from the worker's keyring."""
    home = bench.settings.gnupg_home
    assert home is not None
    gpg(home, "--yes", "--delete-keys", bench.site.recipient)


def import_key(bench: Bench) -> None:
    """Give the recipient's public key to the worker's keyring."""
    home = bench.settings.gnupg_home
    assert home is not None
    gpg(home, "--import", data=gpg(bench.site.gnupg, "--export", bench.site.recipient))


def import_expired_key(bench: Bench) -> None:
    """Replace the recipient's key by one of the same name that has expired."""
    home = bench.settings.gnupg_home
    assert home is not None
    then = ("--faked-system-time", "20200101T000000!", "--passphrase", "", "--pinentry-mode", "loopback")
    gpg(home, *then, "--quick-generate-key", bench.site.recipient, "future-default", "default", "1d")


@pytest.mark.parametrize("expired", [False, True], ids=["vanished", "expired"])
def test_a_recipient_lost_between_start_and_wrap_is_waited_for_and_the_archive_is_kept(
    own_keyring: Bench, caplog: pytest.LogCaptureFixture, expired: bool
) -> None:
    bench = own_keyring
    run = bench.ready_run()
    archives: list[bytes] = []

    def lose() -> None:
        forget_key(bench)
        if expired:
            import_expired_key(bench)

    def pauses() -> Iterator[float]:
        yield 0.0
        (staged,) = bench.site.archives.glob(".*.tar.gpg.partial")
        archives.append(staged.read_bytes())
        yield 0.0
        import_key(bench)
        yield from no_pauses()

    waiting = replace(bench.with_archive_store("staged_archive", lose), pauses=pauses)
    assert waiting.work(run) is Outcome.ENCRYPTED
    waits = [record.getMessage() for record in caplog.records if "cannot wrap the file key yet" in record.getMessage()]
    assert len(waits) == 2
    assert all("import" in words and bench.site.recipient in words for words in waits)
    assert [bench.finals()["run_001.tar.gpg"][1]] == archives, "it was not made again"
    assert bench.document(run)["failure_count"] == 0
    assert_restores(bench, run)


@pytest.mark.parametrize("ending", ["exit 2", "kill -9 $$"])
def test_a_wrap_that_fails_is_waited_for_and_the_archive_is_kept(
    bench: Bench, program: Callable[[str, str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    run = bench.ready_run()
    failed = tmp_path / "failed"
    program(
        "gpg",
        f'[[ " $* " = *" --recipient "* && ! -e {failed} ]] && {{ touch {failed}; cat >/dev/null; {ending}; }}; '
        'exec REAL "$@"',
    )
    assert bench.work(run) is Outcome.ENCRYPTED
    assert failed.exists()
    assert "cannot wrap the file key yet" in caplog.text
    assert bench.document(run)["failure_count"] == 0
    assert_restores(bench, run)


def test_a_recipient_that_is_missing_at_the_start_costs_no_attempt(own_keyring: Bench) -> None:
    run = own_keyring.ready_run()
    forget_key(own_keyring)
    assert own_keyring.work(run) is Outcome.RELEASED
    document = own_keyring.document(run)
    assert (document["failure_count"], document["last_error"]["kind"]) == (0, "RecipientUnusable")
    assert "gpg --import" in document["last_error"]["message"]


def test_a_broken_keyring_costs_no_attempt_and_no_archive(own_keyring: Bench) -> None:
    run = own_keyring.ready_run()
    home = own_keyring.settings.gnupg_home
    assert home is not None
    ring, kept = home / "pubring.kbx", home / "kept"

    def pauses() -> Iterator[float]:
        yield 0.0
        shutil.copy(kept, ring)
        yield from no_pauses()

    def spoil() -> None:
        shutil.copy(ring, kept)
        ring.write_bytes(os.urandom(5000))

    broken = replace(own_keyring.with_archive_store("staged_archive", spoil), pauses=pauses)
    assert broken.work(run) is Outcome.ENCRYPTED
    assert own_keyring.document(run)["failure_count"] == 0
    assert_restores(own_keyring, run)


# Files in the way


@pytest.mark.parametrize("name", ["archives/run_001.tar.gpg", "run_keys/run_001.key.gpg"])
def test_a_foreign_file_under_a_final_name_is_never_overwritten(bench: Bench, name: str) -> None:
    run = bench.ready_run()
    foreign = bench.site.root / name
    foreign.write_bytes(b"not ours")
    assert bench.work(run) is Outcome.FAILED
    assert bench.document(run)["last_error"]["kind"] == "PublishFailed"
    assert str(foreign) in bench.document(run)["last_error"]["message"]
    assert foreign.read_bytes() == b"not ours"
    assert len(bench.finals()) == 1
    assert bench.site.staged_files() == []


@pytest.mark.parametrize("name", ["archives/run_001.tar.gpg", "run_keys/run_001.key.gpg"])
def test_an_archive_that_a_foreign_file_keeps_out_is_published_once_that_is_gone(bench: Bench, name: str) -> None:
    run = bench.ready_run()
    foreign = bench.site.root / name
    late = bench.with_archive_store("publish", lambda: foreign.write_bytes(b"not ours"))
    assert late.work(run) is Outcome.FAILED
    maker = bench.document(run)["archive"]["token"]
    for _ in range(2):
        bench.now.advance(3601)
        assert bench.work(run) is Outcome.FAILED
    assert bench.document(run)["status"] == "failed"
    assert foreign.read_bytes() == b"not ours"
    foreign.unlink()
    bench.statusdb().retry(run.name)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert made_by(bench, run) == maker, "it was not made again"
    assert_restores(bench, run)


# Lost claims


@pytest.mark.parametrize("method", ["refuse_foreign", "staged_archive", "stage_key", "stage_receipt", "publish"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_whoever_loses_the_claim_changes_nothing_of_what_the_other_published(
    bench: Bench, method: str, after: bool
) -> None:
    run = bench.ready_run()
    finals: list[dict[str, tuple[int, bytes]]] = []

    def rival() -> None:
        assert bench.take_over(run) is Outcome.ENCRYPTED
        finals.append(bench.finals())

    sleeper = bench.with_archive_store(method, rival, after=after)
    assert sleeper.work(run) is Outcome.LOST
    assert finals == [bench.finals()]
    document = bench.document(run)
    assert (document["worker_id"], document["failure_count"]) == ("worker_2", 0)
    assert_restores(bench, run)


@pytest.mark.parametrize("ending", ["release", "fail"])
def test_whoever_loses_the_claim_while_giving_it_back_changes_nothing(bench: Bench, ending: str) -> None:
    run = bench.ready_run()
    error: Exception = NoSpace("no room") if ending == "release" else ValueError("a bug")

    def trouble() -> None:
        assert bench.take_over(run) is Outcome.ENCRYPTED
        raise error

    assert bench.with_archive_store("refuse_foreign", trouble).work(run) is Outcome.LOST
    document = bench.document(run)
    assert (document["status"], document["worker_id"], document["failure_count"]) == ("encrypted", "worker_2", 0)
    assert_restores(bench, run)


def test_a_late_waker_leaves_the_files_of_its_successor_alone(bench: Bench) -> None:
    """The second worker sleeps before it sweeps, and wakes when the third is about to publish."""
    run = bench.ready_run()
    bench.with_archive_store("stage_key", die).dies(run)
    second, third = bench.other(worker_id="worker_2"), bench.other(worker_id="worker_3")
    is_about_to_publish, second_has_ended = threading.Event(), threading.Event()

    def stand_by() -> None:
        is_about_to_publish.set()
        assert second_has_ended.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(1) as pool:
        thirds: list[Future[Outcome]] = []

        def third_takes_over() -> None:
            rev = bench.document(run)["_rev"]
            thirds.append(pool.submit(third.with_archive_store("publish", stand_by).work, run, rev))
            assert is_about_to_publish.wait(PATIENCE_SECONDS)

        assert (
            second.with_archive_store("receipts", third_takes_over).work(run, bench.document(run)["_rev"])
            is Outcome.LOST
        )
        second_has_ended.set()
        assert thirds[0].result() is Outcome.ENCRYPTED
    assert bench.document(run)["worker_id"] == "worker_3"
    assert_restores(bench, run)


def test_a_worker_that_falls_asleep_at_its_claim_leaves_the_files_of_its_successor_alone(bench: Bench) -> None:
    run = bench.ready_run()
    left: list[Path] = []

    def sleep() -> None:
        bench.other(worker_id="worker_2").with_archive_store("stage_receipt", die).dies(run, stale=True)
        left.extend(bench.site.staged_files())

    assert bench.with_store("put", sleep, after=True).work(run) is Outcome.LOST
    assert len(left) == 3
    assert set(left) <= set(bench.site.staged_files())


def test_an_archive_that_vanished_before_it_was_proven_costs_no_attempt(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    run = bench.ready_run(size=20_000_000)

    class Losing:
        """A archive_store whose staged archive vanishes as soon as tar has been read."""

        def __getattr__(self, name: str) -> object:
            return getattr(bench.archive_store, name)

        def staged_archive(self, run_name: str, token: str) -> Path:
            staged: Path = bench.archive_store.staged_archive(run_name, token)
            threading.Thread(target=unlink_when_there, args=(staged,), daemon=True).start()
            return staged

    def unlink_when_there(staged: Path) -> None:
        wait_until(staged.exists, "it is there")
        staged.unlink()

    assert replace(bench, archive_store=Losing()).work(run) is Outcome.RELEASED
    assert bench.document(run)["failure_count"] == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_holder_that_may_not_trust_its_lease_any_more_asks_before_it_publishes(bench: Bench) -> None:
    run = bench.ready_run()
    clock = [0.0]
    revs: list[str] = []

    def disk_is_away_for_longer_than_a_lease() -> None:
        if not revs:
            clock[0] += 1000.0
            revs.append(bench.document(run)["_rev"])
            raise NoSpace("no disk, says the test")

    def look() -> None:
        revs.append(bench.document(run)["_rev"])

    first = bench.with_archive_store("publish", disk_is_away_for_longer_than_a_lease)
    statusdb = bench.statusdb()
    worker = Worker(
        bench.settings,
        statusdb,
        first.with_archive_store("publish", look, nth=2).archive_store,
        LeaseKeeper(statusdb, 300.0, clock=lambda: clock[0]),
        no_pauses,
    )
    assert worker.work(run) is Outcome.ENCRYPTED
    assert len(revs) == 2
    assert revs[0] != revs[1], "it wrote the document before it tried again"


def test_a_holder_that_an_operator_took_the_run_from_stops(bench: Bench) -> None:
    run = bench.ready_run()

    def edit() -> None:
        bench.make_store().put({**bench.document(run), "status": "pending"})

    assert bench.with_archive_store("stage_key", edit).work(run) is Outcome.LOST
    assert bench.document(run)["status"] == "pending"


# Interrupted attempts are completed


def name_key(bench: Bench, run: Run) -> None:
    """Do what a publisher does first: give the key its name."""
    token = staged_token(bench, run)
    os.link(bench.archive_store.staged_key(run.name, token), bench.archive_store.final_key(run.name))


def name_both(bench: Bench, run: Run) -> None:
    """Do what a publisher does, but for removing the staged names."""
    name_key(bench, run)
    token = staged_token(bench, run)
    os.link(bench.archive_store.staged_archive(run.name, token), bench.archive_store.final_archive(run.name))


def nothing_more(_bench: Bench, _run: Run) -> None:
    """Leave it as it is."""


Intercept = Callable[[Bench], Bench]

CRASHES: dict[str, tuple[Intercept, Callable[[Bench, Run], None]]] = {
    "after the receipt, before it is announced": (
        lambda bench: bench.with_archive_store("stage_receipt", die, after=True), nothing_more),
    "before the announcement arrives": (lambda bench: bench.with_store("put", die, nth=2), nothing_more),
    "when it was announced": (lambda bench: bench.with_store("put", die, nth=2, after=True), nothing_more),
    "before it publishes": (lambda bench: bench.with_archive_store("publish", die), nothing_more),
    "when the key has its name": (lambda bench: bench.with_archive_store("publish", die), name_key),
    "when both have their names": (lambda bench: bench.with_archive_store("publish", die), name_both),
    "when it is published": (lambda bench: bench.with_archive_store("publish", die, after=True), nothing_more),
    "before the record arrives": (lambda bench: bench.with_store("put", die, nth=3), nothing_more),
}  # fmt: skip


DEATHS_OF_AN_ADOPTER: dict[str, Intercept] = {
    "claimed": lambda bench: bench.with_store("put", die, after=True),
    "before its next write": lambda bench: bench.with_store("put", die, nth=2),
    "before it adopts": lambda bench: bench.with_archive_store("adopt", die),
    "when it has adopted": lambda bench: bench.with_archive_store("adopt", die, after=True),
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_finished_archive_is_adopted_after_a_crash(bench: Bench, crash: str) -> None:
    run = bench.ready_run()
    intercept, then = CRASHES[crash]
    intercept(bench).dies(run)
    maker = bench.document(run)["claim"]["token"]
    then(bench, run)
    assert bench.take_over(run) is Outcome.ENCRYPTED
    assert made_by(bench, run) == maker, "it was not made again"
    assert_restores(bench, run)


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("step", DEATHS_OF_AN_ADOPTER)
def test_a_finished_archive_is_adopted_even_when_the_one_who_adopts_dies_as_well(
    bench: Bench, crash: str, step: str
) -> None:
    run = bench.ready_run()
    intercept, then = CRASHES[crash]
    intercept(bench).dies(run)
    maker = bench.document(run)["claim"]["token"]
    then(bench, run)
    DEATHS_OF_AN_ADOPTER[step](bench.other(worker_id="worker_2")).dies(run, stale=True)
    assert bench.other(worker_id="worker_3").take_over(run) is Outcome.ENCRYPTED
    assert made_by(bench, run) == maker, "it was not made again"
    assert_restores(bench, run)


UNFINISHED: dict[str, Intercept] = {
    "claimed": lambda bench: bench.with_store("put", die, after=True),
    "about to write": lambda bench: bench.with_archive_store("staged_archive", die, after=True),
    "validated": lambda bench: bench.with_archive_store("stage_key", die),
    "key staged": lambda bench: bench.with_archive_store("stage_key", die, after=True),
    "about to write the receipt": lambda bench: bench.with_archive_store("stage_receipt", die),
}


@pytest.mark.parametrize("crash", UNFINISHED)
def test_what_a_crash_left_unfinished_is_swept_and_made_again(bench: Bench, crash: str) -> None:
    run = bench.ready_run()
    UNFINISHED[crash](bench).dies(run)
    left: list[list[Path]] = []
    successor = bench.with_archive_store("refuse_foreign", lambda: left.append(bench.site.staged_files()))
    assert successor.take_over(run) is Outcome.ENCRYPTED
    assert left == [[]], "its room is free before the new archive is begun"
    assert made_by(bench, run) == bench.document(run)["last_claim"]
    assert_restores(bench, run)


@pytest.mark.parametrize("which", ["staged_archive", "staged_key"])
@pytest.mark.parametrize("crash", ["before it publishes", "after the receipt, before it is announced"])
def test_a_staged_file_that_is_not_the_announced_one_is_not_adopted(bench: Bench, which: str, crash: str) -> None:
    run = bench.ready_run()
    CRASHES[crash][0](bench).dies(run)
    damaged = getattr(bench.archive_store, which)(run.name, staged_token(bench, run))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert bench.take_over(run) is Outcome.ENCRYPTED
    assert made_by(bench, run) == bench.document(run)["last_claim"], "it was made again"
    assert_restores(bench, run)


def test_an_archive_that_is_not_adopted_is_not_announced_any_more(bench: Bench) -> None:
    """Else the next one would be published under the announcement of another."""
    run = bench.ready_run()
    bench.with_archive_store("publish", die).dies(run)
    bench.archive_store.staged_archive(run.name, staged_token(bench, run)).write_bytes(b"rotten")
    bench.other(worker_id="worker_2").with_archive_store("publish", die, after=True).dies(run, stale=True)
    assert bench.other(worker_id="worker_3").take_over(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


@pytest.mark.parametrize("crash", ["before it publishes", "after the receipt, before it is announced"])
def test_a_finished_archive_is_made_again_when_the_transfer_came_again_meanwhile(bench: Bench, crash: str) -> None:
    run = bench.ready_run()
    CRASHES[crash][0](bench).dies(run)
    (run.path / SENTINEL).unlink()
    (run.path / "late").write_bytes(b"of the second transfer")
    bench.site.complete(run.path)
    assert bench.take_over(run) is Outcome.ENCRYPTED
    assert made_by(bench, run) == bench.document(run)["last_claim"], "it was made again"
    assert_restores(bench, run)


@pytest.mark.parametrize("crash", CRASHES)
def test_a_finished_archive_is_adopted_though_its_run_is_gone(bench: Bench, crash: str, tmp_path: Path) -> None:
    run = bench.ready_run()
    intercept, then = CRASHES[crash]
    intercept(bench).dies(run)
    then(bench, run)
    source = run.path.rename(tmp_path / "source")
    worker = bench.other(worker_id="worker_2").worker()
    assert worker.may_end(run)
    assert worker.work(run, bench.document(run)["_rev"]) is Outcome.ENCRYPTED
    assert_same_tree(source, bench.site.restore(run.name))


@pytest.mark.parametrize(
    "spoil",
    [lambda bench, run: shutil.rmtree(run.path), lambda bench, run: bench.site.complete(run.path, "23\n")],
    ids=["gone", "withdrawn"],
)
def test_a_dead_workers_claim_on_a_run_that_is_gone_or_not_ready_any_more_is_given_back(
    bench: Bench, spoil: Callable[[Bench, Run], object]
) -> None:
    run = bench.ready_run()
    bench.with_store("put", die, after=True).dies(run)
    spoil(bench, run)
    assert bench.worker().may_end(run), "it is its own"
    assert not bench.other(worker_id="worker_2").worker().may_end(run)
    assert bench.take_over(run) is Outcome.RELEASED
    document = bench.document(run)
    assert (document["status"], document["failure_count"]) == ("pending", 0)
    assert document["last_error"]["kind"] == "RunNotSettled"
    bench.now.advance(3601)
    assert bench.work(run) is Outcome.NOT_READY


def test_a_record_that_too_few_nodes_ever_confirm_is_none(bench: Bench) -> None:
    run = bench.ready_run()
    tries: list[int] = []

    class Unconfirmed(_EveryPut):
        def put(self, document: Document) -> object:
            written = super().put(document)
            if document["status"] != "encrypted":
                return written
            tries.append(len(tries))
            return replace(written, confirmed=len(tries) > 7)  # type: ignore[type-var]

    unconfirmed = replace(bench, make_store=lambda: Unconfirmed(bench.make_store(), lambda: None))
    assert unconfirmed.work(run) is Outcome.ENCRYPTED
    assert len(tries) == 8, "it is written until it is confirmed"
    assert_restores(bench, run)


def test_a_publisher_that_wakes_late_has_nothing_left_to_name(bench: Bench) -> None:
    """It announced, fell asleep, and its archive vanished, so that the next holder made another."""
    run = bench.ready_run()
    outcomes: list[Outcome] = []

    def sleep() -> None:
        announced = Archive.from_document(bench.document(run)["archive"])
        bench.archive_store.staged_archive(run.name, announced.token).unlink()

        def wake() -> None:
            with pytest.raises(ClaimLost):
                bench.archive_store.publish(run.name, announced)

        outcomes.append(bench.with_archive_store("publish", wake).take_over(run))

    assert bench.with_archive_store("publish", sleep).work(run) is Outcome.LOST
    assert outcomes == [Outcome.ENCRYPTED]
    assert_restores(bench, run)


def test_a_published_key_is_never_removed_though_its_archive_is_gone(bench: Bench) -> None:
    """Somebody may have picked the archive up: then this key is the only one that opens it."""
    run = bench.ready_run()
    bench.with_archive_store("publish", die).dies(run)
    name_both(bench, run)
    for path in (
        bench.archive_store.staged_archive(run.name, staged_token(bench, run)),
        bench.archive_store.final_archive(run.name),
    ):
        path.unlink()
    key = bench.finals()
    assert bench.take_over(run) is Outcome.FAILED
    assert bench.document(run)["last_error"]["kind"] == "PublishFailed"
    assert bench.finals() == key
    bench.archive_store.final_key(run.name).rename(bench.site.keys / "kept")
    bench.now.advance(3601)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


def test_a_receipt_that_was_being_written_is_no_finished_archive(bench: Bench) -> None:
    run = bench.ready_run()
    CRASHES["after the receipt, before it is announced"][0](bench).dies(run)
    (receipt,) = bench.site.archives.glob(".*.manifest.partial")
    receipt.write_bytes(receipt.read_bytes()[:-9])
    assert bench.take_over(run) is Outcome.ENCRYPTED
    assert made_by(bench, run) == bench.document(run)["last_claim"], "it was made again"
    assert_restores(bench, run)


def test_a_receipt_holds_no_secret(bench: Bench) -> None:
    run = bench.ready_run()
    CRASHES["after the receipt, before it is announced"][0](bench).dies(run)
    (receipt,) = bench.site.archives.glob(".*.manifest.partial")
    wrapped = bench.archive_store.staged_key(run.name, staged_token(bench, run)).read_bytes()
    secret = gpg(bench.site.gnupg, "--decrypt", data=wrapped).strip()
    assert len(secret) == 64
    assert secret not in receipt.read_bytes()
    assert json.loads(receipt.read_bytes())["token"] == staged_token(bench, run)


def test_a_finished_archive_survives_a_stop_while_the_database_is_away(bench: Bench) -> None:
    run = bench.ready_run()
    workers: list[Worker] = []

    def away_from_the_announcement_on() -> None:
        if bench.archive_store.staged_tokens(run.name):
            workers[0].cancel(Interrupted("cancelled, says the test"))
            raise AWAY

    away = replace(bench, make_store=lambda: _EveryPut(bench.make_store(), away_from_the_announcement_on))
    workers.append(away.worker())
    assert workers[0].work(run) is Outcome.RELEASED
    document = bench.document(run)
    assert (document["status"], "archive" in document) == ("processing", False), "the release did not arrive either"
    assert bench.take_over(run) is Outcome.ENCRYPTED
    assert made_by(bench, run) == document["claim"]["token"], "it was not made again"
    assert_restores(bench, run)


def test_what_a_lost_claim_had_staged_is_gone_when_the_run_is_published(bench: Bench) -> None:
    """The loser wakes between the other's claim and the other's publication, and has a whole archive by then."""
    run = bench.ready_run()
    outcomes: list[Outcome] = []

    def lost_meanwhile() -> None:
        rival = bench.with_archive_store(
            "refuse_foreign", lambda: bench.archive_store.stage_key(run.name, "a" * 32, b"late")
        )
        outcomes.append(rival.take_over(run))

    assert bench.with_archive_store("staged_archive", lost_meanwhile).work(run) is Outcome.LOST
    assert outcomes == [Outcome.ENCRYPTED]
    assert_restores(bench, run)


def test_what_is_staged_too_late_is_removed_by_the_one_who_staged_it(bench: Bench) -> None:
    run = bench.ready_run()
    workers: list[Worker] = []

    def others_finish_and_the_disk_gives_up() -> None:
        assert bench.take_over(run) is Outcome.ENCRYPTED
        workers[0].cancel(NoSpace("the disk hung, says the test"))

    late = bench.with_archive_store("stage_receipt", others_finish_and_the_disk_gives_up)
    workers.append(late.worker())
    assert workers[0].work(run) is Outcome.LOST
    assert_restores(bench, run)  # and nothing is staged


# The proof, until the archive has its name


def staged_archive(bench: Bench) -> Path:
    """Return the only archive that is staged."""
    (path,) = bench.site.archives.glob(".*.tar.gpg.partial")
    return path


def flip_a_bit(path: Path) -> None:
    with open(path, "rb+") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("mode", ValidationMode)
def test_a_run_is_archived_in_each_mode_of_validation(mode: ValidationMode, bench: Bench) -> None:
    run = bench.ready_run(size=40_000_000)  # more than two windows
    assert bench.other(validation=mode).work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


@pytest.mark.parametrize("step", ["stage_key", "stage_receipt", "publish"])
@pytest.mark.parametrize("mode", ValidationMode)
def test_a_bit_that_is_flipped_after_the_validation_is_found_before_the_archive_has_its_name(
    mode: ValidationMode, step: str, bench: Bench
) -> None:
    run = bench.ready_run()

    def flip() -> None:
        if step != "publish":
            flip_a_bit(staged_archive(bench))

    def flip_before_a_second_try() -> None:
        flip_a_bit(staged_archive(bench))
        raise NoSpace("the disk is away, says the test")

    spoiled = bench.with_archive_store(step, flip_before_a_second_try if step == "publish" else flip)
    assert replace(spoiled, pauses=lambda: iter([0.0, 0.0])).other(validation=mode).work(run) is Outcome.FAILED
    assert "has changed since it was validated" in bench.document(run)["last_error"]["message"]
    assert bench.finals() == {}
    bench.now.advance(3600)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


@pytest.mark.parametrize("step", ["stage_receipt", "publish"])
@pytest.mark.parametrize("suffix", [KEY_SUFFIX, MANIFEST_SUFFIX])
def test_a_bit_of_a_small_file_that_is_flipped_after_it_was_staged_is_found(
    suffix: str, step: str, bench: Bench
) -> None:
    run = bench.ready_run()

    def flip() -> None:
        (path,) = (path for path in bench.site.staged_files() if path.name.endswith(f"{suffix}.partial"))
        flip_a_bit(path)
        if step == "publish":  # before a second try
            raise NoSpace("the disk is away, says the test")

    spoiled = replace(bench.with_archive_store(step, flip), pauses=lambda: iter([0.0, 0.0]))
    assert spoiled.work(run) is Outcome.FAILED
    assert "has changed since it was validated" in bench.document(run)["last_error"]["message"]
    assert bench.finals() == {}
    bench.now.advance(3600)
    assert bench.work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)


def test_an_archive_that_was_only_touched_is_read_once_more_and_published(bench: Bench) -> None:
    run = bench.ready_run()
    touched = bench.with_archive_store("stage_key", lambda: os.utime(staged_archive(bench)))
    assert touched.work(run) is Outcome.ENCRYPTED
    assert_restores(bench, run)
