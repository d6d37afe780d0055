"""What the tests take from npm, each in a directory of its own with a lock file."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

INSTALL_SECONDS = 300  # cold cache, slow network; 15 s on a two-core machine


class Unavailable(Exception):
    """No server can be had on this machine; the text says why."""


def installed(package: Path) -> Path:
    """Return the `node_modules` of a directory, installed first when it is missing or older than the lock file.

    Several test processes may ask at once; one installs, the others wait for it. Raises `Unavailable`.
    """
    if not shutil.which("node"):
        raise Unavailable("there is no 'node' on the PATH; the tests need Node 18 or newer")
    with open(package / "package-lock.json") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_installed(package):
            _install(package)
    return package / "node_modules"


def _is_installed(package: Path) -> bool:
    """npm writes this file last."""
    done = package / "node_modules/.package-lock.json"
    return done.exists() and done.stat().st_mtime >= (package / "package-lock.json").stat().st_mtime


def _install(package: Path) -> None:
    npm = shutil.which("npm")
    if not npm:
        raise Unavailable(f"{package}/node_modules is missing, and no 'npm' on the PATH to install it")
    limit = INSTALL_SECONDS
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        subprocess.run(command, cwd=package, check=True, capture_output=True, text=True, timeout=limit)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"'npm ci' in {package} failed: {error.stderr[-2000:].strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"'npm ci' in {package} took more than {limit} s") from error
    os.utime(package / "node_modules/.package-lock.json")
