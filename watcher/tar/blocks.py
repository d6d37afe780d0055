"""The ground of tar's format: blocks, and numbers in words."""

from __future__ import annotations

from watcher.errors import WatcherError

BLOCK_BYTES = 512

MAX_DIGITS = 18
"""Of a decimal number; any such number of bytes fits into tar's own numbers."""


class MalformedArchive(WatcherError):
    """A stream is not what tar writes."""


def padded(size: int) -> int:
    """Return a size as the blocks that hold it."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def decimal(value: bytes, what: str) -> int:
    """Return the number that is written there. Raises MalformedArchive, which names `what`."""
    if not value.isdigit() or len(value) > MAX_DIGITS:
        raise MalformedArchive(f"{what} is {value[:80]!r}")
    return int(value)
