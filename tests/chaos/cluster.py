"""Several daemons on one site, killed, suspended and started again at will; and what must hold afterwards."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from couchdb_server import Database
from sites import Daemon, Site, assert_same_tree, gpg, never_stop, wait_until

from watcher.archiving import ArchiveStore
from watcher.model import Document
from watcher.statusdb import CouchDBStore, Login, StatusDB

LEASE_SECONDS = 1.5
"""Long enough for a renewal on a busy machine, short enough for a hundred take-overs in CI."""

Trigger = Callable[["Cluster", str], bool]


def say(line: str) -> None:
    """Print a seed or a figure: pytest shows it with `-s`, and for a test that fails."""
    sys.stdout.write(line + "\n")


def seeded(name: str) -> random.Random:
    """Return a source of chance for the test `name`; `CHAOS_SEED` repeats what an earlier one did."""
    seed = os.environ.get("CHAOS_SEED") or str(random.SystemRandom().randrange(1 << 32))
    say(f"{name}: CHAOS_SEED={seed}")
    return random.Random(f"{name} {seed}")


class Cluster:
    """A site, its daemons by worker id, and the runs that were completed in it."""

    def __init__(self, site: Site, database: Database | None = None, url: str | None = None, **options: Any) -> None:
        self.site = site
        self.database = database
        self.daemons: dict[str, Daemon] = {}
        self.runs: dict[str, Path] = {}
        self.kills = 0
        self.missed = 0
        self.starts = 0
        if database:
            site.configure(statusdb={"url": url or database.url, "database": database.name})
        self._statusdb = self._own_statusdb()
        site.configure(lease_seconds=LEASE_SECONDS, rescan_interval=5, **options)

    def _own_statusdb(self) -> StatusDB:
        if self.database is None:
            return self.site.statusdb()
        return StatusDB(CouchDBStore(Login(self.database.url, self.database.name)), never_stop)

    def statusdb(self) -> StatusDB:
        """Return the status database, by a way of the test's own."""
        return self._statusdb

    def start(self, worker_id: str = "worker_1", **options: Any) -> Daemon:
        """Start a daemon of this worker id (again), with `options` of its own."""
        config = self.site.root / f"{worker_id}.yaml"
        config.write_text(yaml.safe_dump(self.site.options | {"worker_id": worker_id} | options), encoding="utf-8")
        self.starts += 1
        self.daemons[worker_id] = self.site.start(config=config, log=f"{worker_id}.{self.starts}.log")
        return self.daemons[worker_id]

    def kill(self, worker_id: str = "worker_1") -> None:
        """Kill a daemon with SIGKILL, and none of its children."""
        self.daemons.pop(worker_id).kill()
        self.kills += 1

    def stop_all(self) -> None:
        """End all daemons as systemd does; each must end well."""
        for daemon in self.daemons.values():
            daemon.wait_ready()
            assert daemon.stop() == 0, daemon.log
        self.daemons.clear()

    def add_run(self, name: str, size: int = 3_000_000) -> str:
        """Make a run and complete it."""
        self.runs[name] = self.site.complete(self.site.make_run(name, size=size))
        return name

    def await_encrypted(self) -> None:
        """Wait until all runs are encrypted."""
        statusdb = self.statusdb()

        def are_done() -> bool:
            for worker_id, daemon in list(self.daemons.items()):
                assert daemon.process.poll() is None, f"{worker_id} has ended:\n{daemon.log}"
            found = [statusdb.get(name) for name in self.runs]
            return all(document is not None and document["status"] == "encrypted" for document in found)

        try:
            wait_until(are_done, "all runs are encrypted")
        except AssertionError as error:
            states = [statusdb.get(name) for name in self.runs]
            rest = [document for document in states if not document or document["status"] != "encrypted"]
            raise AssertionError(f"{error}\n{rest}\n{self.site.logs()[-20000:]}") from None

    def finals(self) -> dict[str, tuple[int, str]]:
        """Return inode and SHA-256 of each file under a final name."""
        files = [path for place in (self.site.archives, self.site.keys) for path in place.glob("[!.]*.gpg")]
        return {path.name: (path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}

    def assert_whole(self) -> None:
        """Assert all that is promised, with no daemon running any more."""
        statusdb = self.statusdb()
        expected: dict[str, str] = {}
        for name, source in self.runs.items():
            document = statusdb.get(name)
            assert document is not None
            assert (document["status"], document["failure_count"]) == ("encrypted", 0), document
            archive = document["archive"]
            expected |= {archive["file"]: archive["sha256"], archive["key_file"]: archive["key_sha256"]}
            expected[archive["manifest_file"]] = archive["manifest_sha256"]
            assert_same_tree(source, self.site.restore(name))
            assert self.site.logs().count(f"encrypted '{archive['file']}'") <= 1, "it was recorded twice"
        assert {name: digest for name, (_, digest) in self.finals().items()} == expected
        assert self.site.staged_files() == []
        assert self.children() == []
        self._assert_no_plaintext_key()

    def children(self) -> list[str]:
        """Return the command lines of tar and gpg processes that work on this site."""
        places = (str(self.site.sequencing), str(self.site.gnupg))
        return [
            line for _, line in processes() if line.startswith(("tar ", "gpg ")) and any(map(line.__contains__, places))
        ]

    def await_no_children(self) -> None:
        """Wait until no tar or gpg works on this site, since an orphan notices only when it reads or writes."""
        wait_until(lambda: not self.children(), f"children end: {self.children()}")

    def _assert_no_plaintext_key(self) -> None:
        secrets = [gpg(self.site.gnupg, "--decrypt", str(path)).strip() for path in self.site.keys.glob("*.key.gpg")]
        assert len(set(secrets)) == len(self.runs)
        places = [self.site.archives, self.site.keys, self.site.root]
        for path in {path for place in places for path in place.iterdir() if path.is_file()}:
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), f"a file key is in {path}"


def processes() -> Iterator[tuple[int, str]]:
    """Yield id and command line of each process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                yield (
                    int(entry.name),
                    " ".join(
                        os.fsdecode(word) for word in (Path(os.fsdecode(words[0])).name.encode(), *words[1:])
                    ).strip(),
                )


def children_of(pid: int, program: str = "") -> list[int]:
    """Return the ids of a process's children that run `program` (or any)."""
    with suppress(OSError):
        listed = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        names = {child: command for child, command in processes()}
        return [child for child in listed if names.get(child, "").startswith(program)]
    return []


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those of the processes that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


# Steps of the story as an onlooker sees them. Each is true from its step on.


def _document(cluster: Cluster, name: str) -> Document:
    return cluster.statusdb().get(name) or {}


def _is(*statuses: str) -> Trigger:
    return lambda cluster, name: _document(cluster, name).get("status") in statuses


def _staged(suffix: str, at_least: int = 0) -> Trigger:
    def look(cluster: Cluster, name: str) -> bool:
        places = (cluster.site.archives, cluster.site.keys)
        found = [path for place in places for path in place.glob(f".{name}.*{suffix}.partial")]
        with suppress(OSError):
            return any(path.stat().st_size >= at_least for path in found)
        return False

    return look


def _validates(cluster: Cluster, _name: str) -> bool:
    return any("--decrypt" in line for line in cluster.children())


STEPS: dict[str, Trigger] = {
    "registered": _is("pending", "processing"),
    "claimed": _is("processing"),
    "archive begun": _staged(".tar.gpg"),
    "archive half written": _staged(".tar.gpg", 1_000_000),
    "validating": _validates,
    "key staged": _staged(".key.gpg"),
    "receipt staged": _staged(".manifest"),
    "announced": lambda cluster, name: "archive" in _document(cluster, name),
    "key named": lambda cluster, name: ArchiveStore(cluster.site.archives, cluster.site.keys).final_key(name).exists(),
    "archive named": lambda cluster, name: (
        ArchiveStore(cluster.site.archives, cluster.site.keys).final_archive(name).exists()
    ),
    "recorded": _is("encrypted"),
}


def await_step(cluster: Cluster, name: str, step: str) -> None:
    """Return as soon as the run has come to the step, or, which is counted as missed, is over."""
    reached, is_over = STEPS[step], STEPS["archive named"]
    while not reached(cluster, name):
        if step != "recorded" and is_over(cluster, name):
            cluster.missed += 1
            return
        for daemon in cluster.daemons.values():
            assert daemon.process.poll() is None, daemon.log


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs on `path` while the context lasts. Raises CalledProcessError without root."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True, capture_output=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)
