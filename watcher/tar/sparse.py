"""What a member's header is followed by in the stream: data, holes that are not stored, and padding.

Format of sparse members: "PAX Format, Version 1.0" in the manual of GNU tar.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

from watcher.tar.blocks import BLOCK_BYTES, MAX_DIGITS, MalformedArchive, decimal, padded

MAX_REGIONS = 4_000_000
"""So many regions may a sparse member have. We keep 16 bytes for each; a map of more is taken for an attack."""


class SpanKind(Enum):
    """What a span is; a hole takes no bytes in the stream, padding none in the file."""

    DATA = auto()
    HOLE = auto()
    PADDING = auto()


class Span(NamedTuple):
    """A part of a member, with its size in bytes."""

    size: int
    kind: SpanKind


def whole(stored: int) -> Iterator[Span]:
    """Yield the spans of a member that is stored as one."""
    yield Span(stored, SpanKind.DATA)
    yield Span(padded(stored) - stored, SpanKind.PADDING)


class SparseMap:
    """The map in front of a sparse member's data: the number of regions, then offset and size of each, in lines.

    tar goes on behind the last region, and not where the member's size says that it ends.
    """

    def __init__(self, stored: int, size: int) -> None:
        self._stored = stored
        self._size = size
        self._line = b""
        self._numbers_left: int | None = None
        self._numbers = array("Q")
        self._bytes = 0

    def take(self, block: bytes) -> bool:
        """Return whether the map ends in this block. Raises MalformedArchive."""
        self._bytes += BLOCK_BYTES
        *lines, self._line = (self._line + block).split(b"\n")
        for line in lines:
            self._take_number(decimal(line, "a sparse member's map"))
            if self._numbers_left == 0:
                self._check()
                return True
        if len(self._line) > MAX_DIGITS or self._bytes >= self._stored:
            raise MalformedArchive("a sparse member's map does not end")
        return False

    def spans(self) -> Iterator[Span]:
        """Yield the member's spans behind its map, in their order."""
        reached = 0
        for offset, size in self._regions():
            yield Span(offset - reached, SpanKind.HOLE)
            yield from whole(size)
            reached = offset + size
        yield Span(self._size - reached, SpanKind.HOLE)

    def _regions(self) -> Iterator[tuple[int, int]]:
        return zip(self._numbers[::2], self._numbers[1::2], strict=True)

    def _take_number(self, number: int) -> None:
        if self._numbers_left is None:
            if number > MAX_REGIONS:
                raise MalformedArchive(f"a sparse member's map has {number} regions")
            self._numbers_left = 2 * number
            return
        self._numbers.append(number)
        self._numbers_left -= 1

    def _check(self) -> None:
        sizes = self._numbers[1::2]
        stored = self._bytes + sum(sizes), self._bytes + sum(map(padded, sizes))
        if stored != (self._stored, padded(self._stored)):
            raise MalformedArchive("a sparse member's map does not fit its size")
        if any(span.size < 0 for span in self.spans()):
            raise MalformedArchive("a sparse member's map is not in order, or goes on behind the file's end")
