"""What stands on the disk of an archived run: its archive, its wrapped key and its manifest, opened to be read.

Only the files that the run's document names are opened, and never through a link. The manifest is compared with its
recorded digest before any of it is used. Where a run is archived again, its old files are moved aside. Commands and
`restoring` use this folder.
"""

from __future__ import annotations

from watcher.stored.aside import move_aside
from watcher.stored.files import StoredRun
from watcher.stored.manifest import read_manifest
from watcher.stored.selection import Selection

__all__ = ["Selection", "StoredRun", "move_aside", "read_manifest"]
