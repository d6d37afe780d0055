"""A CouchDB-compatible server as a real process: npm's `pouchdb-server`, pinned in `tests/couchdb`.

It differs from CouchDB: any password is accepted, `+` in a path stays a plus, an illegal id is `bad_request`,
sequence numbers are integers, no write is answered with 202, `_changes` ignores `timeout`, and its lines are
held back in a buffer unless the client asks for `Accept-Encoding: identity`.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import requests
from npm import Unavailable, installed

PACKAGE = Path(__file__).parent / "couchdb"
START_SECONDS = 60  # node needs under one second when idle; a loaded machine gets more
STOP_SECONDS = 10
POLL_SECONDS = 0.05
PORT_TRIES = 3
PORT_TAKEN = "is already in use"  # what it says when it cannot bind; it does not end then

# Node ends when its stdin does, so a test run that is killed leaves no server behind. The server's own bugs
# (deleting a database that a `_changes` request has just opened) fail one request, not all later ones.
ENTRY = """
process.stdin.on('end', () => process.exit(0)).resume();
process.on('uncaughtException', error => console.error(error));
require(process.argv[1]);
"""


class Database(NamedTuple):
    """A database on a server: the server's address (with credentials, if any) and the database's name."""

    url: str
    name: str


class PouchServer:
    """A running `pouchdb-server` on a free port of 127.0.0.1; a context manager.

    Given no `directory`, databases live in memory and a restart loses them. Given one, they are kept there
    (LevelDB) and survive `restart` and `kill`. Raises `Unavailable` when there is no node, no npm package and
    no way to install it, or when the server does not answer.
    """

    def __init__(self, directory: Path | None = None) -> None:
        program = installed_program()
        self._home = Path(tempfile.mkdtemp(prefix="pouchdb-"))
        storage = ["--in-memory"] if directory is None else ["--dir", str(directory.resolve())]
        self._command = ["node", "-e", ENTRY, str(program), "-n", *storage]
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        try:
            self._start_on_a_free_port()
        except BaseException:
            shutil.rmtree(self._home, ignore_errors=True)
            raise

    @property
    def url(self) -> str:
        """The server's address, without a trailing slash; it stays the same over restarts."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id, or None when it does not run."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start a stopped server on its port again; returns when it answers. Raises `Unavailable`."""
        if self._process is None:
            self._launch()

    def stop(self) -> None:
        """End the server; connections are cut. Does nothing when it does not run."""
        self._end(kill=False)

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would."""
        self._end(kill=True)

    def restart(self) -> None:
        """Stop and start on the same port. What was in memory is lost, what was in a directory is kept."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, and remove the server's own files (never the `directory` that was given)."""
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_on_a_free_port(self) -> None:
        """A port that is free now may be taken when node binds it: another is tried."""
        for tries_left in reversed(range(PORT_TRIES)):
            self.port = free_port()
            try:
                return self._launch()
            except Unavailable:
                if not tries_left:
                    raise

    def _launch(self) -> None:
        with open(self._home / "output", "wb") as output:
            self._process = subprocess.Popen(
                [*self._command, "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=self._home,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.kill()
            raise

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up_at:
            if process.poll() is not None or PORT_TAKEN in self._output():
                raise Unavailable(f"pouchdb-server did not start: {self._output()}")
            if self._answers():
                return
            time.sleep(POLL_SECONDS)
        raise Unavailable(f"pouchdb-server does not answer after {START_SECONDS} s: {self._output()}")

    def _answers(self) -> bool:
        """Whether it is this server that answers: its uuid is in a file of its own directory."""
        try:
            uuid = requests.get(self.url, timeout=START_SECONDS).json()["uuid"]
            return uuid in (self._home / "config.json").read_text()
        except (requests.RequestException, KeyError, FileNotFoundError):
            return False

    def _output(self) -> str:
        return (self._home / "output").read_text(errors="replace")[-2000:].strip()

    def _end(self, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def installed_program() -> Path:
    """Return the server's script, installed with npm first when it is missing. Raises `Unavailable`."""
    return installed(PACKAGE) / "pouchdb-server/bin/pouchdb-server"
