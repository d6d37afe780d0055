"""One member of an archive, as a line of its manifest."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from watcher.model import Kind
from watcher.tar import Member

HASH_BYTES = 16
"""The size of `Entry.hash`. 16 bytes are 16 MB for a million members."""

_encoded = json.JSONEncoder(separators=(",", ":")).encode

_LINKS = (Kind.SYMBOLIC_LINK, Kind.HARD_LINK)


class Entry(NamedTuple):
    """A member: its path in the archive without `./` and without a slash at its end, `link` likewise for a hard link.

    `size` is that of its content in bytes, and `sha256` is of that, holes read as zeros; empty for what is no regular
    file. `mtime` is in seconds since the epoch, with all digits that tar wrote. In tar's stream the member begins at
    `offset`, and its data at `data_offset`.
    """

    path: bytes
    kind: Kind
    size: int
    mode: int
    mtime: str
    link: bytes
    offset: int
    data_offset: int
    sha256: str

    @classmethod
    def of(cls, member: Member, sha256: str) -> Self:
        """Return the entry of a member."""
        path = member.path.removeprefix(b"./").removesuffix(b"/")
        link = member.link if member.kind in _LINKS else b""
        if member.kind is Kind.HARD_LINK:
            link = link.removeprefix(b"./")
        return cls(
            path, member.kind, member.size, member.mode, member.mtime, link, member.offset, member.data_offset, sha256
        )

    def to_line(self) -> bytes:
        """Return the line, with its newline."""
        value: dict[str, Any] = {**_text("path", self.path), "type": str(self.kind), "size": self.size}
        value |= {"mode": f"{self.mode:04o}", "mtime": self.mtime}
        value |= {"offset": self.offset, "data_offset": self.data_offset}
        if self.link:
            value |= _text("link", self.link)
        if self.sha256:
            value["sha256"] = self.sha256
        return _encoded(value).encode("ascii") + b"\n"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the entry that a line holds. Raises KeyError, TypeError or ValueError for what is none."""
        return cls(
            path=_bytes("path", value),
            kind=Kind(value["type"]),
            size=_number(value["size"]),
            mode=int(value["mode"], 8),
            mtime=str(value["mtime"]),
            link=_bytes("link", value) if value.keys() & {"link", "link_base64"} else b"",
            offset=_number(value["offset"]),
            data_offset=_number(value["data_offset"]),
            sha256=str(value.get("sha256", "")),
        )

    def hash(self) -> bytes:
        """Return a hash of the line. Whoever compares a whole manifest keeps this much of each member."""
        return hashlib.blake2b(self.to_line(), digest_size=HASH_BYTES).digest()

    @property
    def name(self) -> str:
        """The path as Python has it: bytes that are no UTF-8 become surrogates."""
        return os.fsdecode(self.path)

    @property
    def link_name(self) -> str:
        """Where a link leads, likewise."""
        return os.fsdecode(self.link)


def _text(key: str, value: bytes) -> dict[str, str]:
    """Return a field for bytes: as text, or in base64 under another key where they are no UTF-8."""
    try:
        return {key: value.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{key}_base64": base64.b64encode(value).decode("ascii")}


def _bytes(key: str, value: Mapping[str, Any]) -> bytes:
    if key in value:
        return str(value[key]).encode("utf-8")
    return base64.b64decode(value[f"{key}_base64"], validate=True)


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no number of bytes")
    return value
