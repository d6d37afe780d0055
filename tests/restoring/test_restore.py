"""Restoring: what comes back, and what does not appear when something is wrong."""

import copy
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hostile import (
    DEVICE,
    FILE,
    RUN,
    TOP,
    UNSAFE,
    Forgery,
    Unsafe,
    directory,
    hard_link,
    member,
    stream,
    symlink,
)
from machine import NOBODY, as_user_nobody, make_reachable
from sites import COMMAND, Site, assert_same_tree, gpg, keyring, make_key, wait_until
from spoiling import put_a_link

from watcher import openpgp
from watcher.archiving import ArchiveStore
from watcher.commands.demo import RESTORE
from watcher.errors import RestoreFailed, UnknownRun
from watcher.job import Job
from watcher.model import Document, Run
from watcher.restoring import Manner, restore
from watcher.restoring.extraction import AS_USUAL
from watcher.stored import StoredRun

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
        self.archive_store = ArchiveStore(root / "archives", root / "keys")
        self.to = root / "to"
        self.to.mkdir()
        statusdb = original.statusdb()
        self.document: Document = copy.deepcopy(statusdb.get("run_001") or {})
        self.archive = self.archive_store.final_archive("run_001")
        self.key = self.archive_store.final_key("run_001")

    def restore(self) -> Path:
        return restore(StoredRun.of(self.document, self.archive_store), self.to, self.home)


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
    vault.archive_store.final_key("run_002").replace(vault.key)


def take_the_archive_of_another_run(vault: Vault) -> None:
    vault.archive_store.final_archive("run_002").replace(vault.archive)


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
    command = ["tar", "-C", str(other.parent), "-c", "--format=posix", "./run_001"]
    tar = subprocess.run(command, check=True, capture_output=True).stdout
    key = openpgp.unwrap(vault.key.read_bytes(), vault.home)
    with vault.archive.open("wb") as file:
        openpgp.encrypt(io.BytesIO(tar), key, file.write, Job(Run(other)), vault.home)
    with pytest.raises(RestoreFailed, match="is not the archive that was recorded: its SHA-256 or size differs"):
        vault.restore()
    assert os.listdir(vault.to) == []


@pytest.mark.parametrize(("field", "other"), [("tar_blake3", "tar_sha256"), ("tar_sha256", "tar_blake3")])
def test_another_content_than_was_recorded_is_found_out(field: str, other: str, vault: Vault) -> None:
    vault.document["archive"] |= {field: "0" * 64, other: ""}
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
        words = r"tar could not extract: .*(No space left on device|Wrote only \d+ of \d+ bytes)"
        with pytest.raises(RestoreFailed, match=words):
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


# hostile archives and documents


@pytest.fixture
def forgery(tmp_path: Path, gnupg: Path, recipient: str) -> Forgery:
    return Forgery(tmp_path, gnupg)


def restored(forgery: Forgery, members: Sequence[bytes], manner: Manner = AS_USUAL) -> tuple[Path, list[str]]:
    """Restore an archive of these members; return the run directory and the warnings."""
    document, warnings = forgery.store(stream(members)), list[str]()
    return restore(
        StoredRun.of(document, forgery.archive_store), forgery.to, forgery.home, manner, warnings.append
    ), warnings


@pytest.mark.parametrize("unsafe", UNSAFE.values(), ids=UNSAFE)
def test_an_unsafe_archive_is_refused_and_leaves_nothing(unsafe: Unsafe, forgery: Forgery) -> None:
    with pytest.raises(RestoreFailed, match=f"run '{RUN}' is not restored: the archive is not safe") as caught:
        restored(forgery, unsafe.members)
    assert unsafe.words in str(caught.value)
    assert os.listdir(forgery.to) == []


def test_a_refused_member_is_named_on_one_line(forgery: Forgery) -> None:
    with pytest.raises(RestoreFailed) as caught:
        restored(forgery, [TOP, member("./\n\x1b[2Jevil")])
    assert r"'./\n\x1b[2Jevil' leads out" in str(caught.value)


def test_the_mode_of_what_a_link_in_place_of_the_run_leads_to_stays(forgery: Forgery, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    with pytest.raises(RestoreFailed):
        restored(forgery, [symlink(f"./{RUN}", str(victim))])
    assert victim.stat().st_mode & 0o7777 == 0o700
    assert os.listdir(forgery.to) == []


@pytest.mark.parametrize("field", ["file", "key_file"])
@pytest.mark.parametrize("value", ["../evil/evil.{}.gpg", "/tmp/run_001.{}.gpg", "run_002.{}.gpg", "", None, 5])
def test_a_document_that_names_other_files_is_refused(value: object, field: str, vault: Vault) -> None:
    suffix = "tar" if field == "file" else "key"
    vault.document["archive"][field] = value.format(suffix) if isinstance(value, str) else value
    with pytest.raises(RestoreFailed, match=rf"names the file '.*' instead of 'run_001.{suffix}.gpg'"):
        vault.restore()
    assert os.listdir(vault.to) == []


@pytest.mark.parametrize("name", ["../run_001", "/tmp/run_001", "..", ".", ""])
def test_a_document_whose_id_is_a_path_is_refused(name: str, vault: Vault) -> None:
    vault.document["_id"] = name
    with pytest.raises(UnknownRun, match="is not the name of a run"):
        vault.restore()
    assert os.listdir(vault.to) == []


def put_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_a_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("put", [put_a_link, put_a_fifo, put_a_directory, put_a_socket])
@pytest.mark.parametrize("which", ["archive", "key"])
def test_only_a_regular_file_is_read(which: str, put: Callable[[Path], None], vault: Vault) -> None:
    path = getattr(vault, which)
    put(path)
    with pytest.raises(RestoreFailed, match=f"'{path}' is not a regular file"):
        vault.restore()
    assert os.listdir(vault.to) == []


def test_a_run_is_restored_through_a_link_to_a_directory(vault: Vault) -> None:
    (vault.to / "real").mkdir()
    (vault.to / "link").symlink_to("real")
    vault.to /= "link"
    assert vault.restore() == vault.to / "run_001"
    assert os.listdir(vault.to.parent / "real") == ["run_001"]


def test_what_tar_writes_without_its_end_is_refused(forgery: Forgery) -> None:
    document = forgery.store(TOP + FILE)
    with pytest.raises(RestoreFailed, match="without its end"):
        restore(StoredRun.of(document, forgery.archive_store), forgery.to, forgery.home)
    assert os.listdir(forgery.to) == []


def test_an_archive_that_is_no_tar_is_refused(forgery: Forgery) -> None:
    document = forgery.store(b"no tar" * 1000)
    with pytest.raises(RestoreFailed, match="what the archive holds is not what tar writes"):
        restore(StoredRun.of(document, forgery.archive_store), forgery.to, forgery.home)
    assert os.listdir(forgery.to) == []


def test_a_hard_link_to_nothing_is_refused_by_tar_and_leaves_nothing(forgery: Forgery) -> None:
    with pytest.raises(RestoreFailed, match=r"tar could not extract: .*run_001/nothing"):
        restored(forgery, [TOP, hard_link(f"./{RUN}/x", f"./{RUN}/nothing")])
    assert os.listdir(forgery.to) == []


def test_of_two_files_with_one_path_the_later_one_is_restored(forgery: Forgery) -> None:
    run, _ = restored(forgery, [TOP, FILE, hard_link(f"./{RUN}/x", f"./{RUN}/file"),
                                member(f"./{RUN}/file", content=b"other")])  # fmt: skip
    assert (run / "file").read_bytes() == b"other"
    assert (run / "x").read_bytes() == b"content"


def test_links_to_the_outside_come_back_and_are_not_followed(forgery: Forgery, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    twin = hard_link(f"./{RUN}/twin", f"./{RUN}/link")
    run, warnings = restored(forgery, [TOP, symlink(f"./{RUN}/link", str(outside)), twin])
    assert os.readlink(run / "link") == os.readlink(run / "twin") == str(outside)
    assert outside.stat().st_mode & 0o7777 == 0o700
    assert warnings == []


def test_a_fifo_comes_back(forgery: Forgery) -> None:
    run, warnings = restored(forgery, [TOP, member(f"./{RUN}/fifo", tarfile.FIFOTYPE)])
    assert (run / "fifo").is_fifo()
    assert warnings == []


def test_set_id_bits_are_not_restored_unless_asked_for(forgery: Forgery) -> None:
    members = [directory(f"./{RUN}/", 0o3775), member(f"./{RUN}/su", mode=0o6755, content=b"1")]
    run, warnings = restored(forgery, members)
    assert stat.S_IMODE((run / "su").stat().st_mode) == 0o755
    assert (run / "su").read_bytes() == b"1"
    assert stat.S_IMODE(run.stat().st_mode) == 0o3775
    assert [f"'./{RUN}/su' had the mode 6755" in words for words in warnings] == [True]
    shutil.rmtree(run)
    run, warnings = restored(forgery, members, Manner(special=True))
    assert stat.S_IMODE((run / "su").stat().st_mode) == 0o6755
    assert warnings == []


@pytest.mark.root
def test_a_device_is_not_restored_unless_asked_for(forgery: Forgery) -> None:
    run, warnings = restored(forgery, [TOP, DEVICE, FILE])
    assert os.listdir(run) == ["file"]
    assert [f"'./{RUN}/device' is a character device and was left out" in words for words in warnings] == [True]
    shutil.rmtree(run)
    run, warnings = restored(forgery, [TOP, DEVICE, FILE], Manner(special=True))
    assert (run / "device").is_char_device()
    assert warnings == []


@pytest.mark.root
def test_files_belong_to_who_restores_unless_asked_for_otherwise(forgery: Forgery) -> None:
    info = tarfile.TarInfo(f"./{RUN}/file")
    info.uid = info.gid = NOBODY
    members = [TOP, info.tobuf(tarfile.PAX_FORMAT)]
    run, _ = restored(forgery, members)
    assert ((run / "file").stat().st_uid, (run / "file").stat().st_gid) == (0, 0)
    shutil.rmtree(run)
    run, _ = restored(forgery, members, Manner(same_owner=True))
    assert ((run / "file").stat().st_uid, (run / "file").stat().st_gid) == (NOBODY, NOBODY)


def test_while_a_run_is_extracted_only_we_can_enter_its_directory(
    forgery: Forgery, monkeypatch: pytest.MonkeyPatch
) -> None:
    spying = forgery.to.parent / "bin" / "tar"
    spying.parent.mkdir()
    spying.write_text(f'#!/bin/sh\nstat --format=%a . > "$0.seen"\nexec {shutil.which("tar")} "$@"\n')
    spying.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spying.parent}:{os.environ['PATH']}")
    restored(forgery, [directory(f"./{RUN}/", 0o777)])
    assert Path(f"{spying}.seen").read_text() == "700\n"


def replace_by_a_link(path: str, place: int, elsewhere: Path) -> None:
    os.symlink(elsewhere, path, dir_fd=place)


def replace_by_another_user_s_directory(path: str, place: int, _: Path) -> None:
    REAL_MKDIR(path, 0o700, dir_fd=place)
    os.chown(path, NOBODY, NOBODY, dir_fd=place)


def move_a_directory_there_that_is_in_use(path: str, place: int, elsewhere: Path) -> None:
    os.rename(elsewhere, path, dst_dir_fd=place)


REAL_MKDIR = os.mkdir


@pytest.mark.root
@pytest.mark.parametrize(
    "replace", [replace_by_a_link, replace_by_another_user_s_directory, move_a_directory_there_that_is_in_use]
)
def test_nothing_is_extracted_where_another_user_has_replaced_our_directory(
    replace: Callable[[str, int, Path], None], forgery: Forgery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    monkeypatch.setattr(os, "mkdir", lambda path, _, dir_fd: replace(path, dir_fd, elsewhere))
    document, warnings = forgery.store(stream([TOP, FILE])), list[str]()
    with pytest.raises(RestoreFailed, match=r"is not ours|Not a directory"):
        restore(StoredRun.of(document, forgery.archive_store), forgery.to, forgery.home, AS_USUAL, warnings.append)
    assert list(tmp_path.rglob("file")) != []
    assert list(tmp_path.rglob(RUN)) == []


def test_however_deep_a_refused_archive_is_nothing_is_left(forgery: Forgery) -> None:
    paths = [f"./{RUN}" + "/d" * depth for depth in range(1700)]
    with pytest.raises(RestoreFailed, match="leads out"):
        restored(forgery, [*map(directory, paths), member("./x")])
    assert os.listdir(forgery.to) == []


def test_a_child_whose_exit_status_is_not_to_be_had_is_no_success(vault: Vault) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(RestoreFailed, match="its exit status would be lost"):
            vault.restore()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert os.listdir(vault.to) == []


def test_what_our_tar_writes_of_a_run_of_all_kinds_comes_back(forgery: Forgery, tmp_path: Path) -> None:
    run = tmp_path / "source" / RUN
    run.mkdir(parents=True)
    with (run / "sparse").open("wb") as file:
        for place in range(1, 100):
            file.seek(place << 20)
            file.write(b"data" * place)
        file.truncate(200_000_000)
    os.link(run / "sparse", run / "twin")
    (run / ("n" * 200)).symlink_to("../" * 50)
    os.link(run / ("n" * 200), run / "twin of a link", follow_symlinks=False)
    os.mkfifo(run / "fifo")
    tar = ["tar", "-C", str(run.parent), "-c", "--format=posix", "--sparse", "--", f"./{RUN}"]
    document = forgery.store(subprocess.run(tar, check=True, capture_output=True).stdout)
    back = restore(StoredRun.of(document, forgery.archive_store), forgery.to, forgery.home)
    (run / "fifo").unlink()  # diff takes two of them for different ones
    (back / "fifo").unlink()
    os.utime(run, ns=(0, 0))
    os.utime(back, ns=(0, 0))
    assert_same_tree(run, back)
    assert (back / "sparse").stat().st_blocks * 512 < 10_000_000


# as a command


def run_as_nobody(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*as_user_nobody(), *COMMAND, "-c", str(site.config), *arguments],
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


def put_forged_archive(site: Site, members: Sequence[bytes], **fields: str) -> None:
    """Put an archive of these members in place of the run's, and let the run's document record it."""
    forge = site.root / "forge"
    forge.mkdir()
    forgery = Forgery(forge, site.gnupg)
    archive = {**forgery.store(stream(members))["archive"], **fields}
    shutil.copyfile(forgery.archive_store.final_archive(RUN), site.archives / f"{RUN}.tar.gpg")
    shutil.copyfile(forgery.archive_store.final_key(RUN), site.keys / f"{RUN}.key.gpg")
    shutil.rmtree(forge)
    subprocess.run(["gpgconf", "--homedir", str(site.gnupg), "--kill", "all"], check=True)
    with closing(sqlite3.connect(site.database)) as database:
        database.execute("update documents set body = json_set(body, '$.archive', json(?))", (json.dumps(archive),))
        database.commit()
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(site.root.parent)], check=True)


@pytest.mark.root
def test_without_privileges_nothing_is_left_of_what_is_refused_and_the_rest_comes_back(site_of_nobody: Site) -> None:
    site = site_of_nobody
    site.complete(site.make_run())
    to = site.root / "to"
    to.mkdir()
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(site.root.parent)], check=True)
    assert run_as_nobody(site, "once").returncode == 0
    closed = [directory(f"./{RUN}/closed", 0o000), member(f"./{RUN}/closed/su", mode=0o4755, content=b"1")]
    members = [directory(f"./{RUN}/", 0o500), *closed, DEVICE, FILE]
    put_forged_archive(site, members, tar_sha256="0" * 64)
    done = run_as_nobody(site, "restore", RUN, "--to", str(to))
    assert (done.returncode, os.listdir(to)) == (1, []), done.stderr
    assert "decrypts to another content" in done.stderr
    put_forged_archive(site, members)
    done = run_as_nobody(site, "restore", RUN, "--to", str(to))
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((to / RUN).stat().st_mode) == 0o500
    assert stat.S_IMODE((to / RUN / "closed" / "su").stat().st_mode) == 0o755
    assert f"dataflow_archive: warning: './{RUN}/device' is a character device and was left out" in done.stderr
    done = run_as_nobody(site, "restore", RUN, "--to", str(site.root), "--special")
    assert (done.returncode, (site.root / RUN).exists()) == (1, False), done.stderr
    assert "tar could not extract: ./run_001/device: Cannot mknod" in done.stderr


@pytest.mark.root
def test_root_s_tar_restores_what_the_readme_says(forgery: Forgery) -> None:
    info = tarfile.TarInfo(f"./{RUN}/su")
    info.uid = info.gid = NOBODY
    info.mode = 0o6755
    forgery.store(stream([TOP, DEVICE, info.tobuf(tarfile.PAX_FORMAT)]))
    names = {
        "KEYS": forgery.archive_store.keys,
        "ARCHIVES": forgery.archive_store.destination,
        "TO": forgery.to,
        "RUN": RUN,
    }
    environment = {**os.environ, **{key: str(value) for key, value in names.items()}, "GNUPGHOME": str(forgery.home)}
    found = {}
    for options in ("", " --no-same-owner", " --no-same-owner --no-same-permissions"):
        lines = RESTORE.rstrip("\n") + options
        subprocess.run(["bash", "-o", "pipefail", "-c", lines], env=environment, check=True, capture_output=True)
        file = (forgery.to / RUN / "su").stat()
        found[options] = (file.st_uid, stat.S_IMODE(file.st_mode))
        assert (forgery.to / RUN / "device").is_char_device()
        shutil.rmtree(forgery.to / RUN)
    assert list(found.values()) == [(NOBODY, 0o6755), (0, 0o6755), (0, 0o755)]


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
        (home / "gpg-agent.conf").write_text("s2k-count 65536\n")  # the default is made to take its time
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
