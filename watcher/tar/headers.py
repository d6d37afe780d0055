"""What is in the headers of tar's stream: a block of numbers and names, and the records of an extended header.

Whatever tar might read differently raises MalformedArchive.
"""

from __future__ import annotations

import re
from zlib import adler32

from watcher.model import Kind
from watcher.tar.blocks import MalformedArchive, decimal

_USTAR = b"ustar\0"
_NO_PREFIX = bytes(155)
_SECONDS = re.compile(rb"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
_END_OF_NUMBER = b"\0 "
_OCTAL = re.compile(rb" *[0-7]+[ \0]*")

_SPARSE_KEYS = frozenset({b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"GNU.sparse.realsize"})
_KEYS = _SPARSE_KEYS | {b"path", b"linkpath", b"size", b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname"}
"""What GNU tar writes into extended headers. Others may move a member, or change where the next one begins."""


def checked_size(block: bytes) -> int:
    """Return the size that a header block gives. Raises MalformedArchive when it is no header block."""
    # The sum of all bytes, those of the checksum itself taken as spaces.
    if _sum(block[:148]) + _sum(block[156:334]) + _sum(block[334:]) + 8 * 0x20 != octal(block[148:156]):
        raise MalformedArchive("a member's header does not fit its checksum")
    # In its other formats, two of which hide in these fields, tar reads sparse members in another way.
    prefix = block[345:500]
    if block[257:263] != _USTAR or (prefix != _NO_PREFIX and prefix.rstrip(b"\0") != text_of(prefix)):
        raise MalformedArchive("a member's header is not in the posix format")
    return octal(block[124:136])


def _sum(data: bytes) -> int:
    """Return the sum of up to 256 bytes, in a tenth of `sum`'s time: the low half of their Adler-32, less one."""
    return (adler32(data) & 0xFFFF) - 1


def octal(field: bytes) -> int:
    """Return the number in a field of a header block. Raises MalformedArchive."""
    if (digits := field[:-1]).isdigit() and field[-1] in _END_OF_NUMBER and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)  # as tar writes nearly all of them; the pattern would take three times as long
    if not _OCTAL.fullmatch(field):
        raise MalformedArchive(f"a number in a member's header is {field!r}")
    return int(field.strip(b" \0"), 8)


def with_mode(block: bytes, mode: int) -> bytes:
    """Return a header block with another mode, and the checksum of that."""
    blank = block[:100] + b"%07o\0" % mode + block[108:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def text_of(field: bytes) -> bytes:
    """Return the text in a field of a header block."""
    return field.partition(b"\0")[0]


def name_of(block: bytes) -> bytes:
    """Return the path that a header block gives."""
    name, prefix = text_of(block[:100]), text_of(block[345:500])
    return prefix + b"/" + name if prefix else name


def number(extended: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
    """Return the number that an extended header has under this key, or `otherwise`. Raises MalformedArchive."""
    value = extended.get(key)
    return otherwise if value is None else decimal(value, f"an extended header's {key.decode()}")


def has_map(extended: dict[bytes, bytes], kind: Kind) -> bool:
    """Say whether a member is sparse. Raises MalformedArchive for another form of that than version 1.0."""
    if extended.keys().isdisjoint(_SPARSE_KEYS):
        return False
    version = extended.get(b"GNU.sparse.major"), extended.get(b"GNU.sparse.minor")
    if kind is not Kind.FILE or version != (b"1", b"0") or not extended.keys() >= _SPARSE_KEYS:
        raise MalformedArchive("a sparse member is not of the form that tar gives it, version 1.0")
    return True


def seconds(extended: bytes | None, block: bytes) -> str:
    """Return a member's time of modification in seconds, as tar writes it. Raises MalformedArchive."""
    words = extended if extended is not None else b"%d" % octal(block[136:148])
    if not _SECONDS.fullmatch(words):
        raise MalformedArchive(f"a member's time is {words[:80]!r}")
    return words.decode("ascii")


def records(data: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header: a length, a space, KEY=VALUE, a newline. Raises MalformedArchive."""
    if b"\0" in data:
        raise MalformedArchive("an extended header is broken")  # tar would take a path to end there
    found, position = dict[bytes, bytes](), 0
    while position < len(data):
        space = data.find(b" ", position, position + 21)
        digits = data[position:space]
        length = int(digits) if space > 0 and digits.isdigit() else 0
        key, equals, value = data[space + 1 : position + length].partition(b"=")
        if not (length and equals and value.endswith(b"\n") and value != b"\n") or position + length > len(data):
            raise MalformedArchive("an extended header is broken")
        if key not in _KEYS:
            raise MalformedArchive(f"an extended header has the unknown key {key[:80]!r}")
        found[key] = value[:-1]
        position += length
    return found
