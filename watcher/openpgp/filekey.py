"""One archive's secret."""

from __future__ import annotations

import secrets
from typing import NoReturn


class FileKey:
    """One archive's secret: 32 random bytes as a line of 64 hex digits. `repr` and `str` do not show it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def generate(cls) -> FileKey:
        """Return a new key from the operating system's random source."""
        return cls(secrets.token_hex(32))

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def __repr__(self) -> str:
        return "FileKey(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a file key is not to be stored")
