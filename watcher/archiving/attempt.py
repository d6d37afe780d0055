"""One attempt to archive a run: its story, from the claim to the record.

An attempt holds everything that belongs together while a run is worked on: the claim, its lease, the job, and the run
directory. It raises an error of ours when it cannot go on; `watcher.archiving.endings` says what that leads to.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from watcher import openpgp
from watcher.archiving.files import reading, writing
from watcher.archiving.lease import Lease
from watcher.archiving.publication import ArchiveStore
from watcher.errors import Interrupted, NotTheRunsFault, RunNotSettled, ValidateFailed
from watcher.job import Job
from watcher.model import Archive, Claim, EncryptedArchive, Phase
from watcher.source import Policy, Rules, Stillness, is_ready
from watcher.statusdb import StatusDB
from watcher.tar import TarStream

LONGEST_PAUSE_SECONDS = 60.0
"""Between tries of a finished archive's last steps, while the database or the recipient's key is away."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


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


@dataclass(frozen=True)
class Parts:
    """What all attempts of a worker share. `pauses` gives the seconds between tries of a last step."""

    settings: Settings
    statusdb: StatusDB
    archive_store: ArchiveStore
    pauses: Callable[[], Iterator[float]] = growing_pauses


@dataclass(frozen=True)
class Attempt:
    """The work on one claimed run. `still` is the held run directory; None if it is not here any more."""

    parts: Parts
    claim: Claim
    lease: Lease
    job: Job
    still: Stillness | None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.claim.run.name

    @property
    def extra(self) -> dict[str, str]:
        """What each log record of this attempt carries."""
        return {"run": self.name}

    def archive_and_record(self) -> None:
        """Archive the run, or adopt the archive of an interrupted attempt; set the document to `encrypted`.

        Raises ClaimLost, NotTheRunsFault or RunFailed.
        """
        archive = self._adopted()
        if archive is None:
            still = self._archivable()
            key = openpgp.FileKey.generate()
            archive = self._wrap(self._encrypt(key, still), key, still)
            self._await_quiet(still)
            self._publish(archive, still)
        self.wait_out(lambda: self.lease.write(self.parts.statusdb.record, archive), "record")
        logger.info(
            "encrypted '%s': %d bytes, %d members", archive.file, archive.size, archive.members, extra=self.extra
        )

    def _archivable(self) -> Stillness:
        """Return the held run directory. Raises RunNotSettled, and TarFailed or Incomplete for what tar cannot restore.

        A run that has changed under tar before is not read again before it has been quiet.
        """
        if self.still is None or not is_ready(self.claim.run, self.parts.settings.policy):
            raise RunNotSettled(f"'{self.claim.run.path}' is gone, or its sentinel is not ready any more")
        if self.still.first.trouble:
            raise self.still.first.trouble
        self.still.require_no_transfer()
        if "unsettled_since" in self.lease.document:
            self.still.require_quiet()
        return self.still

    # An archive that an interrupted attempt has left

    def _adopted(self) -> Archive | None:
        """Complete what an interrupted attempt has finished, and return it; remove what it has not finished."""
        archive_store = self.parts.archive_store
        for archive in self._finished():
            if not self._is_wanted(archive):
                logger.warning("an archive is older than the run as it is now, and made again", extra=self.extra)
            elif self._adopt(archive):
                logger.info("adopted the archive of an interrupted attempt", extra=self.extra)
                return archive
            archive_store.drop(self.name, archive.token)
        for token in self.claim.earlier_tokens:
            archive_store.drop(self.name, token)
        if "archive" in self.lease.document:
            self.lease.write(self.parts.statusdb.announce, None)
        archive_store.refuse_foreign(self.name)
        return None

    def _finished(self) -> Iterator[Archive]:
        if self.claim.announced is not None:
            yield self.claim.announced
        yield from self.parts.archive_store.manifests(self.name, self.claim.earlier_tokens)

    def _is_wanted(self, archive: Archive) -> bool:
        """Say whether an archive is of the run as it is now. One that has begun to be published is, in any case."""
        if self.still is None or self.parts.archive_store.has_begun(self.name):
            return True
        # Archives of earlier versions name no listing.
        return archive.sentinel == self.still.sentinel and archive.listing in ("", self.still.first.digest)

    def _adopt(self, archive: Archive) -> bool:
        if self.still is not None and not self.parts.archive_store.has_begun(self.name):
            self._await_quiet(self.still)
            self.still.require()
        if archive.to_document() != self.lease.document.get("archive"):
            self.lease.write(self.parts.statusdb.announce, archive)
        self.job.enter(Phase.VALIDATING, archive.size)
        return self.parts.archive_store.adopt(self.name, archive, self.job.moved)

    # A new archive

    def _encrypt(self, key: openpgp.FileKey, still: Stillness) -> EncryptedArchive:
        """Stage the archive; prove that the file decrypts to what tar gave, and that the run stood still."""
        job, home = self.job, self.parts.settings.gnupg_home
        openpgp.find_recipient(self.parts.settings.receiver, home, job)  # before hours of work, not after
        staged = self.parts.archive_store.staged_archive(self.name, self.claim.token)
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

    def _wrap(self, encrypted: EncryptedArchive, key: openpgp.FileKey, still: Stillness) -> Archive:
        """Stage the wrapped key and the manifest. A recipient that has expired meanwhile is waited for.

        The file key is in this process only: without the wait, hours of work would be lost.
        """
        settings, archive_store, token = self.parts.settings, self.parts.archive_store, self.claim.token

        def wrap() -> tuple[str, str]:
            recipient = openpgp.find_recipient(settings.receiver, settings.gnupg_home, self.job)
            wrapped = openpgp.wrap(key, recipient, settings.gnupg_home, self.job)
            return recipient.fingerprint, archive_store.stage_key(self.name, token, wrapped)

        self.job.enter(Phase.WRAPPING)
        fingerprint, key_sha256 = self.wait_out(wrap, "wrap the file key")
        archive = Archive(
            file=archive_store.final_archive(self.name).name,
            size=encrypted.file.size,
            sha256=encrypted.file.sha256,
            tar_sha256=encrypted.tar.stream.sha256,
            tar_size=encrypted.tar.stream.size,
            key_file=archive_store.final_key(self.name).name,
            key_sha256=key_sha256,
            recipient=fingerprint,
            members=encrypted.tar.members,
            warnings=encrypted.tar.warnings,
            token=token,
            sentinel=still.sentinel,
            listing=still.first.digest,
            top=still.source.top(),
            excluded=still.first.excluded,
        )
        self.wait_out(lambda: archive_store.stage_manifest(self.name, archive), "stage the manifest")
        return archive

    def _await_quiet(self, still: Stillness) -> None:
        seconds = still.seconds_left()
        if seconds > 0:
            logger.info("archived, and recorded if nothing changes for %.0f s more", seconds, extra=self.extra)
            with self.job.waiting():
                self.job.cancelled.wait(seconds)
            self.job.check()

    def _publish(self, archive: Archive, still: Stillness) -> None:
        """Announce the archive in the document, then give it its name, while the lease is sure to be ours."""
        archive_store, lease = self.parts.archive_store, self.lease

        def publish() -> None:
            if lease.document.get("archive") is None or not lease.is_trusted:
                lease.write(self.parts.statusdb.announce, archive)
            if not archive_store.has_begun(self.name):
                still.require()  # at each try, and last: the database may have been away for hours
            archive_store.publish(self.name, archive, self.job.moved)

        self.job.enter(Phase.PUBLISHING)
        self.wait_out(publish, "publish")

    def wait_out(self, step: Callable[[], T], what: str) -> T:
        """Do a step, and return what it returns. While nobody is at fault that it fails, wait and try again.

        `what` names the step in the log. Raises what the step raises otherwise, and the job's reason if cancelled.
        """
        for pause in self.parts.pauses():
            try:
                return step()
            except (Interrupted, RunNotSettled):
                raise
            except NotTheRunsFault as error:
                self.job.check()
                logger.warning("cannot %s yet, trying again in %g s: %s", what, pause, error, extra=self.extra)
            with self.job.waiting():
                self.job.cancelled.wait(pause)
            self.job.check()
        raise AssertionError("pauses end")
