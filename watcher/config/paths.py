"""Whether the configured directories can be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from watcher.config.schema import Config
from watcher.errors import ConfigError, remedy


def check_paths(config: Config) -> tuple[str, ...]:
    """Given a Config, return what is wrong on this machine with the directories it names; none is made."""
    keys = config.run_keys_path
    return (
        *_unusable("sequencing_path", config.sequencing_path, "readable"),
        *_unusable("destination_path", config.destination_path, "writable"),
        *_unusable("run_keys_path", keys if os.path.lexists(keys) else keys.parent, "writable"),
        *_nested(config),
    )


def prepare_run_keys_path(path: Path) -> None:
    """Make the directory of wrapped keys, mode 0700, if it is missing; raise ConfigError if that fails."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run_keys_path: '{path}' cannot be made: {error.strerror}; {remedy(error, 'make it')}"
        ) from error


def _unusable(key: str, path: Path, access: Literal["readable", "writable"]) -> Iterator[str]:
    try:
        path.stat()
    except OSError as error:
        # We do not make it: if a mount is missing, we would fill the disk below its mount point.
        hint = remedy(error, "mount it, or make it if it is no mount")
        yield f"{key}: '{path}' cannot be reached: {error.strerror}; {hint}"
        return
    wanted = os.R_OK | os.X_OK | (os.W_OK if access == "writable" else 0)
    if not path.is_dir():
        yield f"{key}: '{path}' is not a directory; name one"
    elif not os.access(path, wanted):
        yield f"{key}: '{path}' is not {access} for user id {os.geteuid()}; mend its owner, mode or mount"


def _nested(config: Config) -> Iterator[str]:
    source, destination, keys = config.sequencing_path, config.destination_path, config.run_keys_path
    for key, path in (("destination_path", destination), ("run_keys_path", keys)):
        if _within(path, source):
            yield f"{key}: '{path}' is sequencing_path '{source}' or inside it; move it out"
    if _within(source, destination) and not _within(destination, source):
        yield f"sequencing_path: '{source}' is inside destination_path '{destination}'; move one of them"


def _within(inner: Path, outer: Path) -> bool:
    # Compared by inode: a bind mount gives one directory a second name without a symbolic link.
    real = Path(os.path.realpath(inner))
    there = [each for each in (real, *real.parents) if os.access(each, os.F_OK)]
    return os.access(outer, os.F_OK) and any(each.samefile(outer) for each in there)
