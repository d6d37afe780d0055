"""The names that archives and wrapped keys have, staged and published."""

from __future__ import annotations

import re

from watcher.model import NAME_MAX, shortened

RECEIPT_SUFFIX = ".manifest"
"""As earlier versions have it: what they have finished is adopted."""

PARTIAL_SUFFIX = ".partial"

STAGED = re.compile(
    r"^\..*\.([0-9a-f]{32})\.(?:tar\.gpg|key\.gpg|manifest|manifest\.jsonl\.gz(?:\.gpg)?)\.partial$", re.DOTALL
)


def staging_name(run_name: str, token: str, suffix: str) -> str:
    """Return the hidden name of a file of the claim `token`, until it has its final one: NAME_MAX bytes at most."""
    room = NAME_MAX - len(f"..{token}{suffix}{PARTIAL_SUFFIX}")
    return f".{shortened(run_name, room)}.{token}{suffix}{PARTIAL_SUFFIX}"
