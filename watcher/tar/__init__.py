"""tar's stream: written by the real tar, walked member by member, and compared with what the run holds.

`TarStream` is a run on its way to gpg. `MemberWalk` reads a stream again, for archiving and for restoring, and
`Completeness` says whether it has all of the run and nothing else.
"""

from __future__ import annotations

from watcher.tar.blocks import MalformedArchive
from watcher.tar.completeness import Completeness
from watcher.tar.members import ContentSink, Member, MemberWalk
from watcher.tar.stream import TarStream, tar_version

__all__ = ["Completeness", "ContentSink", "MalformedArchive", "Member", "MemberWalk", "TarStream", "tar_version"]
