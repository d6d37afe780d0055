"""The names that archives and wrapped keys have, staged and published."""

from __future__ import annotations

import hashlib
import os
import re

from watcher.model import NAME_MAX

MANIFEST_SUFFIX = ".manifest"

PARTIAL_SUFFIX = ".partial"

STAGED = re.compile(r"^\..*\.([0-9a-f]{32})\.(?:tar\.gpg|key\.gpg|manifest)\.partial$", re.DOTALL)


def staging_name(run_name: str, token: str, suffix: str) -> str:
    """Return the hidden name of a file of the claim `token`, until it has its final one: NAME_MAX bytes at most."""
    room = NAME_MAX - len(f"..{token}{suffix}{PARTIAL_SUFFIX}")
    return f".{_shortened(run_name, room)}.{token}{suffix}{PARTIAL_SUFFIX}"


def _shortened(run_name: str, room: int) -> str:
    if len(os.fsencode(run_name)) <= room:
        return run_name
    digest = hashlib.sha256(os.fsencode(run_name)).hexdigest()[:16]
    while len(os.fsencode(run_name)) > room - len(digest) - 1:
        run_name = run_name[:-1]
    return f"{run_name}~{digest}"
