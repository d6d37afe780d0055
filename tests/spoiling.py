"""What may have happened to a stored file since it was recorded."""

from __future__ import annotations

import os
from pathlib import Path


def flip(path: Path) -> None:
    """Change a bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Take the last byte away."""
    os.truncate(path, path.stat().st_size - 1)


def append(path: Path) -> None:
    """Add a byte."""
    with path.open("ab") as file:
        file.write(b"x")


def put_a_link(path: Path) -> None:
    """Let a link lead to the file, which is the recorded one."""
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")
