"""The form of a manifest: what is written is read again, and nothing else is taken for one."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.manifest import FORMAT, Entry, Heading, MalformedManifest, ManifestReader
from watcher.model import Archive, Kind
from watcher.tar import Member

pytestmark = pytest.mark.unit

ARCHIVE = Archive(
    "run_001.tar.gpg", 1, "a" * 64, "", 2, "run_001.key.gpg", "c" * 64, "F" * 40, members=2, warnings=("./x: odd",)
)
HEADING = Heading(
    run="run_001",
    path="/sequencing/sequencer_A/run_001",
    created_at="2026-04-28T10:00:00+00:00",
    tools={"gpg": "2.2.40"},
    cipher="AES-256",
    archive=ARCHIVE,
    files=1,
    file_bytes=3,
    exclusions=("*.tmp",),
    left_out=("./a.tmp",),
)
FILE = Entry(b"run_001/a b", Kind.FILE, 3, 0o644, "1700000000.5", b"", 512, 2048, "d" * 64)
LINK = Entry(b"run_001/l\xff", Kind.SYMBOLIC_LINK, 0, 0o777, "-1", b"\xfe\n", 2560, 3072, "")


def lines(heading: Heading = HEADING, *entries: Entry) -> bytes:
    return b"".join(one.to_line() for one in (heading, *(entries or (FILE, LINK))))


def read(packed: bytes, piece: int = 1 << 20) -> tuple[Heading, list[Entry]]:
    found: list[Entry] = []
    reader = ManifestReader(found.append)
    for start in range(0, len(packed), piece):
        reader.feed(packed[start : start + piece])
    return reader.finish(), found


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_what_is_written_is_read_again(piece: int) -> None:
    in_parts = gzip.compress(HEADING.to_line()) + gzip.compress(FILE.to_line() + LINK.to_line())
    assert read(in_parts, piece) == (HEADING, [FILE, LINK])


paths = st.binary(min_size=1, max_size=50).filter(lambda path: b"\0" not in path)


@given(paths, paths, st.sampled_from(Kind), st.integers(0, 2**62), st.integers(0, 0o7777))
def test_any_bytes_of_a_name_survive(path: bytes, link: bytes, kind: Kind, size: int, mode: int) -> None:
    entry = Entry(path, kind, size, mode, "1.25", link, 0, 512, "")
    assert Entry.from_json(json.loads(entry.to_line())) == entry


def test_a_line_is_json_that_people_can_read() -> None:
    assert json.loads(FILE.to_line()) == {
        "path": "run_001/a b", "type": "file", "size": 3, "mode": "0644", "mtime": "1700000000.5", "offset": 512,
        "data_offset": 2048, "sha256": "d" * 64,
    }  # fmt: skip
    assert json.loads(LINK.to_line()) == {
        "path_base64": "cnVuXzAwMS9s/w==", "type": "symbolic link", "size": 0, "mode": "0777", "mtime": "-1",
        "offset": 2560, "data_offset": 3072, "link_base64": "/go=",
    }  # fmt: skip
    first = json.loads(HEADING.to_line())
    assert first["format"] == FORMAT
    assert (first["run"], first["archive"]["sha256"], first["archive"]["members"]) == ("run_001", "a" * 64, 2)


@pytest.mark.parametrize(
    ("member", "path", "link"),
    [
        (Member(b"./run/d/", Kind.DIRECTORY, 0, b"", 0o755, False), b"run/d", b""),
        (Member(b"./run/twin", Kind.HARD_LINK, 0, b"./run/file", 0o644, False), b"run/twin", b"run/file"),
        (Member(b"./run/link", Kind.SYMBOLIC_LINK, 0, b"./file", 0o777, False), b"run/link", b"./file"),
        (Member(b"./run/file", Kind.FILE, 1, b"left over", 0o644, False), b"run/file", b""),
    ],
)
def test_paths_are_those_below_the_directory_that_is_restored_to(member: Member, path: bytes, link: bytes) -> None:
    entry = Entry.of(member, "")
    assert (entry.path, entry.link) == (path, link)


@pytest.mark.parametrize(
    "packed",
    {
        "nothing": b"",
        "no gzip": b"not packed",
        "an empty file": gzip.compress(b""),
        "no heading": gzip.compress(FILE.to_line()),
        "another format": gzip.compress(lines().replace(FORMAT.encode(), b"some other")),
        "a member too few": gzip.compress(lines(HEADING, FILE)),
        "a member too many": gzip.compress(lines(HEADING, FILE, LINK, LINK)),
        "a line cut off": gzip.compress(lines()[:-1]),
        "a cut file": gzip.compress(lines())[:-40],
        "bytes behind": gzip.compress(lines()) + b"x",
        "a list": gzip.compress(HEADING.to_line() + b"[]\n[]\n"),
        "a negative size": gzip.compress(lines(HEADING, FILE._replace(size=-1), LINK)),
        "an unknown kind": gzip.compress(lines().replace(b'"file"', b'"door"')),
        "a heading without its archive": gzip.compress(lines().replace(b'"archive"', b'"archives"')),
        "deeply nested": gzip.compress(b"[" * 100_000),
        "a line without end": gzip.compress(bytes(5 << 20)),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_no_whole_manifest_is_malformed(packed: tuple[str, bytes]) -> None:
    with pytest.raises(MalformedManifest):
        read(packed[1])


def test_a_heading_may_name_much() -> None:
    large = replace(HEADING, left_out=tuple("\U0001f600" * 1000 for _ in range(100)))
    assert read(gzip.compress(lines(large)), 1000)[0] == large
