"""A tar that waits at a gate before it reads a run: the run stays in progress for as long as a test wants."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SCRIPT = """#!/bin/bash
case " $* " in *" --create "*) while [ ! -e {opened} ]; do sleep 0.02; done ;; esac
exec {tar} "$@"
"""


class Gate:
    """Lies in `directory`, which must exist. A watcher that is started with `PATH=gate.path` stops at it."""

    def __init__(self, directory: Path) -> None:
        self._opened = directory / "opened"
        (directory / "bin").mkdir()
        tar = directory / "bin" / "tar"
        tar.write_text(SCRIPT.format(opened=self._opened, tar=shutil.which("tar")), encoding="utf-8")
        tar.chmod(0o755)
        self.path = f"{tar.parent}:{os.environ['PATH']}"

    def open(self) -> None:
        """Let everybody through from now on."""
        self._opened.touch()
