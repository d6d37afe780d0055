"""A manifest is read as it comes: unpacked, cut into lines, each line a value."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

from watcher.errors import WatcherError
from watcher.manifest.entry import Entry
from watcher.manifest.heading import Heading

MAX_LINE_BYTES = 4 << 20
"""Of a heading that names 100 left out paths of 4 KiB, each byte escaped, and 20 warnings."""

_PACKED_BYTES = 16 << 10
"""So much is unpacked at once. It becomes 16 MiB at most, whatever somebody has packed."""

_GZIP = 31  # zlib's number for its largest window, in gzip's form


class MalformedManifest(WatcherError):
    """A manifest is not one that this program writes."""


class ManifestReader:
    """Calls `on_entry` for each member of the manifest that `feed` is given in pieces of any size.

    Before that `on_heading` is called; `heading` is there, too, once the first line has come.
    """

    def __init__(
        self, on_entry: Callable[[Entry], object], on_heading: Callable[[Heading], object] = lambda _: None
    ) -> None:
        self._on_entry = on_entry
        self._on_heading = on_heading
        self._unpack = zlib.decompressobj(_GZIP)
        self._is_packed_whole = True
        self._line = b""
        self._entries = 0
        self.heading: Heading | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises MalformedManifest, and what `on_entry` raises."""
        for start in range(0, len(data), _PACKED_BYTES):
            self._unpack_all(data[start : start + _PACKED_BYTES])

    def finish(self) -> Heading:
        """Note the end; return the heading. Raises MalformedManifest if the manifest is not whole."""
        if self.heading is None:
            raise MalformedManifest("the manifest is empty")
        members = self.heading.archive.members
        if not self._is_packed_whole or self._line or self._entries != members:
            raise MalformedManifest(f"the manifest is not whole: it lists {self._entries} of {members} members")
        return self.heading

    def _unpack_all(self, data: bytes) -> None:
        try:
            while data:
                self._take(self._unpack.decompress(data))
                data, self._is_packed_whole = self._unpack.unused_data, self._unpack.eof
                if self._unpack.eof:  # a gzip file may be several, one behind the other
                    self._unpack = zlib.decompressobj(_GZIP)
        except zlib.error as error:
            raise MalformedManifest(f"the manifest cannot be unpacked: {error}") from error

    def _take(self, unpacked: bytes) -> None:
        *lines, self._line = (self._line + unpacked).split(b"\n")
        for line in lines:
            self._take_line(line)
        if len(self._line) > MAX_LINE_BYTES:
            raise MalformedManifest("a line of the manifest is too long")

    def _take_line(self, line: bytes) -> None:
        try:
            value: Any = json.loads(line)
            found = Entry.from_json(value) if self.heading else Heading.from_json(value)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise MalformedManifest(f"the manifest has a line that is not ours: {error}") from error
        if isinstance(found, Heading):
            self.heading = found
            self._on_heading(found)
        else:
            self._entries += 1
            self._on_entry(found)
