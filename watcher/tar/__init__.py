"""tar's stream: written by the real tar, walked member by member, and compared with what the run holds.

`TarStream` is a run on its way to gpg. `MemberWalk` reads headers only, for archiving and for restoring. A stream
that lacks anything of the run, or has more, ends in an error.
"""

from __future__ import annotations

from watcher.tar.members import MalformedArchive, Member, MemberWalk
from watcher.tar.stream import TarStream, tar_version

__all__ = ["MalformedArchive", "Member", "MemberWalk", "TarStream", "tar_version"]
