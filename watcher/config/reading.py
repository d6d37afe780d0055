"""A configuration file, read and checked: all problems at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from watcher.config.schema import Config, StatusDBConfig
from watcher.errors import ConfigError, remedy

_REASONS = {  # pydantic's kinds of error that can reach an operator
    "string_type": "is not usable text; write one value",
    "tuple_type": "is not a list; write [one, two], or [] for none",
    "model_type": "is not a set of keys; write url and the others beneath it, indented",
}


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
    try:
        config = Config.model_validate(data, context=environ)
    except ValidationError as error:
        # `from None` here and below: the errors of pydantic and PyYAML quote the file, passwords included
        raise ConfigError([*duplicates, *map(_problem, error.errors())]) from None
    if duplicates:
        raise ConfigError(duplicates)
    return config


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


def _problem(error: ErrorDetails) -> str:
    key, kind = ".".join(map(str, error["loc"])), error["type"]
    if kind == "missing":
        fields = (Config if len(error["loc"]) == 1 else StatusDBConfig).model_fields
        return f"{key}: missing; give {fields[str(error['loc'][-1])].description}"
    if kind in ("extra_forbidden", "invalid_key"):
        # YAML reads `{password:x}` as a key, and the password is in it.
        return f"{re.sub('(?<=[:=]).+', '...', key)}: not a key; {_suggestion(str(error['loc'][-1]))}"
    if kind == "literal_error":
        allowed = error["ctx"]["expected"].replace("'", "")
        return f"{key}: {_shown(key, error['input'])} is not allowed; write {allowed}"
    reason = _REASONS.get(kind, error["msg"].removeprefix("Value error, "))
    return f"{key}: {_shown(key, error['input'])} {reason}"


def _shown(key: str, value: object) -> str:
    if key in ("statusdb", "statusdb.password") or (key == "statusdb.url" and "@" in str(value)):
        return "its value"
    by_kind = {type(None): "nothing", list: "a list", dict: "a set of keys"}
    return by_kind.get(type(value), repr(str(value)[:120]))


def _suggestion(name: str) -> str:
    known = {each: each for each in Config.model_fields}
    known |= {each: f"statusdb.{each}" for each in StatusDBConfig.model_fields}
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {known[near[0]]}?" if near else f"remove it; known are {', '.join(known.values())}"
