"""The command `dataflow_archive`."""

from __future__ import annotations

import sys

from watcher.cli import run


def main() -> None:
    """Run the command that the command line names, and exit with its code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
