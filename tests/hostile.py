"""Archives as tar would not write them, made by hand."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from watcher import openpgp
from watcher.archiving import ArchiveStore
from watcher.job import Job
from watcher.model import Archive, Document, Run, Status

RUN = "run_001"
TOKEN = "f" * 32


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, content: bytes = b"") -> bytes:
    """Return a member of tar's posix format: its headers and its content."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(content)
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = 1, 3  # that of /dev/null
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)


def directory(name: str, mode: int = 0o755) -> bytes:
    return member(name, tarfile.DIRTYPE, mode=mode)


def symlink(name: str, to: str) -> bytes:
    return member(name, tarfile.SYMTYPE, to)


def hard_link(name: str, to: str) -> bytes:
    return member(name, tarfile.LNKTYPE, to)


TOP = directory(f"./{RUN}/")
SUB = directory(f"./{RUN}/sub")
FILE = member(f"./{RUN}/file", content=b"content")
LINK = symlink(f"./{RUN}/link", "/tmp")
INNER_LINK = symlink(f"./{RUN}/link", "sub")
DEVICE = member(f"./{RUN}/device", tarfile.CHRTYPE)


class Unsafe(NamedTuple):
    """Members of which the last one must not reach tar, and the words that say so."""

    members: Sequence[bytes]
    words: str


UNSAFE = {
    "a link in place of the run": Unsafe([symlink(f"./{RUN}", "/tmp")], "is a symbolic link; the first member must be"),
    "a file in place of the run": Unsafe([member(f"./{RUN}", content=b"1")], "is a file; the first member must be"),
    "a file in the run comes first": Unsafe([FILE], "is a file; the first member must be"),
    "a directory in the run comes first": Unsafe([SUB], "is a directory; the first member must be"),
    "another run's directory": Unsafe([directory("./run_002/")], "'./run_002/' leads out"),
    "the run's directory without ./": Unsafe([directory(f"{RUN}/")], f"'{RUN}/' leads out"),
    "the directory above": Unsafe([directory("./")], "leads out"),
    "a file beside the run": Unsafe([TOP, member("./other", content=b"1")], "'./other' leads out"),
    "a file whose name begins like the run": Unsafe([TOP, member(f"./{RUN}x")], f"'./{RUN}x' leads out"),
    "..": Unsafe([TOP, member(f"./{RUN}/../x", content=b"1")], f"'./{RUN}/../x' leads out"),
    ".. at the end": Unsafe([TOP, directory(f"./{RUN}/sub/..")], "leads out"),
    "an absolute path": Unsafe([TOP, member("/tmp/x", content=b"1")], "'/tmp/x' leads out"),
    "an empty component": Unsafe([TOP, member(f"./{RUN}//x")], "leads out"),
    "a . component": Unsafe([TOP, member(f"./{RUN}/./x")], "leads out"),
    "a file that tar takes for a directory": Unsafe([TOP, member(f"./{RUN}/x/")], "leads out"),
    "a file in a link to the outside": Unsafe([TOP, LINK, member(f"./{RUN}/link/x")], "passes through a symbolic link"),
    "a file in a link to the inside": Unsafe(
        [TOP, SUB, INNER_LINK, member(f"./{RUN}/link/x")], "passes through a symbolic link"
    ),
    "a directory in place of a link": Unsafe([TOP, LINK, directory(f"./{RUN}/link")], "path of a symbolic link"),
    "a file in place of a link": Unsafe([TOP, LINK, member(f"./{RUN}/link")], "path of a symbolic link"),
    "a second link in place of a link": Unsafe([TOP, LINK, INNER_LINK], "path of a symbolic link"),
    "a link in place of a directory": Unsafe([TOP, SUB, symlink(f"./{RUN}/sub", "/tmp")], "path of a directory"),
    "a link in place of the run, later": Unsafe([TOP, symlink(f"./{RUN}", "/tmp")], "path of a directory"),
    "a directory twice": Unsafe([TOP, SUB, SUB], "path of a directory"),
    "a file in a directory that is no member": Unsafe([TOP, member(f"./{RUN}/a/b")], "passes through a directory that"),
    "a file in a file": Unsafe([TOP, FILE, member(f"./{RUN}/file/x")], "passes through a directory that"),
    "a hard link to the outside": Unsafe([TOP, hard_link(f"./{RUN}/x", "/etc/passwd")], "hard link to '/etc/passwd'"),
    "a hard link upwards": Unsafe([TOP, hard_link(f"./{RUN}/x", f"./{RUN}/../x")], "leads out"),
    "a hard link through a link": Unsafe(
        [TOP, LINK, hard_link(f"./{RUN}/x", f"./{RUN}/link/passwd")], "passes through a symbolic link"
    ),
    "a hard link to a directory": Unsafe([TOP, SUB, hard_link(f"./{RUN}/x", f"./{RUN}/sub")], "to a directory"),
    "a file in a hard link to a link": Unsafe(
        [TOP, LINK, hard_link(f"./{RUN}/x", f"./{RUN}/link"), member(f"./{RUN}/x/y")], "passes through a symbolic link"
    ),
    "a file in a device that is left out": Unsafe(
        [TOP, DEVICE, member(f"./{RUN}/device/x")], "passes through a character device"
    ),
}


def stream(members: Sequence[bytes]) -> bytes:
    """Return the members as one archive."""
    return b"".join(members) + bytes(1024)


class Forgery:
    """A archive_store with an archive of any content, and the document that records it as it is."""

    def __init__(self, root: Path, home: Path) -> None:
        self.home = home
        self.archive_store = ArchiveStore(root / "archives", root / "keys")
        self.to = root / "to"
        for place in (self.archive_store.destination, self.archive_store.keys, self.to):
            place.mkdir()

    def store(self, content: bytes, run_name: str = RUN) -> Document:
        """Store `content` as the archive of a run; return its document, as earlier versions wrote it."""
        key, job = openpgp.FileKey.generate(), Job(Run(Path(run_name)))
        file = self.archive_store.final_archive(run_name)
        with file.open("wb") as output:
            openpgp.encrypt(io.BytesIO(content), key, output.write, job, self.home)
        recipient = openpgp.find_recipient("ops@example.org", self.home)
        self.archive_store.final_key(run_name).write_bytes(openpgp.wrap(key, recipient, self.home))
        with file.open("rb") as stored:
            digest, plain = openpgp.validate(stored.read, key, job, self.home)
        archive = Archive(
            file.name, digest.size, digest.sha256, hashlib.sha256(content).hexdigest(), plain.size,
            self.archive_store.final_key(run_name).name, "",
            recipient.fingerprint, 1, token=TOKEN,
        )  # fmt: skip
        return {"_id": run_name, "status": str(Status.ENCRYPTED), "archive": archive.to_document()}
