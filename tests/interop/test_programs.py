"""What the archiver writes is opened without GnuPG, and restored by other programs than GNU tar."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import npm
import pytest
from sites import Site, assert_same_tree, gpg, keyring, make_key

from watcher import openpgp

pytestmark = pytest.mark.interop

RUN = "run_001"
RECIPIENT = "ops@example.org"
BIG = 20_000_000
HERE = Path(__file__).parent
IS_OCB_WRITTEN = tuple(map(int, openpgp.gpg_version(None).split(".")[:2])) >= (2, 4)


class Archived(NamedTuple):
    """An archived run: its directory, its files, and what gpg makes of them."""

    source: Path
    archive: Path
    wrapped: Path
    manifest: Path
    file_key: bytes
    content: bytes
    manifest_lines: bytes


class Program(NamedTuple):
    """A program that reads OpenPGP: how it takes a private key, and how a passphrase. Both read standard input."""

    name: str
    unwrap: Callable[[Path], list[str]]
    decrypt: Callable[[Path], list[str]]
    reads_ocb: bool


PROGRAMS = (
    Program("sqop", lambda key: ["sqop", "decrypt", str(key)],
            lambda key: ["sqop", "decrypt", f"--with-password={key}"], reads_ocb=False),
    Program("rnp", lambda key: ["rnp", "--keyfile", str(key), "--decrypt", "-"],
            lambda key: ["bash", "-c", 'exec rnp --decrypt --pass-fd 3 - 3< "$1"', "rnp", str(key)], reads_ocb=True),
    Program("openpgp.js", lambda key: ["node", str(HERE / "decrypt.mjs"), "key", str(key)],
            lambda key: ["node", str(HERE / "decrypt.mjs"), "passphrase", str(key)], reads_ocb=True),
)  # fmt: skip


@pytest.fixture(params=PROGRAMS, ids=lambda program: program.name)
def program(request: pytest.FixtureRequest, unavailable: Callable[[str], NoReturn]) -> Program:
    found: Program = request.param
    if found.name == "openpgp.js":
        try:
            npm.installed(HERE)
        except npm.Unavailable as error:
            unavailable(str(error))
    elif not shutil.which(found.name):
        unavailable(f"needs {found.name}")
    return found


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A keyring with the recipient's key, and the private key in a file."""
    with keyring(tmp_path_factory.mktemp("gpg") / "home") as home:
        make_key(home, RECIPIENT)
        file = home.parent / "secret.asc"
        file.write_bytes(gpg(home, "--armor", "--export-secret-keys", RECIPIENT))
        yield home, file


def make_run(site: Site) -> Path:
    """Make a run that has all that is special in a tar."""
    run = site.make_run(RUN, size=BIG)
    lane = run / "Data" / "L001"
    with open(lane / "sparse.bin", "wb") as sparse:
        sparse.write(os.urandom(70_000))
        sparse.seek(30_000_000)
        sparse.write(b"behind a hole")
        sparse.truncate(50_000_000)
    os.link(lane / "C1.cbcl", lane / "the same")
    (lane / ("long name " * 20)).write_text("its name needs an extended header\n")
    (lane / "ümläut and\nnewline").write_text("both\n", encoding="utf-8")
    return run


def archived_as(encryption: str, root: Path, home: Path) -> Archived:
    site = Site(root / encryption, home, RECIPIENT, encryption=encryption)
    try:
        source = site.complete(make_run(site))
        done = site.command("once")
        assert done.returncode == 0, done.stderr
        archive, wrapped = site.archives / f"{RUN}.tar.gpg", site.keys / f"{RUN}.key.gpg"
        manifest = site.archives / f"{RUN}.manifest.jsonl.gz.gpg"
        file_key = gpg(home, "--decrypt", str(wrapped))
        by_file_key = ("--pinentry-mode", "loopback", "--passphrase-fd", "0", "--decrypt")
        content = gpg(home, *by_file_key, str(archive), data=file_key)
        lines = gzip.decompress(gpg(home, *by_file_key, str(manifest), data=file_key))
        return Archived(source, archive, wrapped, manifest, file_key, content, lines)
    finally:
        site.close()


@pytest.fixture(scope="module")
def mdc(tmp_path_factory: pytest.TempPathFactory, secret: tuple[Path, Path]) -> Archived:
    return archived_as("mdc", tmp_path_factory.mktemp("site"), secret[0])


@pytest.fixture(scope="module")
def ocb(
    tmp_path_factory: pytest.TempPathFactory, secret: tuple[Path, Path], unavailable: Callable[[str], NoReturn]
) -> Archived:
    """The same in OCB. CI asks for it where gpg is of Debian forky, which can write it."""
    if not IS_OCB_WRITTEN:
        unavailable("this gpg writes no OCB")
    return archived_as("ocb", tmp_path_factory.mktemp("site"), secret[0])


def output(command: list[str], file: Path) -> subprocess.CompletedProcess[bytes]:
    with file.open("rb") as standard_input:
        return subprocess.run(command, stdin=standard_input, capture_output=True, check=False)


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[[Archived], Path]:
    def write(archived: Archived) -> Path:
        path = tmp_path / "file_key"
        path.write_bytes(archived.file_key)
        return path

    return write


def test_a_wrapped_key_is_opened_without_gnupg(program: Program, mdc: Archived, secret: tuple[Path, Path]) -> None:
    done = output(program.unwrap(secret[1]), mdc.wrapped)
    assert (done.returncode, done.stdout) == (0, mdc.file_key), done.stderr


def test_an_archive_is_opened_without_gnupg_byte_for_byte(
    program: Program, mdc: Archived, key_file: Callable[[Archived], Path]
) -> None:
    done = output(program.decrypt(key_file(mdc)), mdc.archive)
    assert done.returncode == 0, done.stderr
    assert done.stdout == mdc.content


@pytest.mark.parametrize("key", ["private key", "file key"])
def test_a_manifest_is_opened_without_gnupg(
    key: str, program: Program, mdc: Archived, secret: tuple[Path, Path], key_file: Callable[[Archived], Path]
) -> None:
    command = program.unwrap(secret[1]) if key == "private key" else program.decrypt(key_file(mdc))
    done = output(command, mdc.manifest)
    assert done.returncode == 0, done.stderr
    assert gzip.decompress(done.stdout) == mdc.manifest_lines
    assert json.loads(mdc.manifest_lines.splitlines()[0])["run"] == RUN


def test_an_archive_with_a_flipped_bit_is_refused(
    program: Program, mdc: Archived, key_file: Callable[[Archived], Path], tmp_path: Path
) -> None:
    damaged = bytearray(mdc.archive.read_bytes())
    damaged[BIG // 2] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    assert output(program.decrypt(key_file(mdc)), tmp_path / "damaged").returncode != 0


@pytest.mark.ocb
def test_ocb_is_opened_by_those_that_read_it(
    program: Program, ocb: Archived, key_file: Callable[[Archived], Path]
) -> None:
    done = output(program.decrypt(key_file(ocb)), ocb.archive)
    assert (done.returncode == 0) == program.reads_ocb, done.stderr
    assert (done.stdout == ocb.content) == program.reads_ocb


def extract_with_python(content: bytes, to: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|") as archive:
        archive.extractall(to, **({"filter": "fully_trusted"} if sys.version_info >= (3, 12) else {}))


def extract_with(command: list[str]) -> Callable[[bytes, Path], None]:
    def extract(content: bytes, to: Path) -> None:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        subprocess.run([*command, "-C", str(to)], input=content, check=True, capture_output=True, env=environment)

    return extract


@pytest.mark.parametrize(
    "extract",
    [
        pytest.param(extract_with(["tar", "-xpf", "-"]), id="GNU tar"),
        pytest.param(extract_with(["bsdtar", "-xpf", "-"]), id="bsdtar"),
        pytest.param(extract_with_python, id="Python's tarfile"),
    ],
)
def test_what_was_opened_is_restored_by_other_programs_than_ours(
    extract: Callable[[bytes, Path], None],
    mdc: Archived,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    unavailable: Callable[[str], NoReturn],
) -> None:
    if "bsdtar" in request.node.name and not shutil.which("bsdtar"):
        unavailable("needs bsdtar")
    extract(mdc.content, tmp_path)
    if extract is extract_with_python:  # it takes times for floats, and so to some 100 ns
        difference = ["diff", "--recursive", "--no-dereference", str(mdc.source), str(tmp_path / RUN)]
        assert subprocess.run(difference, capture_output=True, check=False).stdout == b""
    else:
        assert_same_tree(mdc.source, tmp_path / RUN)
    lane = tmp_path / RUN / "Data" / "L001"
    assert (lane / "the same").stat().st_ino == (lane / "C1.cbcl").stat().st_ino
