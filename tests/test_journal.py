"""The log: journald's fields on a real socket, lines that nobody can forge, and a log file that comes and goes."""

from __future__ import annotations

import array
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sites import PATIENCE_SECONDS

from watcher.journal import IDENTIFIER, JournalHandler, OneLine
from watcher.model import Run
from watcher.text import printable

EVIL = "run\n2026-04-28T10:00:00.000Z ERROR forged\r\x1b[31m\x1b]0;title\x07\x00\u202e\u2028\x85"
FORGED = re.compile(r"^\S*Z? ?ERROR forged", re.MULTILINE)

Fields = dict[str, list[str]]


class Journald:
    """journald's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.bind(str(path))

    def entry(self) -> Fields:
        """Receive one entry; return the values of each field."""
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, _, passed in ancillary:
            [descriptor] = array.array("i", passed)
            with os.fdopen(descriptor, "rb") as memory:
                memory.seek(0)
                data = memory.read()
        return parsed(data)

    def is_quiet(self) -> bool:
        """Say whether nothing more has come."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(PATIENCE_SECONDS)
        return False

    def close(self) -> None:
        """Go away."""
        self._socket.close()
        self.path.unlink()


def parsed(data: bytes) -> Fields:
    """Read journald's native protocol."""
    fields: Fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        key, is_short, value = line.partition(b"=")
        if not is_short:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        fields.setdefault(key.decode(), []).append(value.decode())
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    """A socket as journald's."""
    listening = Journald(tmp_path / "socket")
    yield listening
    if listening.path.exists():
        listening.close()


@pytest.fixture
def logger(journald: Journald) -> logging.Logger:
    """A logger that leads to that socket, and nowhere else."""
    made = logging.Logger("watcher.test", logging.DEBUG)
    made.addHandler(JournalHandler(journald.path))
    return made


def test_an_entry_has_journalds_fields_and_says_whose_run_it_is_about(
    journald: Journald, logger: logging.Logger
) -> None:
    logger.info("claimed '%s'", "/data/run_001", extra={"run": "run_001"})
    entry = journald.entry()
    assert entry["MESSAGE"] == ["run_001: claimed '/data/run_001'"]
    assert entry["RUN_ID"] == ["run_001"]
    assert entry["PRIORITY"] == ["6"]
    assert entry["SYSLOG_IDENTIFIER"] == [IDENTIFIER]
    assert entry["LOGGER"] == ["watcher.test"]
    assert entry["CODE_FILE"] == [__file__]
    assert entry["CODE_FUNC"] == ["test_an_entry_has_journalds_fields_and_says_whose_run_it_is_about"]
    assert int(entry["CODE_LINE"][0]) > 0


def test_an_entry_has_what_else_is_known_of_the_run_and_the_worker(journald: Journald) -> None:
    logger = logging.Logger("watcher.test", logging.DEBUG)
    logger.addHandler(JournalHandler(journald.path, "host 1\n"))
    about = {**Run(Path("/data/sequencing/sequencer_A/run_001")).about, "phase": "archiving", "attempt": 2}
    logger.warning("failed", extra=about)
    entry = journald.entry()
    assert {field: entry[field] for field in ("RUN_ID", "SEQUENCER", "PHASE", "ATTEMPT", "WORKER")} == {
        "RUN_ID": ["run_001"], "SEQUENCER": ["sequencer_A"], "PHASE": ["archiving"], "ATTEMPT": ["2"],
        "WORKER": ["host 1\\n"],
    }  # fmt: skip


def test_an_entry_about_no_run_has_no_run(journald: Journald, logger: logging.Logger) -> None:
    logger.info("watching")
    entry = journald.entry()
    assert (entry["MESSAGE"], "RUN_ID" in entry) == (["watching"], False)


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, "7"),
        (logging.INFO, "6"),
        (25, "6"),
        (logging.WARNING, "4"),
        (logging.ERROR, "3"),
        (logging.CRITICAL, "2"),
    ],
)
def test_a_level_is_syslogs_priority(journald: Journald, logger: logging.Logger, level: int, priority: str) -> None:
    logger.log(level, "something")
    assert journald.entry()["PRIORITY"] == [priority]


@pytest.mark.parametrize("name", [EVIL, "x\nPRIORITY=0\nMESSAGE=forged", "\udcff\n", "ü🧬 %s"])
def test_a_runs_name_makes_no_field_and_no_line_of_its_own(
    journald: Journald, logger: logging.Logger, name: str
) -> None:
    logger.warning("'%s' is not archived", name, extra={"run": name})
    entry = journald.entry()
    assert [len(values) for values in entry.values()] == [1] * len(entry)
    assert (entry["PRIORITY"], entry["RUN_ID"]) == (["4"], [printable(name)])
    [message] = entry["MESSAGE"]
    assert message == f"{printable(name)}: '{printable(name)}' is not archived"
    assert message.isprintable()


def fail(text: str) -> None:
    raise ValueError(text)


def log_a_bug(logger: logging.Logger, text: str) -> None:
    try:
        fail(text)
    except ValueError:
        logger.exception("a bug", extra={"run": "run_001"})


def test_a_traceback_is_in_the_message_and_no_line_of_it_passes_for_another(
    journald: Journald, logger: logging.Logger
) -> None:
    log_a_bug(logger, EVIL)
    [message] = journald.entry()["MESSAGE"]
    first, *others = message.split("\n")
    assert first == "run_001: a bug"
    assert others[0] == "    Traceback (most recent call last):"
    assert "ValueError: run" in message
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_an_entry_too_long_for_a_datagram_arrives_whole(journald: Journald, logger: logging.Logger) -> None:
    logger.error("x" * 1_000_000)
    assert journald.entry()["MESSAGE"] == ["x" * 1_000_000]


def test_who_logs_does_not_fail_for_want_of_journald(
    journald: Journald, logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    logger.info("before")
    assert journald.entry()["MESSAGE"] == ["before"]
    journald.close()
    logger.info("lost")
    again = Journald(journald.path)
    logger.info("after")
    assert again.entry()["MESSAGE"] == ["after"]
    again.close()
    assert "Traceback" not in capfd.readouterr().out


@pytest.mark.parametrize("args", [(), ("a", "b"), ("text",)])
def test_a_line_that_cannot_be_made_breaks_nobody(
    journald: Journald, logger: logging.Logger, args: tuple[Any, ...]
) -> None:
    logger.info("%d and %d", *args)
    logger.info("%s", "next")
    told = journald.entry()["MESSAGE"]
    if not args:  # without arguments nothing is filled in
        assert told == ["%d and %d"]
        told = journald.entry()["MESSAGE"]
    assert told == ["next"]
    assert journald.is_quiet()


@given(st.text(st.characters()))
def test_printable_text_stays_and_everything_else_is_escaped(text: str) -> None:
    escaped = printable(text)
    assert escaped.isprintable()
    assert escaped.encode().decode() == escaped
    assert len(escaped) >= len(text)
    if text.isprintable() and text.isascii():
        assert escaped == text


@given(st.text(st.characters()), st.text(st.characters()))
def test_one_event_is_one_line(name: str, words: str) -> None:
    record = logging.LogRecord("watcher", logging.INFO, __file__, 1, "%s", (words,), None)
    record.run = name
    line = OneLine("%(levelname)s %(about)s%(message)s").format(record)
    assert len(line.splitlines()) == 1
    assert line.startswith("INFO ")


# As a process: where the log goes


PROGRAM = """
import logging, os, sys
from pathlib import Path
from logging_journald import JournaldTransport
from watcher import journal
from watcher.errors import ConfigError

JournaldTransport.SOCKET_PATH = Path(sys.argv[1])
log_file = Path(sys.argv[3]) if sys.argv[3] else None
logger = logging.getLogger("watcher.test")
try:
    journal.configure(sys.argv[2], log_file)
except ConfigError as error:
    sys.exit(str(error))
"""
LOG_ALL = """
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
    logger.log(level, "told at %d", level, extra={"run": "run_001"})
    for noisy in ("pycouchdb", "urllib3.connectionpool", "watchdog.observers"):
        logging.getLogger(noisy).log(level, "noise at %d", level)
"""
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) run_001: told at (\d\d)")

Log = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Return what runs a program that configures the log, then does `code`; its standard error is the file `stderr`."""

    def run(
        code: str, *, level: str = "INFO", log_file: Path | str = "", under_systemd: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        with (tmp_path / "stderr").open("w") as stderr:
            status = os.fstat(stderr.fileno())
            if under_systemd:
                environment["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM + code, str(tmp_path / "socket"), level, str(log_file)],
                env={**os.environ, "JOURNAL_STREAM": "", **environment},
                check=False,
                text=True,
                stdout=subprocess.PIPE,
                stderr=stderr,
                timeout=PATIENCE_SECONDS,
            )
        done.stderr = (tmp_path / "stderr").read_text()
        return done

    return run


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        ("DEBUG", ["10", "20", "30", "40"]),
        ("INFO", ["20", "30", "40"]),
        ("WARN", ["30", "40"]),
        ("ERROR", ["40"]),
    ],
)
def test_the_log_goes_to_standard_error_from_the_level_that_was_asked_for(
    log: Log, level: str, levels: list[str]
) -> None:
    done = log(LOG_ALL, level=level)
    lines = [line for line in done.stderr.splitlines() if "noise" not in line]
    assert [found[2] for found in map(LINE.fullmatch, lines) if found] == levels
    assert len(lines) == len(levels)
    noise = {line.rpartition(" ")[2] for line in done.stderr.splitlines() if "noise" in line}
    assert noise == {"30", "40"} & set(levels)  # libraries are heard from WARN on only


def test_under_systemd_the_log_goes_to_journald_and_not_to_standard_error(log: Log, journald: Journald) -> None:
    done = log("logger.info('hello', extra={'run': 'run_001'})", under_systemd=True)
    entry = journald.entry()
    assert (entry["MESSAGE"], entry["RUN_ID"], entry["PRIORITY"]) == (["run_001: hello"], ["run_001"], ["6"])
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("stream", ["1:1", "nonsense", ":", "1:2:3"])
def test_a_stream_that_is_not_our_standard_error_is_not_journalds(log: Log, journald: Journald, stream: str) -> None:
    done = log("logger.info('hello')", JOURNAL_STREAM=stream)
    assert done.stderr.endswith("INFO hello\n")
    assert journald.is_quiet()


def test_without_journalds_socket_the_log_goes_to_standard_error(log: Log) -> None:
    done = log("logger.info('hello')", under_systemd=True)
    assert done.stderr.endswith("INFO hello\n")


def test_a_log_file_receives_the_log_as_well_and_keeps_what_it_had(log: Log, tmp_path: Path) -> None:
    file = tmp_path / "watcher.log"
    file.write_text("before\n")
    done = log("logger.info('größe \\udcff')", log_file=file)
    assert file.read_text() == "before\n" + done.stderr
    assert done.stderr.endswith("INFO größe \\udcff\n")


def test_no_name_and_no_error_forges_a_line(log: Log, tmp_path: Path) -> None:
    file = tmp_path / "watcher.log"
    code = f"""
evil = {EVIL!r}
logger.info("%s", evil, extra={{"run": evil}})
try:
    raise ValueError(evil)
except ValueError:
    logger.exception("a bug about %s", evil)
"""
    done = log(code, log_file=file)
    for text in (done.stderr, file.read_text()):
        assert not FORGED.search(text)
        events = [line for line in text.split("\n") if line and not line.startswith("    ")]
        assert len(events) == 2
        assert not set(text) & set("\r\x1b\x07\x00\u202e\u2028\x85")


@pytest.mark.parametrize("place", ["missing/watcher.log", "."])
def test_a_log_file_that_cannot_be_written_is_a_configuration_error(log: Log, tmp_path: Path, place: str) -> None:
    done = log("", log_file=tmp_path / place)
    assert done.returncode == 1
    assert re.match(
        f"log_file: '{tmp_path / place}' cannot be written: (No such file|Is a directory).*; name a file", done.stderr
    )


def test_a_log_file_that_logrotate_renames_is_followed(log: Log, tmp_path: Path) -> None:
    file = tmp_path / "watcher.log"
    log("logger.info('one'); log_file.rename(log_file.with_suffix('.1')); logger.info('two')", log_file=file)
    assert file.with_suffix(".1").read_text().endswith("INFO one\n")
    assert file.read_text().endswith("INFO two\n")


def test_a_log_file_whose_directory_goes_away_stops_nobody_and_is_used_when_it_is_back(
    log: Log, tmp_path: Path
) -> None:
    file = tmp_path / "logs" / "watcher.log"
    file.parent.mkdir()
    code = """
moved = log_file.parent.rename(log_file.parent.with_name("away"))
logger.info("one")
log_file.parent.write_text("a file in its place")
logger.info("two")
log_file.parent.unlink()
moved.rename(log_file.parent)
logger.info("three")
print("went on")
"""
    done = log(code, log_file=file)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert [line.rpartition(" ")[2] for line in done.stderr.splitlines()] == ["one", "two", "three"]
    assert file.read_text().endswith("INFO three\n")


def test_a_full_disk_under_the_log_file_stops_nobody(log: Log) -> None:
    done = log("logger.info('one'); logger.info('two'); print('went on')", log_file="/dev/full")
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert len(done.stderr.splitlines()) == 2


def test_a_log_that_is_configured_twice_tells_everything_once(log: Log, tmp_path: Path) -> None:
    file = tmp_path / "watcher.log"
    done = log("journal.configure('INFO', log_file); logger.info('once')", log_file=file)
    assert len(done.stderr.splitlines()) == len(file.read_text().splitlines()) == 1
