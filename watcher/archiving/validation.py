"""A staged archive is decrypted again while the rest of it is still being written.

Both passes feed the same two digests to the story. The second one has a thread, a gpg and a job of its own; whatever
ends one of the passes ends the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from watcher import openpgp
from watcher.archiving.files import StagedFile, reading, sha256_of
from watcher.archiving.readback import Readback
from watcher.errors import Interrupted, ValidateFailed
from watcher.job import Job, enough_threads
from watcher.model import Content, Digest

Saw = Callable[[bytes, Callable[[int], object]], object]


@contextmanager
def validating(
    file: StagedFile,
    key: openpgp.FileKey,
    job: Job,
    home: Path | None = None,
    follows: bool = True,
    saw: Saw | None = None,
) -> Iterator[Validation]:
    """Have a Validation of a file that is being written; at the end of the context it is over, whatever happened.

    `follows`: it begins while the file still grows, if the file system can do that. `saw` is called, in the other
    thread, with each piece of what was decrypted, and with what notes bytes that move there.
    """
    with job.second_pass() as second:
        validation = Validation(file, key, second, home, follows, saw)
        try:
            yield validation
        finally:
            validation.close()


def reread(path: Path, sha256: str, job: Job) -> None:
    """Read a whole file from the disk once more. Raises ValidateFailed unless it has this SHA-256, and NoSpace."""
    with reading(path):
        found = sha256_of(path, job.moved)
    if found != sha256:
        raise ValidateFailed(f"'{path}' has changed since it was validated: its SHA-256 is {found}, and was {sha256}")


class Validation:
    """The second pass over an archive. As long as the file grows it has a thread of its own."""

    def __init__(
        self,
        file: StagedFile,
        key: openpgp.FileKey,
        job: Job,
        home: Path | None,
        follows: bool,
        saw: Saw | None,
    ) -> None:
        self._file, self._key, self._job, self._home, self._saw = file, key, job, home, saw
        self._readback = Readback(file, job, follows)
        self._thread: threading.Thread | None = None
        self._digests: tuple[Digest, Content] | None = None
        self._error: Exception | None = None

    def write(self, data: bytes) -> None:
        """Append to the file. Raises NoSpace, and what the second pass has failed with by now."""
        if self._error is not None:
            raise self._error
        self._file.write(data)
        self._readback.grew()
        if self._thread is None and self._readback.may_begin:
            self._thread = threading.Thread(target=self._run, name=f"validate {self._job.run.name}", daemon=True)
            with enough_threads():
                self._thread.start()

    def digests(self) -> tuple[Digest, Content]:
        """Return the digest of the file, which is on the disk now, and of what was in it.

        Raises ValidateFailed when it does not decrypt or is longer or shorter than what was written, NoSpace when the
        disk does not give it back, and the job's reason if it was cancelled.
        """
        self._readback.finish()
        if self._thread is None:
            self._run()
        else:
            self._thread.join()
        if self._digests is None:
            assert self._error is not None
            raise self._error
        stored, plain = self._digests
        if stored.size != self._file.size:
            raise ValidateFailed(f"{self._file.size} bytes were written, and the disk gives {stored.size}")
        return stored, plain

    def close(self) -> None:
        """End what still runs."""
        self._job.cancel(Interrupted("the archive was not finished"))
        self._readback.finish()
        if self._thread is not None:
            self._thread.join()

    def _take(self, data: bytes) -> None:
        if self._saw is not None:
            self._saw(data, self._job.moved)

    def _run(self) -> None:
        try:
            with self._readback:
                self._digests = openpgp.validate(self._readback.read, self._key, self._job, self._home, self._take)
        except Exception as error:  # noqa: BLE001  # raised in the worker's thread
            self._error = error
