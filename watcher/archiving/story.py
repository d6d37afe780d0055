"""The story of an attempt, from the claim to the record.

Each step raises an error of ours when it cannot go on; `watcher.archiving.endings` says what that leads to.
"""

from __future__ import annotations

import logging
import os

from watcher import openpgp
from watcher.archiving.adoption import adopted
from watcher.archiving.attempt import Attempt
from watcher.archiving.completion import complete
from watcher.archiving.files import version_of, writing
from watcher.archiving.members import Members, members_of
from watcher.archiving.pace import Paced
from watcher.archiving.validation import reread, validating
from watcher.errors import RunNotSettled, ValidateFailed
from watcher.model import Archive, EncryptedArchive, Phase, ValidationMode
from watcher.source import Stillness, is_ready
from watcher.tar import TarStream

logger = logging.getLogger(__name__)


def archive_and_record(attempt: Attempt) -> None:
    """Archive the run, or adopt the archive of an interrupted attempt; set the document to `encrypted`.

    Raises ClaimLost, NotTheRunsFault or RunFailed.
    """
    archive = adopted(attempt)
    if archive is None:
        still = _archivable(attempt)
        key = openpgp.FileKey.generate()
        with members_of(attempt, still) as members:
            encrypted = _encrypt(attempt, key, still, members)
            archive = complete(attempt, encrypted, key, still, members)
        attempt.await_quiet(still)
        _publish(attempt, archive, encrypted, still)
    attempt.wait_out(lambda: attempt.lease.write(attempt.parts.statusdb.record, archive), "record")
    logger.info(
        "encrypted '%s': %d bytes, %d members", archive.file, archive.size, archive.members, extra=attempt.extra
    )


def _archivable(attempt: Attempt) -> Stillness:
    """Return the held run directory. Raises RunNotSettled, and TarFailed or Incomplete for what tar cannot restore.

    A run that has changed under tar before is not read again before it has been quiet.
    """
    if attempt.still is None or not is_ready(attempt.claim.run, attempt.parts.settings.policy):
        raise RunNotSettled(f"'{attempt.claim.run.path}' is gone, or its sentinel is not ready any more")
    if attempt.still.first.trouble:
        raise attempt.still.first.trouble
    attempt.still.require_no_transfer()
    if "unsettled_since" in attempt.lease.document:
        attempt.still.require_quiet()
    return attempt.still


def _encrypt(attempt: Attempt, key: openpgp.FileKey, still: Stillness, members: Members) -> EncryptedArchive:
    """Stage the archive; prove that the file decrypts to what tar gave, and that the run stood still.

    `members` takes what was decrypted.
    """
    settings, job = attempt.parts.settings, attempt.job
    home, mode = settings.gnupg_home, settings.validation
    openpgp.find_recipient(settings.receiver, home, job)  # before hours of work, not after
    staged = attempt.parts.archive_store.staged_archive(attempt.name, attempt.claim.token)
    job.enter(Phase.ARCHIVING, job.size)
    follows = mode is not ValidationMode.AFTER
    with writing(staged) as file, validating(file, key, job, home, follows, members.feed) as validation:
        with TarStream(still, job) as tar:
            source = Paced(tar, attempt.parts.pace, job)
            openpgp.encrypt(source, key, job.on_storage(validation.write, staged), job, home, settings.encryption)
            report = tar.report()
        version = file.finished()
        job.enter(Phase.VALIDATING, file.size)
        with job.waiting():
            digest, plain = validation.digests()
    if plain != report.stream:
        raise ValidateFailed(f"the stored archive decrypts to {plain}, and tar gave {report.stream}")
    if mode is ValidationMode.REREAD:
        job.enter(Phase.VALIDATING, digest.size)
        reread(staged, digest.sha256, job)
    members.finish()
    still.require(with_ends=True)
    return EncryptedArchive(staged, digest, report, version)


def _publish(attempt: Attempt, archive: Archive, encrypted: EncryptedArchive, still: Stillness) -> None:
    """Announce the archive in the document, then give it its name, while the lease is sure to be ours."""
    archive_store, lease = attempt.parts.archive_store, attempt.lease

    def publish() -> None:
        if lease.document.get("archive") is None or not lease.is_trusted:
            lease.write(attempt.parts.statusdb.announce, archive)
        if not archive_store.has_begun(attempt.name):
            _require_unchanged(attempt, archive, encrypted)
            still.require()  # at each try, and last: the database may have been away for hours
        archive_store.publish(attempt.name, archive, attempt.job.moved)

    attempt.job.enter(Phase.PUBLISHING)
    attempt.wait_out(publish, "publish")


def _require_unchanged(attempt: Attempt, archive: Archive, encrypted: EncryptedArchive) -> None:
    """Raise ValidateFailed if a staged file is not what was validated. An archive is read again if it looks touched.

    A file that is gone was removed by a new holder of the run; `publish` says that.
    """
    archive_store, token = attempt.parts.archive_store, archive.token
    suspects = [(archive_store.staged_key(attempt.name, token), archive.key_sha256)]
    if archive.manifest_file:
        manifest = archive_store.staged_manifest(attempt.name, token, archive.manifest_mode)
        suspects.append((manifest, archive.manifest_sha256))
    if version_of(encrypted.staged) != encrypted.version:
        suspects.append((encrypted.staged, archive.sha256))
    for path, sha256 in suspects:
        if os.path.lexists(path):
            reread(path, sha256, attempt.job)
