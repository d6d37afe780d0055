from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from watcher.model import Kind
from watcher.tar import MalformedArchive, Member, MemberWalk
from watcher.tar.blocks import BLOCK_BYTES
from watcher.tar.sparse import SparseMap

pytestmark = pytest.mark.unit


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


@pytest.mark.children
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


@pytest.mark.children
@pytest.mark.parametrize("piece", [1, 7, 511, 513, 10240])
def test_the_size_of_the_pieces_changes_nothing(tree: Path, piece: int) -> None:
    data = tar(tree)
    assert walk(data, piece) == walk(data)


@pytest.mark.children
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


@pytest.mark.children
def test_a_size_beyond_octal_digits_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(9 << 30)
    # Only the headers: tar would need as long as for 9 GiB.
    process = subprocess.Popen(["tar", "-cf-", "--format=posix", "large"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    headers = process.stdout.read(3 * BLOCK_BYTES)
    process.kill()
    process.wait()
    process.stdout.close()
    found: list[Member] = []
    MemberWalk(found.append).feed(headers)
    assert [(member.path, member.size) for member in found] == [(b"large", 9 << 30)]


@pytest.mark.children
@pytest.mark.parametrize("cut", [1, BLOCK_BYTES, 5 * BLOCK_BYTES + 3])
def test_a_stream_without_its_end_is_malformed(tree: Path, cut: int) -> None:
    whole = tar(tree, "--blocking-factor=1")
    with pytest.raises(MalformedArchive, match="without its end"):
        walk(whole[: len(whole) - 2 * BLOCK_BYTES - cut])


@pytest.mark.children
@pytest.mark.parametrize("place", [0, 100, 130, 156])
def test_a_changed_header_is_malformed(tmp_path: Path, place: int) -> None:
    data = bytearray(tar(tmp_path, "--format=ustar"))
    data[place] ^= 1
    with pytest.raises(MalformedArchive):
        walk(bytes(data))


class Contents:
    """The content of each file, by its path, with its holes filled."""

    def __init__(self) -> None:
        self.by_path: dict[bytes, bytearray] = {}
        self._now = bytearray()

    def member(self, member: Member) -> int:
        self._now = bytearray()
        if member.kind is Kind.FILE:
            self.by_path[member.path] = self._now
        return member.mode

    def data(self, data: memoryview) -> None:
        self._now += data

    def hole(self, size: int) -> None:
        self._now += bytes(size)


def write_with_holes(path: Path, size: int, *offsets: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset in offsets:
            file.seek(offset)
            file.write(b"data at %d" % offset)


@pytest.mark.children
@pytest.mark.parametrize("piece", [1000, 1 << 20])
def test_contents_are_handed_on_with_their_holes_and_without_padding(tree: Path, piece: int) -> None:
    write_with_holes(tree / "begins with a hole", 300_000, 200_000)
    write_with_holes(tree / "ends with one", 300_000, 0)
    write_with_holes(tree / "both", 900_000, 100_000, 500_000)
    write_with_holes(tree / "nothing else", 100_000)
    write_with_holes(tree / "data to its end", 204_800, 204_790)
    contents, data = Contents(), tar(tree, "--sparse")
    members = MemberWalk(contents.member, content=contents)
    for start in range(0, len(data), piece):
        members.feed(data[start : start + piece])
    members.finish()
    (tree / "link").unlink()
    files = {b"./" + os.fsencode(path.relative_to(tree)): path for path in tree.rglob("*") if path.is_file()}
    linked = [files.pop(path) for path in list(files) if path not in contents.by_path]
    assert len(linked) == 1, "one of the two names of a file is a hard link"
    assert {path: file.read_bytes() for path, file in files.items()} == contents.by_path


@pytest.mark.children
def test_a_member_says_where_it_and_its_content_begin_and_when_it_was_changed(tree: Path) -> None:
    os.utime(tree / "small", ns=(1, 1_700_000_000_123_456_789))
    os.utime(tree / "block", (1, 86_400))
    os.utime(tree / "empty", ns=(1, -500_000_000))
    data = tar(tree)
    found = {member.path: member for member in walk(data)}
    mtimes = [found[b"./" + name].mtime for name in (b"small", b"block", b"empty")]
    assert mtimes == ["1700000000.123456789", "86400", "-0.5"]
    small = found[b"./small"] if found[b"./small"].kind is Kind.FILE else found[b"./twin"]
    assert data[small.data_offset :][:7] == b"content"
    # A stream that begins at any member is one that tar reads.
    rest = data[small.offset :]
    assert walk(rest)[0].path == small.path
    assert subprocess.run(["tar", "-tf-"], input=rest, check=True, capture_output=True).stdout.startswith(small.path)


def test_a_map_that_would_fill_the_memory_is_malformed() -> None:
    with pytest.raises(MalformedArchive, match="5000000 regions"):
        SparseMap(stored=1 << 40, size=1 << 50).take(b"5000000\n0\n".ljust(BLOCK_BYTES, b"1"))


@pytest.mark.parametrize(
    ("regions", "size"),
    [("2\n1024\n512\n0\n512\n", 2000), ("2\n0\n1024\n512\n512\n", 2000), ("1\n100\n1\n", 100)],
    ids=["backwards", "overlapping", "beyond the end"],
)
def test_a_map_that_is_not_in_order_is_malformed(regions: str, size: int) -> None:
    stored = BLOCK_BYTES + sum(int(number) for number in regions.split()[2::2])
    with pytest.raises(MalformedArchive, match="not in order"):
        SparseMap(stored, size).take(regions.encode().ljust(BLOCK_BYTES, b"\0"))


def test_what_is_no_tar_is_malformed() -> None:
    with pytest.raises(MalformedArchive):
        walk(os.urandom(20_000))


# what tar would read in another way


RECORD = 20 * BLOCK_BYTES


def header(name: str, size: int = 0, kind: bytes = b"0", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def extended(records: dict[str, str], kind: bytes = b"x") -> bytes:
    data = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + len(str(len(rest) + len(str(len(rest)))))
        data += str(length).encode() + rest
    return header("./PaxHeaders/x", len(data), kind) + data + bytes(-len(data) % BLOCK_BYTES)


def content(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_BYTES)


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse", "GNU.sparse.realsize": "4096"}
HIDDEN = header("hidden")

# A map that has one block more than the member stores, and so takes the next header for data.
GREEDY = extended(SPARSE) + header("x", 512) + content(b"1\n0\n512\n") + header("decoy", 512) + HIDDEN
GLOBAL = extended({"path": "hidden"}, b"g") + header("decoy")
NAME_WITH_END = extended({"path": "hidden\0/decoy"}) + header("decoy")

TWO_WAYS = {"a greedy map": GREEDY, "a global header": GLOBAL,
            "a path with a NUL": NAME_WITH_END}  # fmt: skip


@pytest.mark.children
@pytest.mark.parametrize("members", TWO_WAYS.values(), ids=TWO_WAYS)
def test_a_member_that_only_tar_would_see_makes_the_stream_malformed(members: bytes) -> None:
    stream = members + bytes(RECORD)
    listed = subprocess.run(["tar", "-xvf-", "-O"], input=stream, check=False, capture_output=True).stderr
    assert b"hidden\n" in listed
    with pytest.raises(MalformedArchive):
        walk(stream)


def patched(block: bytes, place: int, field: bytes) -> bytes:
    changed = block[:place] + field + block[place + len(field) :]
    blank = changed[:148] + b" " * 8 + changed[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


MALFORMED = {
    "a directory with a content": header("d", 512, b"5") + bytes(512),
    "a link with a content": header("l", 512, b"2") + bytes(512),
    "a content by the extended header": extended({"size": "512"}) + header("l", 0, b"1") + bytes(512),
    "no content by the extended header": extended({"size": "0"}) + header("l", 512, b"1") + bytes(512),
    "an unknown key": extended({"GNU.sparse.map": "0,1"}) + header("f"),
    "an empty value": extended({"path": ""}) + header("f"),
    "a size beyond tar's numbers": extended({"size": "9" * 19}) + header("f"),
    "a size beyond Python's": extended({"size": "9" * 5000}) + header("f"),
    "a sparse member in an older format": extended(SPARSE)
    + patched(header("f", 1024), 257, b"ustar  \0")
    + content(b"1\n0\n512\n")
    + bytes(512),
    "a sparse member in star's format": extended(SPARSE)
    + patched(header("f", 1024), 476, b"00000000000 00000000000 ")
    + content(b"1\n0\n512\n")
    + bytes(512),
    "old GNU's format": patched(header("f"), 257, b"ustar  \0"),
    "a large size in old GNU's form": patched(header("f"), 124, b"\x80" + bytes(11)),
    "a size of blanks": patched(header("f"), 124, b" " * 12),
    "a negative size": patched(header("f"), 124, b"\xff" * 12),
    "a size in Python's words": patched(header("f"), 124, b"0o000000001\0"),
    "a mode that is empty": patched(header("f"), 100, b"\0" * 8),
    "two extended headers": extended({"path": "a"}) + extended({"path": "b"}) + header("f"),
    "an end after an extended header": extended({"path": "a"}),
    "old GNU's long name": header("././@LongLink", 512, b"L") + content(b"name") + header("f"),
    "a link that is sparse": extended(SPARSE) + header("l", 0, b"2"),
    "another version of sparse": extended({**SPARSE, "GNU.sparse.minor": "1"})
    + header("f", 512)
    + content(b"1\n0\n0\n"),
    "sparse without its name": extended({"GNU.sparse.major": "1"}) + header("f", 512) + content(b"1\n0\n0\n"),
    "a map without an end": extended(SPARSE) + header("f", 512) + b"1" * 512,
    "a map longer than the member": extended(SPARSE) + header("f", 512) + b"900\n" + b"1\n" * 254,
    "a map of no numbers": extended(SPARSE) + header("f", 512) + content(b"1\n-1\n0\n"),
    "a sparse member without a map": extended(SPARSE) + header("f"),
    "a map that leaves a rest": extended(SPARSE) + header("f", 1024) + content(b"1\n0\n0\n") + bytes(512),
    "regions of less than a block": extended(SPARSE)
    + header("f", 512 + 1024)
    + content(b"2\n0\n1\n512\n1\n")
    + bytes(1024),
    "a member after one zero block": bytes(512) + header("f"),
    "a member after the end": bytes(1024) + header("f"),
}


@pytest.mark.parametrize("members", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_what_tar_does_not_write_is_malformed(piece: int, members: bytes) -> None:
    with pytest.raises(MalformedArchive):
        walk(members + bytes(RECORD), piece)


def test_a_prefix_comes_before_the_name() -> None:
    block = patched(header("name"), 345, b"prefix")
    assert [member.path for member in walk(block + bytes(1024))] == [b"prefix/name"]
