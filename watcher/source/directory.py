"""A run directory that is held open.

The directory is opened once, without following a link. Everything that is asked about the run afterwards is asked of
this descriptor, and tar starts in it: a rename, or another directory under the run's name, changes nothing of that.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from watcher.errors import Incomplete, RunNotSettled, TarFailed, remedy
from watcher.model import Kind, Run
from watcher.source.entry import KINDS, Entry
from watcher.source.hashes import Hashes, file_number, identity_of, numbered_name
from watcher.source.listing import Listing, Survey
from watcher.source.rules import Rules
from watcher.source.sentinel import version
from watcher.source.top import contents_of

READ_BYTES = 1 << 20


_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Source:
    """A run directory held open by `descriptor`, and the rules by which it is looked at."""

    def __init__(self, run: Run, descriptor: int, rules: Rules) -> None:
        self.run = run
        self.rules = rules
        self._descriptor = descriptor
        self._identity = identity_of(os.fstat(descriptor))
        self._proven = Hashes()  # names of linked files whose contents were compared
        self._proven.close()

    @property
    def directory(self) -> str:
        """A path that leads to the held directory, whatever its name is now. It works in this process only."""
        return f"/proc/self/fd/{self._descriptor}"

    def sentinel(self) -> str:
        """Return the version of the sentinel in the held directory; empty if there is none."""
        return version(Path(self.directory)) or ""

    def top(self) -> str:
        """Return the version of the top directory: when it last changed, and a digest of what counts in it.

        Raises RunNotSettled if it has just gone, TarFailed if it cannot be read.
        """
        with _reading():
            return f"{os.fstat(self._descriptor).st_mtime_ns}-{contents_of(self.directory, self.rules)}"

    def is_in_place(self) -> bool:
        """Say whether the run's path still leads to the held directory."""
        try:
            return identity_of(os.lstat(self.run.path)) == self._identity
        except OSError:
            return False

    def list(self, with_ends: bool = False) -> Listing:
        """Return what the run holds now. What cannot be read is the listing's `trouble`.

        `with_ends`: look at the end of each file, too; one that holds more than its size says is trouble.
        """
        survey = Survey(self.rules)
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
            return False  # if tar could not read it either, tar has said so

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
            is_one = identity_of(status) == identity_of(self.status(other))
        except OSError:
            return None
        is_proven = all(self._proven.find(numbered_name(status, each)) is not None for each in (path, other))
        return status.st_size if is_one and is_proven else None

    def entries(self) -> Iterator[Entry]:
        """Yield the run itself and all that tar reads in it.

        Raises RunNotSettled for a file that has just gone, TarFailed for what cannot be read.
        """
        with _reading():
            yield from self._walk(Survey(self.rules))

    def files(self) -> Iterator[Entry]:
        """Yield all regular files that tar reads."""
        return (entry for entry in self.entries() if entry.kind is Kind.FILE)

    def _without_blocks(self) -> Iterator[bytes]:
        return (entry.path for entry in self.files() if entry.status.st_size and not entry.status.st_blocks)

    def _linked(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs of paths that name one file, by its inode number."""
        seen = Hashes()
        for entry in self.files():
            if entry.status.st_nlink > 1:
                seen.add(file_number(entry.status))
        repeated = seen.repeated()
        first: dict[tuple[int, int], bytes] = {}
        for entry in self.files():
            if entry.status.st_nlink > 1 and file_number(entry.status) in repeated:
                identity = identity_of(entry.status)
                if identity in first:
                    yield first[identity], entry.path
                first.setdefault(identity, entry.path)

    def _are_links_real(self, moved: Callable[[int], object]) -> bool:
        proven = Hashes()
        for path, other in self._linked():
            if not self._are_equal(path, other, moved):
                return False
            for each in (path, other):
                proven.add(numbered_name(self.status(each), each))
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

    def _walk(self, survey: Survey) -> Iterator[Entry]:
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
                kind = KINDS[stat.S_IFMT(status.st_mode)]
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


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


@contextmanager
def _named(path: bytes) -> Iterator[None]:
    """Add the entry's path `./...` to an OSError: one from a descriptor has none."""
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
