"""What tests take from the machine itself: its limits, mounts and users. Most of it needs root."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

NOBODY = 65534
CHECKOUT = Path(__file__).parent.parent
IS_SHARED = "TESTS_SHARE_THE_MACHINE"
"""Set in the environment where tests are started by a test, which has the lock for them."""


@contextmanager
def as_nobody() -> Iterator[None]:
    """Look at files with the rights of `nobody` while the context lasts: this thread, and those that it starts."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(NOBODY)
    try:
        yield
    finally:
        libc.setfsuid(0)


def make_reachable(path: Path) -> None:
    """Let every user pass through what pytest keeps to its own above the path."""
    temporary = Path(tempfile.gettempdir())
    for above in path.parents:
        if above.is_relative_to(temporary) and above != temporary:
            above.chmod(0o755)


def as_user_nobody() -> list[str]:
    """Return the words before this program's command that run it as `nobody`. Needs root.

    The checkout or the Python may lie in a directory that is closed to others, such as /root. The command gets a
    mount namespace of its own, in which such a directory is open and holds nothing but these.
    """
    shown: dict[Path, list[str]] = {}
    for path in (CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)):
        if closed := next((above for above in reversed(path.parents) if not above.stat().st_mode & stat.S_IXOTH), None):
            shown.setdefault(closed, []).append(str(path.relative_to(closed)))
    show = [word for closed, paths in shown.items() for word in ("sh", "-euc", _SHOW, "sh", str(closed), *paths, "--")]
    user = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    return ["unshare", "--mount", *show, *user]


_SHOW = """
closed=$1; shift
mount --rbind "$closed" /mnt
mount -t tmpfs -o mode=755 none "$closed"
until [ "$1" = -- ]; do mkdir -p "$closed/$1"; mount --rbind "/mnt/$1" "$closed/$1"; shift; done
shift; exec "$@"
"""


@contextmanager
def the_machine(alone: bool) -> Iterator[None]:
    """Share this machine with the tests of other processes while the context lasts, or have it alone."""
    with (
        open(Path(tempfile.gettempdir(), f"tests-of-the-archiver-{os.getuid()}.lock"), "w") as machine,
        open(f"{machine.name}.queue", "w") as turn,
    ):
        fcntl.flock(turn, fcntl.LOCK_EX)  # so that those who share it keep nobody out for long
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield


@contextmanager
def inotify_limit(name: str, value: int) -> Iterator[None]:
    """Lower one of the kernel's limits in /proc/sys/fs/inotify. It is everybody's: a test that does it is `alone`."""
    file = Path("/proc/sys/fs/inotify", name)
    before = file.read_text()
    file.write_text(str(value))
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing while the context lasts; what is open already stays so."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


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
    return [int(watch["ino"], 16) for watch in _inotify_watches(pid)]


def inotify_masks(pid: int | str = "self") -> dict[int, int]:
    """Return the mask of each watch, by its directory's inode number."""
    return {int(watch["ino"], 16): int(watch["mask"], 16) for watch in _inotify_watches(pid)}


def _inotify_watches(pid: int | str) -> list[dict[str, str]]:
    found = []
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = entry.read_text().splitlines()
        except OSError:
            continue  # closed meanwhile
        found += [
            dict(field.split(":", 1) for field in line.split()[1:]) for line in lines if line.startswith("inotify wd:")
        ]
    return found


def limited_command(name: str, value: int) -> tuple[str, ...]:
    """Return the command that runs a program under a limit of inotify of its own, such as `max_inotify_instances`."""
    return (*_NAMESPACE, "bash", "-c", f'echo {value} > /proc/sys/user/{name}; exec "$@"', "bash")


def require_namespace(unavailable: Callable[[str], NoReturn]) -> None:
    """Skip (or fail in CI) when `limited_command` cannot work here: a user namespace has limits of its own."""
    if subprocess.run([*_NAMESPACE, "true"], check=False, capture_output=True).returncode:
        unavailable("may not make a user namespace")


_NAMESPACE = ("unshare", "--user", "--map-root-user")
