"""What a proven archive still needs before it can be published: the wrapped key, the manifest, the receipt."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import watcher
from watcher import openpgp
from watcher.archiving.attempt import Attempt
from watcher.archiving.manifest import stage_manifest
from watcher.archiving.members import Members
from watcher.manifest import Heading
from watcher.model import Archive, EncryptedArchive, ManifestMode, Phase, timestamp, writable
from watcher.source import Stillness


def complete(
    attempt: Attempt, encrypted: EncryptedArchive, key: openpgp.FileKey, still: Stillness, members: Members
) -> Archive:
    """Stage the wrapped key, the manifest of the `members`, and the receipt; return what the document shall have.

    A recipient that has expired meanwhile is waited for. The file key is in this process only: without the wait, hours
    of work would be lost.
    """
    archive_store, name = attempt.parts.archive_store, attempt.name
    attempt.job.enter(Phase.WRAPPING)
    archive = attempt.wait_out(lambda: _seal(attempt, encrypted, key, still, members), "wrap the file key")
    attempt.wait_out(lambda: archive_store.stage_receipt(name, archive), "stage the receipt")
    return archive


def _seal(
    attempt: Attempt, encrypted: EncryptedArchive, key: openpgp.FileKey, still: Stillness, members: Members
) -> Archive:
    settings, archive_store, token = attempt.parts.settings, attempt.parts.archive_store, attempt.claim.token
    recipient = openpgp.find_recipient(settings.receiver, settings.gnupg_home, attempt.job)
    wrapped = openpgp.wrap(key, recipient, settings.gnupg_home, attempt.job)
    archive = Archive(
        file=archive_store.final_archive(attempt.name).name,
        size=encrypted.file.size,
        sha256=encrypted.file.sha256,
        tar_sha256="",
        tar_blake3=encrypted.tar.stream.blake3,
        encryption=str(settings.encryption),
        tar_size=encrypted.tar.stream.size,
        key_file=archive_store.final_key(attempt.name).name,
        key_sha256=archive_store.stage_key(attempt.name, token, wrapped),
        key_size=len(wrapped),
        recipient=recipient.fingerprint,
        members=members.count,
        warnings=encrypted.tar.warnings,
        token=token,
        sentinel=still.sentinel,
        listing=still.first.digest,
        top=still.source.top(),
        excluded=still.first.excluded,
    )
    if settings.manifest is ManifestMode.NONE:
        return archive
    heading = _heading(attempt, archive, encrypted, still, members)
    return stage_manifest(attempt, heading, members, recipient, key)


def _heading(
    attempt: Attempt, archive: Archive, encrypted: EncryptedArchive, still: Stillness, members: Members
) -> Heading:
    return Heading(
        run=attempt.name,
        path=str(attempt.claim.run.path),
        created_at=timestamp(datetime.now(UTC)),
        tools={
            "dataflow_archive": watcher.__version__,
            "tar": encrypted.tar.version,
            "gpg": openpgp.known_version(attempt.parts.settings.gnupg_home),
        },
        cipher="AES-256",
        archive=archive,
        files=members.files,
        file_bytes=members.file_bytes,
        exclusions=tuple(still.source.rules.exclusions),
        left_out=tuple(writable(os.fsdecode(path)) for path in still.first.left_out),
    )
