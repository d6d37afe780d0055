"""`verify`: whatever is not as it was recorded is named, and nothing else is."""

import hashlib
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from sites import Site, gpg, make_key, never_stop
from spoiling import append, cut, flip, put_a_link
from test_readme import block

from watcher import openpgp
from watcher.errors import NotAsRecorded, ValidateFailed
from watcher.job import Job
from watcher.model import Digest, Document, Run
from watcher.openpgp import FileKey
from watcher.statusdb import StatusDB
from watcher.stored import StoredRun
from watcher.verifying import verify_content, verify_files
from watcher.wiring import archives


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, gnupg: Path, recipient: str) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("verified") / "site", gnupg, recipient)
    site.is_warm = True
    for name in ("run_001", "run_002"):
        site.complete(site.make_run(name, size=3_000_000))
    assert site.command("once").returncode == 0
    yield site
    site.close()


@pytest.fixture
def archived(original: Site, tmp_path: Path) -> Site:
    """Two archived runs that a test may spoil."""
    return original.copied_to(tmp_path / "copy")


def archive_of(site: Site) -> Path:
    return site.archives / "run_001.tar.gpg"


def key_of(site: Site) -> Path:
    return site.keys / "run_001.key.gpg"


def manifest_of(site: Site) -> Path:
    return site.archives / "run_001.manifest.jsonl.gz.gpg"


def take_the_other_run_s(path: Path) -> None:
    shutil.copy(path.with_name(path.name.replace("run_001", "run_002")), path)


DAMAGES: tuple[Callable[[Path], None], ...] = (flip, cut, append, take_the_other_run_s, put_a_link, Path.unlink)


def verified(site: Site, name: str = "run_001") -> dict[str, Any]:
    found: dict[str, Any] = (site.document(name) or {})["verified"]
    return found


def test_an_archive_that_is_as_it_was_recorded_says_so_and_when(archived: Site) -> None:
    before = archived.document() or {}
    done = archived.command("verify", "run_001", "run_002")
    assert (done.returncode, done.stdout, done.stderr) == (0, "run_001: as recorded\nrun_002: as recorded\n", "")
    document = archived.document() or {}
    assert document.pop("verified").keys() == {"at", "problem"}
    assert {**document, "_rev": ""} == {**before, "_rev": ""}
    assert archived.command("verify", "--content", "run_001").returncode == 0
    assert verified(archived).keys() == {"at", "problem", "content_at", "content_problem"}


@pytest.mark.parametrize("options", [(), ("--content",)])
@pytest.mark.parametrize("file", [archive_of, key_of, manifest_of])
@pytest.mark.parametrize("spoil", DAMAGES)
def test_a_damaged_file_is_named(
    spoil: Callable[[Path], None], file: Callable[[Site], Path], options: tuple[str, ...], archived: Site
) -> None:
    spoil(file(archived))
    done = archived.command("verify", *options, "run_001", "run_002")
    assert done.returncode == 1
    spoilt, whole = done.stdout.splitlines()
    assert spoilt.startswith(f"run_001: '{file(archived)}'")
    assert whole == "run_002: as recorded"
    assert str(file(archived)) in verified(archived)["problem"]
    assert verified(archived, "run_002")["problem"] == ""


def test_the_member_that_is_damaged_is_named(archived: Site) -> None:
    flip(archive_of(archived))
    done = archived.command("verify", "--content", "run_001")
    assert "the stored archive does not decrypt" in done.stdout
    assert "1 members are not what the manifest says: 'run_001/Data/L001/C1.cbcl'" in done.stdout


def test_a_run_that_is_whole_again_has_no_problem(archived: Site) -> None:
    content = archive_of(archived).read_bytes()
    cut(archive_of(archived))
    assert archived.command("verify", "--all").returncode == 1
    archive_of(archived).write_bytes(content)
    assert archived.command("verify", "--all").returncode == 0
    assert verified(archived)["problem"] == ""


def test_what_was_wrong_inside_stays_until_that_is_compared_again(archived: Site) -> None:
    content = archive_of(archived).read_bytes()
    flip(archive_of(archived))
    assert archived.command("verify", "--content", "run_001").returncode == 1
    archive_of(archived).write_bytes(content)
    assert archived.command("verify", "run_001").returncode == 0
    assert verified(archived)["problem"] == ""
    assert "does not decrypt" in verified(archived)["content_problem"]
    assert archived.command("verify", "--content", "run_001").returncode == 0
    assert verified(archived)["content_problem"] == ""


@pytest.mark.parametrize("left", ["empty", "missing"])
@pytest.mark.parametrize("which", ["archives", "keys"])
def test_of_a_directory_that_is_not_mounted_nothing_is_recorded(which: str, left: str, archived: Site) -> None:
    directory: Path = getattr(archived, which)
    before = archived.document()
    directory.rename(directory.with_name("unmounted"))
    if left == "empty":
        directory.mkdir()
    done = archived.command("verify", "--all")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"'{directory}' " in done.stderr
    assert re.search("othing was recorded of run 'run_00[12]'", done.stderr)
    assert archived.document() == before


@pytest.mark.parametrize("words", ["verify run_001 run_002", "verify --content run_001", "restore run_001 --to ."])
def test_a_terminal_shows_how_far_it_is(words: str, archived: Site) -> None:
    shown = archived.on_terminal(*words.split())
    assert "run_001" in shown
    assert re.search(r"\d/.* (bytes|MiB)", shown)


@pytest.mark.parametrize("words", [(), ("run_001", "--all"), ("run_001", "--older-than", "1d")])
def test_the_runs_are_named_in_one_way(words: tuple[str, ...], archived: Site) -> None:
    done = archived.command("verify", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "name the runs, or say --all or --older-than" in done.stderr


def age(site: Site, name: str, days: int, with_content: bool) -> None:
    """Record a verification of so many days ago."""
    statusdb = StatusDB(site.store(), never_stop, lambda: datetime.now(UTC) - timedelta(days=days))
    statusdb.mark_verified(statusdb.demand(name), with_content, "")
    statusdb.close()


def test_the_longest_not_verified_comes_first_and_what_is_young_is_left_out(archived: Site) -> None:
    assert archived.command("verify", "--older-than", "1d").stdout == "", "they were archived just now"
    age(archived, "run_001", days=160, with_content=True)
    age(archived, "run_001", days=140, with_content=False)
    age(archived, "run_002", days=200, with_content=True)
    assert archived.command("verify", "--older-than", "150d").stdout == "run_002: as recorded\n"
    assert archived.command("verify", "--all").stdout == "run_001: as recorded\nrun_002: as recorded\n"
    both = "run_002: as recorded\nrun_001: as recorded\n"
    assert archived.command("verify", "--older-than", "150 d", "--content").stdout == both
    assert archived.command("verify", "--older-than", "150 d", "--content").stdout == ""


def test_no_run_is_begun_when_the_budget_is_spent(archived: Site) -> None:
    done = archived.command("verify", "--all", "--budget", "0")
    assert (done.returncode, done.stdout) == (0, "2 runs are left: the budget is spent\n")
    assert archived.command("verify", "--all", "--budget", "2h").stdout.count("as recorded") == 2


def test_a_run_of_another_program_is_left_out_of_all_and_refused_by_name(archived: Site) -> None:
    store = archived.store()
    document = archived.document() or {}
    store.put({**document, "archive": {"file": "run_001.tar.gpg"}})
    store.close()
    done = archived.command("verify", "--all")
    assert (done.returncode, done.stdout) == (0, "run_002: as recorded\n")
    assert "run 'run_001' was archived by another program" in done.stderr
    assert archived.command("verify", "run_001").returncode == 1


def test_a_result_is_not_written_for_an_archive_that_was_replaced_meanwhile(archived: Site) -> None:
    statusdb = archived.statusdb()
    seen, others = statusdb.demand("run_001"), statusdb.demand("run_001")
    store = archived.store()
    store.put({**others, "archive": {**others["archive"], "sha256": "0" * 64}})
    statusdb.mark_verified(seen, with_content=True, problem="")
    assert "verified" not in statusdb.demand("run_001")
    store.close()
    statusdb.close()


def test_a_result_is_written_over_what_others_have_changed(archived: Site) -> None:
    statusdb = archived.statusdb()
    seen = statusdb.demand("run_001")
    store = archived.store()
    store.put({**seen, "theirs": 1})
    statusdb.mark_verified(seen, with_content=True, problem="")
    found = statusdb.demand("run_001")
    assert (found["theirs"], found["verified"]["problem"]) == (1, "")
    store.close()
    statusdb.close()


def test_a_verification_without_the_private_key_needs_none_and_one_with_content_says_so(
    archived: Site, tmp_path: Path
) -> None:
    (tmp_path / "gnupg").mkdir(mode=0o700)
    public = gpg(archived.gnupg, "--export", archived.recipient)
    gpg(tmp_path / "gnupg", "--import", data=public)
    archived.configure(gnupg_home=str(tmp_path / "gnupg"))
    done = archived.command("verify", "run_001")
    assert (done.returncode, done.stderr) == (0, "")
    done = archived.command("verify", "--content", "run_001")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is the private key in this keyring?" in done.stderr
    assert "content_at" not in verified(archived)


def test_without_the_public_key_who_can_open_it_is_not_compared(archived: Site, tmp_path: Path) -> None:
    (tmp_path / "gnupg").mkdir(mode=0o700)
    archived.configure(gnupg_home=str(tmp_path / "gnupg"))
    done = archived.command("verify", "run_001")
    assert (done.returncode, done.stdout) == (0, "run_001: as recorded\n")
    assert "who can open it was not compared: the public key" in done.stderr


@pytest.mark.parametrize("command", [(), ("--all", "run_001"), ("--budget", "soon", "--all")])
def test_a_command_line_that_names_no_runs_is_wrong(command: tuple[str, ...], archived: Site) -> None:
    assert archived.command("verify", *command).returncode == 2


class Recorded:
    """The first run, whose document a test may change, as somebody who rewrites both could."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.document: Document = site.document() or {}
        self.key: FileKey = openpgp.unwrap(key_of(site).read_bytes(), site.gnupg)

    def record(self, path: Path, kind: str) -> None:
        digest = _digest(path)
        prefix = {"archive": "", "key": "key_", "manifest": "manifest_"}[kind]
        self.document["archive"] |= {f"{prefix}size": digest.size, f"{prefix}sha256": digest.sha256}

    def store(self, stream: bytes) -> None:
        """Store another archive, under the same key, and record it."""
        with archive_of(self.site).open("wb") as file:
            openpgp.encrypt(io.BytesIO(stream), self.key, file.write, self.job, self.site.gnupg)
        self.record(archive_of(self.site), "archive")
        self.document["archive"] |= {"tar_blake3": blake3(stream).hexdigest(), "tar_size": len(stream)}

    @property
    def job(self) -> Job:
        return Job(Run(Path("run_001")))

    @property
    def stored(self) -> StoredRun:
        return StoredRun.of(self.document, archives.ArchiveStore(self.site.archives, self.site.keys))

    def verify(self) -> None:
        assert verify_files(self.stored, self.job, self.site.gnupg) == ""
        verify_content(self.stored, self.job, self.site.gnupg)

    def plain(self) -> bytes:
        found = bytearray()
        with archive_of(self.site).open("rb") as file:
            openpgp.decrypt(file.read, self.key, found.extend, self.job, self.site.gnupg)
        return bytes(found)


def _digest(path: Path) -> Digest:
    content = path.read_bytes()
    return Digest(len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def record(archived: Site) -> Recorded:
    return Recorded(archived)


def without(stream: bytes, name: str, directory: Path) -> bytes:
    """Return the stream without a member, rewritten by tar."""
    (directory / "a.tar").write_bytes(stream)
    subprocess.run(["tar", "--delete", "--file=a.tar", f"./run_001/{name}"], cwd=directory, check=True)
    return (directory / "a.tar").read_bytes()


def test_a_member_that_was_lost_is_named(record: Recorded, tmp_path: Path) -> None:
    record.verify()
    record.store(without(record.plain(), "RunInfo.xml", tmp_path))
    with pytest.raises(NotAsRecorded, match=r"members are not what the manifest says: .*'run_001/RunInfo.xml'"):
        record.verify()


def test_a_member_that_was_added_is_told(record: Recorded, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(record.plain())
    (tmp_path / "more").touch()
    subprocess.run(["tar", "--append", "--format=posix", "--file=a.tar", "more"], cwd=tmp_path, check=True)
    record.store((tmp_path / "a.tar").read_bytes())
    with pytest.raises(NotAsRecorded, match="it has more members than the manifest"):
        record.verify()


def test_a_tar_that_ended_early_is_told(record: Recorded) -> None:
    record.store(record.plain()[:700])
    with pytest.raises(NotAsRecorded, match="members are not what the manifest says"):
        record.verify()


def test_a_changed_byte_under_the_right_key_is_named(record: Recorded) -> None:
    stream = bytearray(record.plain())
    stream[stream.index(b"<RunInfo/>") + 1] ^= 1
    record.store(bytes(stream))
    with pytest.raises(NotAsRecorded, match=r"1 members are not what the manifest says: 'run_001/RunInfo.xml'"):
        record.verify()


@pytest.mark.parametrize("field", ["tar_blake3", "tar_sha256"])
def test_an_archive_without_a_manifest_is_compared_as_a_whole(field: str, record: Recorded) -> None:
    stream = record.plain()
    record.document["archive"] |= {"manifest_file": "", "key_size": 0}
    if field == "tar_sha256":
        record.document["archive"] |= {"tar_blake3": "", "tar_sha256": hashlib.sha256(stream).hexdigest()}
    record.verify()
    record.document["archive"][field] = "0" * 64
    with pytest.raises(NotAsRecorded, match="it decrypts to another content than was recorded"):
        record.verify()


def test_a_key_that_another_person_opens_is_told(record: Recorded) -> None:
    other = make_key(record.site.gnupg, "mallory@example.org")
    wrapped = openpgp.wrap(record.key, openpgp.find_recipient(other, record.site.gnupg), record.site.gnupg)
    key_of(record.site).write_bytes(wrapped)
    record.record(key_of(record.site), "key")
    with pytest.raises(NotAsRecorded, match=r"opens with [0-9A-F]{16}, and not with a key of the recipient"):
        record.verify()


def test_a_manifest_of_another_archive_does_not_open(record: Recorded) -> None:
    take_the_other_run_s(manifest_of(record.site))
    record.record(manifest_of(record.site), "manifest")
    with pytest.raises(ValidateFailed, match="does not decrypt"):
        record.verify()


def test_the_words_of_the_page_verify_a_run(archived: Site) -> None:
    assert archived.lines_of_shell(block("verify")) == 2 * "run_001: as recorded\n"
