"""Archives as files: tar's stream of a run, staging, publishing, adopting, and sweeping what was left.

Publishing needs no lock. A staged file carries its claim's token, and only an announced archive is
ever given its final name. Whoever takes a run over adopts what was announced, or removes its staged
files: then the former holder, asleep or not, has nothing left to publish, and the file system itself
is the fence. A lock held by a suspended process would keep the rescuer out for as long as that sleeps.
Only what was staged before the claim is removed: a successor's files are safe from a late waker.

A manifest is staged last, when archive and key are on the disk. With it a finished archive outlives
a process that could not announce it, since the database was away.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import re
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from watcher.errors import CannotRun, ClaimLost, NoSpace, PublishFailed, RunNotSettled, TarFailed
from watcher.job import Job, start_child
from watcher.model import Archive, Digest, Run, TarReport

ARCHIVE_SUFFIX = ".tar.gpg"
KEY_SUFFIX = ".key.gpg"
MANIFEST_SUFFIX = ".manifest"
PARTIAL_SUFFIX = ".partial"
NAME_MAX = 255
"""Bytes in a file name, as all of Linux's local file systems have it."""

MAX_RUN_NAME_BYTES = NAME_MAX - max(len(ARCHIVE_SUFFIX), len(KEY_SUFFIX))

HEADER_BYTES = 2048
"""What tar adds to a member in its posix format: a header, an extended header with its data, padding."""

WORDS_KEPT = 20
"""Of tar's messages so many go into an error or the run document."""

PIPE_BYTES = 1 << 20
"""tar's pipe; Linux's default of 64 KiB makes tar and gpg wait for each other."""

_WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that has no hard links."""

logger = logging.getLogger(__name__)

_STAGED = re.compile(r"^\..*\.([0-9a-f]{32})\.(?:tar\.gpg|key\.gpg|manifest)\.partial$", re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


class TarStream:
    """tar's output while it reads a run: a source for `crypto.encrypt`, and afterwards tar's report."""

    def __init__(self, run: Run, exclusions: Sequence[str], tolerated_changes: Sequence[str], job: Job) -> None:
        self._run = run
        self._job = job
        self._identity = _identity(run)
        self._messages = _TarMessages(run, tolerated_changes)
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._process = job.start(
            tar_command(run, exclusions),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=tar_environment(),
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        _enlarge(self._process.stdout)
        self._stdout: BinaryIO = self._process.stdout  # type: ignore[assignment]
        self._listener = threading.Thread(
            target=self._messages.read, args=(self._process.stderr,), name=f"tar {run.name}", daemon=True
        )
        self._listener.start()

    def __enter__(self) -> TarStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self._job.end(self._process)
        self._listener.join()
        self._stdout.close()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes of the archive. Raises the job's reason once it is cancelled."""
        data = os.read(self._stdout.fileno(), size)
        self._sha256.update(data)
        self._size += len(data)
        self._job.moved(len(data))
        return data

    def report(self) -> TarReport:
        """Wait for tar to end; return what it gave if it gave the whole run.

        Raises TarFailed with tar's words, or RunNotSettled when the run changed while tar read it.
        """
        code = self._process.wait()
        self._listener.join()
        self._job.check()
        self._messages.judge(code)
        if _identity(self._run) != self._identity:
            raise TarFailed(f"'{self._run.path}' was replaced by another directory while tar read it")
        if self._messages.members == 0:
            raise TarFailed("tar found nothing to archive: tar_exclusions exclude the whole run")
        stream = Digest(self._size, self._sha256.hexdigest())
        return TarReport(stream, self._messages.members, tuple(self._messages.warnings))


def tar_command(run: Run, exclusions: Sequence[str]) -> list[str]:
    """Return the command that writes the run's archive to standard output, and its members' names to standard error."""
    return [
        "tar", "--create", "--verbose", "--format=posix", "--sparse", "--file=-",
        "--quoting-style=escape", "--no-unquote",
        *(f"--exclude={pattern}" for pattern in exclusions),
        # `./` keeps a name that starts with a hyphen from being an option.
        f"--directory={run.path.parent}", "--", f"./{run.name}",
    ]  # fmt: skip


def tar_environment() -> dict[str, str]:
    """Return our environment without the user's own options for tar, in the locale in which its words are known."""
    return {**{name: value for name, value in os.environ.items() if name != "TAR_OPTIONS"}, "LC_ALL": "C"}


def tar_version() -> str:
    """Return the first line of what tar says about itself. Raises CannotRun when it is missing, or not GNU tar."""
    with start_child(["tar", "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        words = os.fsdecode(process.communicate()[0]).partition("\n")[0]
    if process.returncode != 0 or "GNU tar" not in words:
        raise CannotRun(f"tar is not GNU tar, but '{words}'; install GNU tar, and put it on the PATH before any other")
    return words


class _TarMessages:
    """tar's standard error: members' names (`./...`), and messages (`tar: ...`) sorted by what they mean."""

    def __init__(self, run: Run, tolerated_changes: Sequence[str]) -> None:
        self._run = run
        self._tolerated = tuple(tolerated_changes)
        self.members = 0
        self.warnings: list[str] = []
        self._unsettled: list[str] = []
        self._last: list[str] = []

    def read(self, stderr: BinaryIO) -> None:
        """Sort all lines until tar ends."""
        with stderr:
            for line in stderr:
                if line.startswith(b"./"):
                    self.members += 1
                else:
                    self._sort(os.fsdecode(line.strip()).removeprefix("tar: "), line)

    def judge(self, code: int) -> None:
        """Raise what tar's exit status and words amount to, if it is not success."""
        if code == 1 and self._unsettled:
            raise RunNotSettled(f"the run changed while tar read it: {_join(self._unsettled)}")
        if code == 0:
            self.warnings += self._unsettled
        elif code != 1 or not self.warnings:
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
            raise TarFailed(f"tar {ended}: {_join(self._last) or 'it said nothing'}")

    def _sort(self, words: str, line: bytes) -> None:
        _keep_last(self._last, words)
        path, _, what = words.rpartition(": ")
        if not path.startswith("./"):
            return
        if what.endswith(" ignored") or self._is_harmless(_unescape(path), what):
            _keep_last(self.warnings, words)
        else:
            _keep_last(self._unsettled, words)

    def _is_harmless(self, path: Path, what: str) -> bool:
        full = self._run.path.parent / path
        if what == "file changed as we read it" and full.is_dir() and not full.is_symlink():
            return True
        in_top = full.parent == self._run.path
        return in_top and any(fnmatch.fnmatchcase(full.name, pattern) for pattern in self._tolerated)


def _unseen(_count: int) -> None:
    """Tell nobody that bytes have moved."""


class Shelf:
    """Where archives and wrapped keys lie: `destination` and `keys`, on which they may be two file systems."""

    def __init__(self, destination: Path, keys: Path) -> None:
        self.destination = destination
        self.keys = keys

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

    def stage_key(self, run_name: str, token: str, wrapped: bytes) -> str:
        """Write the wrapped key, mode 0600, to the disk beside its final name; return its SHA-256.

        Raises NoSpace when it cannot be written.
        """
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
        manifest = self._staged_manifest(run_name, archive.token)
        remove(manifest)  # of a try that failed
        with writing(manifest, 0o600) as file:
            file.write(json.dumps(archive.to_document()).encode())
        self.sync()

    def is_finished(self, run_name: str, token: str) -> bool:
        """Say whether the claim `token` has staged a whole archive: one that may be adopted."""
        return any(self.manifests(run_name, (token,)))

    def manifests(self, run_name: str, tokens: Sequence[str]) -> Iterator[Archive]:
        """Yield the archives that the claims `tokens` had finished, as far as their manifests are whole."""
        for token in tokens:
            try:
                yield Archive.from_document(json.loads(self._staged_manifest(run_name, token).read_bytes()))
            except (OSError, ValueError, TypeError, AttributeError):
                continue

    def publish(self, run_name: str, archive: Archive, moved: Callable[[int], object] = _unseen) -> None:
        """Give both staged files of an announced archive their final names, the key first, down to the disk.

        After that nothing that is staged for the run is wanted any more, and it is removed. A file that has
        its name already is left. `moved` is told of bytes that are read. Raises ClaimLost when a file is
        gone, since a new holder has removed it, PublishFailed when another file stands in its way, NoSpace,
        and what `moved` raises.
        """
        for staged, final, sha256 in self._moves(run_name, archive):
            if not _given_name(staged, final) and _sha256_of(final, moved) != sha256:
                self.refuse_foreign(run_name)
                raise ClaimLost(f"'{final}' is gone: another worker has taken the run over")
        self.sync()
        for token in self.former(run_name):
            self.drop(run_name, token)

    def sync(self) -> None:
        """Write both directories' entries to the disk. Raises NoSpace when that fails."""
        for directory in {self.destination, self.keys}:
            fsync_directory(directory)

    def adopt(self, run_name: str, archive: Archive, moved: Callable[[int], object] = _unseen) -> bool:
        """Complete the publishing of an announced archive that an interrupted attempt left.

        Returns whether both files are there, staged or under their final names, and with the digests that
        the document has; otherwise nothing gets a name. Raises what `publish` raises.
        """
        for staged, final, sha256 in self._moves(run_name, archive):
            # In this order: its maker may be awake, and give it its name between the two looks.
            if _sha256_of(staged, moved) != sha256 and _sha256_of(final, moved) != sha256:
                return False
        self.publish(run_name, archive, moved)
        return True

    def is_published(self, run_name: str) -> bool:
        """Say whether files stand under both final names."""
        return all(os.path.lexists(path) for path in (self.final_archive(run_name), self.final_key(run_name)))

    def _moves(self, run_name: str, archive: Archive) -> tuple[tuple[Path, Path, str], ...]:
        token = archive.token
        return (
            (self.staged_key(run_name, token), self.final_key(run_name), archive.key_sha256),
            (self.staged_archive(run_name, token), self.final_archive(run_name), archive.sha256),
        )

    def _staged_manifest(self, run_name: str, token: str) -> Path:
        return self.destination / _staging_name(run_name, token, MANIFEST_SUFFIX)

    def _all_staged(self, run_name: str, token: str) -> tuple[Path, ...]:
        # The manifest first: it must not speak of files that are gone.
        manifest = self._staged_manifest(run_name, token)
        return manifest, self.staged_key(run_name, token), self.staged_archive(run_name, token)

    def withdraw(self, run_name: str, archive: Archive, moved: Callable[[int], object] = _unseen) -> None:
        """Remove an announced archive that cannot be adopted: what is staged of it, then what has a final name."""
        self.drop(run_name, archive.token)
        for _, final, sha256 in reversed(self._moves(run_name, archive)):  # no archive stands there without its key
            if _sha256_of(final, moved) == sha256:
                with _disk_trouble("remove", final):
                    final.unlink(missing_ok=True)

    def former(self, run_name: str) -> tuple[str, ...]:
        """Return the tokens of whatever is staged for this run now."""
        tokens = dict.fromkeys(token for _, token in self.staged())
        return tuple(token for token in tokens if any(map(os.path.lexists, self._all_staged(run_name, token))))

    def drop(self, run_name: str, token: str) -> None:
        """Remove what the claim `token` has staged: it cannot be published any more. Raises NoSpace."""
        for path in self._all_staged(run_name, token):
            with _disk_trouble("remove", path):
                path.unlink(missing_ok=True)

    def staged(self) -> list[tuple[Path, str]]:
        """Return path and token of whatever is staged, for whichever run."""
        directories = dict.fromkeys((self.destination, self.keys))
        return [(directory / name, token) for directory in directories for name, token in staged_files(directory)]

    def free_bytes(self, run_name: str) -> int:
        """Return how much the destination can still take for this run: what is staged for it will go, or do."""
        with _disk_trouble("look at", self.destination):
            room = os.statvfs(self.destination)
        return room.f_bavail * room.f_frsize + sum(self._staged_bytes(run_name))

    def _staged_bytes(self, run_name: str) -> Iterator[int]:
        for token in self.former(run_name):
            try:
                yield os.lstat(self.staged_archive(run_name, token)).st_size
            except OSError:
                continue


@contextmanager
def writing(path: Path, mode: int = 0o666) -> Iterator[StagedFile]:
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
    """Return name and token of each staged file in a directory (none if it cannot be read)."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [(name, match[1]) for name in names if (match := _STAGED.match(name))]


def run_size(run: Run) -> int:
    """Return about how many bytes the run takes in an archive, without looking at exclusions.

    `HEADER_BYTES` are added for each member. What cannot be read counts nothing here; tar will say so.
    """
    total, waiting = 0, [run.path]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += HEADER_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        # A sparse file is archived without its holes.
                        total += min(status.st_size, status.st_blocks * 512)
        except OSError:
            continue
    return total


def _identity(run: Run) -> tuple[int, int]:
    try:
        status = os.lstat(run.path)
    except OSError as error:
        raise TarFailed(f"'{run.path}' cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise TarFailed(f"'{run.path}' is not a directory: nothing outside the run is read")
    return status.st_dev, status.st_ino


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
            while data := file.read(PIPE_BYTES):
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


def _unescape(path: str) -> Path:
    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code, 8)]) if code.isdigit() else _ESCAPED.get(code, code)

    return Path(os.fsdecode(_ESCAPE.sub(plain, os.fsencode(path))))


def _keep_last(words: list[str], new: str) -> None:
    words.append(new)
    del words[:-WORDS_KEPT]


def _join(words: Sequence[str]) -> str:
    return "; ".join(words)


def _enlarge(pipe: IO[bytes]) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return  # above the user's own limit: slower, not wrong
