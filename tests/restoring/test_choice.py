"""`restore --only`: the chosen members come back as they were recorded, and nothing else is needed for that."""

import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sites import Site, assert_same_tree
from test_readme import block

from watcher import openpgp
from watcher.job import Job
from watcher.model import Run

BIG = 3_000_000
FILES = ("A", "B", "C")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, gnupg: Path, recipient: str) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("chosen") / "site", gnupg, recipient)
    site.is_warm = True
    for name in ("run_001", "run_002"):
        run = site.make_run(name)
        for letter in FILES:
            (run / letter / "deep").mkdir(parents=True)
            (run / letter / "deep" / "file").write_bytes(random.Random(letter).randbytes(BIG))
        (run / "one").write_text("linked")
        os.link(run / "one", run / "two")
        with (run / "sparse").open("wb") as file:
            file.seek(4 << 20)
            file.write(b"after a hole")
            file.truncate(9 << 20)
        (run / os.fsdecode(b"no utf-8 \xff")).write_text("odd")
        os.utime(run / "A" / "deep", (1_700_000_000, 1_700_000_000))
        (run / "A").chmod(0o750)
        site.complete(run)
    assert site.command("once").returncode == 0
    yield site
    site.close()


@pytest.fixture
def archived(original: Site, tmp_path: Path) -> Site:
    """Archived runs that a test may spoil."""
    return original.copied_to(tmp_path / "copy")


@pytest.fixture
def to(tmp_path: Path) -> Path:
    path = tmp_path / "to"
    path.mkdir()
    return path


def only(site: Site, to: Path, *patterns: str) -> subprocess.CompletedProcess[str]:
    return site.command("restore", "run_001", "--to", str(to), "--only", *patterns)


def found(to: Path) -> set[str]:
    """What is in the restored run, each directory only if it is empty."""
    run = to / "run_001"
    return {
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }


def source_of(site: Site) -> Path:
    return site.sequencing / "sequencer_A" / "run_001"


def in_order(site: Site) -> list[str]:
    """The large files, in their order in the archive."""
    lines = site.command("list", "run_001", "--json", "deep/file").stdout.splitlines()[1:]
    return [json.loads(line)["path"].removeprefix("run_001/") for line in lines]


def archive_of(site: Site) -> Path:
    return site.archives / "run_001.tar.gpg"


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def place_in(site: Site, name: str) -> int:
    """A place in the archive's file that is in the middle of a large member's content."""
    lines = site.command("list", "run_001", "--json", name).stdout.splitlines()[1:]
    return int(json.loads(lines[-1])["data_offset"]) + BIG // 2


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["A"], {"A/deep/file"}),
        (["deep/file"], {"A/deep/file", "B/deep/file", "C/deep/file"}),
        (["latest", "Empty", "RunInfo.xml"], {"latest", "Empty", "RunInfo.xml"}),
        (["sparse"], {"sparse"}),
        (["one", "two"], {"one", "two"}),
        ([os.fsdecode(b"no utf-8 \xff")], {os.fsdecode(b"no utf-8 \xff")}),
        (["no utf-8 *"], {os.fsdecode(b"no utf-8 \xff")}),
    ],
)
def test_the_chosen_members_come_back_as_they_were(
    patterns: list[str], expected: set[str], original: Site, to: Path
) -> None:
    done = only(original, to, *patterns)
    words = f"restored '{to}/run_001': the digest of each member is the one that was recorded\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, words, "")
    assert found(to) == expected
    for name in expected:
        source, restored = source_of(original) / name, to / "run_001" / name
        assert restored.lstat().st_mode == source.lstat().st_mode
        assert restored.lstat().st_mtime_ns == source.lstat().st_mtime_ns
        if source.is_file():
            assert restored.read_bytes() == source.read_bytes()


def test_all_members_are_the_whole_run(original: Site, to: Path) -> None:
    assert only(original, to, "*").returncode == 0
    assert_same_tree(source_of(original), to / "run_001")
    assert (to / "run_001" / "one").stat().st_ino == (to / "run_001" / "two").stat().st_ino


def test_the_directories_above_a_member_have_their_modes_and_times(archived: Site, to: Path) -> None:
    assert only(archived, to, "A/deep/file").returncode == 0
    assert (to / "run_001" / "A").stat().st_mode & 0o7777 == 0o750
    assert (to / "run_001" / "A" / "deep").stat().st_mtime == 1_700_000_000


def test_the_rest_of_an_archive_is_not_read(archived: Site, to: Path) -> None:
    first, *_, last = in_order(archived)
    os.truncate(archive_of(archived), place_in(archived, last))
    assert only(archived, to, first).returncode == 0
    assert found(to) == {first}


def test_a_member_behind_a_damage_is_restored(archived: Site, to: Path) -> None:
    first, *_, last = in_order(archived)
    flip(archive_of(archived), place_in(archived, first))
    assert only(archived, to, last, "one", "sparse", "two").returncode == 0
    assert found(to) == {last, "one", "sparse", "two"}


def refused(done: subprocess.CompletedProcess[str], to: Path, *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    for part in words:
        assert part in done.stderr
    assert os.listdir(to) == []


def test_a_damaged_member_is_named(archived: Site, to: Path) -> None:
    name = in_order(archived)[1]
    flip(archive_of(archived), place_in(archived, name))
    words = f"its member 'run_001/{name}' is not what the manifest says"
    refused(only(archived, to, name, "RunInfo.xml"), to, "run 'run_001' is not restored: ", words)


def test_an_archive_that_ends_before_a_chosen_member_is_refused(archived: Site, to: Path) -> None:
    first, *_, last = in_order(archived)
    os.truncate(archive_of(archived), place_in(archived, first))
    refused(only(archived, to, last), to, "the stored archive does not decrypt")


def test_the_archive_of_another_run_is_refused(archived: Site, to: Path) -> None:
    (archived.archives / "run_002.tar.gpg").replace(archive_of(archived))
    refused(only(archived, to, "A"), to, "the stored archive does not decrypt")


def put_another_archive(
    site: Site, change: Callable[[tarfile.TarFile, tarfile.TarFile, tarfile.TarInfo], None]
) -> None:
    """Put an archive under the same file key in the place of the run's own; `change` copies each member."""
    key = openpgp.unwrap((site.keys / "run_001.key.gpg").read_bytes(), site.gnupg)
    content, job = bytearray(), Job(Run(Path("run_001")))
    with archive_of(site).open("rb") as file:
        openpgp.decrypt(file.read, key, content.extend, job, site.gnupg)
    changed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as source,
        tarfile.open(fileobj=changed, mode="w", format=tarfile.USTAR_FORMAT) as target,
    ):
        for info in source:
            info.pax_headers = {}
            if "sparse" not in info.name and "utf-8" not in info.name:
                change(source, target, info)
    changed.seek(0)
    with archive_of(site).open("wb") as file:
        openpgp.encrypt(changed, key, file.write, job, site.gnupg)


def leave_out(source: tarfile.TarFile, target: tarfile.TarFile, info: tarfile.TarInfo) -> None:
    if not info.name.endswith("RunInfo.xml"):
        target.addfile(info, source.extractfile(info) if info.isreg() else None)


def give_another_content(source: tarfile.TarFile, target: tarfile.TarFile, info: tarfile.TarInfo) -> None:
    content = b"<BadInfo/>\n" if info.name.endswith("RunInfo.xml") else None
    file = source.extractfile(info) if info.isreg() else None
    target.addfile(info, io.BytesIO(content) if content else file)


@pytest.mark.parametrize("change", [leave_out, give_another_content])
def test_another_archive_under_the_same_key_is_refused(
    change: Callable[[tarfile.TarFile, tarfile.TarFile, tarfile.TarInfo], None], archived: Site, to: Path
) -> None:
    put_another_archive(archived, change)
    refused(only(archived, to, "RunInfo.xml"), to, "run 'run_001' is not restored: ", "manifest says")


def test_a_hard_link_needs_the_file_that_it_leads_to(original: Site, to: Path) -> None:
    lines = original.command("list", "run_001", "--json", "one", "two").stdout.splitlines()[1:]
    link = next(entry for entry in map(json.loads, lines) if entry["type"] == "hard link")
    done = only(original, to, link["path"].removeprefix("run_001/"))
    refused(done, to, f"'{link['path']}' is a hard link to '{link['link']}', which --only leaves out: name that too")


def test_patterns_that_match_nothing_are_named(archived: Site, to: Path) -> None:
    refused(only(archived, to, "nothing", "*.none"), to, "has no member that matches 'nothing' or '*.none'")


def test_a_manifest_that_is_not_the_recorded_one_is_not_used(archived: Site, to: Path) -> None:
    flip(archived.archives / "run_001.manifest.jsonl.gz.gpg", 400)
    refused(only(archived, to, "A"), to, "is not what was recorded: its SHA-256 or size differs")


def test_the_words_of_the_page_restore_members(original: Site, to: Path) -> None:
    original.lines_of_shell(block("only").replace("/scratch", str(to)))
    assert found(to) == {"Data/L001/C1.cbcl", "RunInfo.xml"}
