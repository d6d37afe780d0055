"""An archived run comes back, compared with what was recorded, and harmless for the user who restores.

`restore` does not trust the archive. `Guard` judges each member before tar gets a byte of it. What is restored, all or
chosen members, is compared with the digests that were recorded. Only the command
`restore` uses this folder.
"""

from __future__ import annotations

from watcher.restoring.extraction import Manner, restore

__all__ = ["Manner", "restore"]
