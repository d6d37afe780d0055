"""The files of a run that is archived again are moved aside: nothing that was archived is ever removed."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from watcher.stored.files import StoredRun


def move_aside(stored: StoredRun, now: datetime) -> list[Path]:
    """Give the files of an archived run names that end in the time; return these, without those of absent files.

    The archive goes last: what was cut off is done again. Raises OSError, FileExistsError if such a name is taken.
    """
    moved = []
    manifest = [stored.manifest_path] if stored.archive.manifest_file else []
    for path in (stored.key_path, *manifest, stored.archive_path):
        aside = path.with_name(f"{path.name}.{now.astimezone(UTC):%Y%m%dT%H%M%SZ}")
        try:
            os.link(path, aside, follow_symlinks=False)  # takes no name from another file, as a rename would
        except FileNotFoundError:
            continue  # moved already, or on another host
        path.unlink()
        moved.append(aside)
    stored.archive_store.sync()
    return moved
