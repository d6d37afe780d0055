"""A tar that waits at a gate before it reads a run: the run stays in progress for as long as a test wants."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SCRIPT = """#!/bin/sh
case " $* " in *" --create "*) : > '{reached}'; until [ -e '{opened}' ]; do sleep 0.02; done ;; esac
exec {tar} "$@"
"""


class Gate:
    """Lies in `directory`, which is made. A watcher that is started with `PATH=gate.path` stops at it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._opened = directory / "opened"
        self._reached = directory / "reached"
        tar = directory / "tar"
        tar.write_text(
            SCRIPT.format(opened=self._opened, reached=self._reached, tar=shutil.which("tar")), encoding="utf-8"
        )
        tar.chmod(0o700)
        self.path = f"{directory}:{os.environ['PATH']}"

    def is_reached(self) -> bool:
        """Say whether some tar has come to the gate."""
        return self._reached.exists()

    def open(self) -> None:
        """Let everybody through from now on."""
        self._opened.touch()
