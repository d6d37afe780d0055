"""The whole main job in a temporary directory: a key, a tree, a watcher, two runs, a restore by gpg and tar."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn

from watcher.errors import CannotRun, RestoreFailed, WatcherError, remedy
from watcher.model import Document
from watcher.process import gpg_environment, tar_environment
from watcher.source import SENTINEL
from watcher.statusdb import SQLiteStore, StatusDB

RECIPIENT = "demo@archive.invalid"
RUN_BYTES = 40_000_000
TIME_LIMIT_SECONDS = 300.0
PHASES = ("pending", "claimed", "archiving", "validating", "wrapping", "publishing", "encrypted")

RESTORE = """\
gpg --decrypt "$KEYS/$RUN.key.gpg" |
  gpg --batch --pinentry-mode loopback --passphrase-fd 0 --decrypt "$ARCHIVES/$RUN.tar.gpg" |
  tar --extract --preserve-permissions --directory="$TO"
"""
"""The README's lines, with its variables."""


@dataclass(frozen=True)
class Place:
    """Where the demo keeps what."""

    root: Path

    @property
    def gnupg(self) -> Path:
        """The throw-away keyring."""
        return self.root / "gnupg"

    @property
    def sequencing(self) -> Path:
        """The sequencing path, with its two sequencers."""
        return self.root / "sequencing"

    @property
    def archives(self) -> Path:
        """The destination."""
        return self.root / "archives"

    @property
    def keys(self) -> Path:
        """The wrapped keys."""
        return self.root / "run_keys"

    @property
    def restored(self) -> Path:
        """Where gpg and tar restore to."""
        return self.root / "restored"

    @property
    def config(self) -> Path:
        """The watcher's configuration."""
        return self.root / "df_archive.yaml"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "status.db"

    @property
    def log(self) -> Path:
        """What the watcher wrote to standard error."""
        return self.root / "watcher.log"


def run(options: argparse.Namespace) -> int:
    """Do the demo, telling of each step; return 0 if the restored runs equal their sources.

    Raises WatcherError if they do not; then everything is left where it is, to look at.
    """
    keep: bool = options.keep
    try:
        place = Place(Path(tempfile.mkdtemp(prefix="dataflow_archive_demo.")))
    except OSError as error:
        raise WatcherError(f"no temporary directory can be made: {error}; set TMPDIR to where one can") from error
    try:
        _show(place)
        _tell_where(place, keep)
    except BrokenPipeError:
        raise
    except (OSError, WatcherError) as error:
        keep = True
        raise WatcherError(f"{error}; everything is left in '{place.root}'") from error
    finally:
        _end_agent(place)
        if not keep:
            shutil.rmtree(place.root, ignore_errors=True)
    return 0


def _show(place: Place) -> None:
    _prepare(place)
    with _watcher(place) as watcher:
        for name in ("sequencer_A/run_001", "sequencer_B/run_002"):
            _archive_and_restore(place, place.sequencing / name, watcher)
    print("\nDone: both runs came back from their archives byte for byte.")


def _prepare(place: Place) -> None:
    place.gnupg.mkdir(mode=0o700)
    for directory in (
        place.sequencing / "sequencer_A",
        place.sequencing / "sequencer_B",
        place.archives,
        place.restored,
    ):
        directory.mkdir(parents=True)
    print(f"Everything happens in {place.root}")
    print(f"1. A throw-away GPG key for {RECIPIENT}")
    _gpg(place, "--batch", "--passphrase", "", "--quick-generate-key", RECIPIENT, "future-default", "default", "never")
    place.config.write_text(
        f"statusdb:\n  url: sqlite://{place.database}\n"
        f"sequencing_path: {place.sequencing}\ndestination_path: {place.archives}\n"
        f"run_keys_path: {place.keys}\ngpg_receiver: {RECIPIENT}\ngnupg_home: {place.gnupg}\n"
        "minimum_free_space: 1 MB\nquiet_period: 1 s\n",
        encoding="utf-8",
    )
    print(f"2. A configuration on SQLite: {place.config}")


def _archive_and_restore(place: Place, run: Path, watcher: subprocess.Popen[bytes]) -> None:
    print(f"\n3. A run is copied to {run}, and the sentinel {SENTINEL} dropped into it")
    _make_run(run)
    dropped_at = time.monotonic()
    (run / SENTINEL).write_text("0\n", encoding="ascii")
    document = _follow(place, run.name, watcher)
    print(f"   encrypted after {time.monotonic() - dropped_at:.1f} s: {document['archive']['size']:,} bytes")
    print("4. It is restored with plain gpg and tar:\n")
    print("".join(f"     {line}\n" for line in RESTORE.splitlines()))
    _restore(place, run.name)
    _compare(run, place.restored / run.name)


def _make_run(run: Path) -> None:
    lane = run / "Data" / "Intensities" / "BaseCalls" / "L001"
    lane.mkdir(parents=True)
    (run / "RunInfo.xml").write_text("<RunInfo/>\n", encoding="ascii")
    for cycle in range(4):
        (lane / f"C{cycle + 1}.1.cbcl").write_bytes(os.urandom(RUN_BYTES // 4))
    (run / "Recipe").mkdir()
    (run / "latest").symlink_to("RunInfo.xml")


def _follow(place: Place, name: str, watcher: subprocess.Popen[bytes]) -> Document:
    """Show the run's states as they change, until it is `encrypted`; return its document."""
    statusdb = StatusDB(SQLiteStore(place.database, _sleep), _sleep)
    limit = time.monotonic() + TIME_LIMIT_SECONDS
    with Progress(TextColumn("   {task.description:<12}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")) as bar:
        task, shown = bar.add_task("pending", total=len(PHASES) - 1), ""
        while time.monotonic() < limit:
            document = statusdb.get(name) or {}
            phase, part = _phase(document)
            bar.update(task, description=phase, completed=PHASES.index(phase) + part)
            if phase != shown:
                bar.console.print(f"   {phase}")
                shown = phase
            if phase == PHASES[-1]:
                statusdb.close()
                return document
            if (error := document.get("last_error")) or watcher.poll() is not None:
                raise WatcherError(f"the demo's run was not archived: {error or 'the watcher ended'}; see {place.log}")
            _sleep(0.02)
    raise WatcherError(f"the demo's run was not archived within {TIME_LIMIT_SECONDS:g} s; see {place.log}")


def _phase(document: Document) -> tuple[str, float]:
    status = document.get("status", "pending")
    if status != "processing":
        return status if status in PHASES else "pending", 0.0
    claim = document["claim"]
    total = claim.get("bytes_total") or 0
    return claim["phase"], min(claim.get("bytes_done", 0) / total, 1.0) if total else 0.0


def _restore(place: Place, name: str) -> None:
    names = {"KEYS": place.keys, "ARCHIVES": place.archives, "TO": place.restored, "RUN": name}
    environment = {
        **tar_environment(),
        "GNUPGHOME": str(place.gnupg),
        **{key: str(value) for key, value in names.items()},
    }
    done = _run(["bash", "-o", "pipefail", "-c", RESTORE], environment)
    if done.returncode != 0:
        raise RestoreFailed(f"gpg and tar did not restore '{name}': {done.stderr.strip()}")


def _compare(source: Path, restored: Path) -> None:
    """Raise RestoreFailed unless both trees have the same names, kinds, modes, times and contents."""
    here, there = _listing(source), _listing(restored)
    if here != there:
        differing = [name for name in {*here, *there} if here.get(name) != there.get(name)]
        raise RestoreFailed(f"'{restored}' differs from '{source}' in {sorted(differing)}")
    print(f"   {len(here)} files and directories are the same in the source and in {restored}")


def _listing(root: Path) -> dict[str, tuple[object, ...]]:
    entries = [root, *root.rglob("*")]
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.lstat().st_mtime_ns, _content(path))
        for path in entries
    }


def _content(path: Path) -> object:
    if path.is_symlink():
        return path.readlink()
    return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None


@contextmanager
def _watcher(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """Run the real watcher as a process while the context lasts."""
    # `-P`: a directory `watcher` where the demo is started from is not the one that is meant.
    command = [sys.executable, "-P", "-m", "watcher", "-c", str(place.config)]
    with place.log.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, process_group=0)
    try:
        while not place.database.exists():
            if process.poll() is not None:
                raise WatcherError(f"the watcher did not start:\n{place.log.read_text()}")
            _sleep(0.02)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _gpg(place: Place, *arguments: str) -> None:
    done = _run(["gpg", "--homedir", str(place.gnupg), *arguments])
    if done.returncode != 0:
        raise WatcherError(f"gpg did not make a key: {done.stderr.strip()}")


def _end_agent(place: Place) -> None:
    with suppress(CannotRun):
        _run(["gpgconf", "--homedir", str(place.gnupg), "--kill", "all"])


def _run(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, env=environment or gpg_environment(), capture_output=True, text=True, errors="replace", check=False
        )  # fmt: skip
    except OSError as error:
        hint = remedy(error, "install it, and put it on the PATH")
        raise CannotRun(f"cannot run '{command[0]}': {error.strerror}; {hint}") from error


def _tell_where(place: Place, keep: bool) -> None:
    if not keep:
        print(f"{place.root} is removed; `dataflow_archive demo --keep` leaves it.")
        return
    print(f"Look at {place.archives} (archives), {place.keys} (wrapped keys), {place.log} (the log), and type:")
    print(f"  dataflow_archive -c {place.config} status --all")


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False
