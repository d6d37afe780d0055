"""A run directory that is held open: what is in it, and whether that stands still.

The directory is opened once, without following a link. Everything that is asked about the run afterwards is asked of
this descriptor, and tar starts in it: a rename, or another directory under the run's name, changes nothing of that.

A listing keeps no paths. It has a digest of all that it saw, and a hash of each entry for `Listing.holds`: some 10 MB
for a million entries.
"""

from __future__ import annotations

import errno
import fnmatch
import itertools
import os
import re
import stat
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from wcmatch import fnmatch as wildcards

from watcher.errors import Incomplete, RunFailed, RunNotSettled, TarFailed, remedy
from watcher.members import Kind
from watcher.model import Run
from watcher.sentinels import SENTINEL, version

MEMBER_BYTES = 2048
"""What tar adds to a member in its posix format: a header, an extended header with its data, padding."""

MAX_MEMBER_PATH_BYTES = 4095
"""Linux's PATH_MAX without the final NUL: tar cannot extract a member with a longer path."""

SPARSE_BYTES = 1 << 20
"""A smaller file is not worth a look for holes: tar reads a file twice to find them."""

READ_BYTES = 1 << 20

_BUCKETS = 1024
_SLASH = ord("/")
_DIGEST_BYTES = 32
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_KINDS = {
    stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMBOLIC_LINK, stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE, stat.S_IFBLK: Kind.BLOCK_DEVICE, stat.S_IFSOCK: Kind.SOCKET,
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What of a run counts: shell patterns.

    `exclusions` are tar's, for paths below the run. `tolerated` are names in the top directory that may change.
    `transfers` are names that a transfer in progress leaves.
    """

    exclusions: Sequence[str] = ()
    tolerated: Sequence[str] = ()
    transfers: Sequence[str] = ()

    def excludes(self, path: bytes) -> bool:
        """Say whether tar leaves out the entry of this path, `./...`; what is below it goes with it."""
        if self._excluded is None:
            return False
        # As tar does it: from the start of the path, or behind any slash.
        starts = [0, *(place + 1 for place, byte in enumerate(path) if byte == _SLASH)]
        return any(self._excluded.fullmatch(path[start:]) for start in starts)

    def tolerates(self, name: str) -> bool:
        """Say whether the entry of this name in the top directory may change."""
        return name == SENTINEL or self._tolerated.fullmatch(name) is not None

    def counts(self, entry: Entry) -> bool:
        """Say whether a change of the entry is one of the run."""
        return entry.path != b"." and not (entry.is_top and self.tolerates(entry.name))

    def is_of_a_transfer(self, name: str) -> bool:
        """Say whether a file of this name means that a transfer is in progress."""
        return self._transfers.fullmatch(name) is not None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_excluded", _tars(self.exclusions))
        object.__setattr__(self, "_tolerated", _any_of(self.tolerated))
        object.__setattr__(self, "_transfers", _any_of(self.transfers))

    _excluded: re.Pattern[bytes] | None = field(init=False, repr=False, compare=False)
    _tolerated: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _transfers: re.Pattern[str] = field(init=False, repr=False, compare=False)


class Entry(NamedTuple):
    """Something in the run, as the file system describes it. `path` is relative to the run's parent: `./...`."""

    path: bytes
    name: str
    kind: Kind
    status: os.stat_result
    is_top: bool


@dataclass(frozen=True)
class Listing:
    """What a run holds at one moment. `size` is about what tar will give, in bytes.

    `newest_ns` is the last time of change in it (`newest` names the entry), in nanoseconds since the epoch.
    `trouble` says why the run cannot be archived; `transfer` names a file that a transfer in progress has left.
    """

    digest: str
    entries: int
    excluded: int
    size: int
    newest_ns: int
    newest: str
    has_holes: bool
    has_links: bool
    trouble: RunFailed | None
    transfer: str
    hashes: _Hashes = field(repr=False, compare=False)

    @property
    def members(self) -> int:
        """How many of the entries must be in an archive, whatever happens to the others."""
        return len(self.hashes)

    def place_of(self, path: bytes, kind: Kind, size: int) -> int | None:
        """Return the number of the entry with this path, kind and size; None if the listing has none."""
        return self.hashes.find(_hash(path, kind, size))

    def has(self, entry: Entry) -> bool:
        """Say whether the listing has the entry, with this path, kind and size."""
        return self.place_of(entry.path, entry.kind, entry.status.st_size) is not None


class Source:
    """A run directory held open by `descriptor`, and the rules by which it is looked at."""

    def __init__(self, run: Run, descriptor: int, rules: Rules) -> None:
        self.run = run
        self.rules = rules
        self._descriptor = descriptor
        self._identity = _identity(os.fstat(descriptor))
        self._proven = _Hashes()  # names of files that are one by their content, too
        self._proven.close()

    @property
    def directory(self) -> str:
        """A path of the held directory that leads there whatever its name is now; for this process only."""
        return f"/proc/self/fd/{self._descriptor}"

    def sentinel(self) -> str:
        """Return the version of the sentinel in the held directory; empty if there is none."""
        return version(Path(self.directory)) or ""

    def top(self) -> str:
        """Return the version of the top directory: when it last changed, and a digest of what counts in it.

        Raises RunNotSettled if it has just gone, TarFailed if it cannot be read.
        """
        with _reading():
            return f"{os.fstat(self._descriptor).st_mtime_ns}-{_contents(self.directory, self.rules)}"

    def is_in_place(self) -> bool:
        """Say whether the run's path still leads to the held directory."""
        try:
            return _identity(os.lstat(self.run.path)) == self._identity
        except OSError:
            return False

    def list(self, with_ends: bool = False) -> Listing:
        """Return what the run holds now. What cannot be read is the listing's `trouble`.

        `with_ends`: look at the end of each file, too; one that holds more than its size says is trouble.
        """
        survey = _Survey(self.rules)
        try:
            for entry in self._walk(survey):
                survey.add(entry)
                if with_ends and entry.kind is Kind.FILE and self._is_longer_than_said(entry):
                    survey.trouble = Incomplete(
                        f"'{os.fsdecode(entry.path)}' holds more than the {entry.status.st_size} bytes that its file "
                        "system reports, and tar reads no more than that: look at this file system"
                    )
        except OSError as error:
            survey.trouble = survey.trouble or _unreadable(error)
        return survey.listing(len(os.fsencode(self.run.name)))

    def status(self, path: bytes) -> os.stat_result:
        """Return what the file system says of the entry `./...`. Raises OSError."""
        return os.stat(path, dir_fd=self._descriptor, follow_symlinks=False)

    def has_data(self, path: bytes, moved: Callable[[int], object]) -> bool:
        """Say whether the file `./...` has a byte that is not 0. `moved` is told of bytes read, and may raise.

        Raises RunNotSettled if the file has just gone, TarFailed if it cannot be read.
        """
        zeros = bytes(READ_BYTES)
        with _reading(), self._opened(path) as descriptor:
            while data := os.read(descriptor, READ_BYTES):
                moved(0)
                if data != (zeros if len(data) == READ_BYTES else zeros[: len(data)]):
                    return True
        return False

    def _is_longer_than_said(self, entry: Entry) -> bool:
        if entry.is_top and self.rules.tolerates(entry.name):
            return False
        try:
            with self._opened(entry.path) as descriptor:
                is_longer = bool(os.pread(descriptor, 1, entry.status.st_size))
                return is_longer and os.fstat(descriptor).st_size == entry.status.st_size
        except OSError:
            return False  # tar has read it, or has said why not

    def tar_options(self, listing: Listing, moved: Callable[[int], object]) -> tuple[str, ...]:
        """Return tar's options for holes and hard links: for such as are real by their content.

        A file system may report no blocks for a file with content, or one inode number for two files. tar would
        then store holes, or a link, in place of the content. `moved` is told of bytes read, and may raise.
        Raises RunNotSettled for a file that has just gone, TarFailed for one that cannot be read.
        """
        with _reading():
            holes = listing.has_holes and not any(self.has_data(path, moved) for path in self._without_blocks())
            links = listing.has_links and self._are_links_real(moved)
        return (
            *(("--sparse", "--hole-detection=raw") if holes else ()),
            *(() if links else ("--hard-dereference",)),
        )

    def size_of_linked(self, path: bytes, other: bytes) -> int | None:
        """Return the size of the file that two paths `./...` name; None unless they do, and had equal contents.

        The contents are those that `tar_options` has compared.
        """
        try:
            status = self.status(path)
            is_one = _identity(status) == _identity(self.status(other))
        except OSError:
            return None
        is_proven = all(self._proven.find(_name_of(status, each)) is not None for each in (path, other))
        return status.st_size if is_one and is_proven else None

    def entries(self) -> Iterator[Entry]:
        """Yield the run itself and all that tar reads in it.

        Raises RunNotSettled for a file that has just gone, TarFailed for what cannot be read.
        """
        with _reading():
            yield from self._walk(_Survey(self.rules))

    def files(self) -> Iterator[Entry]:
        """Yield all regular files that tar reads."""
        return (entry for entry in self.entries() if entry.kind is Kind.FILE)

    def _without_blocks(self) -> Iterator[bytes]:
        return (entry.path for entry in self.files() if entry.status.st_size and not entry.status.st_blocks)

    def _linked(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs of paths that name one file, by its inode number."""
        seen = _Hashes()
        for entry in self.files():
            if entry.status.st_nlink > 1:
                seen.add(_number(entry.status))
        repeated = seen.repeated()
        first: dict[tuple[int, int], bytes] = {}
        for entry in self.files():
            if entry.status.st_nlink > 1 and _number(entry.status) in repeated:
                identity = _identity(entry.status)
                if identity in first:
                    yield first[identity], entry.path
                first.setdefault(identity, entry.path)

    def _are_links_real(self, moved: Callable[[int], object]) -> bool:
        proven = _Hashes()
        for path, other in self._linked():
            if not self._are_equal(path, other, moved):
                return False
            for each in (path, other):
                proven.add(_name_of(self.status(each), each))
        proven.close()
        self._proven = proven
        return True

    def _are_equal(self, path: bytes, other: bytes, moved: Callable[[int], object]) -> bool:
        with self._opened(path) as one, self._opened(other) as two:
            while data := os.read(one, READ_BYTES):
                moved(0)
                if data != _read_exactly(two, len(data)):
                    return False
            return not os.read(two, 1)

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, dir_fd=self._descriptor)
        try:
            with _named(path):
                yield descriptor
        finally:
            os.close(descriptor)

    def _walk(self, survey: _Survey) -> Iterator[Entry]:
        """Yield the run itself and all that is in it, each directory before what it holds; count what is excluded."""
        yield Entry(b".", "", Kind.DIRECTORY, os.fstat(self._descriptor), is_top=False)
        if self.rules.excludes(b"."):
            survey.trouble = TarFailed("tar found nothing to archive: tar_exclusions exclude the whole run")
            return
        waiting = ["."]
        while waiting:
            directory = waiting.pop()
            for entry in self._entries(directory):
                path = f"{directory}/{entry.name}"
                encoded = os.fsencode(path)
                if self.rules.excludes(encoded):
                    survey.excluded += 1
                    continue
                try:
                    with _named(encoded):
                        status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it has just been removed: the next listing differs from this one
                kind = _KINDS[stat.S_IFMT(status.st_mode)]
                if kind is Kind.DIRECTORY:
                    waiting.append(path)
                yield Entry(encoded, entry.name, kind, status, is_top=directory == ".")

    def _entries(self, directory: str) -> Iterator[os.DirEntry[str]]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(directory, flags, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno in _GONE or error.errno == errno.ENAMETOOLONG:  # which the listing refuses by itself
                return
            raise
        try:
            with _named(os.fsencode(directory)), os.scandir(descriptor) as entries:
                yield from entries
        except FileNotFoundError:
            return  # it has just been removed
        finally:
            os.close(descriptor)


@contextmanager
def hold(run: Run, rules: Rules) -> Iterator[Source]:
    """Hold the run's directory while the context lasts. Raises RunNotSettled when there is no such directory."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(run.path, flags)
    except OSError as error:
        raise RunNotSettled(f"'{run.path}' is no directory that can be archived: {error.strerror}") from error
    try:
        yield Source(run, descriptor, rules)
    finally:
        os.close(descriptor)


def has_same_top(path: Path, changed_ns: int, archived: str, rules: Rules) -> bool:
    """Say whether a top directory that last changed at `changed_ns` is still of the version that was archived.

    A log that a transfer leaves at its end changes the directory, and nothing that counts. Raises OSError.
    """
    moment, _, contents = archived.partition("-")
    return not archived or moment == str(changed_ns) or contents == _contents(str(path), rules)


def _contents(directory: str, rules: Rules) -> str:
    """Return a digest of the entries that count in a top directory: names and kinds, and of files size and mtime."""
    with os.scandir(directory) as found:
        entries = [entry for entry in found if not rules.tolerates(entry.name)]
    words = sorted(
        _words(entry) for entry in entries if not rules.excludes(os.fsencode(f"./{entry.name}"))
    )  # fmt: skip
    return blake2b(b"\0".join(words), digest_size=8).hexdigest()


def _words(entry: os.DirEntry[str]) -> bytes:
    # What comes or goes in a directory below changes its time, and may well be excluded.
    name, status = os.fsencode(entry.name), entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return name
    return b"%s\0%d\0%d\0%d" % (name, stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns)


class Stillness:
    """Whether a source has stood still since `first`, the listing that was taken before tar.

    `clock` is monotonic, `now` the wall clock, both in seconds. The wall clock can only shorten the wait: a change
    that this process has seen no sign of for `quiet_seconds` is looked for once more at the end.
    """

    def __init__(
        self,
        source: Source,
        quiet_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._now = now
        self.listed_at = clock()
        self.sentinel = source.sentinel()
        self.first = source.list()

    def seconds_left(self) -> float:
        """Return how long to wait until the source, if nothing changes, has been quiet for long enough."""
        if self._seconds_since_change() >= self._quiet_seconds:
            return 0.0
        return max(self._quiet_seconds - (self._clock() - self.listed_at), 0.0)

    def require_quiet(self) -> None:
        """Raise RunNotSettled if the run is being transferred, or has changed within the quiet time."""
        self.require_no_transfer()
        since_change = self._seconds_since_change()
        if since_change < self._quiet_seconds:
            raise RunNotSettled(
                f"'{self.first.newest}' changed {since_change:.0f} s ago, and quiet_period is {self._quiet_seconds:g} s"
            )

    def _seconds_since_change(self) -> float:
        # Where the file system's clock is ahead of ours, a change may lie in our future.
        return max(self._now() - self.first.newest_ns / 1e9, 0.0)

    def require_no_transfer(self) -> None:
        """Raise RunNotSettled if there is a file of a transfer in progress."""
        if self.first.transfer:
            raise RunNotSettled(
                f"'{self.first.transfer}' has a name that a transfer in progress leaves (see transfer_names); if no "
                "transfer runs, remove it, or transfer the run again"
            )

    def require(self, with_ends: bool = False) -> None:
        """List the source again. Raises RunNotSettled if anything is not as it was before tar.

        `with_ends`: also raise Incomplete if a file holds more than tar could know of.
        """
        if not self.source.is_in_place():
            raise RunNotSettled(f"'{self.source.run.path}' was replaced by another directory, or moved")
        if self.source.sentinel() != self.sentinel:
            raise RunNotSettled("the sentinel was written again after the archive had been begun")
        listing = self.source.list(with_ends)
        if listing.digest != self.first.digest:
            raise RunNotSettled(
                f"the run has changed since tar began: {self.first.entries} entries then, {listing.entries} now; "
                + (self._new() or f"the newest change is to '{listing.newest}'")
            )
        if listing.trouble:
            raise listing.trouble

    def _new(self) -> str:
        """Name an entry that `first` does not have like this; empty if there is none."""
        with suppress(RunNotSettled, TarFailed):
            for entry in self.source.entries():
                if entry.kind is not Kind.SOCKET and self.source.rules.counts(entry) and not self.first.has(entry):
                    return f"'{os.fsdecode(entry.path)}' is new, or has another type or size"
        return ""


class _Hashes:
    """Numbers of 64 bits, eight bytes each. `find` returns the place of one."""

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(_BUCKETS)]
        self._starts: list[int] = []

    def add(self, number: int) -> None:
        self._buckets[number % _BUCKETS].append(number)

    def close(self) -> None:
        """Sort: nothing is added any more. Bucket by bucket, since a list takes five times the room of an array."""
        start = 0
        for index, bucket in enumerate(self._buckets):
            self._buckets[index] = array("Q", sorted(bucket))
            self._starts.append(start)
            start += len(bucket)

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def find(self, number: int) -> int | None:
        index = number % _BUCKETS
        bucket = self._buckets[index]
        place = bisect_left(bucket, number)
        return self._starts[index] + place if place < len(bucket) and bucket[place] == number else None

    def repeated(self) -> set[int]:
        self.close()
        return {
            number for bucket in self._buckets for number, following in itertools.pairwise(bucket)
            if number == following
        }  # fmt: skip


class _Survey:
    """A listing in the making."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.excluded = 0
        self.trouble: RunFailed | None = None
        self._sum = self._entries = self._size = self._longest = 0
        self._longest_path = b""
        self._newest_ns, self._newest = 0, ""
        self._size_of_holes = 0
        self._has_holes = self._has_links = self._has_blocks = False
        self._transfer = ""
        self._hashes = _Hashes()

    def add(self, entry: Entry) -> None:
        status = entry.status
        self._size += MEMBER_BYTES
        if len(entry.path) > self._longest:
            self._longest, self._longest_path = len(entry.path), entry.path
        if entry.kind is Kind.FILE:
            self._add_file(entry)
        if not self._rules.counts(entry):
            return
        if entry.kind is not Kind.SOCKET:  # tar leaves sockets out, and says so
            self._hashes.add(_hash(entry.path, entry.kind, status.st_size))
        # Addition does not mind the order, in which directories need not be read alike twice.
        self._sum += int.from_bytes(_digest(entry), "big")
        self._entries += 1
        if not self._transfer and self._rules.is_of_a_transfer(entry.name):
            self._transfer = os.fsdecode(entry.path)
        if status.st_ctime_ns > self._newest_ns:
            self._newest_ns, self._newest = status.st_ctime_ns, os.fsdecode(entry.path)

    def _add_file(self, entry: Entry) -> None:
        status = entry.status
        allocated = status.st_blocks * 512
        is_sparse = status.st_size >= SPARSE_BYTES and allocated < status.st_size // 2
        self._has_holes |= is_sparse
        self._has_links |= status.st_nlink > 1
        # A file that only seems to have holes takes more: then the disk is full sooner, which costs no attempt.
        self._size += allocated if is_sparse else status.st_size
        self._size_of_holes += status.st_size - allocated if is_sparse else 0
        self._has_blocks |= status.st_blocks > 0

    def listing(self, run_name_bytes: int) -> Listing:
        self._hashes.close()
        longest = self._longest + run_name_bytes + 1
        if longest > MAX_MEMBER_PATH_BYTES and not self.trouble:
            self.trouble = Incomplete(
                f"tar could not restore '{os.fsdecode(self._longest_path)}': with the run's name its path has "
                f"{longest} bytes, and Linux takes {MAX_MEMBER_PATH_BYTES}; shorten it, or exclude it"
            )
        if not self._has_blocks:  # of no file: this file system does not tell
            self._size += self._size_of_holes
        digest = (self._sum % (1 << 8 * _DIGEST_BYTES)).to_bytes(_DIGEST_BYTES, "big").hex()
        return Listing(
            digest, self._entries, self.excluded, self._size, self._newest_ns, self._newest, self._has_holes,
            self._has_links, self.trouble, self._transfer, self._hashes,
        )  # fmt: skip


def _digest(entry: Entry) -> bytes:
    status = entry.status
    size = status.st_size if entry.kind is Kind.FILE else 0
    words = b"%s\0%s\0%d\0%d\0%d" % (
        entry.path, entry.kind.encode(), size, status.st_mtime_ns, status.st_ctime_ns
    )  # fmt: skip
    return blake2b(words, digest_size=_DIGEST_BYTES).digest()


_SALT = os.urandom(16)  # nobody can make names whose hashes are the same


def _hash(path: bytes, kind: Kind, size: int) -> int:
    words = b"%s\0%s\0%d" % (path, kind.encode(), size if kind is Kind.FILE else 0)
    return int.from_bytes(blake2b(words, digest_size=8, key=_SALT).digest(), "big")


def _number(status: os.stat_result) -> int:
    return int.from_bytes(blake2b(b"%d %d" % _identity(status), digest_size=8, key=_SALT).digest(), "big")


def _name_of(status: os.stat_result, path: bytes) -> int:
    words = b"%d %d %s" % (*_identity(status), path)
    return int.from_bytes(blake2b(words, digest_size=8, key=_SALT).digest(), "big")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


@contextmanager
def _named(path: bytes) -> Iterator[None]:
    """Let an OSError name the entry `./...`: a read of a descriptor names none."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise RunNotSettled(f"'{_shown(error)}' was removed or replaced while it was read") from error
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> TarFailed:
    return TarFailed(f"cannot read '{_shown(error)}': {error.strerror}; {remedy(error, 'let this user read it')}")


def _shown(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "the run"


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")


def _tars(patterns: Sequence[str]) -> re.Pattern[bytes] | None:
    flags = wildcards.CASE | wildcards.DOTMATCH
    meant = [_without_a_loose_escape(os.fsencode(pattern)) for pattern in patterns]
    found = [wildcards.translate(pattern, flags=flags)[0] for pattern in meant if pattern is not None]
    return re.compile(b"|".join(each for several in found for each in several)) if found else None


def _without_a_loose_escape(pattern: bytes) -> bytes | None:
    """Return a pattern with the meaning that tar gives it when a single backslash ends it.

    That is a backslash in a pattern without wildcards. One with wildcards matches nothing then: None.
    """
    plain = _ESCAPED.sub(b"", pattern)
    if not plain.endswith(b"\\"):
        return pattern
    return None if _WILDCARD.search(plain) else pattern + b"\\"


_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_WILDCARD = re.compile(rb"[*?[]")
