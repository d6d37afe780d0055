"""The command `dataflow_archive`."""

from __future__ import annotations

import sys

from watcher import process


def main() -> None:
    """Run the command that the command line names, and exit with its code."""
    process.open_standard_streams()
    # A library may keep a file open from its import on (libffi does, on Debian forky). With a standard stream closed,
    # the file would get the stream's number.
    from watcher.commands import run  # noqa: PLC0415

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
