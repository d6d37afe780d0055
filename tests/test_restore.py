"""Restoring: what comes back, and what does not appear when something is wrong."""

import copy
import io
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from facility import COMMAND, Site, assert_same_tree, gpg, keyring, make_key, wait_until
from host import make_reachable

from watcher import crypto
from watcher.archive import Shelf
from watcher.errors import RestoreFailed, UnknownRun
from watcher.job import Job
from watcher.model import Document, Run
from watcher.restore import restore

NOBODY = 65534

PINENTRY = """#!/bin/sh
echo OK
while read -r line; do
    echo "$line" >> {log}
    case "$line" in
        GETPIN*) {on_getpin} ;;
        BYE*) echo OK; exit ;;
        *) echo OK ;;
    esac
done
"""


class Vault:
    """Two archived runs, copied from `original` so that each test may spoil them."""

    def __init__(self, original: Site, root: Path) -> None:
        self.source = original.sequencing / "sequencer_A" / "run_001"
        self.home = original.gnupg
        shutil.copytree(original.archives, root / "archives")
        shutil.copytree(original.keys, root / "keys")
        self.shelf = Shelf(root / "archives", root / "keys")
        self.to = root / "to"
        self.to.mkdir()
        statusdb = original.statusdb()
        self.document: Document = copy.deepcopy(statusdb.get("run_001") or {})
        self.archive = self.shelf.final_archive("run_001")
        self.key = self.shelf.final_key("run_001")

    def restore(self) -> Path:
        return restore(self.document, self.shelf, self.to, self.home)


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory, gnupg: Path, recipient: str) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("archived") / "site", gnupg, recipient)
    for name in ("run_001", "run_002"):
        site.complete(site.make_run(name, size=3_000_000))
    done = site.command("once")
    assert done.returncode == 0, done.stderr
    yield site
    site.close()


@pytest.fixture
def vault(archived: Site, tmp_path: Path) -> Vault:
    return Vault(archived, tmp_path)


def test_a_restored_run_is_the_source_again(vault: Vault) -> None:
    restored = vault.restore()
    assert restored == vault.to / "run_001"
    assert_same_tree(vault.source, restored)
    assert os.listdir(vault.to) == ["run_001"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_has_the_runs_name_already_is_not_overwritten(make: Callable[[Path], None], vault: Vault) -> None:
    there = vault.to / "run_001"
    make(there)
    before = there.lstat()
    with pytest.raises(RestoreFailed, match=r"run_001' exists and is not overwritten; choose another directory"):
        vault.restore()
    assert there.lstat() == before
    assert os.listdir(vault.to) == ["run_001"]


def test_a_missing_destination_is_not_made(vault: Vault) -> None:
    vault.to.rmdir()
    with pytest.raises(RestoreFailed, match="is not a directory; create it"):
        vault.restore()
    assert not vault.to.exists()


@pytest.mark.parametrize("status", ["pending", "processing", "failed", None])
def test_only_an_encrypted_run_is_restored(status: str | None, vault: Vault) -> None:
    vault.document["status"] = status
    with pytest.raises(UnknownRun, match=f"run 'run_001' is '{status}', not 'encrypted'"):
        vault.restore()


@pytest.mark.parametrize("archive", [None, "run_001.tar.gpg", {}, {"file": "run_001.tar.gpg"}])
def test_a_document_of_another_program_is_told_from_a_broken_archive(archive: object, vault: Vault) -> None:
    vault.document["archive"] = archive
    with pytest.raises(UnknownRun, match=r"archived by another program.*gpg and tar"):
        vault.restore()


def test_a_missing_archive_is_named(vault: Vault) -> None:
    vault.archive.unlink()
    with pytest.raises(
        RestoreFailed, match=rf"run 'run_001' is not restored: '{vault.archive}' cannot be read: No such"
    ):
        vault.restore()
    assert os.listdir(vault.to) == []


def test_a_missing_key_is_named(vault: Vault) -> None:
    vault.key.unlink()
    with pytest.raises(RestoreFailed, match=rf"'{vault.key}' cannot be read: No such file.*bring the file back"):
        vault.restore()
    assert os.listdir(vault.to) == []


def flip_a_bit(vault: Vault) -> None:
    data = bytearray(vault.archive.read_bytes())
    data[1_000_000] ^= 1
    vault.archive.write_bytes(data)


def truncate(vault: Vault) -> None:
    os.truncate(vault.archive, 2_000_000)


def empty(vault: Vault) -> None:
    os.truncate(vault.archive, 0)


def append(vault: Vault) -> None:
    with vault.archive.open("ab") as file:
        file.write(b"more")


def take_the_key_of_another_run(vault: Vault) -> None:
    vault.shelf.final_key("run_002").replace(vault.key)


def take_the_archive_of_another_run(vault: Vault) -> None:
    vault.shelf.final_archive("run_002").replace(vault.archive)


def take_a_key_that_is_none(vault: Vault) -> None:
    vault.key.write_bytes(b"no OpenPGP")


@pytest.mark.parametrize(
    "spoil",
    [
        flip_a_bit,
        truncate,
        empty,
        append,
        take_the_key_of_another_run,
        take_the_archive_of_another_run,
        take_a_key_that_is_none,
    ],
)
def test_nothing_appears_when_the_stored_files_are_spoilt(spoil: Callable[[Vault], None], vault: Vault) -> None:
    spoil(vault)
    with pytest.raises(RestoreFailed, match="run 'run_001' is not restored: "):
        vault.restore()
    assert os.listdir(vault.to) == []


def test_another_archive_made_with_the_same_key_is_found_out(vault: Vault, tmp_path: Path) -> None:
    other = tmp_path / "other" / "run_001"
    other.mkdir(parents=True)
    tar = subprocess.run(["tar", "-C", str(other.parent), "-c", "./run_001"], check=True, capture_output=True).stdout
    key = crypto.unwrap(vault.key.read_bytes(), vault.home)
    with vault.archive.open("wb") as file:
        crypto.encrypt(io.BytesIO(tar), key, file.write, Job(Run(other)), vault.home)
    with pytest.raises(RestoreFailed, match="is not the archive that was recorded: its SHA-256 or size differs"):
        vault.restore()
    assert os.listdir(vault.to) == []


def test_another_content_than_was_recorded_is_found_out(vault: Vault) -> None:
    vault.document["archive"]["tar_sha256"] = "0" * 64
    with pytest.raises(RestoreFailed, match="decrypts to another content than was recorded"):
        vault.restore()
    assert os.listdir(vault.to) == []


def test_options_for_tar_in_the_environment_change_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAR_OPTIONS", "--exclude=*.cbcl --no-such-option")
    assert_same_tree(vault.source, vault.restore())


@pytest.mark.root
def test_a_full_disk_is_told_in_tars_words_and_leaves_nothing(vault: Vault) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(vault.to)], check=True)
    try:
        with pytest.raises(RestoreFailed, match=r"tar could not extract: .*No space left on device"):
            vault.restore()
        assert os.listdir(vault.to) == []
    finally:
        subprocess.run(["umount", str(vault.to)], check=True)


def test_without_the_private_key_it_says_so(vault: Vault, tmp_path: Path) -> None:
    with keyring(tmp_path / "empty") as home:
        vault.home = home
        with pytest.raises(RestoreFailed, match=r"No secret key; is the private key in this keyring\?"):
            vault.restore()
    assert os.listdir(vault.to) == []


# as a command


def run_as_nobody(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups",
         *COMMAND, "-c", str(site.config), *arguments],
        capture_output=True, text=True, check=False, env={**site.environment, "HOME": str(site.root)}, cwd="/",
    )  # fmt: skip


@pytest.fixture
def site_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that a user without privileges owns, with a key pair of its own."""
    root = tmp_path_factory.mktemp("nobody")
    make_reachable(root / "home")
    with keyring(root / "home") as home:
        make_key(home, "ops@example.org")
        site = Site(root / "site", home, "ops@example.org")
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
        yield site
        site.close()


@pytest.mark.root
def test_a_run_that_its_owner_may_not_write_comes_back_as_it_was(site_of_nobody: Site) -> None:
    site = site_of_nobody
    run = site.complete(site.make_run())
    (run / "Empty").chmod(0o555)
    (run / "RunInfo.xml").chmod(0o444)
    (run / "Data").chmod(0o777)  # more than the umask leaves
    run.chmod(0o555)
    to = site.root / "to"
    to.mkdir()
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(site.root.parent)], check=True)
    archived = run_as_nobody(site, "once")
    assert archived.returncode == 0, archived.stderr
    done = run_as_nobody(site, "restore", "run_001", "--to", str(to))
    assert done.returncode == 0, done.stderr
    assert_same_tree(run, to / "run_001")


def use_pinentry(home: Path, log: Path, on_getpin: str) -> None:
    pinentry = home / "pinentry"
    pinentry.write_text(PINENTRY.format(log=log, on_getpin=on_getpin))
    pinentry.chmod(0o700)
    (home / "gpg-agent.conf").write_text(f"pinentry-program {pinentry}\n")
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Site]:
    """A site with an archived run, whose private key has the passphrase `secret`."""
    with keyring(tmp_path / "home") as home:
        gpg(home, "--passphrase", "secret", "--pinentry-mode", "loopback",
            "--quick-generate-key", "ops@example.org", "future-default", "default", "never")  # fmt: skip
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
        site = Site(tmp_path / "site", home, "ops@example.org")
        site.complete(site.make_run())
        done = site.command("once")
        assert done.returncode == 0, done.stderr
        yield site
        site.close()


def test_a_locked_private_key_is_asked_for_on_the_users_terminal(locked: Site, tmp_path: Path) -> None:
    log = tmp_path / "asked"
    use_pinentry(locked.gnupg, log, 'echo "D secret"; echo OK')
    to = locked.root / "to"
    to.mkdir()
    own, terminal = os.openpty()
    environment = {key: value for key, value in locked.environment.items() if key != "GPG_TTY"}
    done = subprocess.run(
        [*COMMAND, "-c", str(locked.config), "restore", "run_001", "--to", str(to)],
        stdin=terminal, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"ttyname={os.ttyname(terminal)}" in log.read_text()
    os.close(own)
    os.close(terminal)
    assert_same_tree(locked.sequencing / "sequencer_A" / "run_001", to / "run_001")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl+C"])
def test_a_restore_that_is_stopped_leaves_nothing(
    number: signal.Signals, code: int, locked: Site, tmp_path: Path
) -> None:
    log = tmp_path / "asked"
    use_pinentry(locked.gnupg, log, "sleep 1000")
    to = locked.root / "to"
    to.mkdir()
    daemon = locked.start("restore", "run_001", "--to", str(to), log="restore.log")
    wait_until(lambda: log.exists() and "GETPIN" in log.read_text(), "the passphrase is asked for")
    assert any(name.startswith(".restoring-") for name in os.listdir(to))
    daemon.signal(number)
    assert daemon.wait() == code
    assert os.listdir(to) == []
    assert "Traceback" not in daemon.log
    for pid in sleepers():
        os.kill(pid, signal.SIGTERM)


def sleepers() -> list[int]:
    """Return the pids of our pinentry's `sleep 1000`."""
    lines = subprocess.run(["ps", "-eo", "pid,args"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if re.fullmatch(r"\s*\d+ sleep 1000", line)]
