"""Which members of an archive reach tar, and as what."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hostile import DEVICE, FILE, LINK, RUN, SUB, TOP, UNSAFE, Unsafe, directory, hard_link, member, stream

from watcher.errors import RestoreFailed
from watcher.model import Kind
from watcher.restoring import guard as unpacking
from watcher.restoring.guard import MAX_WARNINGS, Guard
from watcher.tar import MemberWalk

pytestmark = pytest.mark.unit


class Sieve:
    """What a guard lets through to tar."""

    def __init__(self, special: bool = False) -> None:
        self.guard = Guard(RUN, special)
        self.handed = bytearray()
        self._walk = MemberWalk(self.guard.judge, self.handed.extend)

    def feed(self, data: bytes, piece: int = 1 << 20) -> Sieve:
        for start in range(0, len(data), piece):
            self._walk.feed(data[start : start + piece])
        return self

    def members(self) -> dict[str, tarfile.TarInfo]:
        with tarfile.open(fileobj=io.BytesIO(self.handed)) as archive:
            return {info.name: info for info in archive}


@pytest.mark.parametrize("unsafe", UNSAFE.values(), ids=UNSAFE)
@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_no_byte_of_an_unsafe_member_reaches_tar(piece: int, unsafe: Unsafe) -> None:
    *before, _ = unsafe.members
    sieve = Sieve()
    with pytest.raises(RestoreFailed, match="not safe to extract") as caught:
        sieve.feed(stream(unsafe.members), piece)
    assert unsafe.words in str(caught.value)
    assert b"".join(before).startswith(sieve.handed)


def everything(tmp_path: Path) -> bytes:
    run = tmp_path / RUN
    deep = run.joinpath("Data", *["d" * 100] * 3)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"123")
    (run / os.fsdecode(b"no utf-8 \xff")).write_bytes(b"12")
    (run / "-hyphen").write_bytes(bytes(511))
    with (run / "sparse").open("wb") as file:
        for place in range(1, 200):
            file.seek(place * 65536)
            file.write(b"data" * place)
        file.truncate(100_000_001)
    with (run / "hole").open("wb") as file:
        file.truncate(1_000_000)
    (run / "link").symlink_to("../outside")
    (run / "absolute").symlink_to("/etc/passwd")
    os.link(run / "sparse", run / "twin")
    os.link(run / "link", run / "twin of a link", follow_symlinks=False)
    os.mkfifo(run / "fifo")
    os.link(run / "fifo", run / "twin of a fifo")
    (run / "sticky").mkdir(mode=0o777)
    (run / "sticky").chmod(0o1777)
    (run / "group's").mkdir()
    (run / "group's").chmod(0o2775)
    command = ["tar", "-C", str(tmp_path), "--create", "--format=posix", "--sparse", "--file=-", "--", f"./{RUN}"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.children
@pytest.mark.parametrize("piece", [511, 1 << 20])
def test_of_what_our_tar_writes_every_byte_reaches_tar(piece: int, tmp_path: Path) -> None:
    data = everything(tmp_path)
    sieve = Sieve().feed(data, piece)
    assert sieve.handed == data
    assert sieve.guard.warnings == ()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_a_device_and_the_hard_links_to_it_do_not_reach_tar(kind: bytes) -> None:
    device = member(f"./{RUN}/device", kind)
    twins = hard_link(f"./{RUN}/twin", f"./{RUN}/device"), hard_link(f"./{RUN}/third", f"./{RUN}/twin")
    sieve = Sieve().feed(stream([TOP, device, *twins, FILE]))
    assert sieve.handed == stream([TOP, FILE])
    assert [words.split("'")[1] for words in sieve.guard.warnings] == [
        f"./{RUN}/{name}" for name in ("device", "twin", "third")
    ]


def test_a_device_as_the_last_member_leaves_the_end_whole() -> None:
    assert Sieve().feed(stream([TOP, DEVICE])).handed == stream([TOP])


@pytest.mark.parametrize(("mode", "left"), [(0o4755, 0o755), (0o2711, 0o711), (0o7777, 0o1777)])
def test_a_file_reaches_tar_without_its_set_id_bits(mode: int, left: int) -> None:
    long_name = f"./{RUN}/{'s' * 200}"
    members = [TOP, member(long_name, mode=mode, content=b"1" * 1000), hard_link(f"./{RUN}/twin", long_name), FILE]
    sieve = Sieve().feed(stream(members))
    found = sieve.members()
    assert found[long_name].mode == left
    assert found[f"./{RUN}/file"].mode == 0o644
    assert len(sieve.handed) == len(stream(members))
    assert len(sieve.guard.warnings) == 1
    assert f"'{long_name}' had the mode {mode:04o}" in sieve.guard.warnings[0]


def test_asked_for_special_members_reach_tar_as_they_are() -> None:
    members = stream([TOP, DEVICE, member(f"./{RUN}/su", mode=0o4755), hard_link(f"./{RUN}/x", f"./{RUN}/device")])
    sieve = Sieve(special=True).feed(members)
    assert sieve.handed == members
    assert sieve.guard.warnings == ()


def test_the_set_gid_and_sticky_bits_of_a_directory_stay() -> None:
    members = stream([directory(f"./{RUN}/", 0o3775)])
    assert Sieve().feed(members).handed == members


def test_a_hard_link_s_own_mode_brings_no_set_id_bit() -> None:
    info = tarfile.TarInfo(f"./{RUN}/twin")
    info.type, info.linkname, info.mode = tarfile.LNKTYPE, f"./{RUN}/file", 0o4755
    sieve = Sieve().feed(stream([TOP, FILE, info.tobuf(tarfile.PAX_FORMAT)]))
    assert sieve.members()[f"./{RUN}/twin"].mode == 0o755


def test_warnings_name_so_many_members_and_count_the_others() -> None:
    devices = [member(f"./{RUN}/{number}", tarfile.CHRTYPE) for number in range(MAX_WARNINGS + 7)]
    warnings = Sieve().feed(stream([TOP, *devices])).guard.warnings
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1].startswith("7 more members")


def test_of_regular_files_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_KNOWN", 2)
    Sieve().feed(stream([TOP, SUB, *(member(f"./{RUN}/sub/{number}") for number in range(100))]))


@pytest.mark.parametrize("members", [[TOP, SUB, LINK], [TOP, SUB, hard_link(f"./{RUN}/x", f"./{RUN}/y"), LINK]])
def test_what_is_kept_has_a_limit(members: Sequence[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_KNOWN", 2)
    with pytest.raises(RestoreFailed, match="more than 2 directories, links"):
        Sieve().feed(stream(members))


def test_a_run_s_name_of_any_characters_is_its_directory() -> None:
    name = "-r un\n'\\"
    top = directory(f"./{name}/")
    handed = bytearray()
    MemberWalk(Guard(name, with_special=False).judge, handed.extend).feed(stream([top]))
    assert handed == stream([top])


def test_a_member_that_is_not_wanted_is_judged_left_out_and_not_warned_of() -> None:
    handed = bytearray()
    guard = Guard(RUN, with_special=False, wants=lambda member: member.kind is Kind.DIRECTORY)
    walk = MemberWalk(guard.judge, handed.extend)
    walk.feed(stream([TOP, SUB, DEVICE, FILE]))
    assert bytes(handed).startswith(TOP + SUB + bytes(1024))
    assert guard.warnings == ()
    with pytest.raises(RestoreFailed, match="leads out"):
        MemberWalk(Guard(RUN, False, lambda _: False).judge).feed(stream([TOP, member("./other")]))
