"""Whether an archive is still what was recorded, long after: its files, who can open it, and what it holds.

`verify_files` needs no private key. `verify_content` decrypts the archive, and names the members that differ from the
manifest. Both only read. The command `verify` uses this folder.
"""

from __future__ import annotations

from watcher.verifying.content import verify_content
from watcher.verifying.files import require_directories, verify_files

__all__ = ["require_directories", "verify_content", "verify_files"]
