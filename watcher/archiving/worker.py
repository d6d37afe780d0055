"""The story of one run, and what each class of error leads to."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from watcher import openpgp
from watcher.archiving.files import reading, writing
from watcher.archiving.lease import Lease, LeaseKeeper
from watcher.archiving.publication import Shelf
from watcher.errors import (
    ClaimLost,
    Interrupted,
    NoSpace,
    NotTheRunsFault,
    RunFailed,
    RunNotSettled,
    ValidateFailed,
    WatcherError,
)
from watcher.job import Job
from watcher.model import MAX_RETRY_DELAY_SECONDS, Archive, Claim, Document, EncryptedArchive, Phase, Run
from watcher.source import Policy, Rules, State, Stillness, hold, inspect
from watcher.statusdb import StatusDB
from watcher.tar import TarStream

LONGEST_PAUSE_SECONDS = 60.0
"""Between tries of a finished archive's last steps, while the database or the recipient's key is away."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Outcome(StrEnum):
    """What became of a run that was offered to a worker."""

    ENCRYPTED = "encrypted"
    NOT_HERE = "not here"
    NOT_OURS = "not ours"
    NOT_READY = "not ready"
    NO_ROOM = "no room"
    RELEASED = "released"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know; sizes in bytes, times in seconds."""

    worker_id: str
    receiver: str
    gnupg_home: Path | None = None
    rules: Rules = field(default_factory=Rules)
    policy: Policy = Policy.EXIT_CODE
    minimum_free_space: int = 0
    retry_delay: float = 60.0
    settle_limit: float = 86400.0
    quiet_period: float = 0.0


def growing_pauses() -> Iterator[float]:
    """Yield 1, 2, 4 ... seconds, up to LONGEST_PAUSE_SECONDS, without end."""
    return (min(2.0**exponent, LONGEST_PAUSE_SECONDS) for exponent in itertools.count())


class Worker:
    """Archives runs, each in the thread that calls `work`."""

    def __init__(
        self,
        settings: Settings,
        statusdb: StatusDB,
        shelf: Shelf,
        leases: LeaseKeeper,
        pauses: Callable[[], Iterator[float]] = growing_pauses,
    ) -> None:
        self._settings = settings
        self._statusdb = statusdb
        self._shelf = shelf
        self._leases = leases
        self._pauses = pauses
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Claim nothing from now on; what is claimed goes on."""
        self._is_closed = True

    def work(self, run: Run, stale_rev: str | None = None) -> Outcome:
        """Claim a run and archive it; return what became of it.

        `stale_rev` is the revision of a dead worker's claim that may be taken over. Raises
        StatusDBUnavailable when the run could not even be claimed.
        """
        document = self._statusdb.claimable(run, stale_rev)
        if document is None:
            return Outcome.NOT_OURS
        # A dead worker's claim is ended whatever has become of the run: it may have been finished.
        if stale_rev is None and not self._is_ready(run):
            return Outcome.NOT_READY
        with self._held(run) as still:
            return self._work(run, document, still)

    def _work(self, run: Run, document: Document, still: Stillness | None) -> Outcome:
        with self._reserved(document, Job(run, still.first.size if still else 0)) as job:
            if job is None:
                return Outcome.NO_ROOM
            if self._is_closed:  # asked this late: to look through a large run takes a while
                return Outcome.NOT_OURS
            former = self._shelf.former(run.name)  # before the claim: whose who claims after us is none of them
            asked_at = self._leases.now()
            claim = self._statusdb.claim(run, self._settings.worker_id, document)
            if claim is None:
                return Outcome.NOT_OURS
            _tell_claim(claim)
            with self._leases.hold(claim, job, asked_at) as lease:
                return self._attempt(replace(claim, former=former), lease, job, still)

    @contextmanager
    def _held(self, run: Run) -> Iterator[Stillness | None]:
        """Hold the run's directory, listed, while the context lasts; None if it is not here, or no directory."""
        with ExitStack() as stack:
            try:
                source = stack.enter_context(hold(run, self._settings.rules))
            except RunNotSettled:
                yield None
                return
            yield Stillness(source, self._settings.quiet_period)

    def may_end(self, run: Run) -> bool:
        """Say whether a stale claim is ours to end, though the run is not here: we made it, or its archive is here.

        Raises NoSpace, StatusDBUnavailable.
        """
        document, shelf, name = self._statusdb.get(run.name) or {}, self._shelf, run.name
        is_own = document.get("worker_id") == self._settings.worker_id
        return is_own or shelf.has_begun(name) or any(shelf.manifests(name, shelf.former(name)))

    def cancel(self, reason: WatcherError) -> None:
        """Stop all work for `reason`, without waiting for it to end."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel(reason)

    def _story(self, claim: Claim, lease: Lease, job: Job, still: Stillness | None) -> None:
        archive = self._adopt(claim, lease, job, still)
        if archive is None:
            if still is None or not self._is_ready(claim.run):
                raise RunNotSettled(f"'{claim.run.path}' is gone, or its sentinel is not ready any more")
            self._require_archivable(lease, still)
            key = openpgp.FileKey.generate()
            encrypted = self._encrypt(claim, key, job, still)
            archive = self._wrap(claim, encrypted, key, job, still)
            self._await_quiet(still, job)
            self._publish(claim, archive, lease, job, still)
        self._wait_out(lambda: lease.write(self._statusdb.record, archive), "record", job)
        logger.info("encrypted '%s': %d bytes, %d members", archive.file, archive.size, archive.members, extra=_of(job))

    def _require_archivable(self, lease: Lease, still: Stillness) -> None:
        """Raise Incomplete or TarFailed for what tar cannot restore or read, RunNotSettled while a transfer goes on.

        A run that has changed under tar before is not tried again before it has been quiet.
        """
        if still.first.trouble:
            raise still.first.trouble
        still.require_no_transfer()
        if "unsettled_since" in lease.document:
            still.require_quiet()

    def _await_quiet(self, still: Stillness, job: Job) -> None:
        seconds = still.seconds_left()
        if seconds > 0:
            logger.info("archived, and recorded if nothing changes for %.0f s more", seconds, extra=_of(job))
            with job.waiting():
                job.cancelled.wait(seconds)
            job.check()

    def _attempt(self, claim: Claim, lease: Lease, job: Job, still: Stillness | None) -> Outcome:
        try:
            self._story(claim, lease, job, still)
            return Outcome.ENCRYPTED
        except ClaimLost as error:
            logger.warning("stopped: %s", error, extra=_of(job))
            self._tidy(claim, job, is_lost=True)
            return Outcome.LOST
        except NotTheRunsFault as error:
            self._tidy(claim, job, is_unsettled=isinstance(error, RunNotSettled))
            return self._release(lease, job, error)
        except Exception as error:
            # Not a RunFailed: a bug. It is shown whole, and may not stop the other runs.
            level, trace = (logging.WARNING, None) if isinstance(error, RunFailed) else (logging.ERROR, error)
            logger.log(level, "failed: %s", error, exc_info=trace, extra=_of(job))
            self._tidy(claim, job)
            job.forgive(error)
            return self._fail(lease, job, error)

    def _tidy(self, claim: Claim, job: Job, is_lost: bool = False, is_unsettled: bool = False) -> None:
        """Remove what this claim has staged, but not what is finished: the next holder adopts that.

        A finished archive of a run that has changed since is not wanted either.

        This comes before the claim is given back, which may take as long as the database is away. When it is
        lost and the run published, nothing staged is wanted any more.
        """
        try:
            is_wanted = not (is_unsettled or (is_lost and self._shelf.is_published(claim.run.name)))
            if is_wanted and self._shelf.is_finished(claim.run.name, claim.token):
                return
            self._shelf.drop(claim.run.name, claim.token)
        except NoSpace as error:
            logger.warning("left for the next claim to remove: %s", error, extra=_of(job))

    def _adopt(self, claim: Claim, lease: Lease, job: Job, still: Stillness | None) -> Archive | None:
        """Complete what an interrupted attempt left finished; sweep away what it did not finish."""
        name = claim.run.name
        for archive in self._finished(claim):
            if still is not None and not self._shelf.has_begun(name):
                if not _is_of(archive, still):
                    logger.warning("an archive is older than the run as it is now, and made again", extra=_of(job))
                    self._shelf.drop(name, archive.token)
                    continue
                self._await_quiet(still, job)
                still.require()
            if archive.to_document() != lease.document.get("archive"):
                lease.write(self._statusdb.announce, archive)
            job.enter(Phase.VALIDATING, archive.size)
            if self._shelf.adopt(name, archive, job.moved):
                logger.info("adopted the archive of an interrupted attempt", extra=_of(job))
                return archive
            self._shelf.drop(name, archive.token)
        for token in claim.former:
            self._shelf.drop(name, token)
        if "archive" in lease.document:
            lease.write(self._statusdb.announce, None)
        self._shelf.refuse_foreign(name)
        return None

    def _finished(self, claim: Claim) -> Iterator[Archive]:
        if claim.announced is not None:
            yield claim.announced
        yield from self._shelf.manifests(claim.run.name, claim.former)

    def _encrypt(self, claim: Claim, key: openpgp.FileKey, job: Job, still: Stillness) -> EncryptedArchive:
        """Stage the run's archive; prove that the file decrypts to what tar gave, and that the run stood still."""
        settings, home = self._settings, self._settings.gnupg_home
        openpgp.find_recipient(settings.receiver, home, job)  # before hours of work, not after
        staged = self._shelf.staged_archive(claim.run.name, claim.token)
        job.enter(Phase.ARCHIVING, job.size)
        with writing(staged) as file, TarStream(still, job) as tar:
            openpgp.encrypt(tar, key, job.on_storage(file.write, staged), job, home)
            report = tar.report()
        with reading(staged) as stored:
            job.enter(Phase.VALIDATING, os.fstat(stored.fileno()).st_size)
            digest, plain = openpgp.validate(job.on_storage(stored.read, staged), key, job, home)
        if plain != report.stream:
            raise ValidateFailed(f"the stored archive decrypts to {plain}, and tar gave {report.stream}")
        still.require(with_ends=True)
        return EncryptedArchive(staged, digest, report)

    def _wrap(
        self, claim: Claim, encrypted: EncryptedArchive, key: openpgp.FileKey, job: Job, still: Stillness
    ) -> Archive:
        """Stage the wrapped key. A recipient that has expired since the start is waited for: the key is here only."""
        home = self._settings.gnupg_home

        def wrap() -> tuple[str, str]:
            recipient = openpgp.find_recipient(self._settings.receiver, home, job)
            wrapped = openpgp.wrap(key, recipient, home, job)
            return recipient.fingerprint, self._shelf.stage_key(claim.run.name, claim.token, wrapped)

        job.enter(Phase.WRAPPING)
        fingerprint, key_sha256 = self._wait_out(wrap, "wrap the file key", job)
        archive = Archive(
            file=self._shelf.final_archive(claim.run.name).name,
            size=encrypted.file.size,
            sha256=encrypted.file.sha256,
            tar_sha256=encrypted.tar.stream.sha256,
            tar_size=encrypted.tar.stream.size,
            key_file=self._shelf.final_key(claim.run.name).name,
            key_sha256=key_sha256,
            recipient=fingerprint,
            members=encrypted.tar.members,
            warnings=encrypted.tar.warnings,
            token=claim.token,
            sentinel=still.sentinel,
            listing=still.first.digest,
            top=still.source.top(),
            excluded=still.first.excluded,
        )
        self._wait_out(lambda: self._shelf.stage_manifest(claim.run.name, archive), "stage the manifest", job)
        return archive

    def _publish(self, claim: Claim, archive: Archive, lease: Lease, job: Job, still: Stillness) -> None:
        """Say in the document which archive will appear, then give it its name, while the lease is sure to be ours."""

        def publish() -> None:
            if lease.document.get("archive") is None or not lease.is_trusted:
                lease.write(self._statusdb.announce, archive)
            if not self._shelf.has_begun(claim.run.name):
                still.require()  # at each try, and last: the database may have been away for hours
            self._shelf.publish(claim.run.name, archive, job.moved)

        job.enter(Phase.PUBLISHING)
        self._wait_out(publish, "publish", job)

    def _wait_out(self, step: Callable[[], T], what: str, job: Job) -> T:
        """Do the step; while it is nobody's fault that it cannot be done, wait and try again, however long."""
        for pause in self._pauses():
            try:
                return step()
            except (Interrupted, RunNotSettled):
                raise
            except NotTheRunsFault as error:
                job.check()
                logger.warning("cannot %s yet, trying again in %g s: %s", what, pause, error, extra=_of(job))
            with job.waiting():
                job.cancelled.wait(pause)
            job.check()
        raise AssertionError("pauses end")

    def _release(self, lease: Lease, job: Job, error: NotTheRunsFault) -> Outcome:
        if isinstance(error, RunNotSettled):
            return self._release_unsettled(lease, job, error)
        logger.warning("released: %s", error, extra=_of(job))
        wait = 0.0 if isinstance(error, Interrupted) else self._settings.retry_delay
        return self._end(job, lambda: lease.write(self._statusdb.release, error, wait), Outcome.RELEASED)

    def _release_unsettled(self, lease: Lease, job: Job, error: RunNotSettled) -> Outcome:
        changing = self._statusdb.unsettled_seconds(lease.document)
        if changing >= self._settings.settle_limit:
            failure = RunFailed(f"not settled after {changing / 3600:.1f} h: {error}")
            logger.warning("failed: %s", failure, extra=_of(job))
            return self._fail(lease, job, failure)
        # A look whether the run has become quiet costs little; to archive it in vain costs much.
        quiet, delay = self._settings.quiet_period, self._settings.retry_delay
        wait = min(max(delay, changing / 2), max(delay, quiet) if quiet else MAX_RETRY_DELAY_SECONDS)
        logger.warning("released, to be tried again in %g s: %s", wait, error, extra=_of(job))
        return self._end(job, lambda: lease.write(self._statusdb.unsettled, error, wait), Outcome.RELEASED)

    def _fail(self, lease: Lease, job: Job, error: Exception) -> Outcome:
        def write() -> Document:
            return lease.write(self._statusdb.fail, error, self._settings.retry_delay)

        return self._end(job, lambda: self._wait_out(write, "count the failure", job), Outcome.FAILED)

    def _end(self, job: Job, write: Callable[[], object], outcome: Outcome) -> Outcome:
        try:
            write()
        except ClaimLost as error:
            logger.warning("stopped: %s", error, extra=_of(job))
            return Outcome.LOST
        except NotTheRunsFault as error:
            # Whoever finds the claim stale takes the run over; an attempt more or less is all that is lost.
            logger.warning("the claim is left to expire: %s", error, extra=_of(job))
        return outcome

    def _is_ready(self, run: Run) -> bool:
        try:
            return inspect(run.path, self._settings.policy).state is State.READY
        except OSError:
            return False

    @contextmanager
    def _reserved(self, document: Document, job: Job) -> Iterator[Job | None]:
        """Set the run's size aside on the destination while the context lasts; None where there is no room."""
        lack = self._reserve(job, needs_room="archive" not in document)
        if lack is not None:
            logger.warning("waits: %s", lack, extra=_of(job))
            self._statusdb.note(document, lack)
            yield None
            return
        try:
            yield job
        finally:
            with self._lock:
                del self._jobs[job.run.name]

    def _reserve(self, job: Job, needs_room: bool) -> NoSpace | None:
        try:
            free = self._shelf.free_bytes(job.run.name)  # not under the lock: a disk that hangs would keep `cancel` out
        except NoSpace as error:
            return error
        with self._lock:
            promised = sum(other.bytes_to_come for other in self._jobs.values())
            if needs_room and job.size + promised + self._settings.minimum_free_space > free:
                return NoSpace(
                    f"'{self._shelf.destination}' has {free} bytes free; the run needs {job.size}, running jobs "
                    f"{promised} more, and minimum_free_space is {self._settings.minimum_free_space}"
                )
            self._jobs[job.run.name] = job
            return None


def _of(job: Job) -> dict[str, str]:
    return {"run": job.run.name}


def _is_of(archive: Archive, still: Stillness) -> bool:
    """Say whether an archive is of the run as it is now. Archives of earlier versions name no listing."""
    return archive.sentinel == still.sentinel and archive.listing in ("", still.first.digest)


def _was_stale(claim: Claim) -> bool:
    return claim.previous.get("status") == "processing"


def _tell_claim(claim: Claim) -> None:
    extra = {"run": claim.run.name}
    if _was_stale(claim):
        whose = claim.previous.get("worker_id")
        logger.warning("took over the stale claim of worker '%s'", whose, extra=extra)
    else:
        logger.info("claimed '%s'", claim.run.path, extra=extra)
