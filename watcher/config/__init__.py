"""The configuration: its keys, the file it is read from, and whether the directories that it names can be used.

A `Config` cannot be changed, and is right: all problems of a file are raised at once, as one ConfigError. Only
`watcher.wiring` and the commands read it; everybody else is given the values that it needs.
"""

from __future__ import annotations

from watcher.config.paths import check_paths, prepare_run_keys_path
from watcher.config.reading import find, load
from watcher.config.schema import Config

__all__ = ["Config", "check_paths", "find", "load", "prepare_run_keys_path"]
