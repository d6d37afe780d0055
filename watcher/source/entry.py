"""Something in a run, as the file system describes it."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from watcher.model import Kind

KINDS = {
    stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMBOLIC_LINK, stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE, stat.S_IFBLK: Kind.BLOCK_DEVICE, stat.S_IFSOCK: Kind.SOCKET,
}  # fmt: skip


class Entry(NamedTuple):
    """Something in the run, as the file system describes it. `path` is relative to the run's parent: `./...`."""

    path: bytes
    name: str
    kind: Kind
    status: os.stat_result
    is_top: bool
