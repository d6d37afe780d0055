"""Archives get their names: staging, publishing, adopting.

The name of a staged file carries the token of its claim. Only an announced archive ever gets its final name. A new
holder adopts what was announced, or removes the staged files of earlier claims. After that the former holder has
nothing left to publish, whether it sleeps or not: the file system is the fence, and no lock is needed.

Only files that were staged before the claim are removed, so a worker that wakes up late spares its successor's files.
No file is ever taken from a final name: another worker may have published it, and a wrapped key may be the only one.

The receipt is staged last, when archive and key are on the disk. With it a finished archive outlives a process that
could not announce it because the database was away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from watcher.archiving.files import (
    content_of,
    disk_trouble,
    fsync_directory,
    given_name,
    remove,
    sha256_of,
    staged_files,
    writing,
)
from watcher.archiving.names import RECEIPT_SUFFIX, staging_name
from watcher.errors import ClaimLost, NoSpace, PublishFailed
from watcher.model import ARCHIVE_SUFFIX, KEY_SUFFIX, Archive, ManifestMode, manifest_names

logger = logging.getLogger(__name__)


def _unseen(_count: int) -> None:
    """Ignore how many bytes have moved."""


class ArchiveStore:
    """The directories of archives and wrapped keys, `destination` and `keys`. They may be on two file systems.

    One class knows all names and all steps, because they hold only together: `tests/protocol` proves them as one.

    `marks` are files of ours in them. If one is missing, its directory is not mounted any more.
    """

    def __init__(self, destination: Path, keys: Path, marks: Collection[Path] = ()) -> None:
        self.destination = destination
        self.keys = keys
        self._marks = marks

    def final_archive(self, run_name: str) -> Path:
        """Return the published archive's path."""
        return self.destination / f"{run_name}{ARCHIVE_SUFFIX}"

    def final_key(self, run_name: str) -> Path:
        """Return the published wrapped key's path."""
        return self.keys / f"{run_name}{KEY_SUFFIX}"

    def final_manifest(self, archive: Archive) -> Path:
        """Return the path of the published manifest, which the archive has."""
        return self.destination / archive.manifest_file

    def staged_archive(self, run_name: str, token: str) -> Path:
        """Return the path at which the archive of this claim is written."""
        return self.destination / staging_name(run_name, token, ARCHIVE_SUFFIX)

    def staged_key(self, run_name: str, token: str) -> Path:
        """Return the path at which the wrapped key of this claim waits for its archive."""
        return self.keys / staging_name(run_name, token, KEY_SUFFIX)

    def staged_manifest(self, run_name: str, token: str, mode: ManifestMode) -> Path:
        """Return the path at which the manifest of this claim waits for its archive."""
        return self.destination / staging_name(run_name, token, mode.suffix)

    def staged_receipt(self, run_name: str, token: str) -> Path:
        """Return the path of the file that says that the archive of this claim is finished."""
        return self.destination / staging_name(run_name, token, RECEIPT_SUFFIX)

    def stage_key(self, run_name: str, token: str, wrapped: bytes) -> str:
        """Write the wrapped key, mode 0600, to the disk beside its final name; return its SHA-256.

        Raises NoSpace when it cannot be written.
        """
        self._refuse_another_place()
        staged = self.staged_key(run_name, token)
        remove(staged)  # left by a try that failed
        with writing(staged, 0o600) as file:
            file.write(wrapped)
        return hashlib.sha256(wrapped).hexdigest()

    def refuse_foreign(self, run_name: str) -> None:
        """Raise PublishFailed if a file stands under a final name already."""
        for path in self._final_names(run_name):
            if os.path.lexists(path):
                raise PublishFailed(
                    f"'{path}' exists and is not of this attempt; it is never overwritten: "
                    "move it away, then `dataflow_archive retry` the run"
                )

    def stage_receipt(self, run_name: str, archive: Archive) -> None:
        """Write the file that says that an archive is finished. All its files are then on the disk.

        Raises NoSpace when that fails.
        """
        receipt = self.staged_receipt(run_name, archive.token)
        remove(receipt)  # left by a try that failed
        with writing(receipt, 0o600) as file:
            file.write(json.dumps(archive.to_document()).encode())
        self.sync()

    def is_finished(self, run_name: str, token: str) -> bool:
        """Say whether the claim `token` has staged a whole archive: one that may be adopted. Raises NoSpace."""
        return any(self.receipts(run_name, (token,)))

    def receipts(self, run_name: str, tokens: Sequence[str]) -> Iterator[Archive]:
        """Yield the archives that the claims `tokens` had finished. A receipt that is not whole is skipped.

        Raises NoSpace when a receipt cannot be read: the archive that it names must not be removed.
        """
        for token in tokens:
            words = content_of(self.staged_receipt(run_name, token))
            try:
                yield Archive.from_document(json.loads(words))
            except (ValueError, TypeError, AttributeError):
                continue

    def publish(self, run_name: str, archive: Archive, moved: Callable[[int], object] = _unseen) -> None:
        """Give the staged files of an announced archive their final names, the archive last, down to the disk.

        After that nothing that is staged for the run is wanted any more, and it is removed. A file that has
        its name already is left. `moved` is told of bytes that are read. Raises ClaimLost when a file is
        gone, since a new holder has removed it, PublishFailed when another file stands in its way, NoSpace,
        and what `moved` raises.
        """
        self._refuse_another_place()
        for staged, final, sha256 in self._moves(run_name, archive):
            if not given_name(staged, final) and sha256_of(final, moved) != sha256:
                self.refuse_foreign(run_name)
                raise ClaimLost(f"'{final}' is gone: another worker has taken the run over")
        self.sync()
        for token in self.staged_tokens(run_name):
            self._remove_staged(run_name, token)

    def sync(self) -> None:
        """Write both directories' entries to the disk. Raises NoSpace when that fails."""
        for directory in {self.destination, self.keys}:
            fsync_directory(directory)

    def adopt(self, run_name: str, archive: Archive, moved: Callable[[int], object] = _unseen) -> bool:
        """Complete the publishing of an announced archive that an interrupted attempt left.

        Returns whether all its files are there, staged or under their final names, and with the digests that
        the document has; otherwise nothing gets a name. Raises what `publish` raises.
        """
        self._refuse_another_place()
        for staged, final, sha256 in self._moves(run_name, archive):
            # The staged name first: the maker may still run, and give the file its final name between the two looks.
            if sha256_of(staged, moved) != sha256 and sha256_of(final, moved) != sha256:
                return False
        self.publish(run_name, archive, moved)
        return True

    def has_begun(self, run_name: str) -> bool:
        """Say whether a file stands under one of the final names."""
        return any(map(os.path.lexists, self._final_names(run_name)))

    def is_published(self, run_name: str) -> bool:
        """Say whether files stand under the final names of key and archive, which come first and last."""
        return all(os.path.lexists(path) for path in (self.final_archive(run_name), self.final_key(run_name)))

    def _moves(self, run_name: str, archive: Archive) -> tuple[tuple[Path, Path, str], ...]:
        token, mode = archive.token, archive.manifest_mode
        manifest = (
            self.staged_manifest(run_name, token, mode), self.final_manifest(archive), archive.manifest_sha256
        )  # fmt: skip
        return (
            (self.staged_key(run_name, token), self.final_key(run_name), archive.key_sha256),
            *((manifest,) if archive.manifest_file else ()),
            (self.staged_archive(run_name, token), self.final_archive(run_name), archive.sha256),
        )

    def _final_names(self, run_name: str) -> tuple[Path, ...]:
        manifests = (self.destination / name for name in manifest_names(run_name))
        return self.final_archive(run_name), self.final_key(run_name), *manifests

    def _all_staged(self, run_name: str, token: str) -> tuple[Path, ...]:
        # The receipt first: it must not name files that are gone.
        receipt = self.staged_receipt(run_name, token)
        manifests = (
            self.staged_manifest(run_name, token, mode) for mode in (ManifestMode.ENCRYPTED, ManifestMode.CLEAR)
        )
        return receipt, self.staged_key(run_name, token), *manifests, self.staged_archive(run_name, token)

    def staged_tokens(self, run_name: str) -> tuple[str, ...]:
        """Return the tokens of all files that are staged for this run now."""
        tokens = dict.fromkeys(token for _, token in self.staged())
        return tuple(token for token in tokens if any(map(os.path.lexists, self._all_staged(run_name, token))))

    def drop(self, run_name: str, token: str) -> None:
        """Remove the files that the claim `token` has staged. Raises NoSpace.

        Another worker may be publishing them at this moment. Then the final names reach the disk before the staged
        names go: otherwise a power cut could take both.
        """
        if self.has_begun(run_name):
            self.sync()
        self._remove_staged(run_name, token)

    def _remove_staged(self, run_name: str, token: str) -> None:
        for path in self._all_staged(run_name, token):
            with disk_trouble("remove", path):
                path.unlink(missing_ok=True)

    def staged(self) -> list[tuple[Path, str]]:
        """Return path and token of each staged file, of all runs."""
        directories = dict.fromkeys((self.destination, self.keys))
        return [(directory / name, token) for directory in directories for name, token in staged_files(directory)]

    def free_bytes(self, run_name: str) -> int:
        """Return how many bytes the destination can still take for this run. Raises NoSpace.

        Files that are staged for it count as free: they will be removed, or be used.
        """
        self._refuse_another_place()
        with disk_trouble("look at", self.destination):
            room = os.statvfs(self.destination)
        return room.f_bavail * room.f_frsize + sum(self._staged_bytes(run_name))

    def _refuse_another_place(self) -> None:
        for mark in self._marks:
            if not os.path.lexists(mark):
                raise NoSpace(f"'{mark}' is gone: is '{mark.parent}' unmounted? Mount it, or restart the watcher")

    def _staged_bytes(self, run_name: str) -> Iterator[int]:
        for token in self.staged_tokens(run_name):
            try:
                yield os.lstat(self.staged_archive(run_name, token)).st_size
            except OSError:
                continue
