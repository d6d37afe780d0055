"""Text that people read and write: what a terminal shows, and lengths of time."""

from __future__ import annotations

import re

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)?")
_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def printable(text: str) -> str:
    """Return the text with everything escaped that would move the cursor, break the line or is no UTF-8."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)


def duration(text: str) -> float:
    """Return the seconds of a text such as `90`, `15 min`, `2h` or `150 d`. Raises ValueError for another text."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a length of time; write seconds, 15 min, 24 h or 7 d")
    return float(match[1]) * _UNIT_SECONDS[match[2] or "s"]
