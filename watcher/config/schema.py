"""The keys of the configuration: types, defaults, and what each means."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo
from pydantic.functional_validators import BeforeValidator, field_validator, model_validator
from pydantic.types import ByteSize, SecretStr

_SQLITE = "sqlite://"

_CREDENTIAL = "statusdb_password"

_NO_PASSWORD = (
    "is missing; give statusdb.password_file, statusdb.password or, to the systemd unit, "
    f"the credential {_CREDENTIAL} (it exists in the unit alone: other commands need one of the keys); "
    "or remove statusdb.username"
)

_LONGEST_SECONDS = 365 * 86400.0

_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}

_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)?\s*")

_SIZE = r"[0-9]{1,15}(?:\.[0-9]+)? ?(?:[kKMGTP]?i?B)?"

_COUCHDB_NAME = "[a-z][a-z0-9_$()+/-]*"

_HOST = r"(?:[^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])"

_SERVER = rf"(?i:https?://)?{_HOST}(?::[0-9]{{1,5}})?(?:/(?!/)[^\s?#@]*)?"

_UNUSABLE = r"[\0\ud800-\udfff]"  # a file name, an argument or a document has no NUL and no lone surrogate

_TRANSFERS_OWN = (".metadata_rsync_exitcode", "rsync*.log", "*.rsync.log", "transfer*.log")

_TRANSFERS_TEMPORARY = (  # the first is rsync's
    ".?*.??????", ".~tmp~", ".rsync-partial", "*.partial", "*.filepart", "*.part", "*.tmp", "*.lftp-pget-status",
)  # fmt: skip


def _matching(pattern: str, reason: str) -> BeforeValidator:
    fit = re.compile(rf"(?s)(?=.*\S)(?!.*{_UNUSABLE})(?:{pattern})")

    def parse(value: object) -> str:
        if not isinstance(value, str | int) or not fit.fullmatch(str(value)):
            raise ValueError(reason)
        return str(value)

    return BeforeValidator(parse)


def _seconds(least: float) -> BeforeValidator:
    def parse(value: object) -> float:
        match = _DURATION.fullmatch(str(value))
        seconds = float(match[1]) * _UNIT_SECONDS[match[2] or "s"] if match else -1.0
        if not least <= seconds <= _LONGEST_SECONDS:
            raise ValueError(f"is not a time from {least:g} s to 365 d; write seconds, 15 min, 24 h or 7 d")
        return seconds

    return BeforeValidator(parse)


def _absolute(value: object) -> Path:
    try:
        path = Path(str(value)).expanduser()
    except RuntimeError:
        raise ValueError("begins in no known home directory; begin it with /") from None
    if not path.is_absolute() or re.search(_UNUSABLE, str(path)):
        raise ValueError("is not an absolute path; begin it with / or ~/")
    return path


def _readable(path: Path) -> Path:
    if not os.access(path, os.R_OK) or not path.is_file():
        raise ValueError("is not a file that this user can read; name one")
    return path


def _first_line(path: Path) -> SecretStr:
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"cannot be read from '{path}': {why}; let this user read it") from None
    if not line:
        raise ValueError(f"cannot be read from '{path}': first line empty; write the password there")
    return SecretStr(line)


def _credential(environ: Mapping[str, str] | None) -> Path | None:
    path = Path((environ or {}).get("CREDENTIALS_DIRECTORY", ""), _CREDENTIAL)
    return path if path.is_absolute() and os.access(path, os.F_OK) else None


_is_text = _matching(".*", "is not usable text; write one value, in quotes if it holds : or #")

_Text = Annotated[str, _is_text]

_Name = Annotated[str, _matching(r"(?!\.\.?$)[^/*]+", "is not a run's or sequencer's name; no '/', no '*'")]

_FileName = Annotated[str, _matching("[^/]+", "is not a pattern of file names; write it without '/'")]

_Path = Annotated[Path, BeforeValidator(_absolute)]

_File = Annotated[Path, BeforeValidator(_readable), BeforeValidator(_absolute)]

_Interval = Annotated[float, _seconds(least=0.1)]

_Lease = Annotated[float, _seconds(least=1)]

_Duration = Annotated[float, _seconds(least=0)]

_Size = Annotated[ByteSize, _matching(_SIZE, "is not a size; write 500 MB or 10 GiB")]

_Jobs = Annotated[int, _matching("[1-9]|[1-5][0-9]|6[0-4]", "is not a whole number from 1 to 64")]

_Nice = Annotated[int, _matching("1?[0-9]", "is not a whole number from 0 to 19")]

_Rate = Annotated[ByteSize, _matching(rf"(?=0*[1-9]){_SIZE}", "is no number of bytes; write 200 MB or 1 GiB")]

_IOClass = Literal["best-effort", "idle"]

_Level = Annotated[
    Literal["DEBUG", "INFO", "WARN", "ERROR"],
    BeforeValidator(lambda level: level.upper().replace("WARNING", "WARN")),
    _matching("(?i:debug|info|warn(ing)?|error)", "is not a log level; write DEBUG, INFO, WARN or ERROR"),
]

_Policy = Literal["exit_code", "presence"]

_Encryption = Literal["mdc", "ocb"]

_Validation = Literal["follow", "after", "reread"]

_Database = Annotated[str, _matching(_COUCHDB_NAME, "is not a CouchDB name; write a-z, then a-z 0-9 _$()+-/")]

_URL = Annotated[
    str,  # the last is asked first
    _matching(f"sqlite:///.*[^/]|{_SERVER}", "is no database; write a host, http://host or sqlite:///file"),
    _matching("sqlite:///.*|[^@]*", "holds credentials; write statusdb.username and statusdb.password"),
    _is_text,
]


class _Section(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True):
    @model_validator(mode="before")
    @classmethod
    def _a_key_without_a_value_is_not_given(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


class StatusDBConfig(_Section, frozen=True):
    """Where run documents are kept. `username` and `password` come together. Without them nobody logs in."""

    url: _URL = Field(description="a host, such as couch.example.org, or sqlite:///path/of/status.db")
    username: _Text | None = Field(default=None, description="the database user; none: no authentication")
    password_file: _Path | None = Field(default=None, description="a file whose first line is the password")
    password: SecretStr | None = Field(default=None, description="the password, wherever it was given")
    database: _Database = Field(default="archiving_status", description="its name; unused with SQLite")
    ca_file: _File | None = Field(default=None, description="a PEM file of authorities to trust for url")

    @property
    def sqlite_path(self) -> Path | None:
        """The file of an SQLite database, None for a server."""
        return Path(self.url.removeprefix(_SQLITE)) if self.url.startswith(_SQLITE) else None

    @property
    def server_url(self) -> str:
        """The `url` with its scheme and without a trailing slash."""
        return (self.url if "://" in self.url else f"https://{self.url}").rstrip("/")

    @field_validator("username", "password_file", "password")
    @classmethod
    def _sqlite_has_no_users(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and info.data.get("url", "").startswith(_SQLITE):
            raise ValueError("means nothing to SQLite, which has no users; remove it")
        return value

    @field_validator("password")
    @classmethod
    def _from_one_source(cls, given: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if not info.data.keys() >= {"url", "username", "password_file"}:
            return given  # pydantic has refused one of them, and said so. A second problem would only confuse.
        username, file = info.data["username"], info.data["password_file"]
        if given and file:
            raise ValueError("is given beside statusdb.password_file; keep one of them")
        if username is None and (given or file):
            raise ValueError("has no statusdb.username; give one, or remove the password")
        source = (given or file or _credential(info.context)) if username else None
        if username and not source:
            raise ValueError(_NO_PASSWORD)
        return _first_line(source) if isinstance(source, Path) else source


class Config(_Section, frozen=True):
    """The configuration. Paths are absolute, durations in seconds, sizes in bytes."""

    statusdb: StatusDBConfig = Field(description="the status database, at least its url")
    sequencing_path: _Path = Field(description="the directory that holds <sequencer>/<run>")
    destination_path: _Path = Field(description="the directory that receives <run>.tar.gpg")
    run_keys_path: _Path = Field(default=Path("~/run_keys"), description="the same for <run>.key.gpg")
    gpg_receiver: _Text = Field(description="the public key that may unwrap file keys, best as a fingerprint")
    gnupg_home: _Path | None = Field(default=None, description="gpg's home; none: gpg's own default")
    ignore: tuple[_Name, ...] = Field(default=(), description="names of sequencers and runs to leave alone")
    tar_exclusions: tuple[_Text, ...] = Field(default=(), description="patterns for tar's --exclude")
    tolerated_changes: tuple[_FileName, ...] = Field(default=_TRANSFERS_OWN, description="may change under tar")
    transfer_names: tuple[_FileName, ...] = Field(
        default=_TRANSFERS_TEMPORARY, description="names that a transfer in progress leaves"
    )
    log_file: _Path | None = Field(default=None, description="a file that receives the log as well")
    log_level: _Level = Field(default="INFO", description="the least severity that is logged")
    worker_id: _Text = Field(default_factory=socket.gethostname, description="this worker's name")
    max_concurrent_jobs: _Jobs = Field(default=2, description="runs worked on at once")
    rescan_interval: _Interval = Field(default=300.0, description="between full listings")
    network_rescan_interval: _Interval = Field(default=60.0, description="the same on a network file system")
    nice: _Nice = Field(default=0, description="of tar and gpg, as nice(1) has it")
    io_class: _IOClass | None = Field(default=None, description="of tar and gpg, as ionice(1) has it")
    bandwidth_limit: _Rate | None = Field(default=None, description="bytes a second that all jobs read together")
    lease_seconds: _Lease = Field(default=300.0, description="unrenewed so long, a claim is open to others")
    sentinel_policy: _Policy = Field(default="exit_code", description="presence: codes do not matter")
    encryption: _Encryption = Field(default="mdc", description="ocb: quicker, and fewer programs read it")
    validation: _Validation = Field(default="follow", description="when an archive is decrypted again")
    minimum_free_space: _Size = Field(default=ByteSize(1024**3), description="kept free in destination_path")
    retry_delay: _Duration = Field(default=60.0, description="before the second attempt; then doubled")
    settle_limit: _Duration = Field(default=86400.0, description="a run that changes for longer has failed")
    quiet_period: _Duration = Field(default=60.0, description="a run that changed so lately is not encrypted yet")
    stall_limit: _Interval = Field(default=900.0, description="tar or gpg that moves no byte so long is ended")
