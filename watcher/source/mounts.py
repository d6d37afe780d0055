"""The types of file systems, by the kernel's mount table."""

from __future__ import annotations

import os
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
"""Types of the mount table on which other hosts' changes cause no events here, and locks may not hold across hosts.

One too many costs some listings a minute; one that is missing makes runs wait for `rescan_interval`.
"""


def file_system_type(path: Path) -> str:
    """Return the type of the file system that holds `path`, as the kernel's mount table has it."""
    return type_of(os.stat(path).st_dev, MOUNT_TABLE.read_bytes())


def type_of(device: int, table: bytes) -> str:
    """Return the type of the file system with this device number; `unknown` if the table has none."""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    for line in table.splitlines():
        fields, _, rest = line.partition(b" - ")
        if fields.split()[2] == wanted:
            return os.fsdecode(rest.split()[0])
    return "unknown"
