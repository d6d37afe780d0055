from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from watcher.members import BLOCK_BYTES, Kind, MalformedArchive, Member, MemberWalk


def tar(directory: Path, *options: str) -> bytes:
    command = ["tar", "--create", "--format=posix", "--file=-", *options, "."]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True).stdout


def walk(data: bytes, piece: int = 1 << 20) -> list[Member]:
    found: list[Member] = []
    members = MemberWalk(found.append)
    for start in range(0, len(data), piece):
        members.feed(data[start : start + piece])
    members.finish()
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "empty").touch()
    (tmp_path / "small").write_bytes(b"content")
    (tmp_path / "block").write_bytes(bytes(BLOCK_BYTES))
    (tmp_path / "name with\nnewline and \\ backslash").write_bytes(b"1")
    (tmp_path / os.fsdecode(b"no utf-8 \xff")).write_bytes(b"12")
    deep = tmp_path.joinpath(*["d" * 100] * 4)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"123")
    (tmp_path / "link").symlink_to("t" * 300)
    os.link(tmp_path / "small", tmp_path / "twin")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


def test_every_member_has_its_path_kind_size_and_link(tree: Path) -> None:
    found = {member.path: member for member in walk(tar(tree))}
    expected = {b"./": (Kind.DIRECTORY, 0, b"")}
    for path in tree.rglob("*"):
        name = b"./" + os.fsencode(path.relative_to(tree))
        if path.is_symlink():
            expected[name] = (Kind.SYMBOLIC_LINK, 0, os.fsencode(os.readlink(path)))
        elif path.is_dir():
            expected[name + b"/"] = (Kind.DIRECTORY, 0, b"")
        elif path.is_fifo():
            expected[name] = (Kind.FIFO, 0, b"")
        else:
            expected[name] = (Kind.FILE, path.stat().st_size, b"")
    twin = next(name for name, member in found.items() if member.kind is Kind.HARD_LINK)
    assert found[twin].link in (b"./small", b"./twin")
    expected[twin] = (Kind.HARD_LINK, 0, found[twin].link)
    assert {name: (member.kind, member.size, member.link) for name, member in found.items()} == expected


@pytest.mark.parametrize("piece", [1, 7, 511, 513, 10240])
def test_the_size_of_the_pieces_changes_nothing(tree: Path, piece: int) -> None:
    data = tar(tree)
    assert walk(data, piece) == walk(data)


def test_a_sparse_member_has_its_real_name_and_size_and_a_file_that_is_one_hole_says_so(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1_000_000)
    with (tmp_path / "part").open("wb") as file:
        file.truncate(9_000_000)
        file.seek(5_000_000)
        file.write(b"data")
    found = {member.path: member for member in walk(tar(tmp_path, "--sparse"))}
    assert (found[b"./hole"].size, found[b"./hole"].is_hole) == (1_000_000, True)
    assert (found[b"./part"].size, found[b"./part"].is_hole) == (9_000_000, False)


def test_a_size_beyond_octal_digits_is_read(tmp_path: Path) -> None:
    header = bytearray(tar(tmp_path)[-10240:][:BLOCK_BYTES])
    with (tmp_path / "large").open("wb") as file:
        file.truncate(9 << 30)
    # Only the headers: tar would need as long as for 9 GiB.
    process = subprocess.Popen(["tar", "-cf-", "--format=gnu", "large"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    header[:] = process.stdout.read(BLOCK_BYTES)
    process.kill()
    process.wait()
    process.stdout.close()
    found: list[Member] = []
    MemberWalk(found.append).feed(bytes(header))
    assert [(member.path, member.size) for member in found] == [(b"large", 9 << 30)]


@pytest.mark.parametrize("cut", [1, BLOCK_BYTES, 5 * BLOCK_BYTES + 3])
def test_a_stream_without_its_end_is_malformed(tree: Path, cut: int) -> None:
    whole = tar(tree, "--blocking-factor=1")
    with pytest.raises(MalformedArchive, match="without its end"):
        walk(whole[: len(whole) - 2 * BLOCK_BYTES - cut])


@pytest.mark.parametrize("place", [0, 100, 130, 156])
def test_a_changed_header_is_malformed(tmp_path: Path, place: int) -> None:
    data = bytearray(tar(tmp_path, "--format=ustar"))
    data[place] ^= 1
    with pytest.raises(MalformedArchive):
        walk(bytes(data))


def test_what_is_no_tar_is_malformed() -> None:
    with pytest.raises(MalformedArchive):
        walk(os.urandom(20_000))
