"""File systems: on which the sequencing path and its sequencers lie, and whether one was mounted or unmounted there."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

MOUNT_TABLE = Path("/proc/self/mountinfo")
"""See proc_pid_mountinfo(5)."""

NETWORK_FILE_SYSTEMS = frozenset(
    {
        # files of a server
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "coda", "fuse.sshfs", "fuse.smbnetfs", "fuse.curlftpfs", "davfs",
        # clusters; several have a client in the kernel and one through FUSE
        "lustre", "gpfs", "beegfs", "fuse.beegfs", "fhgfs", "ceph", "fuse.ceph", "fuse.ceph-fuse", "glusterfs",
        "fuse.glusterfs", "panfs", "wekafs", "cvfs", "orangefs", "pvfs2", "fuse.mfs", "fuse.lizardfs", "fuse.saunafs",
        "fuse.quobyte", "fuse.juicefs",
        # one disk that several hosts mount
        "ocfs2", "gfs2",
        # a virtual machine's share of what its host has: the host writes there too
        "9p", "virtiofs", "vboxsf", "fuse.vmhgfs-fuse", "prl_fs",
        # object stores
        "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.mountpoint-s3",
    }
)  # fmt: skip
"""Types in the mount table on which somebody else's changes cause no events here, and his locks may not hold.

One too many costs some listings a minute; one that is missing makes runs wait for `rescan_interval`.
"""


class Places:
    """The sequencing path `root` and its sequencers, but for those in `ignore`, as they were at the last look."""

    def __init__(self, root: Path, ignore: Collection[str] = ()) -> None:
        self._root = root
        self._ignore = ignore
        self._found: dict[Path, os.stat_result] = {}
        self._table = b""

    def look(self) -> dict[Path, str]:
        """Look anew; return, with the types, which of them lie on network file systems."""
        self._table = MOUNT_TABLE.read_bytes()  # first: what is mounted while we look is news
        self._found = _places(self._root, self._ignore)
        return _remote(self._root, self._found)

    def have_changed(self) -> bool:
        """Say whether something was mounted or unmounted there since. No disk is asked while no mount has changed."""
        if self._table == (table := MOUNT_TABLE.read_bytes()):
            return False
        self._table = table
        before, now = self._found, _places(self._root, self._ignore)
        return before.keys() != now.keys() or any(not os.path.samestat(before[place], now[place]) for place in now)


def network_places(root: Path, ignore: Collection[str] = ()) -> dict[Path, str]:
    """Return, with the types, which of `root` and its sequencers lie on network file systems.

    A sequencer may be a mount or a link; one on the root's own file system is not named beside it.
    """
    return _remote(root, _places(root, ignore))


def file_system_type(path: Path) -> str:
    """Return the type of the file system that holds `path`, as the kernel's mount table has it."""
    return _type(os.stat(path).st_dev)


def _remote(root: Path, places: dict[Path, os.stat_result]) -> dict[Path, str]:
    own = places[root].st_dev if root in places else None
    kinds = {place: _type(status.st_dev) for place, status in places.items() if place == root or status.st_dev != own}
    return {place: kind for place, kind in kinds.items() if kind in NETWORK_FILE_SYSTEMS}


def _places(root: Path, ignore: Collection[str]) -> dict[Path, os.stat_result]:
    names: list[str] = []
    with suppress(OSError):
        names = sorted(name for name in os.listdir(root) if name not in ignore)
    found = {}
    for place in (root, *(root / name for name in names)):
        with suppress(OSError):
            found[place] = os.stat(place)
    return found


def _type(device: int) -> str:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with MOUNT_TABLE.open(encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0]
    return "unknown"
