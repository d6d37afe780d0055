"""A file system (FUSE) that passes all on to a directory, and lies about what is in it when told to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuse_server import served

SERVER = """
import json, os, stat, sys, threading
import mfusepy

real, mountpoint, orders = sys.argv[1:]
KEYS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")
lock = threading.Lock()

class Disk(mfusepy.Operations):
    use_ns = True
    listed = {}

    def _at(self, path): return os.path.join(real, path.lstrip("/"))

    def _lies(self, path):
        with open(orders) as file: return json.load(file).get(path.lstrip("/"), {})

    def getattr(self, path, fh=None):
        try: status = os.lstat(self._at(path))
        except OSError as error: raise mfusepy.FuseOSError(error.errno)
        found = {key: getattr(status, key) for key in KEYS}
        found |= {key: getattr(status, key + "_ns") for key in ("st_atime", "st_mtime", "st_ctime")}
        return found | {key: lie for key, lie in self._lies(path).items() if key.startswith("st_")}

    def opendir(self, path):
        with lock: self.listed[path] = self.listed.get(path, 0) + 1
        return self.listed[path]

    def readdir(self, path, count):
        names = os.listdir(self._at(path))
        for entry in (".", "..", *sorted(names)):
            place = os.path.join(path, entry)
            lies = self._lies(place)
            if count in lies.get("hidden", ()): continue
            mode = os.lstat(self._at(place)).st_mode
            for _ in range(1 + lies.get("twice", False)):
                yield entry, {"st_mode": lies.get("type", mode), "st_ino": lies.get("st_ino", 1)}, 0

    def open(self, path, flags): return os.open(self._at(path), flags & ~os.O_NOFOLLOW & os.O_ACCMODE)
    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)
    def release(self, path, fh): os.close(fh)
    def readlink(self, path): return os.readlink(self._at(path))
    def statfs(self, path):
        room = os.statvfs(real)
        keys = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize", "f_namemax")
        return {key: getattr(room, key) for key in keys}

mfusepy.FUSE(Disk(), mountpoint, foreground=True, nothreads=False, ro=True, use_ino=True, readdir_ino=True,
             direct_io=True, attr_timeout=0, entry_timeout=0, negative_timeout=0)
"""


class Liar:
    """The mounted directory `path`, read-only; `real` is where its content can be changed."""

    def __init__(self, path: Path, real: Path, orders: Path) -> None:
        self.path = path
        self.real = real
        self.orders = orders
        self._lies: dict[str, dict[str, Any]] = {}
        self._write()

    def lie(self, name: str, **lies: Any) -> None:
        """Tell from now on of the entry `name`, a path below `path`, what is not so.

        `st_size`, `st_blocks`, `st_ino`, `st_nlink` and so on are as stat(2) will have them; `type` is the mode from
        which a listing of its directory has the entry's type. `hidden` has the numbers of the listings of its
        directory, counted from 1, in which the entry is missing; `twice` lists it twice.
        """
        self._lies.setdefault(name, {}).update(lies)
        self._write()

    def with_lies(self, more: dict[str, dict[str, Any]]) -> str:
        """Return what the file `orders` has to hold for the disk to tell more lies."""
        return json.dumps(self._lies | more)

    def _write(self) -> None:
        new = self.orders.with_suffix(".new")
        new.write_text(self.with_lies({}), encoding="ascii")
        new.rename(self.orders)


@contextmanager
def lying_disk(path: Path, work: Path) -> Iterator[Liar]:
    """Mount a file system that passes on a directory in `work` at `path` while the context lasts.

    Reads go past the page cache, so that a file may have more bytes than its size says. Raises Unavailable.
    """
    real, orders = work / "real", work / "lies"
    real.mkdir(parents=True)
    liar = Liar(path, real, orders)
    with served(path, SERVER, real, path, orders):
        yield liar
