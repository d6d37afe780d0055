"""A small facility in a temporary directory: sequencers, a configuration, and the real command as a process."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from warm import AT_START, WarmProcess, run_warm

from watcher.commands.demo import RESTORE
from watcher.model import Document
from watcher.source import SENTINEL
from watcher.statusdb import CouchDBStore, DocumentStore, Login, SQLiteStore, StatusDB

PATIENCE_SECONDS = 120.0
"""A process that has not done by then what a test waits for has hung; only a failing test gets here."""

COMMAND = (str(Path(sys.executable).with_name("dataflow_archive")),)
"""The installed command."""


def tar_script(*before: str, interpreter: str = "/bin/sh", after: str = 'exec REAL "$@"') -> str:
    """Return a script to stand in for tar: it does `before` when it is to read a run, then `after`. REAL is GNU's tar.

    Asked for its version, it does nothing else.
    """
    asked = 'if [ "$1" = --version ]; then exec REAL "$@"; fi'
    return "\n".join((f"#!{interpreter}", asked, *before, after, "")).replace("REAL", str(shutil.which("tar")))


def never_stop(seconds: float) -> bool:
    """Pause, as a stop event that is never set does."""
    time.sleep(seconds)
    return False


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Return what `condition` returns once that is true; raise AssertionError if it never is."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < limit, f"waited in vain: {what}"
        time.sleep(0.01)
    return value


def children(name: str = "gpg") -> list[int]:
    """Return the pids of this process's children of that name, zombies too."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            pid, rest = (entry / "stat").read_text().split(" (", 1)
        except OSError:
            continue
        comm, _, fields = rest.rpartition(") ")
        if comm == name and int(fields.split()[1]) == os.getpid():
            found.append(int(pid))
    return found


def gpg(home: Path, *arguments: str, data: bytes | None = None) -> bytes:
    """Run gpg on the keyring `home`; return its output."""
    command = ["gpg", "--homedir", str(home), "--batch", "--no-tty", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def make_key(home: Path, user: str, expires: str = "never") -> str:
    """Make a key pair without a passphrase, on curves: RSA takes gpg a second. Return its fingerprint."""
    gpg(
        home,
        "--passphrase",
        "",
        "--pinentry-mode",
        "loopback",
        "--quick-generate-key",
        user,
        "future-default",
        "default",
        expires,
    )
    lines = gpg(home, "--with-colons", "--list-keys", user).decode().splitlines()
    return [line.split(":")[9] for line in lines if line.startswith("fpr:")][-2]


@contextmanager
def keyring(home: Path) -> Iterator[Path]:
    """Make an empty keyring; end its agent afterwards."""
    home.mkdir(mode=0o700)
    try:
        yield home
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)


class Daemon:
    """The command as a process, its log in a file; `arguments` begin with the program."""

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path, *, is_warm: bool = False
    ) -> None:
        self.log_file = log
        log.touch()
        self.process: subprocess.Popen[bytes] | WarmProcess
        if is_warm:
            self.process = WarmProcess(arguments, (log, log), environment, cwd)
            return
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=dict(environment), cwd=cwd, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_file.read_text(encoding="utf-8")

    def wait_for_log(self, pattern: str) -> str:
        """Wait for a line that the regular expression matches; return it."""

        def look() -> str | None:
            matches = [line for line in self.log.splitlines() if re.search(pattern, line)]
            assert matches or self.process.poll() is None, f"ended without '{pattern}':\n{self.log}"
            return matches[-1] if matches else None

        return str(wait_until(look, f"'{pattern}' in the log:\n{self.log}"))

    def wait_ready(self) -> Daemon:
        """Wait until the watcher has done its first rescan."""
        self.wait_for_log(r"watching '.*' with \d+ watches")
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        """End it as systemd does; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it as a power cut does, if it still runs."""
        self.process.kill()
        self.wait()


class Systemd:
    """The other end of `$NOTIFY_SOCKET`."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(self.address)
        self._channel.setblocking(False)
        self.told: list[str] = []

    def listen(self) -> list[str]:
        """Return everything that was told so far."""
        with suppress(BlockingIOError):
            while True:
                self.told.append(self._channel.recv(4096).decode())
        return self.told

    def count(self, state: str) -> int:
        """Return how often this was told so far."""
        return sum(state in told for told in self.listen())

    def close(self) -> None:
        """Listen no more."""
        self._channel.close()


class Site:
    """One facility: directories below `root`, a recipient in the keyring `gnupg`, a configuration on SQLite.

    Commands start warm while `is_warm` is true (see `warm`), else each with an interpreter of its own.
    """

    is_warm = False

    def __init__(self, root: Path, gnupg: Path, recipient: str, **options: Any) -> None:
        self.root = root
        self.gnupg = gnupg
        self.recipient = recipient
        self.sequencing = root / "sequencing"
        self.archives = root / "archives"
        self.keys = root / "run_keys"
        self.database = root / "status.db"
        self.config = root / "df_archive.yaml"
        # Measured, a new interpreter takes longer to start. Parallel tests have a terminal's size, and no terminal.
        left_out = ("ARCHIVE_CONFIG", "COVERAGE_PROCESS_START", "COLUMNS", "LINES")
        self.environment = {key: value for key, value in os.environ.items() if key not in left_out}
        self._daemons: list[Daemon] = []
        self._couchdb: Login | None = None
        for directory in (self.sequencing / "sequencer_A", self.sequencing / "sequencer_B", self.archives):
            directory.mkdir(parents=True)
        self.options: dict[str, Any] = {
            "statusdb": {"url": f"sqlite://{self.database}"},
            "sequencing_path": str(self.sequencing),
            "destination_path": str(self.archives),
            "run_keys_path": str(self.keys),
            "gpg_receiver": recipient,
            "gnupg_home": str(gnupg),
            "minimum_free_space": "1 MB",
            "retry_delay": 0,
            "quiet_period": 0,
            "worker_id": "worker_1",
        }
        self.configure(**options)

    def configure(self, **options: Any) -> Path:
        """Change the configuration and write it; an option that is None is left out."""
        self.options |= options
        self.options = {key: value for key, value in self.options.items() if value is not None}
        self.config.write_text(yaml.safe_dump(self.options), encoding="utf-8")
        return self.config

    def use_couchdb(self, url: str, database: str, through: str | None = None) -> None:
        """Keep run documents at a CouchDB (credentials in `url`); the watcher goes `through` a proxy, if given."""
        parts = urlsplit(url)
        user, password = parts.username, parts.password
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._couchdb = Login(plain, database, user and unquote(user), password and unquote(password))
        front = urlsplit(through or plain)
        statusdb = {"url": front._replace(netloc=front.netloc.rpartition("@")[2]).geturl(), "database": database}
        if user is not None:
            statusdb |= {"username": str(self._couchdb.username), "password": str(self._couchdb.password)}
        self.configure(statusdb=statusdb)

    def make_run(self, name: str = "run_001", sequencer: str = "sequencer_A", size: int = 100_000) -> Path:
        """Make a run directory with a few files, `size` bytes of data, and no sentinel."""
        run = self.sequencing / sequencer / name
        lane = run / "Data" / "L001"
        lane.mkdir(parents=True)
        (run / "RunInfo.xml").write_text("<RunInfo/>\n", encoding="ascii")
        (run / "Empty").mkdir()
        (run / "latest").symlink_to("RunInfo.xml")
        (lane / "C1.cbcl").write_bytes(os.urandom(size))
        return run

    def copied_to(self, root: Path) -> Site:
        """Return a site that has copies of this one's archives, keys and documents, and no runs."""
        site = Site(root, self.gnupg, self.recipient)
        site.is_warm = self.is_warm
        for source, target in ((self.archives, site.archives), (self.keys, site.keys)):
            shutil.copytree(source, target, dirs_exist_ok=True)
        with closing(sqlite3.connect(self.database)) as own, closing(sqlite3.connect(site.database)) as copy:
            own.backup(copy)
        return site

    def complete(self, run: Path, content: str = "0\n") -> Path:
        """Drop the sentinel into a run."""
        (run / SENTINEL).write_text(content, encoding="ascii")
        return run

    def start(
        self,
        *arguments: str,
        config: Path | None = None,
        log: str = "watcher.log",
        prefix: Sequence[str] = (),
        **environment: str,
    ) -> Daemon:
        """Start the command (without arguments: the watcher) on this site's configuration.

        `prefix` is a program that runs it, such as unshare(1).
        """
        command = [*prefix, *COMMAND, "-c", str(config or self.config), *arguments]
        is_warm = not prefix and self._may_be_warm(environment)
        daemon = Daemon(command, self.root / log, {**self.environment, **environment}, self.root, is_warm=is_warm)
        self._daemons.append(daemon)
        return daemon

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end on this site's configuration; return code and output."""
        command = [*COMMAND, "-c", str(self.config), *arguments]
        given = {**self.environment, **environment}
        if self._may_be_warm(environment):
            return run_warm(command, given, self.root, PATIENCE_SECONDS)
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=given, cwd=self.root, timeout=PATIENCE_SECONDS
        )

    def lines_of_shell(self, lines: str, cwd: Path | None = None, **environment: str) -> str:
        """Run lines of bash, as our pages have them, with this site's configuration; return what they print."""
        path = f"{Path(COMMAND[0]).parent}:{self.environment['PATH']}"
        own = {"ARCHIVE_CONFIG": str(self.config), "PATH": path, **environment}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines], stdout=subprocess.PIPE, text=True, check=True,
            env={**self.measured_environment, **own}, cwd=cwd, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        return done.stdout

    def on_terminal(self, *arguments: str, typed: str = "", code: int = 0) -> str:
        """Run a command that ends with `code`, on a terminal of 100 columns, on which `typed` was typed.

        Return all that is shown there.
        """
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 100))
        with os.fdopen(ours, "r+b", buffering=0) as terminal:
            terminal.write(typed.encode())
            try:
                done = subprocess.run(
                    [*COMMAND, "-c", str(self.config), *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
                    check=False, env=self.measured_environment, cwd=self.root, timeout=PATIENCE_SECONDS,
                )  # fmt: skip
            finally:
                os.close(theirs)
            shown = b""
            with suppress(OSError):  # EIO: nobody has the other end open
                while data := terminal.read(1 << 16):
                    shown += data
        assert done.returncode == code, shown
        return shown.decode()

    @property
    def measured_environment(self) -> dict[str, str]:
        """The environment of a command that cannot start warm. Such are few: where CI measures, it measures them, too.

        They have a terminal that can move its cursor, if they have one.
        """
        measured = {key: value for key, value in os.environ.items() if key == "COVERAGE_PROCESS_START"}
        return {**self.environment, **measured, "TERM": "xterm"}

    def _may_be_warm(self, environment: Mapping[str, str]) -> bool:
        return self.is_warm and not any(name.startswith(AT_START) for name in environment)

    def once(self) -> list[str]:
        """Return the words of the command `once` on this site's configuration."""
        return [*COMMAND, "-c", str(self.config), "once"]

    def statusdb_is_untouched(self) -> bool:
        """Say whether no SQLite file has been made."""
        return not self.database.exists()

    def store(self) -> DocumentStore:
        """Return the document store itself, never through a proxy."""
        return CouchDBStore(self._couchdb) if self._couchdb else SQLiteStore(self.database, never_stop)

    def statusdb(self) -> StatusDB:
        """Return the status database, prepared."""
        statusdb = StatusDB(self.store(), never_stop)
        statusdb.prepare()
        return statusdb

    def document(self, name: str = "run_001") -> Document | None:
        """Return the run's document as it is now."""
        return self.statusdb().get(name)

    def wait_for(self, name: str = "run_001", status: str = "encrypted") -> Document:
        """Wait until the run has the status; return its document."""
        statusdb = self.statusdb()

        def look() -> Document | None:
            document = statusdb.get(name)
            return document if document is not None and document.get("status") == status else None

        found: Document = wait_until(
            look, f"run '{name}' becomes '{status}': it is {statusdb.get(name)}\n{self.logs()}"
        )
        return found

    def logs(self) -> str:
        """Return all logs of this site's processes."""
        return "\n".join(sorted({daemon.log for daemon in self._daemons}))

    def restore(self, name: str = "run_001") -> Path:
        """Restore a run by the README's lines of shell; return the restored directory."""
        to = self.root / "restored"
        to.mkdir(exist_ok=True)
        variables = {"KEYS": self.keys, "ARCHIVES": self.archives, "TO": to, "RUN": name, "GNUPGHOME": self.gnupg}
        environment = {**self.environment, **{key: str(value) for key, value in variables.items()}}
        subprocess.run(["bash", "-o", "pipefail", "-c", RESTORE], env=environment, check=True, capture_output=True)
        return to / name

    def remove_published(self, name: str = "run_001") -> None:
        """Remove a run's archive, manifest and wrapped key."""
        for directory in (self.archives, self.keys):
            for path in directory.glob(f"{name}.*"):
                path.unlink()

    def staged_files(self) -> list[Path]:
        """Return staged files, which nothing should leave behind."""
        return [path for place in (self.archives, self.keys) if place.exists() for path in place.glob(".*.partial")]

    def close(self) -> None:
        """End what still runs."""
        for daemon in self._daemons:
            daemon.kill()


def assert_same_tree(source: Path, restored: Path) -> None:
    """Assert that two trees have the same names, kinds, modes, times, links and contents."""
    difference = subprocess.run(
        ["diff", "--recursive", "--no-dereference", str(source), str(restored)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert difference.returncode == 0, difference.stdout + difference.stderr
    assert _metadata(source) == _metadata(restored)


def _metadata(root: Path) -> dict[str, tuple[object, ...]]:
    inodes: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(root))
        first = inodes.setdefault(status.st_ino, name)
        found[name] = (status.st_mode, status.st_mtime_ns, first, os.readlink(path) if path.is_symlink() else None)
    return found
