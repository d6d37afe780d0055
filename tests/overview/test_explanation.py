"""Why a run does not move: a test for each cause, and none is added without one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from watcher import errors, model
from watcher.errors import NoSpace, TarFailed
from watcher.figures import Figures
from watcher.model import Archive, Document, Phase, Progress, Run, Status
from watcher.overview import ADVICE, Cause, Facts, advice_for, explain
from watcher.overview.explanation import OF_STATES, OF_STATUSES
from watcher.source import Observation, State

pytestmark = pytest.mark.unit

NOW = datetime(2026, 4, 28, 10, 5, tzinfo=UTC)
LATER = NOW + timedelta(minutes=10)
RUN = Run(Path("/data/sequencing/sequencer_A/run_001"))
OTHER = Run(Path("/data/sequencing/sequencer_B/run_001"))
TOKEN = "0123456789abcdef" * 2
ARCHIVE = Archive("run_001.tar.gpg", 1, "a" * 64, "b" * 64, 2, "run_001.key.gpg", "c" * 64, "F" * 40, 3, token="d" * 32)
READY = Observation(RUN, State.READY)

PENDING = {**model.registered(RUN, NOW), "_rev": "1-a"}
PROCESSING = model.renewed(
    model.claimed(PENDING, "worker_1", TOKEN, NOW), Progress(Phase.ARCHIVING, bytes_done=25, bytes_total=100), NOW
)
ENCRYPTED = model.recorded(PROCESSING, ARCHIVE, NOW)
FAILED = model.failed({**PROCESSING, "failure_count": 2}, TarFailed("'x': Permission denied"), 60, NOW)
JOB = Figures("run_001", str(RUN.path), "archiving", 5.0, 50_000_000, 100_000_000, 25_000_000, 10_000_000, 5)


def facts(document: Document | None = None, *observations: Observation, **others: Any) -> Facts:
    """Return what is known of a run that is here, with a watcher that runs."""
    given = {"is_here": True, "has_watcher": True, "lease_seconds": 300.0, "now": LATER, **others}
    return Facts("run_001", document=document, observations=observations, **given)


def of_state(state: State, reason: str = "") -> Facts:
    return facts(None, Observation(RUN, state, reason))


CASES: Mapping[str, tuple[Facts, list[Cause], str, str]] = {
    "nowhere": (facts(), [Cause.UNKNOWN], "no directory of this name", "misspelt"),
    "unreadable": (facts(unreadable="path is missing"), [Cause.UNREADABLE], "path is missing", "mend or delete"),
    "foreign": (facts({"_id": "run_001"}, READY), [Cause.FOREIGN], "no run's", "rename the run"),
    "hung disk": (facts(silent="/data/sequencing"), [Cause.SILENT], "'/data/sequencing' does not answer", "dmesg"),
    "hung disk, failed": (
        facts(FAILED, silent="/data/sequencing"), [Cause.FAILED, Cause.SILENT], "3 attempts failed", "retry",
    ),
    "ignored": (facts(ignored=(str(RUN.path),)), [Cause.IGNORED], "is in `ignore`", "take the name out"),
    "no sentinel": (of_state(State.ABSENT), [Cause.NO_SENTINEL], "has no sentinel", "drop .metadata_rsync_exitcode"),
    "exit code": (
        of_state(State.HELD, "the sentinel holds exit code 23: the transfer failed"), [Cause.SENTINEL], "code 23",
        "write 0",
    ),
    "being written": (of_state(State.UNSETTLED), [Cause.UNSETTLED], "just been written", "ask again"),
    "unusable": (of_state(State.UNUSABLE, "the sentinel is not a file"), [Cause.UNUSABLE], "not a file", "mend that"),
    "bad name": (
        facts(None, Observation(Run(RUN.path.with_name("_bad")), State.READY)), [Cause.UNUSABLE], "starts with '_'",
        "rename the run",
    ),
    "not registered": (facts(None, READY), [Cause.UNREGISTERED], "no worker has registered it", "next rescan"),
    "not registered, no watcher": (
        facts(None, READY, has_watcher=False), [Cause.UNREGISTERED], "no watcher runs on this host", "systemctl start",
    ),
    "collision": (
        facts(ENCRYPTED, READY, Observation(OTHER, State.READY)), [Cause.ENCRYPTED, Cause.COLLISION],
        "archived at 2026-04-28T10:05:00+00:00", "",
    ),
    "another directory of the name, not ready": (
        facts(ENCRYPTED, READY, Observation(OTHER, State.ABSENT)), [Cause.ENCRYPTED, Cause.NO_SENTINEL], "archived", "",
    ),
    "elsewhere": (
        facts(PENDING, is_here=False), [Cause.NOT_HERE], "its directory is not on this host: '/data/", "delete the run",
    ),
    "queued": (facts(PENDING, READY), [Cause.QUEUED], "waits for a thread", "nothing"),
    "queued, no watcher": (facts(PENDING, READY, has_watcher=False), [Cause.QUEUED], "no watcher runs", "systemctl"),
    "no room": (
        facts(model.noted(PENDING, NoSpace("7 bytes are missing"), NOW), READY), [Cause.NO_ROOM], "7 bytes are missing",
        "free space",
    ),
    "paused": (
        facts(model.failed(PROCESSING, TarFailed("'x': unreadable"), 1200, NOW), READY), [Cause.PAUSED],
        "at 2026-04-28T10:25:00+00:00, in 0:10:00, after 1 of 3 attempts; TarFailed: 'x': unreadable",
        "let the archiver's user read",
    ),
    "pending, sentinel taken back": (
        facts(PENDING, Observation(RUN, State.ABSENT)), [Cause.NO_SENTINEL], "has no sentinel", "drop",
    ),
    "worked on here": (
        facts(PROCESSING, READY, job=JOB), [Cause.WORKING],
        "'worker_1' is archiving 50 %, 25 % validated, 10.0 MB/s, 0:00:05 left", "",
    ),
    "worked on elsewhere": (
        facts(PROCESSING, READY, now=NOW + timedelta(seconds=30)), [Cause.WORKING],
        "worker 'worker_1' has it: archiving 25 %, renewed 0:00:30 ago", "",
    ),
    "stale": (facts(PROCESSING, READY), [Cause.STALE], "0:10:00 ago, and its lease is 0:05:00", "takes the run over"),
    "failed": (
        facts(FAILED, READY), [Cause.FAILED], "3 attempts failed; TarFailed: 'x': Permission denied",
        "then `dataflow_archive retry`",
    ),
    "a bug": (
        facts(model.failed({**PROCESSING, "failure_count": 2}, ZeroDivisionError("by zero"), 60, NOW), READY),
        [Cause.FAILED], "ZeroDivisionError: by zero", "this is a bug",
    ),
    "held": (
        facts(model.held(PENDING, "ops@host", NOW), READY), [Cause.HELD],
        "ops@host said `hold` at 2026-04-28T10:05:00+00:00", "`dataflow_archive release`",
    ),
    "cancelled": (
        facts(model.cancelled(PROCESSING, TOKEN[::-1], "ops@host", NOW), READY), [Cause.HELD], "said `cancel`",
        "`dataflow_archive release`",
    ),
    "held by another program": (
        facts({**PENDING, "status": "held"}, READY), [Cause.HELD], "somebody said `hold`", "release",
    ),
    "encrypted": (facts(ENCRYPTED, READY), [Cause.ENCRYPTED], "it was archived at 2026-04-28T10:05:00+00:00", ""),
    "changed": (
        facts(model.changed_since(ENCRYPTED, LATER), READY), [Cause.CHANGED], "seen at 2026-04-28T10:15:00+00:00",
        "keep it",
    ),
    "damaged": (
        facts(model.verified(ENCRYPTED, with_content=True, problem="a digest differs", now=LATER), READY),
        [Cause.DAMAGED], "`verify` found at 2026-04-28T10:15:00+00:00: a digest differs", "keep the run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_cause_is_explained_with_what_to_do(case: str) -> None:
    known, causes, why, remedy = CASES[case]
    explanations = explain(known)
    assert [each.cause for each in explanations] == causes
    assert why in explanations[0].why
    assert remedy in explanations[0].remedy
    assert bool(explanations[0].remedy) == bool(remedy)


def test_no_cause_is_added_without_a_test() -> None:
    assert {cause for _, causes, _, _ in CASES.values() for cause in causes} == set(Cause)


def test_no_status_and_no_state_is_added_without_an_explanation() -> None:
    assert set(OF_STATUSES) == set(Status)
    assert set(OF_STATES) == set(State) - {State.READY}


def test_no_error_is_added_without_an_advice() -> None:
    kinds: set[str] = set()
    classes: list[type[Exception]] = [errors.RunFailed, errors.NotTheRunsFault]
    while classes:
        kind = classes.pop()
        kinds.add(kind.__name__)
        classes += [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    assert set(ADVICE) == kinds - {"NotTheRunsFault"}
    assert "a bug" in advice_for("ZeroDivisionError")


def test_an_error_within_a_store_is_recorded_under_the_name_that_operators_know() -> None:
    class TimedOut(errors.StatusDBUnavailable):
        pass

    assert model.released(PROCESSING, TimedOut("no answer"), 0, NOW)["last_error"]["kind"] == "StatusDBUnavailable"


@pytest.mark.parametrize("at", [None, "", "yesterday", "2026-04-28T10:05:00"])
def test_a_time_that_cannot_be_read_makes_no_claim_stale(at: str | None) -> None:
    now = NOW + timedelta(seconds=10)
    (explanation,) = explain(facts({**PROCESSING, "updated_at": at}, READY, now=now))
    assert explanation.cause is Cause.WORKING
