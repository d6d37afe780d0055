"""An empty directory on a file system of a network type: FUSE, served by a thread of the test. Needs root.

The kernel's mount table has the type that `sshfs` would have there, which is what the watcher looks at.
"""

import ctypes
import errno
import os
import stat
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

TYPE = "fuse.sshfs"
REQUEST_BYTES = 1 << 17
HEADER = struct.Struct("<IIQQIIII")
ANSWER = struct.Struct("<IiQ")
LOOKUP, FORGET, GETATTR, STATFS, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY = (
    1, 2, 3, 17, 26, 27, 28, 29, 34, 36, 38,
)  # fmt: skip
WITHOUT_ANSWER = (FORGET, INTERRUPT)
BLOCKS = 1 << 20
BLOCK_BYTES = 4096


class NetworkMount:
    """Mounts the file system on the directory `path` while the context lasts. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._server = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        self._check(self._libc.mount(b"sshfs", os.fsencode(self._path), TYPE.encode(), 0, options.encode()))
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._check(self._libc.umount2(os.fsencode(self._path), 0))
        self._server.join()
        os.close(self._device)

    def _check(self, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(self._path))

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, REQUEST_BYTES)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return  # unmounted
                continue
            _, opcode, unique, *_ = HEADER.unpack_from(request)
            if opcode not in WITHOUT_ANSWER:
                code, body = _answer(opcode)
                os.write(self._device, ANSWER.pack(ANSWER.size + len(body), -code, unique) + body)


def _answer(opcode: int) -> tuple[int, bytes]:
    if opcode == INIT:
        return 0, struct.pack("<IIIIHHIII28x", 7, 31, 0, 0, 0, 0, 4096, 1, 0)[:64]
    if opcode == GETATTR:
        numbers = (0,) * 6, (0,) * 3, (stat.S_IFDIR | 0o755, 2, 0, 0, 0, BLOCK_BYTES, 0)
        return 0, struct.pack("<QII6Q3I7I", 1, 0, 0, 1, *numbers[0][1:], *numbers[1], *numbers[2])
    if opcode == STATFS:
        return 0, struct.pack("<QQQQQIIII24x", BLOCKS, BLOCKS, BLOCKS, 0, 0, BLOCK_BYTES, 255, BLOCK_BYTES, 0)
    if opcode == OPENDIR:
        return 0, struct.pack("<QII", 0, 0, 0)
    if opcode in (READDIR, RELEASEDIR, ACCESS, DESTROY):
        return 0, b""
    return (errno.ENOENT if opcode == LOOKUP else errno.ENOSYS), b""
