"""A configuration file, read and checked: all problems at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from watcher.config.schema import Config, StatusDBConfig
from watcher.config.values import ListOf, Parser
from watcher.errors import ConfigError, remedy

_REFUSED = object()
"""Stands for a value that was refused."""


class _Loader(yaml.BaseLoader):
    """Makes text of every scalar, and None of an empty one, `~` and `null`."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("(?:~|null|)$"), ["~", "n", ""])

_Loader.add_constructor("tag:yaml.org,2002:null", lambda _loader, _node: None)


def find(argument: Path | None, environ: Mapping[str, str]) -> Path:
    """Given what `-c` named, return the file to load: that, else $ARCHIVE_CONFIG, else the usual one."""
    named = argument or environ.get("ARCHIVE_CONFIG")
    return Path(named or Path(environ.get("HOME") or Path.home(), "conf", "df_archive.yaml"))


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Given the file, and the environment that may name systemd credentials, return the Config.

    Raises ConfigError with every problem of the file; no password is in it.
    """
    data, duplicates = _parse(_read(path), path)
    reader = _Reader(environ)
    values = reader.section(Config, data)
    if problems := [*duplicates, *reader.problems]:
        raise ConfigError(problems)
    return Config(**values)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"config file '{path}' is not UTF-8 at line {line}; save it as UTF-8") from None
    except OSError as error:
        hint = remedy(error, "name another with -c FILE or $ARCHIVE_CONFIG; conf/df_archive.yaml is a sample")
        raise ConfigError(f"config file '{path}' cannot be read: {error.strerror}; {hint}") from None


def _parse(text: str, path: Path) -> tuple[Mapping[str, object], list[str]]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node else {}
    except yaml.YAMLError as error:
        # `from None`: PyYAML's error quotes the file, passwords included
        raise ConfigError(f"config file '{path}' is not YAML: {_what_and_where(error, text)}") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"config file '{path}' is not a set of keys; write lines such as 'log_level: INFO'")
    return data, list(_duplicates(node))


def _what_and_where(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)  # absent from yaml.reader.ReaderError
    before = text[: mark.index if mark else getattr(error, "position", 0)]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    told = re.sub(r"'[^'<>]{2,}'", "'...'", what)  # the error may quote a piece of a password
    return f"line {line}, column {column}: {told}; put text that holds special characters in quotes"


def _duplicates(node: yaml.Node | None, within: str = "") -> Iterator[str]:
    first_lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = f"{within}{key.value}", key.start_mark.line + 1
        if name in first_lines:
            yield f"{name}: given twice, at line {first_lines[name]} and line {line}; keep one of them"
        first_lines.setdefault(name, line)
        yield from _duplicates(value, f"{name}.")


class _Reader:
    """Makes values of what was written, and collects all that is wrong with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def section(self, kind: type, given: Mapping[Any, object], within: str = "") -> dict[str, Any]:
        """Return the values of the keys of a section, without those that are refused. A key without a value is none."""
        known = {each.name: each for each in fields(kind)}
        found = dict[str, Any]()
        for name, each in known.items():
            value = self._value(f"{within}{name}", each, given.get(name), found)
            if value is not _REFUSED:
                found[name] = value
        for name in given:
            if name not in known:
                # YAML reads `{password:x}` as a key, and the password is in it.
                shown = re.sub("(?<=[:=]).+", "...", f"{within}{name}")
                self.problems.append(f"{shown}: not a key; {_suggestion(str(name))}")
        return found

    def _value(self, key: str, each: Field[Any], given: object, found: Mapping[str, Any]) -> Any:
        about = each.metadata
        if given is None and each.default is MISSING and each.default_factory is MISSING:
            self.problems.append(f"{key}: missing; give {about['about']}")
            return _REFUSED
        if "section" in about:
            return self._subsection(key, about["section"], given)
        written = each.default_factory() if given is None and each.default_factory is not MISSING else given
        written = each.default if written is None else written
        value = None if written is None else self._parsed(key, written, about["parse"])
        if about["check"] is None or value is _REFUSED:
            return value
        return self._tried(key, given, lambda _: about["check"](value, found, self._environ))

    def _subsection(self, key: str, kind: type, given: object) -> Any:
        if not isinstance(given, Mapping):
            words = "is not a set of keys; write url and the others beneath it, indented"
            self.problems.append(f"{key}: {_shown(key, given)} {words}")
            return _REFUSED
        before = len(self.problems)
        values = self.section(kind, given, f"{key}.")
        return kind(**values) if len(self.problems) == before else _REFUSED

    def _parsed(self, key: str, value: object, parse: Parser | ListOf) -> Any:
        if not isinstance(parse, ListOf):
            return self._tried(key, value, parse)
        if not isinstance(value, list | tuple):
            self.problems.append(f"{key}: {_shown(key, value)} is not a list; write [one, two], or [] for none")
            return _REFUSED
        items = [self._tried(f"{key}.{number}", item, parse.parse_item) for number, item in enumerate(value)]
        return _REFUSED if _REFUSED in items else tuple(items)

    def _tried(self, key: str, value: object, parse: Parser) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            self.problems.append(f"{key}: {_shown(key, value)} {error}")
            return _REFUSED


def _shown(key: str, value: object) -> str:
    if key in ("statusdb", "statusdb.password") or (key == "statusdb.url" and "@" in str(value)):
        return "its value"
    by_kind = {type(None): "nothing", list: "a list", dict: "a set of keys"}
    return by_kind.get(type(value), repr(str(value)[:120]))


def _suggestion(name: str) -> str:
    known = {each.name: each.name for each in fields(Config)}
    known |= {each.name: f"statusdb.{each.name}" for each in fields(StatusDBConfig)}
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {known[near[0]]}?" if near else f"remove it; known are {', '.join(known.values())}"
