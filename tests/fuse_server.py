"""File systems of our own: FUSE, each served by a process of the test's. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_SECONDS = 20.0


class Unavailable(Exception):
    """No FUSE can be had on this machine; the text says why."""


@contextmanager
def served(path: Path, program: str, *arguments: Path) -> Iterator[None]:
    """Run a Python program that mounts a file system at `path`, until the context ends. Raises Unavailable."""
    if not Path("/dev/fuse").exists():
        raise Unavailable("there is no /dev/fuse")
    path.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        _await_mount(path, server)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)
        server.kill()  # what still hangs ends with it
        server.wait()


def _await_mount(path: Path, server: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + READY_SECONDS
    while not os.path.ismount(path):
        if server.poll() is not None or time.monotonic() > limit:
            words = server.stderr.read() if server.stderr and server.poll() is not None else b"it does not answer"
            raise Unavailable(f"FUSE does not run: {words.decode(errors='replace').strip()[-300:]}")
        time.sleep(0.02)
