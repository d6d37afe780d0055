"""A file system of our own (FUSE) that passes all on to a directory, logs it, and fails or hangs when told to."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuse_server import served

SERVER = """
import os, sys, time
import mfusepy

real, mountpoint, log, orders = sys.argv[1:]
hang, hanging = f"{orders}.hang", f"{orders}.hanging"

def hold_up(operation):
    try:
        with open(hang) as file: wanted = file.read()
        if wanted != operation: return
        os.rename(hang, hanging)  # one operation hangs, those that come after it do not
    except FileNotFoundError: return
    while os.path.exists(hanging): time.sleep(0.02)

class Disk(mfusepy.Operations):
    use_ns = True

    def _at(self, path): return os.path.join(real, path.lstrip("/"))

    def _do(self, operation, path):
        with open(log, "a") as file: file.write(f"{operation} {os.path.basename(path) or '/'}\\n")
        with open(orders) as file: code, *failing = file.read().split() or ["0"]
        if operation in failing: raise mfusepy.FuseOSError(int(code))
        hold_up(operation)

    def getattr(self, path, fh=None):
        hold_up("getattr")
        try: status = os.lstat(self._at(path))
        except OSError as error: raise mfusepy.FuseOSError(error.errno)
        whole = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")
        times = ("st_atime", "st_mtime", "st_ctime")
        return {key: getattr(status, key) for key in whole} | {key: getattr(status, key + "_ns") for key in times}

    def readdir(self, path, fh): self._do("readdir", path); return [".", "..", *os.listdir(self._at(path))]
    def create(self, path, mode, fi=None):
        self._do("create", path)
        try: return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error: raise mfusepy.FuseOSError(error.errno)
    def open(self, path, flags): return os.open(self._at(path), flags & ~os.O_NOFOLLOW & os.O_ACCMODE)
    def read(self, path, size, offset, fh): self._do("read", path); return os.pread(fh, size, offset)
    def write(self, path, data, offset, fh): self._do("write", path); return os.pwrite(fh, data, offset)
    def release(self, path, fh): os.close(fh)
    def flush(self, path, fh): return 0
    def fsync(self, path, datasync, fh): self._do("fsync", path); os.fsync(fh); return 0
    def fsyncdir(self, path, datasync, fh): self._do("fsyncdir", path); return 0
    def unlink(self, path): self._do("unlink", path); os.unlink(self._at(path))
    def link(self, target, source):
        self._do("link", target)
        try: os.link(self._at(source), self._at(target))
        except OSError as error: raise mfusepy.FuseOSError(error.errno)
    def rename(self, old, new): self._do("rename", new); os.rename(self._at(old), self._at(new))
    def chmod(self, path, mode): os.chmod(self._at(path), mode)
    def statfs(self, path):
        room = os.statvfs(real)
        keys = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize", "f_namemax")
        return {key: getattr(room, key) for key in keys}

mfusepy.FUSE(Disk(), mountpoint, foreground=True, nothreads=False, attr_timeout=0, entry_timeout=0)
"""


class Disk:
    """The mounted directory `path`; `fail` says which operations fail, `hang` which is to hang, `log` what was done."""

    def __init__(self, path: Path, log: Path, orders: Path) -> None:
        self.path = path
        self._log = log
        self._orders = orders

    def fail(self, *operations: str, code: int = errno.EIO) -> None:
        """Let these operations fail from now on, and no others.

        They are create, read, write, fsync, readdir, fsyncdir, link, unlink, rename.
        """
        self._orders.write_text(" ".join([str(code), *operations]), encoding="ascii")

    def hang(self, operation: str) -> None:
        """Let the next one of these operations (those of `fail`, and getattr) hang until `go_on`."""
        self._orders.with_suffix(".hang").write_text(operation, encoding="ascii")

    @property
    def hangs(self) -> bool:
        """Whether the operation that was to hang does."""
        return self._orders.with_suffix(".hanging").exists()

    def go_on(self) -> None:
        """Let nothing hang any more."""
        for suffix in (".hang", ".hanging"):
            self._orders.with_suffix(suffix).unlink(missing_ok=True)

    def log(self) -> list[str]:
        """Return what was done, as `operation name`, in order."""
        return self._log.read_text(encoding="utf-8").splitlines()


@contextmanager
def failing_disk(path: Path, work: Path, real: Path | None = None) -> Iterator[Disk]:
    """Mount a file system that passes on to `real` (or a new directory) at `path` while the context lasts.

    Raises Unavailable.
    """
    log, orders, real = work / "operations", work / "orders", real or work / "real"
    for directory in (work, real):
        directory.mkdir(parents=True, exist_ok=True)
    log.touch()
    orders.touch()
    with served(path, SERVER, real, path, log, orders):
        yield Disk(path, log, orders)
