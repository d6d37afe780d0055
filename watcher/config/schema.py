"""The keys of the configuration: types, defaults, and what each means.

A key's field has metadata: `parse`, `about` for people, and `check`, which is given the value, what was found before it
in the section, and the environment, and returns the value or raises ValueError.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from watcher.config.values import (
    COUCHDB_NAME,
    SERVER,
    ListOf,
    Parser,
    Secret,
    absolute,
    in_turn,
    matching,
    one_of,
    readable,
    seconds,
    secret,
    size,
    text,
)

Check = Callable[[Any, Mapping[str, Any], Mapping[str, str]], Any]

_SQLITE = "sqlite://"

_CREDENTIAL = "statusdb_password"

_NO_PASSWORD = (
    "is missing; give statusdb.password_file, statusdb.password or, to the systemd unit, "
    f"the credential {_CREDENTIAL} (it exists in the unit alone: other commands need one of the keys); "
    "or remove statusdb.username"
)

_TRANSFERS_OWN = (".metadata_rsync_exitcode", "rsync*.log", "*.rsync.log", "transfer*.log")

_TRANSFERS_TEMPORARY = (  # the first is rsync's
    ".?*.??????", ".~tmp~", ".rsync-partial", "*.partial", "*.filepart", "*.part", "*.tmp", "*.lftp-pget-status",
)  # fmt: skip

_name = matching(r"(?!\.\.?$)[^/*]+", "is not a run's or sequencer's name; no '/', no '*'")

_file_name = matching("[^/]+", "is not a pattern of file names; write it without '/'")

_level = in_turn(
    matching("(?i:debug|info|warn(ing)?|error)", "is not a log level; write DEBUG, INFO, WARN or ERROR"),
    lambda level: str(level).upper().replace("WARNING", "WARN"),
)

_rate = in_turn(matching("0*[1-9].*", "is no number of bytes; write 200 MB or 1 GiB"), size)

_url = in_turn(
    text,
    matching("sqlite:///.*|[^@]*", "holds credentials; write statusdb.username and statusdb.password"),
    matching(f"sqlite:///.*[^/]|{SERVER}", "is no database; write a host, http://host or sqlite:///file"),
)


def _key(parse: Parser | ListOf, about: str, default: Any = MISSING, check: Check | None = None) -> Any:
    return field(default=default, metadata={"parse": parse, "about": about, "check": check})


def _sqlite_has_no_users(value: Any, found: Mapping[str, Any], _environ: Mapping[str, str]) -> Any:
    if value is not None and found.get("url", "").startswith(_SQLITE):
        raise ValueError("means nothing to SQLite, which has no users; remove it")
    return value


def _from_one_source(given: Secret | None, found: Mapping[str, Any], environ: Mapping[str, str]) -> Secret | None:
    _sqlite_has_no_users(given, found, environ)
    if not found.keys() >= {"url", "username", "password_file"}:
        return given  # one of them was refused, and that was said. A second problem would only confuse.
    username, file = found["username"], found["password_file"]
    if given and file:
        raise ValueError("is given beside statusdb.password_file; keep one of them")
    if username is None and (given or file):
        raise ValueError("has no statusdb.username; give one, or remove the password")
    source = (given or file or _credential(environ)) if username else None
    if username and not source:
        raise ValueError(_NO_PASSWORD)
    return _first_line(source) if isinstance(source, Path) else source


def _credential(environ: Mapping[str, str]) -> Path | None:
    path = Path(environ.get("CREDENTIALS_DIRECTORY", ""), _CREDENTIAL)
    return path if path.is_absolute() and os.access(path, os.F_OK) else None


def _first_line(path: Path) -> Secret:
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"cannot be read from '{path}': {why}; let this user read it") from None
    if not line:
        raise ValueError(f"cannot be read from '{path}': first line empty; write the password there")
    return Secret(line)


@dataclass(frozen=True, kw_only=True)
class StatusDBConfig:
    """Where run documents are kept. `username` and `password` come together. Without them nobody logs in."""

    url: str = _key(_url, "a host, such as couch.example.org, or sqlite:///path/of/status.db")
    username: str | None = _key(text, "the database user; none: no authentication", None, _sqlite_has_no_users)
    password_file: Path | None = _key(absolute, "a file whose first line is the password", None, _sqlite_has_no_users)
    password: Secret | None = _key(secret, "the password, wherever it was given", None, _from_one_source)
    database: str = _key(
        matching(COUCHDB_NAME, "is not a CouchDB name; write a-z, then a-z 0-9 _$()+-/"),
        "its name; unused with SQLite",
        "archiving_status",
    )
    ca_file: Path | None = _key(in_turn(absolute, readable), "a PEM file of authorities to trust for url", None)

    @property
    def sqlite_path(self) -> Path | None:
        """The file of an SQLite database, None for a server."""
        return Path(self.url.removeprefix(_SQLITE)) if self.url.startswith(_SQLITE) else None

    @property
    def server_url(self) -> str:
        """The `url` with its scheme and without a trailing slash."""
        return (self.url if "://" in self.url else f"https://{self.url}").rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration. Paths are absolute, durations in seconds, sizes in bytes."""

    statusdb: StatusDBConfig = field(
        metadata={"section": StatusDBConfig, "about": "the status database, at least its url"}
    )
    sequencing_path: Path = _key(absolute, "the directory that holds <sequencer>/<run>")
    destination_path: Path = _key(absolute, "the directory that receives <run>.tar.gpg")
    run_keys_path: Path = _key(absolute, "the same for <run>.key.gpg", "~/run_keys")
    gpg_receiver: str = _key(text, "the public key that may unwrap file keys, best as a fingerprint")
    gnupg_home: Path | None = _key(absolute, "gpg's home; none: gpg's own default", None)
    ignore: tuple[str, ...] = _key(ListOf(_name), "names of sequencers and runs to leave alone", ())
    tar_exclusions: tuple[str, ...] = _key(ListOf(text), "patterns for tar's --exclude", ())
    tolerated_changes: tuple[str, ...] = _key(ListOf(_file_name), "may change under tar", _TRANSFERS_OWN)
    transfer_names: tuple[str, ...] = _key(
        ListOf(_file_name), "names that a transfer in progress leaves", _TRANSFERS_TEMPORARY
    )
    log_file: Path | None = _key(absolute, "a file that receives the log as well", None)
    log_level: str = _key(_level, "the least severity that is logged", "INFO")
    worker_id: str = field(
        default_factory=socket.gethostname, metadata={"parse": text, "about": "this worker's name", "check": None}
    )
    max_concurrent_jobs: int = _key(
        in_turn(matching("[1-9]|[1-5][0-9]|6[0-4]", "is not a whole number from 1 to 64"), int),
        "runs worked on at once",
        2,
    )
    rescan_interval: float = _key(seconds(least=0.1), "between full listings", 300.0)
    network_rescan_interval: float = _key(seconds(least=0.1), "the same on a network file system", 60.0)
    nice: int = _key(
        in_turn(matching("1?[0-9]", "is not a whole number from 0 to 19"), int), "of tar and gpg, as nice(1) has it", 0
    )
    io_class: str | None = _key(one_of("best-effort", "idle"), "of tar and gpg, as ionice(1) has it", None)
    bandwidth_limit: int | None = _key(_rate, "bytes a second that all jobs read together", None)
    lease_seconds: float = _key(seconds(least=1), "unrenewed so long, a claim is open to others", 300.0)
    sentinel_policy: str = _key(one_of("exit_code", "presence"), "presence: codes do not matter", "exit_code")
    encryption: str = _key(one_of("mdc", "ocb"), "ocb: quicker, and fewer programs read it", "mdc")
    manifest: str = _key(one_of("encrypted", "clear", "none"), "clear: for all to read; none: no manifest", "encrypted")
    validation: str = _key(one_of("follow", "after", "reread"), "when an archive is decrypted again", "follow")
    minimum_free_space: int = _key(size, "kept free in destination_path", 1024**3)
    retry_delay: float = _key(seconds(least=0), "before the second attempt; then doubled", 60.0)
    settle_limit: float = _key(seconds(least=0), "a run that changes for longer has failed", 86400.0)
    quiet_period: float = _key(seconds(least=0), "a run that changed so lately is not encrypted yet", 60.0)
    stall_limit: float = _key(seconds(least=0.1), "tar or gpg that moves no byte so long is ended", 900.0)
