"""The configuration: what loads, what is refused, what it says about it, and what it never says."""

import multiprocessing
import os
import re
import shutil
import socket
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, FrozenInstanceError, asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from watcher import config
from watcher.config import Config
from watcher.config.schema import StatusDBConfig
from watcher.config.values import Secret
from watcher.errors import ConfigError

pytestmark = pytest.mark.unit

SAMPLE = Path(__file__).parent.parent / "conf" / "df_archive.yaml"
NOBODY = 65534
OWNERS_ALONE, OWNER_AND_GROUP = 0o700, 0o750
HIDDEN = "hunter2-of-the-site"
EXISTING_SITE = f"""\
statusdb:
  username: myuser
  password: {HIDDEN}
  url: couch.example.org        # no scheme: https
  database: archiving_status
sequencing_path: /data/sequencing
destination_path: /data/archives
gpg_receiver: ops@example.org
ignore: [nosync, transferring]
tar_exclusions: ["Demultiplex*", "demux_*"]
log_file: /var/log/dataflow_archive.log
log_level: INFO                 # DEBUG, INFO, WARN, ERROR
"""
REQUIRED = """\
statusdb: {url: couch.example.org}
sequencing_path: /data/sequencing
destination_path: /data/archives
gpg_receiver: ops@example.org
"""
DEFAULTS = {
    "run_keys_path": Path.home() / "run_keys",
    "gnupg_home": None,
    "ignore": (),
    "tar_exclusions": (),
    "tolerated_changes": (".metadata_rsync_exitcode", "rsync*.log", "*.rsync.log", "transfer*.log"),
    "transfer_names": (
        ".?*.??????",
        ".~tmp~",
        ".rsync-partial",
        "*.partial",
        "*.filepart",
        "*.part",
        "*.tmp",
        "*.lftp-pget-status",
    ),
    "log_file": None,
    "log_level": "INFO",
    "worker_id": socket.gethostname(),
    "max_concurrent_jobs": 2,
    "rescan_interval": 300.0,
    "network_rescan_interval": 60.0,
    "lease_seconds": 300.0,
    "sentinel_policy": "exit_code",
    "nice": 0,
    "io_class": None,
    "bandwidth_limit": None,
    "encryption": "mdc",
    "manifest": "encrypted",
    "validation": "follow",
    "minimum_free_space": 1024**3,
    "retry_delay": 60.0,
    "settle_limit": 86400.0,
    "quiet_period": 60.0,
    "stall_limit": 900.0,
}


@dataclass(frozen=True)
class Files:
    """Loads texts as config files of a directory of the test's own."""

    directory: Path

    @property
    def path(self) -> Path:
        """The one file that is written anew each time."""
        return self.directory / "df_archive.yaml"

    def load(self, text: str, credentials: Path | None = None) -> Config:
        """Return the Config of the text."""
        self.path.write_text(textwrap.dedent(text), encoding="utf-8")
        return config.load(self.path, {"CREDENTIALS_DIRECTORY": str(credentials)} if credentials else {})

    def problems(self, text: str, credentials: Path | None = None) -> tuple[str, ...]:
        """Return what is wrong with the text."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, credentials)
        return caught.value.problems

    def problem(self, text: str, credentials: Path | None = None) -> str:
        """Return the one thing that is wrong with the text."""
        (only,) = self.problems(text, credentials)
        return only


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Provide a place for config files."""
    return Files(tmp_path)


name_of = attrgetter("name")


def is_required(key: Field[Any]) -> bool:
    """Say whether a key has no default."""
    return key.default is MISSING and key.default_factory is MISSING


def with_line(line: str) -> str:
    """Return a config of what is required, in which `line` sets the key that it names."""
    key = line.partition(":")[0]
    kept = [each for each in REQUIRED.splitlines() if not each.startswith(f"{key}:")]
    return "\n".join([*kept, line, ""])


def with_statusdb(*lines: str) -> str:
    """Return a config of what is required with a `statusdb` of these lines."""
    return with_line("\n  ".join(["statusdb:", *lines]))


# What loads


def test_the_file_of_an_existing_site_loads_unchanged(files: Files) -> None:
    loaded = files.load(EXISTING_SITE)
    assert loaded.statusdb == StatusDBConfig(
        url="couch.example.org", username="myuser", password=Secret(HIDDEN), database="archiving_status"
    )
    assert loaded.sequencing_path == Path("/data/sequencing")
    assert loaded.destination_path == Path("/data/archives")
    assert loaded.gpg_receiver == "ops@example.org"
    assert loaded.ignore == ("nosync", "transferring")
    assert loaded.tar_exclusions == ("Demultiplex*", "demux_*")
    assert loaded.log_file == Path("/var/log/dataflow_archive.log")
    assert loaded.log_level == "INFO"


def test_four_keys_are_enough_and_the_others_have_their_defaults(files: Files) -> None:
    loaded = files.load(REQUIRED)
    assert {key: getattr(loaded, key) for key in DEFAULTS} == DEFAULTS
    assert set(DEFAULTS) == {each.name for each in fields(Config) if not is_required(each)}


def test_statusdb_needs_only_a_url_and_then_does_not_authenticate(files: Files) -> None:
    statusdb = files.load(REQUIRED).statusdb
    assert (statusdb.username, statusdb.password, statusdb.password_file) == (None, None, None)
    assert (statusdb.database, statusdb.ca_file) == ("archiving_status", None)


@pytest.mark.parametrize("key", [*DEFAULTS, "statusdb.database", "statusdb.password"])
def test_a_key_without_a_value_counts_as_not_given(files: Files, key: str) -> None:
    section, _, name = key.rpartition(".")
    text = with_statusdb("url: couch.example.org", f"{name}:") if section else with_line(f"{name}:")
    assert files.load(text) == files.load(REQUIRED)


@pytest.mark.parametrize("written", ["null", "~", ""])
def test_null_is_no_value_and_text_in_quotes_is_one(files: Files, written: str) -> None:
    assert files.load(with_line(f"worker_id: {written}")).worker_id == socket.gethostname()
    assert files.load(with_line("worker_id: 'null'")).worker_id == "null"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        ("90.5", 90.5),
        ("'90'", 90),
        ("30 s", 30),
        ("15 min", 900),
        ("15min", 900),
        ("1.5 h", 5400),
        ("7 d", 604800),
    ],
)
def test_a_time_is_seconds_or_has_a_unit(files: Files, written: str, seconds: float) -> None:
    assert files.load(with_line(f"settle_limit: {written}")).settle_limit == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [("0", 0), ("1048576", 2**20), ("10 GiB", 10 * 2**30), ("1.5 TiB", 1.5 * 2**40), ("500 MB", 5 * 10**8)],
)
def test_a_size_is_bytes_or_has_a_unit(files: Files, written: str, size: int) -> None:
    assert files.load(with_line(f"minimum_free_space: {written}")).minimum_free_space == size


@pytest.mark.parametrize(
    ("written", "level"),
    [("debug", "DEBUG"), ("Info", "INFO"), ("WARN", "WARN"), ("warning", "WARN"), ("ERROR", "ERROR")],
)
def test_a_log_level_may_be_in_any_case(files: Files, written: str, level: str) -> None:
    assert files.load(with_line(f"log_level: {written}")).log_level == level


@pytest.mark.parametrize(
    "written", ["0xDEADBEEF", "0123456789012345678901234567890123456789", "1e5", "2026-04-28", "on"]
)
def test_a_receiver_is_taken_as_written_whatever_yaml_would_make_of_it(files: Files, written: str) -> None:
    assert files.load(with_line(f"gpg_receiver: {written}")).gpg_receiver == written


def test_names_and_passwords_are_taken_as_written_whatever_yaml_would_make_of_them(files: Files) -> None:
    text = with_statusdb("url: couch.example.org", "username: no", "password: 0123") + "ignore: [off, 1_000, 012]\n"
    loaded = files.load(text)
    assert loaded.ignore == ("off", "1_000", "012")
    assert loaded.statusdb.password == Secret("0123")
    assert loaded.statusdb.username == "no"


def test_a_tilde_is_the_home_directory(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/archiver")
    loaded = files.load(with_line("destination_path: ~/archives"))
    assert loaded.destination_path == Path("/home/archiver/archives")
    assert loaded.run_keys_path == Path("/home/archiver/run_keys")


@pytest.mark.parametrize(
    "url", ["couch.example.org", "couch.example.org:5984", "[::1]:5984", "proxy.example.org/couch"]
)
def test_a_url_without_a_scheme_is_https(files: Files, url: str) -> None:
    statusdb = files.load(with_statusdb(f'url: "{url}"')).statusdb
    assert statusdb.server_url == f"https://{url}"
    assert statusdb.sqlite_path is None


@pytest.mark.parametrize("url", ["http://localhost:5984", "https://couch.example.org/prefix"])
def test_a_url_with_a_scheme_keeps_it_and_loses_a_trailing_slash(files: Files, url: str) -> None:
    assert files.load(with_statusdb(f"url: {url}/")).statusdb.server_url == url


@pytest.mark.parametrize("path", ["/var/lib/dataflow-archive/status.db", "/srv/of ops@example.org/a?b.db"])
def test_what_follows_sqlite_is_an_absolute_path(files: Files, path: str) -> None:
    assert files.load(with_statusdb(f"url: sqlite://{path}")).statusdb.sqlite_path == Path(path)


def test_a_config_cannot_be_changed(files: Files) -> None:
    loaded = files.load(REQUIRED)
    with pytest.raises(FrozenInstanceError):
        loaded.log_level = "DEBUG"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        loaded.statusdb.url = "elsewhere"  # type: ignore[misc]


# Which file


def test_the_argument_comes_before_the_environment_and_that_before_the_home_directory() -> None:
    environ = {"ARCHIVE_CONFIG": "/etc/env.yaml", "HOME": "/home/archiver"}
    assert config.find(Path("given.yaml"), environ) == Path("given.yaml")
    assert config.find(None, environ) == Path("/etc/env.yaml")
    assert config.find(None, environ | {"ARCHIVE_CONFIG": ""}) == Path("/home/archiver/conf/df_archive.yaml")
    assert config.find(None, {}) == Path.home() / "conf" / "df_archive.yaml"


# Files that are no config


def refusal(path: Path) -> str:
    """Return what `load` says against the file."""
    with pytest.raises(ConfigError) as caught:
        config.load(path, {})
    return str(caught.value)


def test_a_missing_file_is_named_with_the_ways_to_name_another(tmp_path: Path) -> None:
    said = refusal(tmp_path / "none.yaml")
    assert f"'{tmp_path}/none.yaml' cannot be read: No such file or directory" in said
    assert "-c FILE" in said
    assert "$ARCHIVE_CONFIG" in said


def test_a_directory_is_no_config_file(tmp_path: Path) -> None:
    assert "Is a directory" in refusal(tmp_path)


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin1.yaml"
    path.write_bytes("log_level: INFO\nworker_id: Zürich\n".encode("latin-1"))
    assert "is not UTF-8 at line 2" in refusal(path)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("ignore: [a, b\n", 2, 1),
        ("log_level: INFO\n  log_file: /x\n", 2, 11),
        ("gpg_receiver: @ops\n", 1, 15),
        ('a: 1\nb: "open\n', 3, 1),
        ("a: 1\n---\nb: 2\n", 2, 1),
        ("a: 1\nb: x\ay\n", 2, 5),
        ("a: 1\nb: &b [*b]\n", 2, 4),
        ("? [a]\n: b\n", 1, 3),
    ],
)
def test_broken_yaml_is_refused_with_line_and_column(files: Files, text: str, line: int, column: int) -> None:
    said = files.problem(text)
    assert f"'{files.path}' is not YAML: line {line}, column {column}: " in said


@pytest.mark.parametrize("text", ["just words\n", "- a\n- list\n", "42\n", "null\n"])
def test_yaml_that_is_not_a_set_of_keys_is_refused(files: Files, text: str) -> None:
    assert f"'{files.path}' is not a set of keys" in files.problem(text)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n{}\n"])
def test_an_empty_file_misses_every_required_key(files: Files, text: str) -> None:
    missing = [each.partition(": missing; give ")[0] for each in files.problems(text)]
    assert missing == ["statusdb", "sequencing_path", "destination_path", "gpg_receiver"]


def test_a_yaml_tag_makes_no_object(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        files.load(with_line(f"gpg_receiver: !!python/object/apply:os.mkdir [{tmp_path}/made]"))
    assert not (tmp_path / "made").exists()


# What is wrong in a config


def test_every_problem_is_told_at_once(files: Files) -> None:
    said = files.problems(
        """\
        statusdb: {url: 'ftp://x', database: Upper, password_file: relative, nonsense: 1}
        sequencing_path: relative
        log_level: loud
        log_level: off
        ignore: nosync
        rescan_intervall: 5
        """
    )
    assert sorted(each.partition(":")[0] for each in said) == [
        "destination_path",
        "gpg_receiver",
        "ignore",
        "log_level",
        "log_level",
        "rescan_intervall",
        "sequencing_path",
        "statusdb.database",
        "statusdb.nonsense",
        "statusdb.password_file",
        "statusdb.url",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sequencing_path: data", "sequencing_path: 'data' is not an absolute path"),
        ("sequencing_path: 5", "sequencing_path: '5' is not an absolute path"),
        ("sequencing_path: [/data]", "sequencing_path: a list is not an absolute path"),
        ("destination_path: ~no_such_user/x", "destination_path: '~no_such_user/x' begins in no known home"),
        ('destination_path: "/a\\0b"', "destination_path: '/a\\x00b' is not an absolute path"),
        ('gpg_receiver: ""', "gpg_receiver: '' is not usable text"),
        ('gpg_receiver: "  "', "gpg_receiver: '  ' is not usable text"),
        ('gpg_receiver: "a\\0"', "gpg_receiver: 'a\\x00' is not usable text"),
        ('gpg_receiver: "\\ud800"', "gpg_receiver: '\\ud800' is not usable text"),
        ("gpg_receiver: [a, b]", "gpg_receiver: a list is not usable text"),
        ("gpg_receiver: {a: b}", "gpg_receiver: a set of keys is not usable text"),
        ("ignore: nosync", "ignore: 'nosync' is not a list; write [one, two]"),
        ("ignore: {nosync: 1}", "ignore: a set of keys is not a list"),
        ("ignore: [ok, a/b]", "ignore.1: 'a/b' is not a run's or sequencer's name"),
        ("ignore: ['demux_*']", "ignore.0: 'demux_*' is not a run's or sequencer's name"),
        ("ignore: ['..']", "ignore.0: '..' is not a run's or sequencer's name"),
        ("ignore: [[a]]", "ignore.0: a list is not a run's or sequencer's name"),
        ("ignore: [~]", "ignore.0: nothing is not a run's or sequencer's name"),
        ("tar_exclusions: ['']", "tar_exclusions.0: '' is not usable text"),
        (
            "tolerated_changes: [logs/x.log]",
            "tolerated_changes.0: 'logs/x.log' is not a pattern of file names",
        ),
        ("log_file: app.log", "log_file: 'app.log' is not an absolute path"),
        ("gnupg_home: keys", "gnupg_home: 'keys' is not an absolute path"),
        ("log_level: off", "log_level: 'off' is not a log level; write DEBUG, INFO, WARN or ERROR"),
        ("log_level: FATAL", "log_level: 'FATAL' is not a log level"),
        ("worker_id: ''", "worker_id: '' is not usable text"),
        ("max_concurrent_jobs: 0", "max_concurrent_jobs: '0' is not a whole number from 1 to 64"),
        ("max_concurrent_jobs: 65", "max_concurrent_jobs: '65' is not a whole number from 1 to 64"),
        ("max_concurrent_jobs: 2.5", "max_concurrent_jobs: '2.5' is not a whole number"),
        ("max_concurrent_jobs: yes", "max_concurrent_jobs: 'yes' is not a whole number"),
        ("rescan_interval: 0", "rescan_interval: '0' is not a time from 0.1 s to 365 d"),
        ("network_rescan_interval: -1", "network_rescan_interval: '-1' is not a time"),
        ("stall_limit: 5 minutes", "stall_limit: '5 minutes' is not a time"),
        ("retry_delay: .inf", "retry_delay: '.inf' is not a time"),
        ("settle_limit: 366 d", "settle_limit: '366 d' is not a time"),
        (f"settle_limit: {'9' * 400}", "is not a time"),
        ("lease_seconds: 0.5", "lease_seconds: '0.5' is not a time from 1 s"),
        ("sentinel_policy: any", "sentinel_policy: 'any' is not allowed; write exit_code or presence"),
        ("encryption: aes", "encryption: 'aes' is not allowed; write mdc or ocb"),
        ("nice: 20", "nice: '20' is not a whole number from 0 to 19"),
        ("io_class: realtime", "io_class: 'realtime' is not allowed; write best-effort or idle"),
        ("bandwidth_limit: 0.5", "bandwidth_limit: '0.5' is no number of bytes; write 200 MB or 1 GiB"),
        ("validation: never", "validation: 'never' is not allowed; write follow, after or reread"),
        ("minimum_free_space: -1", "minimum_free_space: '-1' is not a size"),
        ("minimum_free_space: plenty", "minimum_free_space: 'plenty' is not a size"),
        ("minimum_free_space: 10 Gb/s", "minimum_free_space: '10 Gb/s' is not a size"),
        ("statusdb: couch.example.org", "statusdb: its value is not a set of keys"),
        ("statusdb: [url]", "statusdb: its value is not a set of keys"),
        ("statusdb: {}", "statusdb.url: missing; give a host"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_is_allowed(files: Files, line: str, said: str) -> None:
    assert said in files.problem(with_line(line))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://couch",
        "sqlite://relative.db",
        "sqlite:/one.db",
        "sqlite:///",
        "sqlite:///dir/",
        "http:/host",
        "//host",
        "https://",
        "host:port",
        "host:",
        "a host",
        "https://host?x=1",
        "https://host#x",
        "https://[::1",
        "host//x",
    ],
)
def test_a_url_that_names_no_database_is_refused(files: Files, url: str) -> None:
    assert files.problem(with_statusdb(f'url: "{url}"')).startswith(f"statusdb.url: '{url}' is no database; write ")


@pytest.mark.parametrize("url", ["u:{}@couch", "https://u:{}@couch:5984", "https://u:{}/x@couch", "sqlite://u:{}@x"])
def test_credentials_in_the_url_are_refused_and_not_shown(files: Files, url: str) -> None:
    said = files.problem(with_statusdb(f'url: "{url.format(HIDDEN)}"'))
    assert "statusdb.username and statusdb.password" in said
    assert HIDDEN not in said


@pytest.mark.parametrize("name", ["123", "Archiving", "_users", "a.b", "a b", "é"])
def test_a_name_that_couchdb_would_refuse_is_refused(files: Files, name: str) -> None:
    said = files.problem(with_statusdb("url: couch.example.org", f"database: {name}"))
    assert said.startswith(f"statusdb.database: '{name}' is not a CouchDB name")


@pytest.mark.parametrize("name", ["archiving_status", "a", "site/run-status+2$(x)"])
def test_a_name_that_couchdb_takes_is_taken(files: Files, name: str) -> None:
    assert files.load(with_statusdb("url: couch.example.org", f"database: {name}")).statusdb.database == name


def test_a_ca_file_that_cannot_be_read_is_refused(files: Files, tmp_path: Path) -> None:
    said = files.problem(with_statusdb("url: couch.example.org", f"ca_file: {tmp_path}/ca.pem"))
    assert said == f"statusdb.ca_file: '{tmp_path}/ca.pem' is not a file that this user can read; name one"
    (tmp_path / "ca.pem").touch()
    loaded = files.load(with_statusdb("url: couch.example.org", f"ca_file: {tmp_path}/ca.pem"))
    assert loaded.statusdb.ca_file == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gpg_reciever: x", "gpg_reciever: not a key; did you mean gpg_receiver?"),
        ("log-level: x", "log-level: not a key; did you mean log_level?"),
        ("username: x", "username: not a key; did you mean statusdb.username?"),
        ("statusdb: {url: h, pasword: x}", "statusdb.pasword: not a key; did you mean statusdb.password?"),
        ("statusdb: {url: h, log_level: x}", "statusdb.log_level: not a key; did you mean log_level?"),
        ("zzz:", "zzz: not a key; remove it; known are statusdb, sequencing_path, "),
        ("42: x", "42: not a key; remove it"),
        ("~: x", "None: not a key; remove it"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(files: Files, line: str, said: str) -> None:
    assert files.problem(with_line(line)).startswith(said)


def test_a_key_given_twice_is_refused_with_both_lines(files: Files) -> None:
    assert files.problem(REQUIRED + "log_level: INFO\nignore: []\nlog_level: INFO\n") == (
        "log_level: given twice, at line 5 and line 7; keep one of them"
    )


def test_a_key_given_twice_in_statusdb_is_refused_with_both_lines(files: Files) -> None:
    text = with_statusdb("url: a.example.org", "url: b.example.org")
    assert files.problem(text) == "statusdb.url: given twice, at line 5 and line 6; keep one of them"


# The password


def with_user(*lines: str) -> str:
    """Return a config whose database user is `archiver`, with further lines in `statusdb`."""
    return with_statusdb("url: couch.example.org", "username: archiver", *lines)


def test_a_password_file_gives_its_first_line_alone(files: Files, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f" {HIDDEN} \r\nanother line\n", encoding="utf-8", newline="")
    loaded = files.load(with_user(f"password_file: {tmp_path}/secret"))
    assert loaded.statusdb.password == Secret(f" {HIDDEN} ")


def test_the_systemd_credential_is_used_when_the_file_gives_no_password(files: Files, tmp_path: Path) -> None:
    (tmp_path / "statusdb_password").write_text(f"{HIDDEN}\n", encoding="utf-8")
    assert files.load(with_user(), credentials=tmp_path).statusdb.password == Secret(HIDDEN)


def test_a_password_in_the_file_comes_before_the_systemd_credential(files: Files, tmp_path: Path) -> None:
    (tmp_path / "statusdb_password").write_text("of systemd\n", encoding="utf-8")
    assert files.load(with_user("password: own"), credentials=tmp_path).statusdb.password == Secret("own")


def test_a_systemd_credential_without_a_username_is_not_used(files: Files, tmp_path: Path) -> None:
    (tmp_path / "statusdb_password").write_text(f"{HIDDEN}\n", encoding="utf-8")
    assert files.load(REQUIRED, credentials=tmp_path).statusdb.password is None


def test_a_username_without_a_password_is_refused_with_the_three_sources(files: Files, tmp_path: Path) -> None:
    for credentials in (None, tmp_path):
        said = files.problem(with_user(), credentials=credentials)
        assert said.startswith("statusdb.password: its value is missing")
        for source in ("statusdb.password_file", "statusdb.password ", "credential statusdb_password"):
            assert source in said
        assert "exists in the unit alone" in said


def test_an_empty_password_is_none(files: Files) -> None:
    assert "its value is missing" in files.problem(with_user('password: ""'))


def test_a_password_and_a_password_file_are_one_too_many(files: Files, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(HIDDEN, encoding="utf-8")
    said = files.problem(with_user(f"password: {HIDDEN}", f"password_file: {tmp_path}/secret"))
    assert said == "statusdb.password: its value is given beside statusdb.password_file; keep one of them"


@pytest.mark.parametrize("source", [f"password: {HIDDEN}", "password_file: /dev/null"])
def test_a_password_without_a_username_is_refused(files: Files, source: str) -> None:
    said = files.problem(with_statusdb("url: couch.example.org", source))
    assert "has no statusdb.username" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"", "first line empty"),
        (b"\nsecond\n", "first line empty"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_a_password_file_without_a_password_is_refused(
    files: Files, tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    assert f"'{path}': {said}" in files.problem(with_user(f"password_file: {path}"))


def test_a_password_file_that_is_a_directory_is_refused(files: Files, tmp_path: Path) -> None:
    assert "Is a directory" in files.problem(with_user(f"password_file: {tmp_path}"))


@pytest.mark.parametrize("line", ["username: archiver", f"password: {HIDDEN}", "password_file: /etc/secret"])
def test_sqlite_takes_no_user_and_no_password(files: Files, line: str) -> None:
    said = files.problems(with_statusdb("url: sqlite:///var/lib/status.db", line))
    key = line.partition(":")[0]
    assert [each for each in said if each.startswith(f"statusdb.{key}: ") and "means nothing to SQLite" in each]
    assert len(said) == 1


def test_sqlite_ignores_the_name_of_a_database(files: Files) -> None:
    text = with_statusdb("url: sqlite:///var/lib/status.db", "database: archiving_status")
    assert files.load(text).statusdb.sqlite_path == Path("/var/lib/status.db")


# What is never told


def test_a_config_in_text_form_holds_no_password(files: Files, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(HIDDEN, encoding="utf-8")
    for text in (EXISTING_SITE, with_user(f"password_file: {tmp_path}/secret")):
        loaded = files.load(text)
        assert loaded.statusdb.password == Secret(HIDDEN)
        for form in (repr(loaded), str(loaded), f"{loaded.statusdb}", str(asdict(loaded))):
            assert HIDDEN not in form


@pytest.mark.parametrize(
    "text",
    [
        with_statusdb("url: couch.example.org", f"pasword: {HIDDEN}"),
        with_statusdb("url: couch.example.org", f"password: [{HIDDEN}]"),
        with_statusdb("url: couch.example.org", f"password: {{is: {HIDDEN}}}"),
        with_statusdb("url: couch.example.org", f"password: {HIDDEN}"),
        with_statusdb(f"url: {{password: {HIDDEN}}}"),
        with_line(f"statusdb: {{url: couch, password:{HIDDEN}}}"),
        with_line(f"statusdb: {HIDDEN}"),
        with_line(f"statusdb: [{HIDDEN}]"),
        with_line(f"password: {HIDDEN}"),
        with_line(f"log_file: {{password: {HIDDEN}}}"),
        with_line(f"ignore: [{{password: {HIDDEN}}}]"),
        f"password {HIDDEN}\n",
        f"- {HIDDEN}\n",
        f"password: *{HIDDEN}\n",
        f"password: &{HIDDEN} 1\nb: &{HIDDEN} 2\n",
        f"password: !{HIDDEN}!x y\n",
        f"password: @{HIDDEN}\n",
        f'password: "{HIDDEN}\n',
        f"password: {HIDDEN}: {HIDDEN}\n",
        f"password: {HIDDEN}\n user: x\n",
    ],
)
def test_no_refusal_and_no_traceback_holds_a_password(files: Files, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        files.load(text)
    assert HIDDEN not in str(caught.value)
    assert HIDDEN not in "".join(traceback.format_exception(caught.value))


# Whatever is written

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def module_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Provide a place for config files that many examples of one test share."""
    return Files(tmp_path_factory.mktemp("config"))


def answer(files: Files, text: str) -> str:
    """Load the text; return what is said against it, if anything."""
    try:
        files.load(text)
    except ConfigError as error:
        return str(error)
    return ""


@given(text=st.text(st.characters(codec="utf-8")))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_config_or_refused(module_files: Files, text: str) -> None:
    assert answer(module_files, text)


@pytest.mark.slow  # 5 s, most of it PyYAML's
@given(
    values=st.dictionaries(st.sampled_from([*map(name_of, fields(Config)), "other"]), VALUES),
    statusdb=st.dictionaries(st.sampled_from([*map(name_of, fields(StatusDBConfig)), "other"]), VALUES),
)
@settings(max_examples=200, deadline=None)
@pytest.mark.slow
def test_any_values_are_a_config_or_refused_without_the_password(
    module_files: Files, values: dict[str, Any], statusdb: dict[str, Any]
) -> None:
    text = yaml.safe_dump({"statusdb": statusdb | {"password": HIDDEN}} | values, allow_unicode=True)
    assert HIDDEN not in answer(module_files, text)


# The sample


def sample_with_its_defaults() -> str:
    """Return the sample with the '#' taken off its optional keys."""
    return re.sub(r"^( *)#(?=[a-z_]+:)", r"\1", SAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_sample_loads_as_it_is(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "df_archive.yaml")
    loaded = config.load(tmp_path / "df_archive.yaml", {})
    assert {key: getattr(loaded, key) for key in DEFAULTS} == DEFAULTS


def test_the_sample_documents_the_defaults_of_the_code(files: Files) -> None:
    assert files.load(sample_with_its_defaults()) == config.load(SAMPLE, {})


@pytest.mark.parametrize(("section", "model"), [("", Config), ("statusdb", StatusDBConfig)])
def test_the_sample_has_every_key_and_a_value_for_each_default(section: str, model: type[Any]) -> None:
    written = yaml.load(sample_with_its_defaults(), yaml.BaseLoader)
    keys = written[section] if section else written
    assert set(keys) == {each.name for each in fields(model)}
    without_value = {key for key, value in keys.items() if value == ""}
    assert without_value - {"worker_id"} == {
        each.name for each in fields(model) if not is_required(each) and each.default in (None, MISSING)
    } - {"worker_id"}


def test_the_sample_leaves_the_required_keys_in_force() -> None:
    live = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    assert set(live) == {each.name for each in fields(Config) if is_required(each)}
    assert set(live["statusdb"]) == {"url"}


# The directories


@pytest.fixture
def site() -> Iterator[Path]:
    """Provide a directory that any user may enter, with a `sequencing` and an `archives` in it."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    for name in ("sequencing", "archives"):
        (directory / name).mkdir()
        (directory / name).chmod(0o777)
    yield directory
    for each in (directory, *directory.rglob("*")):
        each.chmod(0o700)
    shutil.rmtree(directory)


def config_of(
    site: Path, sequencing: str = "sequencing", destination: str = "archives", run_keys: str = "run_keys"
) -> Config:
    """Return a Config with these directories of the site."""
    return Config(
        statusdb=StatusDBConfig(url="couch.example.org"),
        sequencing_path=site / sequencing,
        destination_path=site / destination,
        run_keys_path=site / run_keys,
        gpg_receiver="ops@example.org",
    )


def as_ordinary_user(ask: Callable[[], Iterable[str]]) -> list[str]:
    """Call it in a process that is not root's, whoever runs the tests, and return what it returns."""
    processes = multiprocessing.get_context("fork")
    results, sender = processes.Pipe(duplex=False)

    def call() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        sender.send(list(ask()))

    process = processes.Process(target=call)
    process.start()
    process.join()
    assert process.exitcode == 0
    return list(results.recv())


def test_directories_that_serve_have_no_problems_and_none_is_made(site: Path) -> None:
    assert config.check_paths(config_of(site)) == ()
    assert not (site / "run_keys").exists()


def test_a_missing_sequencing_path_is_a_problem(site: Path) -> None:
    (said,) = config.check_paths(config_of(site, sequencing="none"))
    assert said.startswith(f"sequencing_path: '{site}/none' cannot be reached: No such file or directory; mount it")


def test_a_missing_destination_path_is_a_problem_and_is_not_made(site: Path) -> None:
    (said,) = config.check_paths(config_of(site, destination="mount/archives"))
    assert said.startswith(f"destination_path: '{site}/mount/archives' cannot be reached: No such file")
    assert "mount it" in said
    assert not (site / "mount").exists()


@pytest.mark.parametrize("key", ["sequencing", "destination", "run_keys"])
def test_a_file_is_no_directory(site: Path, key: str) -> None:
    (site / "file").touch()
    (said,) = config.check_paths(config_of(site, **{key: "file"}))
    assert said == f"{key}_path: '{site}/file' is not a directory; name one"


@pytest.mark.parametrize("key", ["sequencing", "destination"])
def test_a_path_through_a_file_is_a_problem(site: Path, key: str) -> None:
    (site / "file").touch()
    (said,) = config.check_paths(config_of(site, **{key: "file/below"}))
    assert f"{key}_path: '{site}/file/below' cannot be reached: Not a directory" in said


@pytest.mark.children
@pytest.mark.parametrize("mode", [0o333, 0o666])
def test_a_sequencing_path_that_cannot_be_listed_or_entered_is_a_problem(site: Path, mode: int) -> None:
    (site / "sequencing").chmod(mode)
    (said,) = as_ordinary_user(lambda: config.check_paths(config_of(site, run_keys="archives")))
    assert said.startswith(f"sequencing_path: '{site}/sequencing' is not readable for user id ")


@pytest.mark.children
@pytest.mark.parametrize("mode", [0o555, 0o333, 0o666])
def test_a_destination_path_that_cannot_be_written_or_listed_is_a_problem(site: Path, mode: int) -> None:
    (site / "archives").chmod(mode)
    (site / "keys").mkdir()
    (site / "keys").chmod(0o777)
    (said,) = as_ordinary_user(lambda: config.check_paths(config_of(site, run_keys="keys")))
    assert said.startswith(f"destination_path: '{site}/archives' is not writable for user id ")


@pytest.mark.children
def test_a_run_keys_path_that_cannot_be_written_is_a_problem(site: Path) -> None:
    (site / "keys").mkdir(mode=0o555)
    (said,) = as_ordinary_user(lambda: config.check_paths(config_of(site, run_keys="keys")))
    assert said.startswith(f"run_keys_path: '{site}/keys' is not writable for user id ")


@pytest.mark.children
def test_a_run_keys_path_that_could_not_be_made_is_a_problem(site: Path) -> None:
    site.chmod(0o555)
    (said,) = as_ordinary_user(lambda: config.check_paths(config_of(site, run_keys="keys")))
    assert said.startswith(f"run_keys_path: '{site}' is not writable for user id ")
    (said,) = config.check_paths(config_of(site, run_keys="none/keys"))
    assert said.startswith(f"run_keys_path: '{site}/none' cannot be reached")


@pytest.mark.children
def test_a_path_beyond_a_closed_directory_is_a_problem(site: Path) -> None:
    (site / "closed").mkdir()
    (site / "closed" / "archives").mkdir()
    (site / "closed").chmod(0o000)
    said = as_ordinary_user(
        lambda: config.check_paths(config_of(site, destination="closed/archives", run_keys="sequencing/../archives"))
    )
    assert said[0].startswith(f"destination_path: '{site}/closed/archives' cannot be reached: Permission denied")


def test_every_problem_of_the_directories_is_told_at_once(site: Path) -> None:
    said = config.check_paths(config_of(site, "a", "b", "c/d"))
    assert [each.partition(":")[0] for each in said] == [
        "sequencing_path",
        "destination_path",
        "run_keys_path",
    ]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"destination": "sequencing"}, "destination_path"),
        ({"destination": "sequencing/inside"}, "destination_path"),
        ({"destination": "link"}, "destination_path"),
        ({"destination": "link/inside"}, "destination_path"),
        ({"destination": "link_to_inside"}, "destination_path"),
        ({"sequencing": "archives/inside"}, "sequencing_path"),
        ({"run_keys": "sequencing"}, "run_keys_path"),
        ({"run_keys": "sequencing/keys"}, "run_keys_path"),
        ({"run_keys": "link/inside"}, "run_keys_path"),
    ],
)
def test_archives_and_keys_are_kept_apart_from_the_runs(site: Path, changed: dict[str, str], key: str) -> None:
    (site / "link").symlink_to(site / "sequencing")
    (site / "link_to_inside").symlink_to(site / "sequencing" / "inside")
    (site / "sequencing" / "inside").mkdir()
    (site / "archives" / "inside").mkdir()
    (said,) = config.check_paths(config_of(site, **changed))
    assert said.startswith(f"{key}: ")
    assert "inside" in said


def test_neighbours_with_a_common_beginning_are_apart(site: Path) -> None:
    (site / "sequencing_archives").mkdir()
    assert config.check_paths(config_of(site, destination="sequencing_archives")) == ()


def test_a_new_run_keys_path_is_its_owners_alone(site: Path) -> None:
    before = os.umask(0)
    try:
        config.prepare_run_keys_path(site / "run_keys")
    finally:
        os.umask(before)
    assert (site / "run_keys").stat().st_mode & 0o777 == OWNERS_ALONE


def test_a_run_keys_path_that_stands_already_is_left_as_it_is(site: Path) -> None:
    (site / "run_keys").mkdir()
    (site / "run_keys").chmod(OWNER_AND_GROUP)
    config.prepare_run_keys_path(site / "run_keys")
    assert (site / "run_keys").stat().st_mode & 0o777 == OWNER_AND_GROUP


def test_a_run_keys_path_that_cannot_be_made_is_refused(site: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"run_keys_path: '{site}/none/keys' cannot be made: No such file")):
        config.prepare_run_keys_path(site / "none" / "keys")


@pytest.mark.children
def test_a_config_file_that_may_not_be_read_is_refused(site: Path) -> None:
    path = site / "df_archive.yaml"
    path.write_text(REQUIRED, encoding="utf-8")
    path.chmod(0o000)

    def ask() -> list[str]:
        try:
            config.load(path, {})
        except ConfigError as error:
            return list(error.problems)
        return []

    (said,) = as_ordinary_user(ask)
    assert f"'{path}' cannot be read: Permission denied" in said
