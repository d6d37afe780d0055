"""tar's stream, read member by member: headers are understood, file contents are handed on.

It reads what GNU tar writes in its posix format: ustar headers, with extended headers (pax) for what does not fit
into them. Format: POSIX.1-2001 `pax`; for sparse members "PAX Format, Version 1.0" in the manual of GNU tar.

A stream that tar might read differently from this module is refused. Otherwise a header could hide in what one of the
two takes for content, and nobody would judge it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from watcher.model import Kind
from watcher.tar.blocks import BLOCK_BYTES, MalformedArchive, padded
from watcher.tar.headers import (
    checked_size,
    has_map,
    name_of,
    number,
    octal,
    records,
    seconds,
    text_of,
    with_mode,
)
from watcher.tar.sparse import Span, SpanKind, SparseMap, whole

MAX_EXTENDED_BYTES = 1 << 20
"""An extended header holds two paths and some numbers. A larger one is not tar's."""


_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.HARD_LINK, b"2": Kind.SYMBOLIC_LINK,
    b"3": Kind.CHARACTER_DEVICE, b"4": Kind.BLOCK_DEVICE, b"5": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip
_EXTENDED = b"x"
_ENDS = bytes(BLOCK_BYTES)


class Member(NamedTuple):
    """One member. `size` is that of the file's content in bytes; `link` is where a link leads.

    `is_hole`: tar took the whole file for a hole and stored no byte of it. `mtime` is in seconds, as tar writes it.
    `offset` is where in the stream the member's headers begin, `data_offset` where they end, both in bytes.
    """

    path: bytes
    kind: Kind
    size: int
    link: bytes
    mode: int
    is_hole: bool
    mtime: str = ""
    offset: int = 0
    data_offset: int = 0


class ContentSink(Protocol):
    """What takes the content of the member that came last, piece by piece."""

    def data(self, data: memoryview) -> None:
        """Take the next bytes."""

    def hole(self, size: int) -> None:
        """Take so many zeros, which tar has not stored."""


_NOTHING = Span(0, SpanKind.PADDING)


def _to_nobody(_data: bytes | memoryview) -> None:
    """Hand nothing on."""


class MemberWalk:
    """Calls `on_member` for each member of the stream that `feed` is given in pieces of any size.

    The stream goes on to `hand_on`, a member not before `on_member` has returned the mode that its header
    shall have there. A member for which that returns None is left out.

    It is one class because each step reads and leaves the same state: where in the stream it is. What a header says
    is understood in `headers` and `sparse`.
    """

    def __init__(
        self,
        on_member: Callable[[Member], int | None],
        hand_on: Callable[[bytes | memoryview], object] = _to_nobody,
        content: ContentSink | None = None,
    ) -> None:
        self._on_member = on_member
        self._hand_on = hand_on
        self._content = content
        self._held = bytearray()  # the headers of a member that was not judged yet
        self._is_wanted = True
        self._map: SparseMap | None = None
        self._spans: Iterator[Span] = iter(())
        self._span = _NOTHING
        self._consumed = 0  # bytes of the stream
        self._buffer = b""
        self._wanted = BLOCK_BYTES
        self._extended: dict[bytes, bytes] | None = None  # a dictionary once its header has come
        self._is_extension = False
        self._extension_bytes = 0
        self._has_ended = False

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream. Raises MalformedArchive, and what `on_member` raises."""
        position, end = 0, len(data)
        while position < end:
            if self._has_ended:
                step = self._take_padding(data[position:])
                self._consumed += step
            elif self._span.size:
                step = min(self._span.size, end - position)
                self._consumed += step
                self._pass_content(memoryview(data)[position : position + step])
            else:
                step = min(self._wanted - len(self._buffer), end - position)
                self._consumed += step
                self._take_header(data[position : position + step])
            position += step

    def _take_header(self, data: bytes) -> None:
        """Take a header, or a piece of one."""
        block, self._buffer = self._buffer + data, b""
        if len(block) == self._wanted:
            self._take(block)
        else:
            self._buffer = block

    def finish(self) -> None:
        """Note the end of the stream. Raises MalformedArchive when tar's own end is not in it."""
        if not self._has_ended:
            raise MalformedArchive("tar's stream ends in the middle of a member, or without its end")

    def _take_padding(self, data: bytes) -> int:
        if data.strip(b"\0"):
            raise MalformedArchive("tar's stream goes on after its end")
        self._hand_on(data)
        return len(data)

    def _take(self, block: bytes) -> None:
        if self._map is not None:
            self._take_map(block, self._map)
            return
        self._held += block
        if self._is_extension:
            self._is_extension, self._wanted = False, BLOCK_BYTES
            self._extended = records(block[: self._extension_bytes])
            return
        if block == _ENDS and self._extended is None:
            self._has_ended, self._is_wanted = True, True
            self._release()
            return
        kind, size = block[156:157], checked_size(block)
        if kind == _EXTENDED:
            self._begin_extension(size)
            return
        self._member(block, kind, size)

    def _begin_extension(self, size: int) -> None:
        if not 0 < size <= MAX_EXTENDED_BYTES or self._extended is not None:
            raise MalformedArchive(f"an extended header of {size} bytes is not tar's")
        self._is_extension, self._extension_bytes, self._wanted = True, size, padded(size)

    def _member(self, block: bytes, code: bytes, in_header: int) -> None:
        extended, self._extended = self._extended or {}, None
        kind = _KINDS.get(code)
        if kind is None:
            raise MalformedArchive(f"a member of the unknown type {code!r}")
        stored = number(extended, b"size", in_header)
        path = extended.get(b"GNU.sparse.name") or extended.get(b"path") or name_of(block)
        is_sparse = has_map(extended, kind)
        size = number(extended, b"GNU.sparse.realsize", stored)
        if kind is not Kind.FILE and (stored or in_header):
            raise MalformedArchive(f"a {kind} with a content")
        in_block = octal(block[100:108])
        # Of a sparse member the first block is its map: where it stores no more, all of the file is a hole.
        mode = self._on_member(
            Member(
                path=path,
                kind=kind,
                size=size if kind is Kind.FILE else 0,
                link=extended.get(b"linkpath") or text_of(block[157:257]),
                mode=in_block,
                is_hole=is_sparse and size > 0 and stored <= BLOCK_BYTES,
                mtime=seconds(extended.get(b"mtime"), block),
                offset=self._consumed - len(self._held),
                data_offset=self._consumed,
            )
        )
        self._is_wanted = mode is not None
        if mode is not None and mode != in_block:
            self._held[-BLOCK_BYTES:] = with_mode(block, mode)
        self._release()
        if is_sparse:
            self._map = SparseMap(stored, size)
        else:
            self._follow(whole(stored))

    def _take_map(self, block: bytes, sparse: SparseMap) -> None:
        self._pass(block)
        if sparse.take(block):
            self._map = None
            self._follow(sparse.spans())

    def _follow(self, spans: Iterator[Span]) -> None:
        self._spans, self._span = spans, _NOTHING
        self._next_span()

    def _next_span(self) -> None:
        """Go on to the next span that takes bytes in the stream; tell of the holes before it."""
        for span in self._spans:
            if span.kind is SpanKind.HOLE and span.size and self._content:
                self._content.hole(span.size)
            elif span.kind is not SpanKind.HOLE and span.size:
                self._span = span
                return
        self._span = _NOTHING

    def _pass_content(self, data: memoryview) -> None:
        self._pass(data)
        if self._content and self._span.kind is SpanKind.DATA:
            self._content.data(data)
        self._span = Span(self._span.size - len(data), self._span.kind)
        if not self._span.size:
            self._next_span()

    def _release(self) -> None:
        self._pass(bytes(self._held))
        self._held.clear()

    def _pass(self, data: bytes | memoryview) -> None:
        if self._is_wanted:
            self._hand_on(data)
