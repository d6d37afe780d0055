"""The manifest: what was proven of a run, member by member.

Gzipped lines of JSON. The first one is about the archive: `Heading`. Each other one is an `Entry`, a member, in tar's
order. Archiving writes manifests, and commands read them. This folder knows their form, and neither files nor gpg.
"""

from __future__ import annotations

from watcher.manifest.entry import HASH_BYTES, Entry
from watcher.manifest.heading import FORMAT, Heading
from watcher.manifest.making import EntryMaker
from watcher.manifest.reading import MalformedManifest, ManifestReader

__all__ = ["FORMAT", "HASH_BYTES", "Entry", "EntryMaker", "Heading", "MalformedManifest", "ManifestReader"]
