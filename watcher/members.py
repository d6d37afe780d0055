"""tar's stream, read member by member: headers only, file contents are skipped.

It reads what GNU tar writes in its posix format: ustar headers, with extended headers (pax) for what does not fit
into them. Format: POSIX.1-2001 `pax`; for sparse members "PAX Format, Version 1.0" in the manual of GNU tar.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from watcher.errors import WatcherError

BLOCK_BYTES = 512

MAX_EXTENDED_BYTES = 1 << 20
"""An extended header holds two paths and some numbers. A larger one is not tar's."""


class Kind(StrEnum):
    """What a member is, or an entry of a directory."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMBOLIC_LINK = "symbolic link"
    HARD_LINK = "hard link"
    FIFO = "fifo"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    SOCKET = "socket"


_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.HARD_LINK, b"2": Kind.SYMBOLIC_LINK,
    b"3": Kind.CHARACTER_DEVICE, b"4": Kind.BLOCK_DEVICE, b"5": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip
_EXTENDED, _GLOBAL = b"x", b"g"
_ENDS = bytes(BLOCK_BYTES)


class MalformedArchive(WatcherError):
    """A stream is not what tar writes."""


class Member(NamedTuple):
    """One member. `size` is that of the file's content in bytes; `link` is where a link leads.

    `is_hole`: tar took the whole file for a hole and stored no byte of it.
    """

    path: bytes
    kind: Kind
    size: int
    link: bytes
    mode: int
    is_hole: bool


class MemberWalk:
    """Calls `on_member` for each member of the stream that `feed` is given in pieces of any size."""

    def __init__(self, on_member: Callable[[Member], None]) -> None:
        self._on_member = on_member
        self._buffer = bytearray()
        self._wanted = BLOCK_BYTES
        self._skip = 0
        self._extended: dict[bytes, bytes] | None = None  # a dictionary once its header has come
        self._is_extension = False
        self._extension_bytes = 0
        self._has_ended = False

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream. Raises MalformedArchive, and what `on_member` raises."""
        position, end = 0, len(data)
        while position < end and not self._has_ended:
            if self._skip:
                step = min(self._skip, end - position)
                self._skip -= step
            else:
                step = min(self._wanted - len(self._buffer), end - position)
                self._buffer += data[position : position + step]
            position += step
            if len(self._buffer) == self._wanted:
                block = bytes(self._buffer)
                self._buffer.clear()
                self._take(block)

    def finish(self) -> None:
        """Note the end of the stream. Raises MalformedArchive when tar's own end is not in it."""
        if not self._has_ended:
            raise MalformedArchive("tar's stream ends in the middle of a member, or without its end")

    def _take(self, block: bytes) -> None:
        if self._is_extension:
            self._is_extension, self._wanted = False, BLOCK_BYTES
            if self._extended is not None:
                self._extended = _records(block[: self._extension_bytes])
            return
        if block == _ENDS:
            self._has_ended = True
            return
        kind, size = block[156:157], _checked_size(block)
        if kind in (_EXTENDED, _GLOBAL):
            self._begin_extension(size, is_for_next=kind == _EXTENDED)
            return
        self._member(block, kind, size)

    def _begin_extension(self, size: int, is_for_next: bool) -> None:
        if not 0 < size <= MAX_EXTENDED_BYTES:
            raise MalformedArchive(f"an extended header of {size} bytes is not tar's")
        self._is_extension, self._extension_bytes, self._wanted = True, size, _padded(size)
        self._extended = {} if is_for_next else None

    def _member(self, block: bytes, code: bytes, stored: int) -> None:
        extended, self._extended = self._extended or {}, None
        kind = _KINDS.get(code)
        if kind is None:
            raise MalformedArchive(f"a member of the unknown type {code!r}")
        stored = _number(extended, b"size", stored)
        path = extended.get(b"GNU.sparse.name") or extended.get(b"path") or _name(block)
        is_sparse = b"GNU.sparse.major" in extended
        size = _number(extended, b"GNU.sparse.realsize", stored)
        self._skip = _padded(stored) if kind is Kind.FILE else 0
        # Of a sparse member the first block is its map: where it stores no more, all of the file is a hole.
        self._on_member(
            Member(
                path=path,
                kind=kind,
                size=size if kind is Kind.FILE else 0,
                link=extended.get(b"linkpath") or _text(block[157:257]),
                mode=_octal(block[100:108]),
                is_hole=is_sparse and size > 0 and stored <= BLOCK_BYTES,
            )
        )


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _checked_size(block: bytes) -> int:
    """Return the size that a header block gives. Raises MalformedArchive when it is no header block."""
    # The sum of all bytes, those of the checksum itself taken as spaces.
    if sum(block) - sum(block[148:156]) + 8 * 0x20 != _octal(block[148:156]):
        raise MalformedArchive("a member's header does not fit its checksum")
    return _octal(block[124:136])


def _octal(field: bytes) -> int:
    if field[0] & 0x80:  # GNU tar's form for numbers that are too large for octal digits
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise MalformedArchive(f"a number in a member's header is {field!r}") from None


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _name(block: bytes) -> bytes:
    name, prefix = _text(block[:100]), _text(block[345:500])
    return prefix + b"/" + name if prefix else name


def _number(extended: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
    value = extended.get(key)
    if value is None:
        return otherwise
    if not value.isdigit():
        raise MalformedArchive(f"an extended header's {key.decode()} is {value!r}")
    return int(value)


def _records(data: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header: a length, a space, KEY=VALUE, a newline. Raises MalformedArchive."""
    found, position = dict[bytes, bytes](), 0
    while position < len(data):
        digits, space, _ = data[position : position + 21].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        key, equals, value = data[position + len(digits) + 1 : position + length].partition(b"=")
        if not (length and equals and value.endswith(b"\n")) or position + length > len(data):
            raise MalformedArchive("an extended header is broken")
        found[key] = value[:-1]
        position += length
    return found
