"""Claims kept alive, claims that others lost, and when nobody may trust his own any more; time is a parameter."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sites import PATIENCE_SECONDS, never_stop, wait_until

from watcher.archiving import LeaseKeeper, StaleClaims
from watcher.archiving.lease import LOOK_PART, RENEWALS_A_LEASE, TRUSTED_PART, Lease, boottime
from watcher.errors import ClaimLost, NoSpace, StatusDBUnavailable
from watcher.job import Job
from watcher.model import Archive, Claim, Document, Phase, Run
from watcher.statusdb import DocumentStore, SQLiteStore, StatusDB
from watcher.statusdb.store import Written

pytestmark = pytest.mark.unit

LEASE_SECONDS = 300.0
RUN = Run(Path("/data/sequencing/sequencer_A/run_001"))
ARCHIVE = Archive("run_001.tar.gpg", 1, "a" * 64, "b" * 64, 2, "run_001.key.gpg", "c" * 64, "F" * 40, 3, token="d" * 32)


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.seconds = 5000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.seconds += seconds


class Away:
    """A store whose writes fail while `away` is set, and take `seconds` of a clock otherwise; it counts them."""

    def __init__(self, store: DocumentStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.away = False
        self.seconds = 0.0
        self.writes = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def put(self, document: Document) -> Written:
        """Write, or not."""
        self.writes += 1
        self._clock.advance(self.seconds)
        if self.away:
            raise StatusDBUnavailable("away")
        return self._store.put(document)


class Bench:
    """One run in an SQLite file, a worker's status database, and a second view of the same file."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.store = Away(SQLiteStore(path, never_stop), self.clock)
        self.statusdb = StatusDB(self.store, lambda _seconds: False, pauses_seconds=(0.0,))  # type: ignore[arg-type]
        self.statusdb.prepare()
        self.others = StatusDB(SQLiteStore(path, never_stop), never_stop)
        self.keeper = LeaseKeeper(self.statusdb, LEASE_SECONDS, self.clock)
        self.job = Job(RUN)

    def claim(self, statusdb: StatusDB | None = None, stale_rev: str | None = None) -> Claim:
        """Register the run if it is not, and claim it."""
        statusdb = statusdb or self.statusdb
        statusdb.register([RUN])
        document = statusdb.claimable(RUN, stale_rev)
        assert document is not None
        claim = statusdb.claim(RUN, "worker", document)
        assert claim is not None
        return claim

    def lease(self) -> Lease:
        """Claim the run, and hold a lease on it."""
        return Lease(self.claim(), self.job, LEASE_SECONDS, self.clock)

    def document(self) -> Document:
        """Return the document as others see it."""
        found = self.others.get(RUN.name)
        assert found is not None
        return found

    def taken_over(self) -> Claim:
        """Let another worker take the run over."""
        return self.claim(self.others, stale_rev=self.document()["_rev"])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """One run, registered, and a worker."""
    return Bench(tmp_path / "status.db")


# One lease


def test_a_lease_is_trusted_until_a_fifth_before_the_quickest_observer(bench: Bench) -> None:
    lease = bench.lease()
    bench.clock.advance(LEASE_SECONDS * TRUSTED_PART - 1)
    assert lease.is_trusted
    bench.clock.advance(1)
    assert not lease.is_trusted


def test_a_renewal_makes_a_lease_trusted_again_and_shows_the_progress(bench: Bench) -> None:
    lease = bench.lease()
    bench.job.enter(Phase.ARCHIVING, bytes_total=10)
    bench.job.moved(4)
    bench.clock.advance(LEASE_SECONDS)
    lease.renew(bench.statusdb)
    assert lease.is_trusted
    assert bench.document()["claim"] == {
        "token": lease.claim.token,
        "phase": "archiving",
        "bytes_done": 4,
        "bytes_total": 10,
        "bytes_validated": 0,
    }


def test_any_write_of_the_holder_is_a_renewal(bench: Bench) -> None:
    lease = bench.lease()
    bench.clock.advance(LEASE_SECONDS)
    lease.write(bench.statusdb.announce, ARCHIVE)
    assert lease.is_trusted


def test_trust_counts_from_before_a_write_was_sent(bench: Bench) -> None:
    lease = bench.lease()
    bench.store.seconds = LEASE_SECONDS * TRUSTED_PART
    lease.renew(bench.statusdb)
    assert bench.document()["_rev"] == lease.document["_rev"]
    assert not lease.is_trusted


def test_trust_counts_from_before_the_claim_was_asked_for(bench: Bench) -> None:
    asked_at = bench.keeper.now()
    bench.store.seconds = LEASE_SECONDS * TRUSTED_PART
    with bench.keeper.hold(bench.claim(), bench.job, asked_at) as lease:
        assert not lease.is_trusted


def test_a_database_that_is_away_cancels_nothing_and_renews_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    lease = bench.lease()
    bench.store.away = True
    bench.clock.advance(LEASE_SECONDS)
    lease.renew(bench.statusdb)
    bench.job.check()
    assert not lease.is_trusted
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, "cannot renew the claim, work goes on: away")
    assert record.__dict__["run"] == "run_001"
    bench.store.away = False
    lease.renew(bench.statusdb)
    assert lease.is_trusted


def test_a_claim_that_is_anothers_cancels_the_job_and_changes_nothing(bench: Bench) -> None:
    lease = bench.lease()
    theirs = bench.taken_over()
    lease.renew(bench.statusdb)
    with pytest.raises(ClaimLost):
        bench.job.check()
    assert bench.document() == theirs.document


def test_a_job_that_was_cancelled_and_does_not_end_is_not_kept_alive_and_its_claim_becomes_stale(bench: Bench) -> None:
    """Its thread may hang in a disk: whoever has one that answers must get the run."""
    stale = StaleClaims(LEASE_SECONDS, bench.clock)
    with bench.keeper.hold(bench.claim(), bench.job):
        stale.observe([bench.document()])
        bench.job.cancel(NoSpace("the disk does not answer"))
        found: list[Document] = []
        for _ in range(RENEWALS_A_LEASE):
            bench.clock.advance(bench.keeper.pause_seconds)
            bench.keeper.renew_all()
            found = stale.observe([bench.document()])
        assert found == [bench.document()]
        bench.taken_over()


def test_a_write_for_a_claim_that_is_anothers_tells_its_writer(bench: Bench) -> None:
    lease = bench.lease()
    theirs = bench.taken_over()
    with pytest.raises(ClaimLost):
        lease.write(bench.statusdb.record, ARCHIVE)
    assert bench.document() == theirs.document


@pytest.mark.parametrize("ending", ["release", "fail", "record"])
def test_a_lease_that_has_ended_is_not_renewed(bench: Bench, ending: str) -> None:
    lease = bench.lease()
    end(lease, bench.statusdb, ending)
    writes = bench.store.writes
    lease.renew(bench.statusdb)
    bench.job.check()
    assert bench.store.writes == writes


def end(lease: Lease, statusdb: StatusDB, how: str) -> None:
    if how == "release":
        lease.write(statusdb.release, NoSpace("full"), 0.0)
    elif how == "fail":
        lease.write(statusdb.fail, NoSpace("full"), 0.0)
    else:
        lease.write(statusdb.record, ARCHIVE)


def is_waiting_in(thread: threading.Thread, function: str) -> bool:
    """Say whether a thread stands in this function, which here can only be at its lock."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


def test_a_renewal_that_has_waited_for_the_last_write_changes_nothing(bench: Bench) -> None:
    lease = bench.lease()
    renewing = threading.Thread(target=lease.renew, args=(bench.statusdb,))

    def record(document: Document, token: str) -> Document:
        renewing.start()
        wait_until(lambda: is_waiting_in(renewing, "renew"), "the renewal waits for the lease's lock")
        return bench.statusdb.record(document, token, ARCHIVE)

    recorded = lease.write(record)
    renewing.join(PATIENCE_SECONDS)
    assert not renewing.is_alive()
    bench.job.check()
    assert bench.document() == recorded
    assert lease.document == recorded


def test_writes_of_one_lease_come_one_after_the_other(bench: Bench) -> None:
    lease = bench.lease()
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(lease.renew, bench.statusdb) for _ in range(40)]:
            done.result(PATIENCE_SECONDS)
    bench.job.check()
    # One for the claim, one for each renewal: none was in conflict with another.
    assert bench.store.writes == 1 + 40
    assert bench.document() == lease.document


# The keeper


def test_all_leases_are_renewed_a_fifth_of_a_lease_apart(bench: Bench) -> None:
    assert bench.keeper.pause_seconds == LEASE_SECONDS / RENEWALS_A_LEASE
    with bench.keeper.hold(bench.claim(), bench.job) as lease:
        before = bench.document()["_rev"]
        bench.keeper.renew_all()
        assert bench.document()["_rev"] != before
        assert bench.document() == lease.document


def test_a_phase_that_a_job_has_entered_is_written_once(bench: Bench) -> None:
    with bench.keeper.hold(bench.claim(), bench.job):
        bench.keeper.renew_entered()
        assert bench.store.writes == 1, "that of the claim"
        assert not bench.keeper.rest(0)
        bench.job.enter(Phase.ARCHIVING)
        assert bench.keeper.rest(1000)
        for _ in range(2):
            bench.keeper.renew_entered()
            assert bench.document()["claim"]["phase"] == "archiving"
        assert bench.store.writes == 2
        bench.keeper.wake()
        assert bench.keeper.rest(1000)
        assert not bench.keeper.rest(0)


def test_a_lease_is_kept_only_while_it_is_held(bench: Bench) -> None:
    with bench.keeper.hold(bench.claim(), bench.job):
        assert bench.keeper.jobs() == [bench.job]
        assert bench.keeper.holds(bench.document())
    assert bench.keeper.jobs() == []
    assert not bench.keeper.holds(bench.document())
    before = bench.document()
    bench.keeper.renew_all()
    assert bench.document() == before


def test_a_claim_of_anothers_on_a_run_of_ours_is_not_held(bench: Bench) -> None:
    with bench.keeper.hold(bench.claim(), bench.job):
        theirs = bench.taken_over()
        assert not bench.keeper.holds(theirs.document)


def test_a_database_away_for_one_lease_does_not_keep_the_others_from_renewal(bench: Bench) -> None:
    other = Run(Path("/data/sequencing/sequencer_A/run_002"))
    bench.statusdb.register([other])
    document = bench.statusdb.claimable(other)
    assert document is not None
    claim = bench.statusdb.claim(other, "worker", document)
    assert claim is not None
    with bench.keeper.hold(bench.claim(), bench.job), bench.keeper.hold(claim, Job(other)) as lease:
        bench.taken_over()
        bench.clock.advance(LEASE_SECONDS)
        bench.keeper.renew_all()
        assert bench.job.cancelled.is_set()
        assert not lease.job.cancelled.is_set()
        assert lease.is_trusted


def test_news_of_our_own_writes_cause_no_writes(bench: Bench) -> None:
    with bench.keeper.hold(bench.claim(), bench.job):
        writes = bench.store.writes
        bench.keeper.changed(bench.document())
        bench.keeper.changed({"_id": "run_002", "status": "pending"})
        assert bench.store.writes == writes


def test_news_of_anothers_claim_cancel_the_job_at_once(bench: Bench) -> None:
    with bench.keeper.hold(bench.claim(), bench.job):
        bench.keeper.changed(bench.taken_over().document)
        with pytest.raises(ClaimLost):
            bench.job.check()


def test_news_from_before_our_claim_cancel_nothing(bench: Bench) -> None:
    bench.statusdb.register([RUN])
    old = bench.document()
    with bench.keeper.hold(bench.claim(), bench.job) as lease:
        bench.keeper.changed(old)
        bench.job.check()
        assert bench.document() == lease.document


def test_an_operator_who_takes_a_run_away_by_hand_stops_the_work(bench: Bench) -> None:
    with bench.keeper.hold(bench.claim(), bench.job):
        by_hand = {**bench.document(), "status": "pending"}
        by_hand["_rev"] = bench.store.put(by_hand).rev
        bench.keeper.changed(by_hand)
        with pytest.raises(ClaimLost, match="'pending'"):
            bench.job.check()


# Claims of others


def held_by_others(rev: str = "1-a", run_id: str = "run_001") -> Document:
    return {"_id": run_id, "_rev": rev, "status": "processing"}


class Observer:
    """Looks at the others' claims every fifth of a lease."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stale = StaleClaims(LEASE_SECONDS, self.clock)

    def look_for(self, seconds: float, *documents: Document) -> list[Document]:
        """Look now, and again until so many seconds have passed; return what is stale at the end."""
        found = self.stale.observe(list(documents))
        until = self.clock() + seconds
        while self.clock() < until:
            self.clock.advance(min(LEASE_SECONDS / RENEWALS_A_LEASE, until - self.clock()))
            found = self.stale.observe(list(documents))
        return found


def test_a_claim_whose_revision_stands_still_for_a_lease_is_stale() -> None:
    observer = Observer()
    assert observer.look_for(LEASE_SECONDS - 1, held_by_others()) == []
    assert observer.look_for(1, held_by_others()) == [held_by_others()]


def test_a_claim_whose_revision_moves_is_never_stale() -> None:
    observer = Observer()
    for number in range(20):
        assert observer.look_for(LEASE_SECONDS - 1, held_by_others(f"{number}-a")) == []


def test_each_claim_has_a_lease_of_its_own() -> None:
    observer = Observer()
    observer.look_for(100, held_by_others())
    both = (held_by_others(), held_by_others(run_id="run_002"))
    assert observer.look_for(LEASE_SECONDS - 100, *both) == [held_by_others()]


def test_a_claim_that_was_away_in_between_is_counted_anew() -> None:
    observer = Observer()
    observer.look_for(LEASE_SECONDS - 1, held_by_others())
    observer.look_for(1)
    assert observer.look_for(LEASE_SECONDS - 1, held_by_others()) == []


def test_a_claim_stays_stale_until_somebody_takes_it() -> None:
    observer = Observer()
    observer.look_for(LEASE_SECONDS, held_by_others())
    assert observer.look_for(10 * LEASE_SECONDS, held_by_others()) == [held_by_others()]
    assert observer.look_for(0, held_by_others("2-b")) == []


def test_an_observer_who_could_not_look_counts_anew() -> None:
    observer = Observer()
    observer.look_for(LEASE_SECONDS - 1, held_by_others())
    observer.clock.advance(LEASE_SECONDS * LOOK_PART)
    assert observer.look_for(LEASE_SECONDS - 1, held_by_others()) == []
    assert observer.look_for(1, held_by_others()) == [held_by_others()]


def test_a_holder_stops_trusting_its_lease_before_anyone_may_find_it_stale(bench: Bench) -> None:
    """The observer sees the claim at the earliest moment there is: when it is written."""
    lease = bench.lease()
    stale = StaleClaims(LEASE_SECONDS, bench.clock)
    stale.observe([bench.document()])
    trusted_for, stale_after = None, None
    for second in range(int(LEASE_SECONDS) + 1):
        if trusted_for is None and not lease.is_trusted:
            trusted_for = second
        if stale.observe([bench.document()]):
            stale_after = second
        bench.clock.advance(1)
    assert (trusted_for, stale_after) == (LEASE_SECONDS * TRUSTED_PART, LEASE_SECONDS)


def test_the_clock_goes_on_while_the_machine_is_suspended() -> None:
    uptime = float(Path("/proc/uptime").read_text().split()[0])  # the kernel's, suspended time counted in
    assert abs(boottime() - uptime) < PATIENCE_SECONDS
