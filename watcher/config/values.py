"""The values of the configuration: how each is written, and what it becomes.

A parser is given what YAML has: text, None, a list or a set of keys. It returns the value, or raises ValueError with
the words that come behind the value in an error, the remedy last. A default is parsed, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from watcher.text import duration

Parser = Callable[[Any], Any]

LONGEST_SECONDS = 365 * 86400.0

COUCHDB_NAME = "[a-z][a-z0-9_$()+/-]*"

HOST = r"(?:[^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])"

SERVER = rf"(?i:https?://)?{HOST}(?::[0-9]{{1,5}})?(?:/(?!/)[^\s?#@]*)?"

UNUSABLE = r"[\0\ud800-\udfff]"  # a file name, an argument or a document has no NUL and no lone surrogate

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]+)?) ?(?:([kKMGTP])?B|([kKMGTP])iB)?")

_PREFIXES = "kMGTP"


class Secret:
    """A text that is shown nowhere by itself."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def reveal(self) -> str:
        """Return the text."""
        return self._text


def matching(pattern: str, reason: str) -> Parser:
    """Return the parser of a text that fits as a whole."""
    fit = re.compile(rf"(?s)(?=.*\S)(?!.*{UNUSABLE})(?:{pattern})")

    def parse(value: object) -> str:
        if not isinstance(value, str | int) or not fit.fullmatch(str(value)):
            raise ValueError(reason)
        return str(value)

    return parse


text = matching(".*", "is not usable text; write one value, in quotes if it holds : or #")


def in_turn(*parsers: Parser) -> Parser:
    """Return the parser that hands a value from one to the next."""

    def parse(value: object) -> Any:
        for each in parsers:
            value = each(value)
        return value

    return parse


class ListOf(NamedTuple):
    """A list, of which each item has a parser."""

    parse_item: Parser


def one_of(*allowed: str) -> Parser:
    """Return the parser of a word from a list."""
    words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"

    def parse(value: object) -> object:
        if value not in allowed:
            raise ValueError(f"is not allowed; write {words}")
        return value

    return parse


def seconds(least: float) -> Parser:
    """Return the parser of a length of time, in seconds."""

    def parse(value: object) -> float:
        try:
            found = duration(str(value))
        except ValueError:
            found = -1.0
        if not least <= found <= LONGEST_SECONDS:
            raise ValueError(f"is not a time from {least:g} s to 365 d; write seconds, 15 min, 24 h or 7 d")
        return found

    return parse


def size(value: object) -> int:
    """Return the bytes of a text such as `500 MB` or `10 GiB`."""
    match = _SIZE.fullmatch(str(value))
    if match is None:
        raise ValueError("is not a size; write 500 MB or 10 GiB")
    number, decimal, binary = match.groups()
    base, prefix = (1024, binary) if binary else (1000, decimal)
    return int(float(number) * base ** (_PREFIXES.index(prefix.replace("K", "k")) + 1 if prefix else 0))


def absolute(value: object) -> Path:
    """Return an absolute path; `~` is resolved."""
    try:
        path = Path(str(value)).expanduser()
    except RuntimeError:
        raise ValueError("begins in no known home directory; begin it with /") from None
    if not path.is_absolute() or re.search(UNUSABLE, str(path)):
        raise ValueError("is not an absolute path; begin it with / or ~/")
    return path


def readable(path: Path) -> Path:
    """Return the path of a file that can be read."""
    if not os.access(path, os.R_OK) or not path.is_file():
        raise ValueError("is not a file that this user can read; name one")
    return path


def secret(value: object) -> Secret | None:
    """Return a text that is not shown; None if it is empty."""
    if not isinstance(value, str):
        raise ValueError("is not usable text; write one value")  # noqa: TRY004  # as all parsers
    return Secret(value) if value else None
