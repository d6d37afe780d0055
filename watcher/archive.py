"""Archives as files: staging, publishing, adopting, and sweeping what was left.

Publishing needs no lock. A staged file carries its claim's token, and only an announced archive is
ever given its final name. Whoever takes a run over adopts what was announced, or removes its staged
files: then the former holder, asleep or not, has nothing left to publish, and the file system itself
is the fence. A lock held by a suspended process would keep the rescuer out for as long as that sleeps.
Only what was staged before the claim is removed: a successor's files are safe from a late waker.
Nothing is ever taken from a final name: between a look at a file there and its removal another worker
may have published, and a wrapped key may be the only one of an archive that was picked up.

A manifest is staged last, when archive and key are on the disk. With it a finished archive outlives
a process that could not announce it, since the database was away.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from watcher.errors import ClaimLost, NoSpace, PublishFailed
from watcher.model import Archive

ARCHIVE_SUFFIX = ".tar.gpg"
KEY_SUFFIX = ".key.gpg"
MANIFEST_SUFFIX = ".manifest"
PARTIAL_SUFFIX = ".partial"
NAME_MAX = 255
"""Bytes in a file name, as all of Linux's local file systems have it."""

MAX_RUN_NAME_BYTES = NAME_MAX - max(len(ARCHIVE_SUFFIX), len(KEY_SUFFIX))


READ_BYTES = 1 << 20
"""Read at once when a stored file is hashed."""

_WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that has no hard links."""

logger = logging.getLogger(__name__)

_STAGED = re.compile(r"^\..*\.([0-9a-f]{32})\.(?:tar\.gpg|key\.gpg|manifest)\.partial$", re.DOTALL)


def _unseen(_count: int) -> None:
    """Tell nobody that bytes have moved."""


class Shelf:
    """Where archives and wrapped keys lie: `destination` and `keys`, on which they may be two file systems.

    `marks` are files of ours in them: where one is missing, its directory is not mounted any more.
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

    def staged_archive(self, run_name: str, token: str) -> Path:
        """Return where the archive of this claim grows."""
        return self.destination / _staging_name(run_name, token, ARCHIVE_SUFFIX)

    def staged_key(self, run_name: str, token: str) -> Path:
        """Return where the wrapped key of this claim waits for its archive."""
        return self.keys / _staging_name(run_name, token, KEY_SUFFIX)

    def staged_manifest(self, run_name: str, token: str) -> Path:
        """Return the file that says that the archive of this claim is finished."""
        return self.destination / _staging_name(run_name, token, MANIFEST_SUFFIX)

    def stage_key(self, run_name: str, token: str, wrapped: bytes) -> str:
        """Write the wrapped key, mode 0600, to the disk beside its final name; return its SHA-256.

        Raises NoSpace when it cannot be written.
        """
        self._refuse_another_place()
        staged = self.staged_key(run_name, token)
        remove(staged)  # of a try that failed
        with writing(staged, 0o600) as file:
            file.write(wrapped)
        return hashlib.sha256(wrapped).hexdigest()

    def refuse_foreign(self, run_name: str) -> None:
        """Raise PublishFailed if a file stands under a final name already."""
        for path in (self.final_archive(run_name), self.final_key(run_name)):
            if os.path.lexists(path):
                raise PublishFailed(
                    f"'{path}' exists and is not of this attempt; it is never overwritten: "
                    "move it away, then `dataflow_archive retry` the run"
                )

    def stage_manifest(self, run_name: str, archive: Archive) -> None:
        """Say beside a finished archive that it is finished, when all three files are on the disk.

        Raises NoSpace when that fails.
        """
        manifest = self.staged_manifest(run_name, archive.token)
        remove(manifest)  # of a try that failed
        with writing(manifest, 0o600) as file:
            file.write(json.dumps(archive.to_document()).encode())
        self.sync()

    def is_finished(self, run_name: str, token: str) -> bool:
        """Say whether the claim `token` has staged a whole archive: one that may be adopted. Raises NoSpace."""
        return any(self.manifests(run_name, (token,)))

    def manifests(self, run_name: str, tokens: Sequence[str]) -> Iterator[Archive]:
        """Yield the archives that the claims `tokens` had finished, as far as their manifests are whole.

        Raises NoSpace when there is one that cannot be read: what it speaks of must not be thrown away.
        """
        for token in tokens:
            words = _content(self.staged_manifest(run_name, token))
            try:
                yield Archive.from_document(json.loads(words))
            except (ValueError, TypeError, AttributeError):
                continue

    def publish(self, run_name: str, archive: Archive, moved: Callable[[int], object] = _unseen) -> None:
        """Give both staged files of an announced archive their final names, the key first, down to the disk.

        After that nothing that is staged for the run is wanted any more, and it is removed. A file that has
        its name already is left. `moved` is told of bytes that are read. Raises ClaimLost when a file is
        gone, since a new holder has removed it, PublishFailed when another file stands in its way, NoSpace,
        and what `moved` raises.
        """
        self._refuse_another_place()
        for staged, final, sha256 in self._moves(run_name, archive):
            if not _given_name(staged, final) and _sha256_of(final, moved) != sha256:
                self.refuse_foreign(run_name)
                raise ClaimLost(f"'{final}' is gone: another worker has taken the run over")
        self.sync()
        for token in self.former(run_name):
            self._remove_staged(run_name, token)

    def sync(self) -> None:
        """Write both directories' entries to the disk. Raises NoSpace when that fails."""
        for directory in {self.destination, self.keys}:
            fsync_directory(directory)

    def adopt(self, run_name: str, archive: Archive, moved: Callable[[int], object] = _unseen) -> bool:
        """Complete the publishing of an announced archive that an interrupted attempt left.

        Returns whether both files are there, staged or under their final names, and with the digests that
        the document has; otherwise nothing gets a name. Raises what `publish` raises.
        """
        self._refuse_another_place()
        for staged, final, sha256 in self._moves(run_name, archive):
            # In this order: its maker may be awake, and give it its name between the two looks.
            if _sha256_of(staged, moved) != sha256 and _sha256_of(final, moved) != sha256:
                return False
        self.publish(run_name, archive, moved)
        return True

    def has_begun(self, run_name: str) -> bool:
        """Say whether a file stands under one of the final names."""
        return any(os.path.lexists(path) for path in (self.final_archive(run_name), self.final_key(run_name)))

    def is_published(self, run_name: str) -> bool:
        """Say whether files stand under both final names."""
        return all(os.path.lexists(path) for path in (self.final_archive(run_name), self.final_key(run_name)))

    def _moves(self, run_name: str, archive: Archive) -> tuple[tuple[Path, Path, str], ...]:
        token = archive.token
        return (
            (self.staged_key(run_name, token), self.final_key(run_name), archive.key_sha256),
            (self.staged_archive(run_name, token), self.final_archive(run_name), archive.sha256),
        )

    def _all_staged(self, run_name: str, token: str) -> tuple[Path, ...]:
        # The manifest first: it must not speak of files that are gone.
        manifest = self.staged_manifest(run_name, token)
        return manifest, self.staged_key(run_name, token), self.staged_archive(run_name, token)

    def former(self, run_name: str) -> tuple[str, ...]:
        """Return the tokens of whatever is staged for this run now."""
        tokens = dict.fromkeys(token for _, token in self.staged())
        return tuple(token for token in tokens if any(map(os.path.lexists, self._all_staged(run_name, token))))

    def drop(self, run_name: str, token: str) -> None:
        """Remove what the claim `token` has staged: it cannot be published any more. Raises NoSpace.

        It may be published just now, by another worker. Its final names are then on the disk before the staged
        ones go, so that no power cut takes both.
        """
        if self.has_begun(run_name):
            self.sync()
        self._remove_staged(run_name, token)

    def _remove_staged(self, run_name: str, token: str) -> None:
        for path in self._all_staged(run_name, token):
            with _disk_trouble("remove", path):
                path.unlink(missing_ok=True)

    def staged(self) -> list[tuple[Path, str]]:
        """Return path and token of whatever is staged, for whichever run."""
        directories = dict.fromkeys((self.destination, self.keys))
        return [(directory / name, token) for directory in directories for name, token in staged_files(directory)]

    def free_bytes(self, run_name: str) -> int:
        """Return how much the destination can still take for this run: what is staged for it will go, or do."""
        self._refuse_another_place()
        with _disk_trouble("look at", self.destination):
            room = os.statvfs(self.destination)
        return room.f_bavail * room.f_frsize + sum(self._staged_bytes(run_name))

    def _refuse_another_place(self) -> None:
        for mark in self._marks:
            if not os.path.lexists(mark):
                raise NoSpace(f"'{mark}' is gone: is '{mark.parent}' unmounted? Mount it, or restart the watcher")

    def _staged_bytes(self, run_name: str) -> Iterator[int]:
        for token in self.former(run_name):
            try:
                yield os.lstat(self.staged_archive(run_name, token)).st_size
            except OSError:
                continue


@contextmanager
def writing(path: Path, mode: int = 0o640) -> Iterator[StagedFile]:
    """Open a new file that is on the disk when the context ends, and gone if that fails.

    `mode` is narrowed by the umask. Raises NoSpace for whatever keeps it from being written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _disk_trouble("write", path):
        descriptor = os.open(path, flags, mode)
    try:
        yield StagedFile(path, descriptor)
        with _disk_trouble("write", path):
            os.fsync(descriptor)
    except BaseException:
        remove(path)
        raise
    finally:
        os.close(descriptor)


class StagedFile:
    """A file that is being written; `write` writes everything or raises NoSpace."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        with _disk_trouble("write", self._path):
            while view:
                view = view[os.write(self._descriptor, view) :]


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a stored file to be read from the disk itself: what the page cache has of it is dropped first.

    Raises NoSpace when the disk does not give it back.
    """
    with _disk_trouble("read", path), open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file


@contextmanager
def _disk_trouble(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoSpace(f"cannot {verb} '{path}': {error.strerror or error}") from error


def _given_name(staged: Path, final: Path) -> bool:
    """Give a staged file its final name too; return False if a file, this or another, has it already."""
    try:
        _link(staged, final)
    except FileExistsError:
        return _are_one(staged, final)
    except FileNotFoundError:
        if os.path.lexists(final):
            return False
        raise ClaimLost(f"'{staged.name}' is gone: another worker has taken the run over") from None
    except OSError as error:
        raise NoSpace(f"cannot name '{final}': {error.strerror}") from error
    return True


def _link(staged: Path, final: Path) -> None:
    try:
        # Unlike a rename, a link never takes a name from another file.
        os.link(staged, final)
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS or os.path.lexists(final):
            raise
        os.rename(staged, final)


def _content(path: Path) -> bytes:
    """Return what is in a file; nothing for one that is not there. Raises NoSpace."""
    with _disk_trouble("read", path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""


def _are_one(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file of ours if it is there; say so if it stays. Whoever claims the run next tries again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot remove '%s' now: %s", path, error.strerror)


def fsync_directory(directory: Path) -> None:
    """Write a directory's entries to the disk. Raises NoSpace when that fails."""
    with _disk_trouble("write", directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def staged_files(directory: Path) -> list[tuple[str, str]]:
    """Return name and token of each staged file in a directory. Raises NoSpace when it cannot be read."""
    with _disk_trouble("read", directory):
        names = os.listdir(directory)
    return [(name, match[1]) for name in names if (match := _STAGED.match(name))]


def _staging_name(run_name: str, token: str, suffix: str) -> str:
    room = NAME_MAX - len(f"..{token}{suffix}{PARTIAL_SUFFIX}")
    return f".{_shortened(run_name, room)}.{token}{suffix}{PARTIAL_SUFFIX}"


def _shortened(run_name: str, room: int) -> str:
    if len(os.fsencode(run_name)) <= room:
        return run_name
    digest = hashlib.sha256(os.fsencode(run_name)).hexdigest()[:16]
    while len(os.fsencode(run_name)) > room - len(digest) - 1:
        run_name = run_name[:-1]
    return f"{run_name}~{digest}"


def _sha256_of(path: Path, moved: Callable[[int], object]) -> str | None:
    try:
        with open(path, "rb", opener=_no_follow, buffering=0) as file:
            digest = hashlib.sha256()
            while data := file.read(READ_BYTES):
                digest.update(data)
                moved(len(data))
            return digest.hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise NoSpace(f"cannot read '{path}': {error.strerror}") from error


def _no_follow(path: str, flags: int) -> int:
    # Without waiting for the writer of a pipe that somebody has put there.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
