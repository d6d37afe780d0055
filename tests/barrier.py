"""A tar that waits at a gate before it reads a run: the run stays in progress for as long as a test wants."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SCRIPT = """#!/bin/sh
case " $* " in *" --create "*) until [ -e '{opened}' ]; do sleep 0.02; done ;; esac
exec {tar} "$@"
"""


class Gate:
    """Lies in `directory`, which is made. A watcher that is started with `PATH=gate.path` stops at it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._opened = directory / "opened"
        tar = directory / "tar"
        tar.write_text(SCRIPT.format(opened=self._opened, tar=shutil.which("tar")), encoding="utf-8")
        tar.chmod(0o700)
        self.path = f"{directory}:{os.environ['PATH']}"

    def open(self) -> None:
        """Let everybody through from now on."""
        self._opened.touch()
