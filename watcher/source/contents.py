"""What the files of a run hold. Where a mistake would cost content, metadata alone are not trusted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from watcher.source.entry import Entry
from watcher.source.hashes import Hashes, file_number, identity_of, numbered_name
from watcher.source.listing import Listing
from watcher.source.reading import reading

READ_BYTES = 1 << 20


class Contents:
    """The contents of a held directory's files.

    `open_file` gives a descriptor, `status` what the file system says, each for a path `./...`. `files` yields all
    regular files that tar reads.
    """

    def __init__(
        self,
        open_file: Callable[[bytes], AbstractContextManager[int]],
        status: Callable[[bytes], os.stat_result],
        files: Callable[[], Iterator[Entry]],
    ) -> None:
        self._open = open_file
        self._status = status
        self._files = files
        self._proven = Hashes()  # names of linked files whose contents were compared
        self._proven.close()

    def has_data(self, path: bytes, moved: Callable[[int], object]) -> bool:
        """Say whether the file `./...` has a byte that is not 0. `moved` is told of bytes read, and may raise.

        Raises RunNotSettled if the file has just gone, TarFailed if it cannot be read.
        """
        zeros = bytes(READ_BYTES)
        with reading(), self._open(path) as descriptor:
            while data := os.read(descriptor, READ_BYTES):
                moved(0)
                if data != (zeros if len(data) == READ_BYTES else zeros[: len(data)]):
                    return True
        return False

    def tar_options(self, listing: Listing, moved: Callable[[int], object]) -> tuple[str, ...]:
        """Return tar's options for holes and hard links: for such as are real by their content.

        A file system may report no blocks for a file with content, or one inode number for two files. tar would
        then store holes, or a link, in place of the content. `moved` is told of bytes read, and may raise.
        Raises RunNotSettled for a file that has just gone, TarFailed for one that cannot be read.
        """
        with reading():
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
            status = self._status(path)
            is_one = identity_of(status) == identity_of(self._status(other))
        except OSError:
            return None
        is_proven = all(self._proven.find(numbered_name(status, each)) is not None for each in (path, other))
        return status.st_size if is_one and is_proven else None

    def _without_blocks(self) -> Iterator[bytes]:
        return (entry.path for entry in self._files() if entry.status.st_size and not entry.status.st_blocks)

    def _linked(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs of paths that name one file, by its inode number."""
        seen = Hashes()
        for entry in self._files():
            if entry.status.st_nlink > 1:
                seen.add(file_number(entry.status))
        repeated = seen.repeated()
        first: dict[tuple[int, int], bytes] = {}
        for entry in self._files():
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
                proven.add(numbered_name(self._status(each), each))
        proven.close()
        self._proven = proven
        return True

    def _are_equal(self, path: bytes, other: bytes, moved: Callable[[int], object]) -> bool:
        with self._open(path) as one, self._open(other) as two:
            while data := os.read(one, READ_BYTES):
                moved(0)
                if data != _read_exactly(two, len(data)):
                    return False
            return not os.read(two, 1)


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data
