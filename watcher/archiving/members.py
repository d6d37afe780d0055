"""What an archive holds, member by member, seen where it counts: on the decrypted side of the stored file.

Here it is compared with what the run holds, and the lines of the manifest are made. Its first line needs what is known
last. So they are kept until then, packed: in memory, or beyond some size in an unnamed file, encrypted under a key of
this process alone.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from watcher.archiving.attempt import Attempt
from watcher.archiving.files import READ_BYTES, disk_trouble
from watcher.errors import Incomplete
from watcher.manifest import Entry, EntryMaker
from watcher.model import Kind, ManifestMode
from watcher.source import Stillness
from watcher.tar import Completeness, MalformedArchive, Member, MemberWalk

SPOOL_BYTES = 8 << 20
"""Of packed lines, so many are kept in memory: those of some 100,000 members."""

GZIP = 31
"""zlib's number for its largest window, in gzip's form."""

GZIP_LEVEL = 1
"""A third of level 6's time, and lines that are a tenth larger: most of a line is its digest."""

LINES_AT_ONCE = 200
"""So many lines are packed at once: while one thread packs, another one may take Python's lock, and keep it."""


class Members:
    """Takes a decrypted stream, and says at its end whether it holds the whole run.

    With a `spool` it keeps a line for each member there, with the SHA-256 of a regular file's content.
    """

    def __init__(self, still: Stillness, spool: Spool | None) -> None:
        self._completeness = Completeness(still)
        self._spool = spool
        self._moved: Callable[[int], object] = lambda _: None
        self._entries = EntryMaker(self._keep, self._note)
        self._walk = MemberWalk(self._begin, content=self._entries if spool else None)
        self._malformed: MalformedArchive | None = None
        self.files = self.file_bytes = 0

    @property
    def count(self) -> int:
        """How many members there were."""
        return self._completeness.members

    def feed(self, data: bytes, moved: Callable[[int], object]) -> None:
        """Take the next piece of the stream. Raises NoSpace, and what `moved` raises.

        `moved` is called while this takes long: with the bytes that are read of the run, and with 0 while the zeros of
        a hole are hashed.
        """
        self._moved = moved
        try:
            if self._malformed is None:
                self._walk.feed(data)
        except MalformedArchive as error:
            self._malformed = error  # raised at the end: by then it is known whether the disk or tar is to blame

    def finish(self) -> None:
        """Note the end of the stream. Raises Incomplete when it is not what the run holds, NoSpace.

        Raises RunNotSettled instead if the run has changed.
        """
        try:
            if self._malformed is not None:
                raise self._malformed
            self._walk.finish()
        except MalformedArchive as error:
            raise Incomplete(f"what tar gave cannot be understood: {error}") from error
        self._completeness.require()
        self._entries.end()
        if self._spool is not None:
            self._spool.finish()

    def lines(self) -> Iterator[bytes] | None:
        """Return the packed lines, as often as they are asked for; None if there are none. Raises NoSpace."""
        return self._spool.pieces() if self._spool is not None else None

    def _begin(self, member: Member) -> int:
        self._completeness.saw(member, self._note)
        if self._spool is not None:
            self._entries.begin(member)
        return member.mode

    def _note(self, count: int) -> None:
        self._moved(count)

    def _keep(self, entry: Entry) -> None:
        assert self._spool is not None
        self.files += entry.kind is Kind.FILE
        self.file_bytes += entry.size
        self._spool.write(entry.to_line())


class Spool:
    """Lines, packed, to be read as often as needed: `max_bytes` of them in memory, more in `directory`, encrypted."""

    def __init__(self, directory: Path, max_bytes: int = SPOOL_BYTES) -> None:
        self._directory = directory
        self._file = SpooledTemporaryFile(max_bytes, dir=str(directory))  # noqa: SIM115  # see `close`
        # A key for one stream needs no other nonce than zero.
        self._cipher = Cipher(algorithms.AES256(secrets.token_bytes(32)), modes.CTR(bytes(16)))
        self._encrypt = self._cipher.encryptor().update
        self._lines: list[bytes] = []
        self._pack = zlib.compressobj(GZIP_LEVEL, wbits=GZIP)

    def write(self, line: bytes) -> None:
        """Append a line. Raises NoSpace."""
        self._lines.append(line)
        if len(self._lines) == LINES_AT_ONCE:
            self._pack_lines()

    def finish(self) -> None:
        """Note that no line follows. Raises NoSpace."""
        self._pack_lines()
        self._append(self._pack.flush())

    def pieces(self) -> Iterator[bytes]:
        """Yield the packed lines. Raises NoSpace."""
        decrypt = self._cipher.decryptor().update
        with disk_trouble("read", self._directory):
            self._file.seek(0)
            while piece := self._file.read(READ_BYTES):
                yield decrypt(piece)

    def close(self) -> None:
        """Forget the lines."""
        self._file.close()

    def _pack_lines(self) -> None:
        self._append(self._pack.compress(b"".join(self._lines)))
        self._lines.clear()

    def _append(self, packed: bytes) -> None:
        if packed:
            with disk_trouble("write a temporary file in", self._directory):
                self._file.write(self._encrypt(packed))


@contextmanager
def members_of(attempt: Attempt, still: Stillness) -> Iterator[Members]:
    """Have what takes the members of an archive in while the context lasts; with lines if there shall be a manifest."""
    if attempt.parts.settings.manifest is ManifestMode.NONE:
        yield Members(still, None)
        return
    with closing(Spool(attempt.parts.archive_store.destination)) as spool:
        yield Members(still, spool)
