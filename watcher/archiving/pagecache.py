"""What of a file is in memory, and what has reached the disk: sync_file_range(2), posix_fadvise(2), preadv2(2).

`sync_file_range` writes a range of a file to the device without waiting for the rest. It empties neither the device's
own cache nor writes the file's metadata, so a fsync at the end stays necessary.
"""

from __future__ import annotations

import ctypes
import os

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
"""Flags of sync_file_range, from Linux's <fcntl.h>."""

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_write_out(descriptor: int, offset: int, size: int) -> None:
    """Start to write a range of a file to the device, and do not wait for the end. Raises OSError."""
    _sync(descriptor, offset, size, _WRITE)


def drop(descriptor: int, offset: int, size: int) -> None:
    """Wait until a range of a file is on the device, then drop it from the page cache. Raises OSError."""
    _sync(descriptor, offset, size, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def is_cached(descriptor: int, offset: int) -> bool:
    """Say whether a byte of a file is in the page cache, or may be: True where the file system does not tell."""
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True  # EOPNOTSUPP
    return True


def _sync(descriptor: int, offset: int, size: int, flags: int) -> None:
    if _sync_file_range(descriptor, offset, size, flags):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
