"""What tests take from the machine itself: its limits, mounts and users. Most of it needs root."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

NOBODY = 65534


def require_root(unavailable: Callable[[str], NoReturn]) -> None:
    """Skip (or fail in CI) when this is not root."""
    if os.geteuid() != 0:
        unavailable("needs root")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Look at files with the rights of `nobody` while the context lasts: this thread, and those that it starts."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(NOBODY)
    try:
        yield
    finally:
        libc.setfsuid(0)


@contextmanager
def inotify_limit(name: str, value: int) -> Iterator[None]:
    """Lower one of the kernel's limits in /proc/sys/fs/inotify. It is everybody's: for as short as possible."""
    file = Path("/proc/sys/fs/inotify", name)
    before = file.read_text()
    file.write_text(str(value))
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def mounted(where: Path, size: str = "16m") -> Iterator[Path]:
    """Have an empty tmpfs mounted at `where`; unmounted afterwards if it still is."""
    mount(where, size)
    try:
        yield where
    finally:
        while os.path.ismount(where):
            unmount(where)


def mount(where: Path, size: str = "16m") -> None:
    """Mount an empty tmpfs."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], check=True)


def unmount(where: Path) -> None:
    """Unmount; fails when something there is in use."""
    subprocess.run(["umount", str(where)], check=True)


def inotify_inodes(pid: int | str = "self") -> list[int]:
    """Return the inode number of each directory that a process watches, as the kernel has it."""
    found = []
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = entry.read_text().splitlines()
        except OSError:
            continue  # closed meanwhile
        found += [int(line.split()[2].removeprefix("ino:"), 16) for line in lines if line.startswith("inotify wd:")]
    return found
