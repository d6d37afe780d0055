"""What may happen to a run, and what a document says afterwards: the whole table, and values nobody expected."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher import model
from watcher.errors import NoSpace, RunNotSettled, TarFailed, WatcherError
from watcher.model import Archive, Claim, Document, Event, IllegalTransition, Phase, Progress, Run, Status

pytestmark = pytest.mark.unit

NOW = datetime(2026, 4, 28, 10, 5, tzinfo=UTC)
RUN = Run(Path("/data/sequencing/sequencer_A/run_001"))
TOKEN = "0123456789abcdef" * 2
WHO = "ops@host"
OPERATORS_TOKEN = "e" * 32
ARCHIVE = Archive(
    file="run_001.tar.gpg",
    size=10,
    sha256="a" * 64,
    tar_sha256="",
    tar_blake3="b" * 64,
    tar_size=20,
    key_file="run_001.key.gpg",
    key_sha256="c" * 64,
    recipient="F" * 40,
    members=3,
    warnings=("socket ignored",),
    token=TOKEN,
)

LEADS_TO: Mapping[tuple[Event, Status | None], tuple[Status, Status]] = {
    (Event.REGISTER, None): (Status.PENDING, Status.PENDING),
    (Event.CLAIM, Status.PENDING): (Status.PROCESSING, Status.PROCESSING),
    (Event.CLAIM, Status.PROCESSING): (Status.PROCESSING, Status.PROCESSING),
    (Event.RENEW, Status.PROCESSING): (Status.PROCESSING, Status.PROCESSING),
    (Event.RELEASE, Status.PROCESSING): (Status.PENDING, Status.PENDING),
    (Event.FAIL, Status.PROCESSING): (Status.PENDING, Status.FAILED),
    (Event.RECORD, Status.PROCESSING): (Status.ENCRYPTED, Status.ENCRYPTED),
    (Event.RETRY, Status.FAILED): (Status.PENDING, Status.PENDING),
    (Event.RETRY, Status.PENDING): (Status.PENDING, Status.PENDING),
    (Event.RETRY, Status.ENCRYPTED): (Status.PENDING, Status.PENDING),
    (Event.HOLD, Status.PENDING): (Status.HELD, Status.HELD),
    (Event.HOLD, Status.FAILED): (Status.HELD, Status.HELD),
    (Event.UNHOLD, Status.HELD): (Status.PENDING, Status.PENDING),
    (Event.CANCEL, Status.PROCESSING): (Status.HELD, Status.HELD),
}
"""Written down a second time, on purpose: before and at the third failure."""

EVERY = [(event, status) for event in Event for status in (None, *Status)]

CHANGES: Mapping[Event, Callable[[Document], Document]] = {
    Event.CLAIM: lambda document: model.claimed(document, "worker_1", TOKEN, NOW),
    Event.RENEW: lambda document: model.renewed(document, Progress(Phase.ARCHIVING, 1, 2), NOW),
    Event.RELEASE: lambda document: model.released(document, NoSpace("full"), 60, NOW),
    Event.FAIL: lambda document: model.failed(document, TarFailed("unreadable"), 60, NOW),
    Event.RECORD: lambda document: model.recorded(document, ARCHIVE, NOW),
    Event.RETRY: lambda document: model.retried(document, WHO, NOW),
    Event.HOLD: lambda document: model.held(document, WHO, NOW),
    Event.UNHOLD: lambda document: model.unheld(document, WHO, NOW),
    Event.CANCEL: lambda document: model.cancelled(document, OPERATORS_TOKEN, WHO, NOW),
}
"""What each event does to a document; `register` begins one."""


def document_of(status: Status, **fields: Any) -> Document:
    """Return a run's document in this status, as our own functions leave it."""
    pending = {**model.registered(RUN, NOW), "_rev": "1-a"}
    processing = model.claimed(pending, "worker_1", TOKEN, NOW)
    made = {
        Status.PENDING: pending,
        Status.PROCESSING: processing,
        Status.ENCRYPTED: model.recorded(processing, ARCHIVE, NOW),
        Status.FAILED: model.failed({**processing, "failure_count": 2}, TarFailed("unreadable"), 60, NOW),
        Status.HELD: model.held(pending, WHO, NOW),
    }
    return {**made[status], **fields}


def ids(value: object) -> str:
    return str(value)


@pytest.mark.parametrize(("event", "status"), EVERY, ids=ids)
def test_the_table_has_these_transitions_and_no_others(event: Event, status: Status | None) -> None:
    wanted = LEADS_TO.get((event, status))
    if wanted is None:
        with pytest.raises(IllegalTransition, match=f"'{status or 'not registered'}'.*'{event}'"):
            model.next_status(event, status)
    else:
        assert tuple(model.next_status(event, status, failures) for failures in (2, 3)) == wanted


@pytest.mark.parametrize(("event", "status"), [pair for pair in EVERY if pair[1] and pair[0] in CHANGES], ids=ids)
def test_a_document_changes_as_the_table_says_or_not_at_all(event: Event, status: Status) -> None:
    document = document_of(status, **({"changed_since": model.timestamp(NOW)} if event is Event.RETRY else {}))
    if (event, status) in LEADS_TO:
        assert CHANGES[event](document)["status"] == LEADS_TO[event, status][0]
    else:
        with pytest.raises(IllegalTransition):
            CHANGES[event](document)


def test_an_encrypted_run_is_tried_again_only_if_it_has_changed_and_its_archive_is_forgotten() -> None:
    encrypted = document_of(Status.ENCRYPTED)
    with pytest.raises(IllegalTransition, match="'encrypted', and has not changed since"):
        model.retried(encrypted, WHO, NOW)
    again = model.retried(model.changed_since(encrypted, NOW), WHO, NOW)
    assert again["status"] == Status.PENDING
    assert not {"archive", "changed_since"} & set(again)


@pytest.mark.parametrize("event", CHANGES, ids=ids)
@pytest.mark.parametrize("status", [None, "", "archived", 7, [], {}], ids=repr)
def test_a_document_that_is_no_runs_takes_no_event(event: Event, status: object) -> None:
    with pytest.raises(IllegalTransition, match="not registered"):
        CHANGES[event]({"_id": "run_001", "status": status})


def test_a_registered_run_has_the_fields_that_other_programs_read() -> None:
    assert model.registered(RUN, NOW) == {
        "_id": "run_001",
        "path": "/data/sequencing/sequencer_A/run_001",
        "status": "pending",
        "failure_count": 0,
        "created_at": "2026-04-28T10:05:00+00:00",
        "updated_at": "2026-04-28T10:05:00+00:00",
        "history": [{"at": "2026-04-28T10:05:00+00:00", "event": "register", "status": "pending"}],
    }


def test_a_timestamp_is_utc_wherever_the_clock_is() -> None:
    assert model.timestamp(datetime(2026, 4, 28, 12, 5, tzinfo=timezone(timedelta(hours=2)))) == model.timestamp(NOW)


def test_every_change_moves_updated_at_and_keeps_created_at() -> None:
    later = NOW + timedelta(hours=1)
    changed = model.claimed(document_of(Status.PENDING), "worker_1", TOKEN, later)
    assert (changed["created_at"], changed["updated_at"]) == (model.timestamp(NOW), model.timestamp(later))


def test_a_claim_names_worker_and_token_and_ends_the_pause() -> None:
    changed = model.claimed(document_of(Status.PENDING, not_before=model.timestamp(NOW)), "worker_9", TOKEN, NOW)
    assert (changed["worker_id"], changed["claim"]) == ("worker_9", {"token": TOKEN, "phase": "claimed"})
    assert "not_before" not in changed
    assert model.is_held(changed, TOKEN)
    assert not model.is_held(changed, "another")


def test_a_renewal_shows_phase_and_bytes_and_keeps_the_token() -> None:
    changed = model.renewed(document_of(Status.PROCESSING), Progress(Phase.ARCHIVING, 5, 9, 3), NOW)
    bytes_moved = {"bytes_done": 5, "bytes_total": 9, "bytes_validated": 3}
    assert changed["claim"] == {"token": TOKEN, "phase": "archiving", **bytes_moved}


def test_an_announced_archive_is_in_the_document_until_it_is_taken_back() -> None:
    announced = model.announced(document_of(Status.PROCESSING), ARCHIVE, NOW)
    assert (announced["archive"], announced["claim"]["phase"]) == (ARCHIVE.to_document(), "publishing")
    assert "archive" not in model.announced(announced, None, NOW)


@pytest.mark.parametrize("event", [Event.RELEASE, Event.FAIL, Event.RECORD], ids=ids)
def test_an_ended_claim_is_gone_but_its_token_stays_readable(event: Event) -> None:
    held = document_of(Status.PROCESSING)
    ended = CHANGES[event](held)
    assert "claim" not in ended
    assert model.has_ended(ended, TOKEN)
    assert not model.has_ended(held, TOKEN)
    assert model.is_same_claim(held, ended)
    assert not model.is_same_claim(held, model.claimed(ended | {"status": "pending"}, "worker_2", "another", NOW))


def test_a_release_counts_no_attempt_and_says_why() -> None:
    released = model.released(document_of(Status.PROCESSING, failure_count=1), NoSpace("disk full"), 60, NOW)
    assert released["failure_count"] == 1
    assert released["last_error"] == {"kind": "NoSpace", "message": "disk full", "at": model.timestamp(NOW)}
    assert model.seconds_until_due(released, NOW) == 60


def test_a_release_for_no_reason_leaves_the_last_one_and_no_pause() -> None:
    before = document_of(Status.PROCESSING, last_error={"kind": "TarFailed"})
    released = model.released(before, None, 0, NOW)
    assert released["last_error"] == {"kind": "TarFailed"}
    assert model.seconds_until_due(released, NOW) == 0


@pytest.mark.parametrize(("before", "status"), [(0, "pending"), (1, "pending"), (2, "failed"), (9, "failed")])
def test_the_third_failure_is_the_last(before: int, status: str) -> None:
    failed = model.failed(document_of(Status.PROCESSING, failure_count=before), TarFailed("unreadable"), 60, NOW)
    assert (failed["failure_count"], failed["status"]) == (before + 1, status)
    assert ("not_before" in failed) == (status == "pending")


def test_a_bug_counts_as_a_failure_under_its_own_name() -> None:
    failed = model.failed(document_of(Status.PROCESSING), ZeroDivisionError("by zero"), 60, NOW)
    assert (failed["last_error"]["kind"], failed["failure_count"]) == ("ZeroDivisionError", 1)


@pytest.mark.parametrize("count", [None, "many", [], 1.5], ids=repr)
def test_a_failure_count_that_is_none_of_ours_begins_at_zero(count: object) -> None:
    failed = model.failed(document_of(Status.PROCESSING, failure_count=count), TarFailed("unreadable"), 60, NOW)
    assert failed["failure_count"] == 1


def test_a_record_forgets_the_troubles_and_shows_the_archive() -> None:
    troubled = document_of(Status.PROCESSING, last_error={"kind": "NoSpace"}, unsettled_since=model.timestamp(NOW))
    recorded = model.recorded(troubled, ARCHIVE, NOW)
    assert recorded["archive"] == ARCHIVE.to_document()
    assert recorded.keys().isdisjoint({"last_error", "unsettled_since", "claim", "not_before"})


def test_a_retry_begins_anew() -> None:
    failed = document_of(Status.FAILED, not_before=model.timestamp(NOW), unsettled_since=model.timestamp(NOW))
    retried = model.retried(failed, WHO, NOW)
    assert (retried["status"], retried["failure_count"]) == ("pending", 0)
    assert retried.keys().isdisjoint({"not_before", "unsettled_since"})


def test_a_held_run_keeps_what_it_has_failed_and_waits_for_nothing_once_it_is_released() -> None:
    waiting = document_of(Status.PENDING, failure_count=2, not_before=model.timestamp(NOW + timedelta(hours=1)))
    released = model.unheld(model.held(waiting, WHO, NOW), WHO, NOW)
    assert (released["status"], released["failure_count"]) == ("pending", 2)
    assert "not_before" not in released


def test_a_cancelled_claim_is_lost_and_what_it_announced_stays_to_be_adopted() -> None:
    announced = model.announced(document_of(Status.PROCESSING), ARCHIVE, NOW)
    cancelled = model.cancelled(announced, OPERATORS_TOKEN, WHO, NOW)
    assert not model.is_held(cancelled, TOKEN)
    assert not model.has_ended(cancelled, TOKEN)  # else the worker would take the end for its own
    assert not model.is_same_claim(announced, cancelled)
    assert (cancelled["failure_count"], cancelled["archive"]) == (0, ARCHIVE.to_document())
    assert model.live_tokens(cancelled) == {TOKEN, OPERATORS_TOKEN}  # TOKEN is the announced archive's


def test_a_documents_history_says_what_happened_when_by_whom_and_why() -> None:
    failed = model.failed(document_of(Status.PROCESSING), TarFailed("'x': unreadable"), 60, NOW + timedelta(hours=1))
    retried = model.retried(failed, WHO, NOW + timedelta(hours=2))
    assert model.history(retried) == [
        {"at": "2026-04-28T10:05:00+00:00", "event": "register", "status": "pending"},
        {"at": "2026-04-28T10:05:00+00:00", "event": "claim", "status": "processing", "by": "worker_1"},
        {
            "at": "2026-04-28T11:05:00+00:00", "event": "fail", "status": "pending", "by": "worker_1",
            "kind": "TarFailed", "reason": "'x': unreadable",
        },
        {"at": "2026-04-28T12:05:00+00:00", "event": "retry", "status": "pending", "by": WHO},
    ]  # fmt: skip


def test_a_renewal_is_no_step_of_a_history() -> None:
    before = document_of(Status.PROCESSING)
    renewed = model.renewed(before, Progress(Phase.ARCHIVING, 5, 9, 3), NOW)
    assert model.history(renewed) == model.history(before)


def test_a_run_that_waits_for_days_is_counted_and_not_listed() -> None:
    document = document_of(Status.PENDING)
    for minute in range(1000):
        at = NOW + timedelta(minutes=minute)
        held = model.claimed(document, "worker_1", TOKEN, at)
        document = model.released(held, NoSpace(f"{minute} bytes free"), 0, at)
    register, claim, release = model.history(document)
    assert (register["event"], claim["event"], release["event"]) == ("register", "claim", "release")
    assert (claim["times"], release["times"]) == (1000, 1000)
    assert (release["since"], release["at"]) == (model.timestamp(NOW), model.timestamp(NOW + timedelta(minutes=999)))
    assert release["reason"] == "999 bytes free"


def test_a_history_is_bounded_and_says_how_much_was_dropped() -> None:
    document = document_of(Status.PENDING)
    for number in range(100):
        document = model.retried(document, f"user_{number}", NOW)
    steps = model.history(document)
    assert (len(steps), document["history_dropped"]) == (model.MAX_STEPS, 101 - model.MAX_STEPS)
    assert steps[-1]["by"] == "user_99"


def test_a_step_keeps_the_beginning_of_a_long_reason_as_text_that_any_database_takes() -> None:
    failed = model.failed(document_of(Status.PROCESSING), TarFailed("\udcff" * 1000), 60, NOW)
    reason = model.history(failed)[-1]["reason"]
    assert reason.encode("utf-8").startswith(b"\\udcff")
    assert len(reason) == 300


def test_a_document_of_an_earlier_version_gets_a_history_from_now_on() -> None:
    old = {key: value for key, value in document_of(Status.PENDING).items() if key != "history"}
    assert model.history(old) == []
    assert [step["event"] for step in model.history(model.held(old, WHO, NOW))] == ["hold"]


def test_a_note_changes_nothing_but_the_reason() -> None:
    before = document_of(Status.PENDING)
    noted = model.noted(before, NoSpace("disk full"), NOW)
    assert {key: value for key, value in noted.items() if key != "last_error"} == before
    assert noted["last_error"]["kind"] == "NoSpace"


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 60), (1, 60), (2, 120), (3, 240), (6, 1920), (7, 3600), (50, 3600), (10**9, 3600)],
)
def test_a_pause_doubles_with_each_failure_and_ends_at_an_hour(failures: int, seconds: float) -> None:
    assert model.retry_delay(failures, 60) == seconds


@given(st.integers(max_value=10**400), st.floats(min_value=0, allow_nan=False))
def test_no_pause_is_longer_than_an_hour(failures: int, first: float) -> None:
    assert 0 <= model.retry_delay(failures, first) <= model.MAX_RETRY_DELAY_SECONDS


@pytest.mark.parametrize("wait", [1, 60, 3600, 7200, 365 * 86400.0])
def test_a_pause_that_we_write_is_a_pause_that_we_keep(wait: float) -> None:
    released = model.released(document_of(Status.PROCESSING), NoSpace("full"), wait, NOW)
    assert model.seconds_until_due(released, NOW) == min(wait, 3600)


@pytest.mark.parametrize(
    ("not_before", "seconds"),
    [
        ("2026-04-28T10:05:00+00:00", 0.0),
        ("2026-04-28T10:05:01+00:00", 1.0),
        ("2026-04-28T12:05:30+02:00", 30.0),
        ("2026-04-28T11:05:00+00:00", 3600.0),
        ("2026-04-28T11:05:01+00:00", 0.0),  # no pause of ours is so long: the clock that wrote it is off
        ("2026-04-28T10:00:00+00:00", 0.0),
        ("9999-12-31T23:59:59-14:00", 0.0),
        ("0001-01-01T00:00:00+14:00", 0.0),
        ("2026-04-28T10:30:00", 0.0),
        ("tomorrow", 0.0),
        ("", 0.0),
        (1e18, 0.0),
        (None, 0.0),
        ([], 0.0),
    ],
)
def test_a_pause_is_as_long_as_it_can_be_true(not_before: object, seconds: float) -> None:
    assert model.seconds_until_due({"not_before": not_before}, NOW) == seconds


def test_without_a_pause_a_run_is_due() -> None:
    assert model.seconds_until_due({}, NOW) == 0


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_whatever_two_clocks_say_a_run_waits_an_hour_at_most(written: datetime, now: datetime) -> None:
    assert 0 <= model.seconds_until_due({"not_before": model.timestamp(written)}, now) <= 3600


def test_a_run_that_changes_is_remembered_from_the_first_time() -> None:
    first = model.unsettled(document_of(Status.PROCESSING), NOW)
    second = model.unsettled(first, NOW + timedelta(hours=2))
    assert model.unsettled_seconds(second, NOW + timedelta(hours=3)) == 3 * 3600
    assert model.unsettled_seconds(document_of(Status.PROCESSING), NOW) == 0


@pytest.mark.parametrize("since", ["2027-01-01T00:00:00+00:00", "2026-04-28T10:00:00", "long ago", 5, None], ids=repr)
def test_a_time_that_cannot_be_read_makes_no_run_fail(since: object) -> None:
    assert model.unsettled_seconds({"unsettled_since": since}, NOW) == 0


def test_tokens_that_may_still_be_wanted_are_all_named() -> None:
    announced = model.announced(document_of(Status.PROCESSING), dataclasses.replace(ARCHIVE, token="older"), NOW)
    assert model.live_tokens({**announced, "last_claim": "former"}) == {TOKEN, "former", "older"}
    assert model.live_tokens(document_of(Status.PENDING)) == set()
    assert model.live_tokens({"claim": "x", "archive": "y", "last_claim": None}) == set()


@pytest.mark.parametrize("name", ["", "run\n2026-04-28 ERROR forged", "\udcff", "🧬"])
def test_an_error_is_kept_as_text_that_any_database_takes(name: str) -> None:
    failed = model.failed(document_of(Status.PROCESSING), TarFailed(f"'{name}': Cannot open"), 60, NOW)
    message = failed["last_error"]["message"]
    assert message.encode("utf-8")
    assert message == f"'{name}': Cannot open".replace("\udcff", "\\udcff")


text = st.text(st.characters(exclude_categories=["Cs"]))
archives = st.builds(
    Archive,
    file=text,
    size=st.integers(0),
    sha256=text,
    tar_sha256=text,
    tar_blake3=text,
    tar_size=st.integers(0),
    key_file=text,
    key_sha256=text,
    recipient=text,
    members=st.integers(0),
    warnings=st.lists(text).map(tuple),
    token=text,
)


@given(archives)
def test_an_archive_comes_back_from_its_document_as_it_was(archive: Archive) -> None:
    assert Archive.from_document(archive.to_document()) == archive


@given(archives, st.dictionaries(text.filter(lambda key: key not in ARCHIVE.to_document()), text))
def test_an_archive_is_read_whatever_others_have_added(archive: Archive, added: dict[str, str]) -> None:
    assert Archive.from_document({**added, **archive.to_document()}) == archive


def test_warnings_with_names_that_are_no_text_are_kept_as_text() -> None:
    archive = dataclasses.replace(ARCHIVE, warnings=("./\udcff: socket ignored",))
    assert archive.to_document()["warnings"] == ["./\\udcff: socket ignored"]


@pytest.mark.parametrize("value", [{}, {"file": "a"}, "archive", 5, [1], {**ARCHIVE.to_document(), "warnings": 5}])
def test_what_is_no_archive_of_ours_was_not_announced(value: object) -> None:
    claim = Claim(RUN, TOKEN, {}, {**document_of(Status.PENDING), "archive": value})
    assert claim.announced is None


def test_an_archive_announced_by_the_last_holder_is_the_claims() -> None:
    before = model.announced(document_of(Status.PROCESSING), ARCHIVE, NOW)
    assert Claim(RUN, "another", {}, before).announced == ARCHIVE
    assert Claim(RUN, "another", {}, document_of(Status.PENDING)).announced is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(text, children, max_size=3),
    max_leaves=5,
)
unknown_fields = st.dictionaries(text.map(lambda name: f"x_{name}"), json_values, max_size=4)
errors = st.sampled_from([NoSpace("disk full"), RunNotSettled("it grows"), TarFailed("unreadable")])
seconds = st.floats(0, 1e9)


def assert_untouched(status: Status, unknown: Mapping[str, Any], change: Callable[[Document], Document]) -> None:
    document = document_of(status, **unknown)
    before = copy.deepcopy(document)
    changed = change(document)
    assert document == before
    assert {key: changed[key] for key in unknown} == unknown
    assert changed["_rev"] == before["_rev"]


@given(unknown_fields, text, st.sampled_from([Status.PENDING, Status.PROCESSING]))
def test_a_claim_changes_no_value_and_keeps_unknown_fields(
    unknown: dict[str, Any], worker: str, status: Status
) -> None:
    assert_untouched(status, unknown, lambda document: model.claimed(document, worker, TOKEN, NOW))


@given(unknown_fields, st.sampled_from(Phase), st.integers(0), st.integers(0))
def test_a_renewal_changes_no_value_and_keeps_unknown_fields(
    unknown: dict[str, Any], phase: Phase, done: int, total: int
) -> None:
    progress = Progress(phase, done, total)
    assert_untouched(Status.PROCESSING, unknown, lambda document: model.renewed(document, progress, NOW))


@given(unknown_fields, st.none() | archives)
def test_an_announcement_changes_no_value_and_keeps_unknown_fields(
    unknown: dict[str, Any], archive: Archive | None
) -> None:
    assert_untouched(Status.PROCESSING, unknown, lambda document: model.announced(document, archive, NOW))


@given(unknown_fields, errors, seconds)
def test_a_release_changes_no_value_and_keeps_unknown_fields(
    unknown: dict[str, Any], error: WatcherError, wait: float
) -> None:
    assert_untouched(Status.PROCESSING, unknown, lambda document: model.released(document, error, wait, NOW))
    assert_untouched(
        Status.PROCESSING,
        unknown,
        lambda document: model.released(model.unsettled(document, NOW), error, wait, NOW),
    )


@given(unknown_fields, errors, seconds)
def test_a_failure_changes_no_value_and_keeps_unknown_fields(
    unknown: dict[str, Any], error: WatcherError, wait: float
) -> None:
    assert_untouched(Status.PROCESSING, unknown, lambda document: model.failed(document, error, wait, NOW))


@given(unknown_fields, archives)
def test_a_record_changes_no_value_and_keeps_unknown_fields(unknown: dict[str, Any], archive: Archive) -> None:
    assert_untouched(Status.PROCESSING, unknown, lambda document: model.recorded(document, archive, NOW))


@given(unknown_fields, st.sampled_from([Status.PENDING, Status.FAILED]), errors)
def test_what_operators_do_and_a_note_change_no_value_and_keep_unknown_fields(
    unknown: dict[str, Any], status: Status, error: WatcherError
) -> None:
    assert_untouched(status, unknown, lambda document: model.retried(document, WHO, NOW))
    assert_untouched(status, unknown, lambda document: model.held(document, WHO, NOW))
    assert_untouched(Status.HELD, unknown, lambda document: model.unheld(document, WHO, NOW))
    assert_untouched(Status.PROCESSING, unknown, lambda document: model.cancelled(document, TOKEN, WHO, NOW))
    assert_untouched(status, unknown, lambda document: model.noted(document, error, NOW))
