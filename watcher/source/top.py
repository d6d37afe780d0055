"""The version of a run's top directory: what tells it from the one that was archived."""

from __future__ import annotations

import os
import stat
from hashlib import blake2b
from pathlib import Path

from watcher.source.rules import Rules


def has_same_top(path: Path, changed_ns: int, archived: str, rules: Rules) -> bool:
    """Say whether a top directory that last changed at `changed_ns` is still of the version that was archived.

    A log that a transfer leaves at its end changes the directory, and nothing that counts. Raises OSError.
    """
    moment, _, contents = archived.partition("-")
    return not archived or moment == str(changed_ns) or contents == contents_of(str(path), rules)


def contents_of(directory: str, rules: Rules) -> str:
    """Return a digest of the entries that count in a top directory: names and kinds, and of files size and mtime."""
    with os.scandir(directory) as found:
        entries = [entry for entry in found if not rules.tolerates(entry.name)]
    words = sorted(
        _words(entry) for entry in entries if not rules.excludes(os.fsencode(f"./{entry.name}"))
    )  # fmt: skip
    return blake2b(b"\0".join(words), digest_size=8).hexdigest()


def _words(entry: os.DirEntry[str]) -> bytes:
    # A directory's time changes with its entries, and these may be excluded. So only its name counts.
    name, status = os.fsencode(entry.name), entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return name
    return b"%s\0%d\0%d\0%d" % (name, stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns)
