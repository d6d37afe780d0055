"""`list`: what an archive holds, as its manifest says."""

from __future__ import annotations

import argparse
import stat
import sys
from datetime import UTC, datetime

from watcher.commands.exit_codes import OK
from watcher.commands.shared import load, statusdb
from watcher.manifest import Entry, Heading
from watcher.model import Kind
from watcher.stored import Selection, StoredRun, read_manifest
from watcher.text import printable
from watcher.wiring import archives

FORMATS = {
    Kind.FILE: stat.S_IFREG,
    Kind.HARD_LINK: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMBOLIC_LINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
}

ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
"""How GNU's sha256sum writes these in a name. A line with one of them begins with a backslash."""


def run(options: argparse.Namespace) -> int:
    """Print the members of the run that match; return the exit code.

    Raises UnknownRun, also when none matches, NotAsRecorded, WrapFailed, StatusDBUnavailable, ConfigError.
    """
    loaded = load(options)
    stored = StoredRun.of(statusdb(loaded).demand(options.run), archives.archive_store(loaded))
    selection, count = Selection(options.patterns), 0

    def show_heading(heading: Heading) -> None:
        if options.json:
            print(heading.to_line().decode(), end="")

    def show(entry: Entry) -> None:
        nonlocal count
        if entry.path in selection:
            count += 1
            _show(entry, options)

    read_manifest(stored, loaded.gnupg_home, show_heading, show)
    if not count:
        raise selection.unmatched(stored.name)
    return OK


def _show(entry: Entry, options: argparse.Namespace) -> None:
    if options.json:
        print(entry.to_line().decode(), end="")
    elif not options.sha256sum:
        print(_for_people(entry))
    elif sys.stdout is not None:
        sys.stdout.buffer.write(_for_sha256sum(entry))  # names as they are: they may be no UTF-8


def _for_people(entry: Entry) -> str:
    """Return a line as `ls -l` has it: mode, bytes, time in UTC, path, and where a link leads."""
    mode = stat.filemode(FORMATS[entry.kind] | entry.mode)
    arrow = {Kind.SYMBOLIC_LINK: " -> ", Kind.HARD_LINK: " link to "}.get(entry.kind, "")
    link = arrow and arrow + printable(entry.link_name)
    return f"{mode} {entry.size:>15} {_moment(entry.mtime)} {printable(entry.name)}{link}"


def _moment(mtime: str) -> str:
    """Return the time in UTC, to the second, or the seconds since the epoch for a year that Python does not know."""
    seconds = mtime.partition(".")[0]
    try:
        return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:>19}"


def _for_sha256sum(entry: Entry) -> bytes:
    """Return the line that `sha256sum -c` reads; nothing for what is no regular file."""
    if entry.kind is not Kind.FILE:
        return b""
    name = entry.path
    for char, escaped in ESCAPES.items():
        name = name.replace(char, escaped)
    start = b"\\" if name != entry.path else b""
    return start + entry.sha256.encode() + b"  " + name + b"\n"
