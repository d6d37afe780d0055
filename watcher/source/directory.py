"""A run directory that is held open.

The directory is opened once, without following a link. Everything that is asked about the run afterwards is asked of
this descriptor, and tar starts in it: a rename, or another directory under the run's name, changes nothing of that.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watcher.errors import Incomplete, RunNotSettled, TarFailed
from watcher.model import Kind, Run
from watcher.source.contents import Contents
from watcher.source.entry import KINDS, Entry
from watcher.source.hashes import identity_of
from watcher.source.listing import Listing, Survey
from watcher.source.reading import GONE, named, reading, unreadable
from watcher.source.rules import Rules
from watcher.source.sentinel import version
from watcher.source.top import contents_of


class Source:
    """A run directory held open by `descriptor`, and the rules by which it is looked at."""

    def __init__(self, run: Run, descriptor: int, rules: Rules) -> None:
        self.run = run
        self.rules = rules
        self._descriptor = descriptor
        self._identity = identity_of(os.fstat(descriptor))
        self.contents = Contents(self._opened, self.status, self.files)

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
        with reading():
            return f"{os.fstat(self._descriptor).st_mtime_ns}-{contents_of(self.directory, self.rules)}"

    def is_in_place(self) -> bool:
        """Say whether the run's path still leads to the held directory."""
        try:
            return identity_of(os.lstat(self.run.path)) == self._identity
        except OSError:
            return False

    def list(self, with_ends: bool = False, with_hashes: bool = True) -> Listing:
        """Return what the run holds now. What cannot be read is the listing's `trouble`.

        `with_ends`: look at the end of each file, too; one that holds more than its size says is trouble.
        `with_hashes`: the listing can say whether it has an entry.
        """
        survey = Survey(self.rules, with_hashes)
        try:
            for entry in self._walk(survey):
                survey.add(entry)
                if with_ends and entry.kind is Kind.FILE and self._is_longer_than_said(entry):
                    survey.trouble = Incomplete(
                        f"'{os.fsdecode(entry.path)}' holds more than the {entry.status.st_size} bytes that its file "
                        "system reports, and tar reads no more than that: look at this file system"
                    )
        except OSError as error:
            survey.trouble = survey.trouble or unreadable(error)
        return survey.listing(len(os.fsencode(self.run.name)))

    def status(self, path: bytes) -> os.stat_result:
        """Return what the file system says of the entry `./...`. Raises OSError."""
        return os.stat(path, dir_fd=self._descriptor, follow_symlinks=False)

    def _is_longer_than_said(self, entry: Entry) -> bool:
        if entry.is_top and self.rules.tolerates(entry.name):
            return False
        try:
            with self._opened(entry.path) as descriptor:
                is_longer = bool(os.pread(descriptor, 1, entry.status.st_size))
                return is_longer and os.fstat(descriptor).st_size == entry.status.st_size
        except OSError:
            return False  # if tar could not read it either, tar has said so

    def entries(self) -> Iterator[Entry]:
        """Yield the run itself and all that tar reads in it.

        Raises RunNotSettled for a file that has just gone, TarFailed for what cannot be read.
        """
        with reading():
            yield from self._walk(Survey(self.rules, with_hashes=False))

    def files(self) -> Iterator[Entry]:
        """Yield all regular files that tar reads."""
        return (entry for entry in self.entries() if entry.kind is Kind.FILE)

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, dir_fd=self._descriptor)
        try:
            yield descriptor
        except OSError as error:
            raise named(error, path)  # noqa: B904  # it is the same error
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
                    survey.leave_out(encoded)
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it has just been removed: the next listing differs from this one
                except OSError as error:
                    raise named(error, encoded)  # noqa: B904  # it is the same error
                kind = KINDS[stat.S_IFMT(status.st_mode)]
                if kind is Kind.DIRECTORY:
                    waiting.append(path)
                yield Entry(encoded, entry.name, kind, status, is_top=directory == ".")

    def _entries(self, directory: str) -> Iterator[os.DirEntry[str]]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(directory, flags, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno in GONE or error.errno == errno.ENAMETOOLONG:  # which the listing refuses by itself
                return
            raise
        try:
            with os.scandir(descriptor) as entries:
                yield from entries
        except FileNotFoundError:
            return  # it has just been removed
        except OSError as error:
            raise named(error, os.fsencode(directory))  # noqa: B904  # it is the same error
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
