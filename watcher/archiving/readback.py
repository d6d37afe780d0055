"""A staged file is read while it is written, and what is read has come back from the device.

It is taken window by window. When a window is full, its write-out begins; then the window before it is waited for,
dropped from the page cache, and read. Some file systems keep a window in memory (tmpfs) or do not tell (NFS, FUSE).
There the reader waits for the whole file, which is dropped from the page cache after its fsync.
"""

from __future__ import annotations

import os
import threading

from watcher.archiving.files import StagedFile, disk_trouble
from watcher.archiving.pagecache import drop, is_cached
from watcher.job import Job

DROP_PAUSES_SECONDS = (0.0, 0.01, 0.1)
"""Before each try to drop a window from the page cache. Linux keeps a page that somebody else just looks at."""


class Readback:
    """A file that one thread writes and another one reads: whole windows from the device, and the rest at the end."""

    def __init__(self, file: StagedFile, job: Job, follows: bool = True) -> None:
        self._file, self._path, self._job, self._follows = file, file.path, job, follows
        self._changed = threading.Condition()
        self._is_whole = False
        self._descriptor = -1
        self._position = 0
        self._window_end: int | None = 0

    @property
    def may_begin(self) -> bool:
        """Whether the first window can be read already."""
        return self._is_there(0)

    def grew(self) -> None:
        """Note that the file has grown."""
        with self._changed:
            self._changed.notify()

    def finish(self) -> None:
        """Note that the file grows no more, and is on the disk."""
        with self._changed:
            self._is_whole = True
            self._changed.notify()

    def __enter__(self) -> Readback:
        with disk_trouble("read", self._path):
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end of the file. Waits for the writer.

        Raises NoSpace, and the job's reason once it is cancelled.
        """
        if self._position == self._window_end:
            self._window_end = self._next_window_end()
        if self._window_end is not None:
            size = min(size, self._window_end - self._position)
        data = self._job.on_storage(self._pread, self._path)(size)
        self._position += len(data)
        return data

    def _pread(self, size: int) -> bytes:
        with disk_trouble("read", self._path):
            return os.pread(self._descriptor, size, self._position)

    def _next_window_end(self) -> int | None:
        """Wait until the next window can be read from the device; return its end, None for the file's own end."""
        start = self._position
        with self._job.waiting(), self._changed:
            self._changed.wait_for(lambda: self._is_whole or self._is_there(start))
        self._job.check()
        if self._is_whole:
            os.posix_fadvise(self._descriptor, start, 0, os.POSIX_FADV_DONTNEED)
            return None
        for pause in DROP_PAUSES_SECONDS:
            self._job.cancelled.wait(pause)
            self._job.on_storage(self._drop, self._path)(start)
            if not is_cached(self._descriptor, start + self._file.window_bytes // 2):
                return start + self._file.window_bytes
        self._follows = False
        return self._next_window_end()

    def _is_there(self, start: int) -> bool:
        """Say whether the window at `start`, and the one after it, have been written."""
        return self._follows and self._file.size >= start + 2 * self._file.window_bytes

    def _drop(self, start: int) -> None:
        with disk_trouble("write", self._path):
            drop(self._descriptor, start, self._file.window_bytes)
