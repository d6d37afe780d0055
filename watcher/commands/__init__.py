"""What an operator types: one file a command, and `main`, which finds the command and tells how it ended.

A command reads its options, asks `watcher.wiring` for the parts, and prints. It returns an exit code. Nothing below
this folder prints, and nothing but `watcher.__main__` may import from here.
"""

from __future__ import annotations

from watcher.commands.main import run

__all__ = ["run"]
