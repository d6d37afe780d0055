"""The manifest of an archive, made by a real worker, and read with plain gpg and gunzip."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Bench, always, read_through
from sites import Site, assert_same_tree, gpg

from watcher import openpgp
from watcher.archiving import Outcome
from watcher.archiving.members import Members, Spool
from watcher.errors import Incomplete, RecipientUnusable, ValidateFailed, WatcherError
from watcher.job import Job
from watcher.manifest import Entry, Heading, ManifestReader
from watcher.model import Kind, ManifestMode, Run
from watcher.openpgp import FileKey
from watcher.source import Rules, Stillness, hold
from watcher.tar import TarStream


@pytest.fixture
def bench(site: Site) -> Bench:
    return Bench.of(site)


def read(packed: bytes) -> tuple[Heading, list[Entry]]:
    entries: list[Entry] = []
    reader = ManifestReader(entries.append)
    reader.feed(packed)
    return reader.finish(), entries


def manifest_of(bench: Bench, run: Run) -> tuple[Heading, list[Entry]]:
    """Return the manifest, decrypted with the recipient's private key."""
    return read(decrypted(bench, f"{run.name}.manifest.jsonl.gz.gpg"))


def decrypted(bench: Bench, name: str) -> bytes:
    # Without the mode GnuPG 2.4 asks for the other secret that opens it, the file key.
    return gpg(bench.site.gnupg, "--pinentry-mode", "cancel", "--decrypt", str(bench.site.archives / name))


def with_odd_members(run: Run) -> None:
    (run.path / "empty").touch()
    (run.path / os.fsdecode(b"no utf-8 \xff\n")).write_bytes(b"12")
    (run.path / "link").symlink_to(os.fsdecode(b"nowhere \xfe"))
    os.link(run.path / "empty", run.path / "twin")
    os.mkfifo(run.path / "fifo")
    os.utime(run.path / "empty", ns=(0, 1_700_000_000_123_456_789))
    with (run.path / "with holes").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"data")
    (run.path / "hole").touch()
    os.truncate(run.path / "hole", 3 << 20)


def test_every_member_is_listed_with_what_it_holds(bench: Bench) -> None:
    run = bench.ready_run()
    with_odd_members(run)
    assert bench.work(run) is Outcome.ENCRYPTED
    heading, entries = manifest_of(bench, run)
    top = run.path.parent
    found = {entry.path: entry for entry in entries}
    assert found.keys() == {os.fsencode(path.relative_to(top)) for path in (run.path, *run.path.rglob("*"))}
    files = {path: entry for path, entry in found.items() if entry.kind is Kind.FILE}
    for path, entry in files.items():
        content = (top / os.fsdecode(path)).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert {entry.sha256 for path, entry in found.items() if path not in files} == {""}
    assert found[b"run_001/link"].link == b"nowhere \xfe"
    twins = {found[b"run_001/empty"].kind: b"run_001/empty", found[b"run_001/twin"].kind: b"run_001/twin"}
    assert found[twins[Kind.HARD_LINK]].link == twins[Kind.FILE]
    assert found[twins[Kind.FILE]].mtime == "1700000000.123456789"
    assert (heading.files, heading.file_bytes) == (len(files), sum(entry.size for entry in files.values()))
    assert heading.archive.members == len(entries)


def test_offsets_lead_to_the_members_in_tar_s_stream(bench: Bench) -> None:
    run = bench.ready_run()
    with_odd_members(run)
    bench.work(run)
    _, entries = manifest_of(bench, run)
    key = gpg(bench.site.gnupg, "--decrypt", str(bench.site.keys / "run_001.key.gpg"))
    stream = gpg(
        bench.site.gnupg, "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--decrypt",
        str(bench.site.archives / "run_001.tar.gpg"), data=key,
    )  # fmt: skip
    for entry in entries:
        listed = subprocess.run(
            ["tar", "--list", "--quoting-style=literal", "--file=-"], input=stream[entry.offset :], capture_output=True,
            check=True,
        ).stdout  # fmt: skip
        assert listed.startswith(b"./" + entry.path)
        if entry.kind is Kind.FILE and entry.path != b"run_001/with holes":
            content = (run.path.parent / entry.name).read_bytes()
            stored = b"" if entry.path == b"run_001/hole" else content
            assert stream[entry.data_offset :][: len(stored)] == stored


def test_the_first_line_says_what_the_archive_is(bench: Bench) -> None:
    run = bench.ready_run()
    for name in ("a.tmp", "b.tmp"):
        (run.path / name).touch()
    assert bench.other(rules=Rules(exclusions=("*.tmp",))).work(run) is Outcome.ENCRYPTED
    heading, entries = manifest_of(bench, run)
    document = bench.document(run)["archive"]
    own = {"manifest_file": "", "manifest_size": 0, "manifest_sha256": ""}
    assert heading.archive.to_document() == {**document, **own}
    assert (heading.run, heading.path) == (run.name, str(run.path))
    assert (heading.exclusions, sorted(heading.left_out)) == (("*.tmp",), ["./a.tmp", "./b.tmp"])
    assert heading.archive.excluded == 2
    assert not [entry for entry in entries if entry.path.endswith(b".tmp")]
    assert heading.tools["gpg"] == openpgp.gpg_version(bench.site.gnupg)
    assert heading.tools["tar"].startswith("tar (GNU tar) ")
    key = (bench.site.keys / "run_001.key.gpg").read_bytes()
    assert (heading.archive.key_size, heading.archive.key_sha256) == (len(key), hashlib.sha256(key).hexdigest())


def test_the_document_has_the_digest_of_the_manifest(bench: Bench) -> None:
    run = bench.ready_run()
    bench.work(run)
    archive = bench.document(run)["archive"]
    stored = (bench.site.archives / archive["manifest_file"]).read_bytes()
    assert archive["manifest_file"] == "run_001.manifest.jsonl.gz.gpg"
    assert (archive["manifest_size"], archive["manifest_sha256"]) == (len(stored), hashlib.sha256(stored).hexdigest())


def test_a_clear_manifest_needs_no_key(bench: Bench) -> None:
    run = bench.ready_run()
    assert bench.other(manifest=ManifestMode.CLEAR).work(run) is Outcome.ENCRYPTED
    assert bench.document(run)["archive"]["manifest_file"] == "run_001.manifest.jsonl.gz"
    packed = (bench.site.archives / "run_001.manifest.jsonl.gz").read_bytes()
    heading, entries = read(packed)
    assert len(entries) == heading.archive.members == bench.document(run)["archive"]["members"]
    assert gzip.decompress(packed).count(b"\n") == len(entries) + 1


def test_without_a_manifest_there_is_none(bench: Bench) -> None:
    run = bench.ready_run()
    assert bench.other(manifest=ManifestMode.NONE).work(run) is Outcome.ENCRYPTED
    assert list(bench.site.archives.glob("*manifest*")) == []
    assert bench.document(run)["archive"]["manifest_file"] == ""
    assert_same_tree(run.path, bench.site.restore(run.name))


@pytest.mark.parametrize("mode", [ManifestMode.ENCRYPTED, ManifestMode.CLEAR])
def test_a_manifest_of_somebody_else_is_never_overwritten(mode: ManifestMode, bench: Bench) -> None:
    run = bench.ready_run()
    foreign = bench.site.archives / f"run_001{mode.suffix}"
    foreign.write_bytes(b"of somebody else")
    assert bench.work(run) is Outcome.FAILED
    assert foreign.name in bench.document(run)["last_error"]["message"]
    assert foreign.read_bytes() == b"of somebody else"
    assert bench.site.staged_files() == []


def test_a_run_with_the_longest_name_has_a_manifest(bench: Bench) -> None:
    run = bench.ready_run("x" * 247)
    assert bench.work(run) is Outcome.ENCRYPTED
    name = bench.document(run)["archive"]["manifest_file"]
    assert len(name) == 255
    heading, _ = read(decrypted(bench, name))
    assert heading.run == run.name


@pytest.mark.parametrize("mode", [ManifestMode.ENCRYPTED, ManifestMode.CLEAR])
def test_a_manifest_that_the_disk_spoils_is_found_by_its_proof(
    mode: ManifestMode, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is the one part that cannot be had broken here: what `fsync` has written is spoilt right behind it."""
    run = bench.ready_run()
    real = os.fsync

    def spoil(descriptor: int) -> None:
        real(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name.endswith(f"{mode.suffix}.partial"):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", spoil)
        assert bench.other(manifest=mode).work(run) is Outcome.FAILED
    assert bench.document(run)["last_error"]["kind"] == "ValidateFailed"
    assert bench.finals() == {}
    assert bench.site.staged_files() == []


def test_a_recipient_that_has_expired_meanwhile_is_waited_for_with_key_and_manifest(bench: Bench) -> None:
    run = bench.ready_run()
    expired = always(RecipientUnusable("the key has expired, says the test"))
    assert bench.with_archive_store("staged_manifest", expired).work(run) is Outcome.ENCRYPTED
    heading, _ = manifest_of(bench, run)
    key = (bench.site.keys / "run_001.key.gpg").read_bytes()
    assert heading.archive.key_sha256 == hashlib.sha256(key).hexdigest()


# Lines that wait for their manifest


def test_lines_that_fill_the_memory_wait_on_the_disk_unreadable(tmp_path: Path) -> None:
    lines = [hashlib.sha256(b"%d" % number).hexdigest().encode() + b"\n" for number in range(10_000)]
    spool = Spool(tmp_path, max_bytes=1000)
    for line in lines:
        spool.write(line)
    spool.finish()
    for _ in range(2):
        assert gzip.decompress(b"".join(spool.pieces())) == b"".join(lines)
    (on_disk,) = [
        Path(f"/proc/self/fd/{number}").read_bytes()
        for number in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{number}").startswith(str(tmp_path))
    ]
    assert len(on_disk) > 100_000
    assert on_disk[:2] != b"\x1f\x8b"
    assert os.listdir(tmp_path) == []
    spool.close()


@pytest.fixture
def still(bench: Bench) -> Iterator[Stillness]:
    """A held run."""
    with hold(bench.ready_run(), Rules()) as source:
        yield Stillness(source, 0)


def stream_of(still: Stillness) -> bytes:
    with TarStream(still, Job(still.source.run)) as tar:
        return read_through(tar, still)[0]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "ends early": lambda stream: stream.rstrip(b"\0"),
    "ends in a member": lambda stream: stream[:700],
    "goes on behind its end": lambda stream: stream + b"x" * 512,
    "is no tar": lambda stream: b"x" * len(stream),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_stream_that_is_not_tar_s_is_found_on_the_decrypted_side(damage: str, still: Stillness) -> None:
    members = Members(still, None)
    members.feed(DAMAGES[damage](stream_of(still)), lambda _: None)
    with pytest.raises(Incomplete, match="cannot be understood"):
        members.finish()


def test_a_cancel_ends_the_hashing_of_a_hole(still: Stillness, tmp_path: Path) -> None:
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 43)  # hours of hashing
    command = ["tar", "--create", "--file=-", "--format=posix", "--sparse", "hole"]
    stream = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
    job = Job(still.source.run)
    job.cancel(WatcherError("enough, says the test"))
    with pytest.raises(WatcherError, match="enough"):
        Members(still, Spool(tmp_path)).feed(stream, job.moved)


def test_what_is_encrypted_to_the_recipient_opens_with_the_file_key_and_with_no_other(bench: Bench) -> None:
    run = bench.ready_run()
    bench.work(run)
    path = bench.site.archives / "run_001.manifest.jsonl.gz.gpg"
    key = openpgp.unwrap((bench.site.keys / "run_001.key.gpg").read_bytes(), bench.site.gnupg)
    with path.open("rb") as file:
        openpgp.validate(file.read, key, Job(run))
    with path.open("rb") as file, pytest.raises(ValidateFailed):
        openpgp.validate(file.read, FileKey.generate(), Job(run))
