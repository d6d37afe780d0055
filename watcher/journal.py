"""Logging: to journald with native fields under systemd, else to standard error; and to a file if asked.

A line about a run is logged with `extra={"run": name}`; that is journald's field RUN_ID, and the
line's first word elsewhere. FIELDS has what else such a line may carry.
"""

from __future__ import annotations

import logging
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from logging_journald import JournaldTransport, check_journal_stream

from watcher.errors import ConfigError, remedy
from watcher.text import printable

IDENTIFIER = "dataflow_archive"

PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""syslog(3)'s numbers for Python's levels."""

FIELDS = {"run": "RUN_ID", "sequencer": "SEQUENCER", "phase": "PHASE", "attempt": "ATTEMPT"}
"""What a record may carry (`extra`), and journald's field for it."""

FORMAT = "%(asctime)sZ %(levelname)s %(about)s%(message)s"


def configure(level: str, log_file: Path | None = None, worker_id: str = "") -> None:
    """Send the log of this process, a worker's, to where it belongs.

    `level` is one of DEBUG, INFO, WARN, ERROR. Raises ConfigError when `log_file` cannot be written.
    """
    handlers: list[logging.Handler] = [_journal(worker_id) or _text(logging.StreamHandler())]
    if log_file is not None:
        try:
            handlers.append(_text(LogFile(log_file, encoding="utf-8", errors="backslashreplace")))
        except OSError as error:
            hint = remedy(error, "name a file that this user may write")
            raise ConfigError(f"log_file: '{log_file}' cannot be written: {error.strerror}; {hint}") from error
    # A full disk under the log file must not stop the archiving, nor fill the journal with tracebacks.
    logging.raiseExceptions = False
    logging.basicConfig(level=level.replace("WARNING", "WARN"), handlers=handlers, force=True)
    for noisy in ("pycouchdb", "urllib3", "watchdog"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


class JournalHandler(logging.Handler):
    """Sends records to journald's socket, with a traceback in the message if there is one.

    The field WORKER of each is `worker_id`, if there is one.
    """

    def __init__(self, socket_path: Path, worker_id: str = "") -> None:
        super().__init__()
        self._worker_id = worker_id
        # The address goes with each line. A connection would stay dead after journald was restarted.
        self._transport = JournaldTransport(socket_path, connected=False)
        self.setFormatter(OneLine("%(about)s%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            self._transport.send(self._fields(record))
        except Exception:  # noqa: BLE001  # as in the standard library's handlers: who logs shall not fail
            self.handleError(record)

    def _fields(self, record: logging.LogRecord) -> list[tuple[str, str | int]]:
        fields: list[tuple[str, str | int]] = [
            ("MESSAGE", self.format(record)),
            ("PRIORITY", PRIORITIES.get(record.levelno, 6)),
            ("SYSLOG_IDENTIFIER", IDENTIFIER),
            ("CODE_FILE", record.pathname),
            ("CODE_LINE", record.lineno),
            ("CODE_FUNC", record.funcName or ""),
            ("LOGGER", record.name),
        ]
        carried = [(field, getattr(record, name, None)) for name, field in FIELDS.items()]
        about = [("WORKER", self._worker_id), *carried]
        return [*fields, *((field, printable(str(value))) for field, value in about if value)]


class LogFile(WatchedFileHandler):
    """Writes to a file, which logrotate may rename; a file that cannot be opened again is tried at the next line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


class OneLine(logging.Formatter):
    """Keeps a message on one line, whatever a run's name has in it: nobody forges a log line with a name."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03d"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """Return the line for a record; a traceback follows on lines of its own."""
        run = getattr(record, "run", None)
        record.about = f"{printable(run)}: " if run else ""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's own name
        """Return the traceback, indented: no line of it can pass for an event of its own."""
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).split("\n"))


def _journal(worker_id: str) -> JournalHandler | None:
    """Return a handler for journald if standard error leads there, as systemd's `$JOURNAL_STREAM` tells."""
    try:
        leads_there = check_journal_stream() and JournaldTransport.SOCKET_PATH.is_socket()
    except (OSError, ValueError, AttributeError):
        leads_there = False  # no such variable as we know, or no standard error
    return JournalHandler(JournaldTransport.SOCKET_PATH, worker_id) if leads_there else None


def _text(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(OneLine(FORMAT))
    return handler
