"""What the benchmarks share: a facility outside pytest, a table, percentiles, and looking at a process from outside."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent.parent))

import requests
from couchdb_server import PouchServer
from sites import PATIENCE_SECONDS, Daemon, Site, keyring, make_key

RECIPIENT = "ops@example.org"
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def arguments(about: str | None, **defaults: object) -> argparse.Namespace:
    """Read the command line: an option for each default, of the default's type."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(default), default=default, help=f"default {default}")
    return parser.parse_args()


@contextmanager
def facility(statusdb: str = "sqlite", directory: str = "", **options: object) -> Iterator[Site]:
    """Make a site in a temporary directory, on `sqlite` or on a `couchdb` that `$COUCHDB_URL` or npm provides."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=directory or None)))
        home = stack.enter_context(keyring(root / "gnupg"))
        make_key(home, RECIPIENT)
        site = Site(root / "site", home, RECIPIENT, **options)
        if statusdb == "couchdb":
            url = os.environ.get("COUCHDB_URL") or stack.enter_context(PouchServer()).url
            site.use_couchdb(url, f"bench_{os.getpid()}")
            stack.callback(requests.delete, address(site), timeout=PATIENCE_SECONDS)
        stack.callback(site.close)
        yield site


def end(daemon: Daemon) -> None:
    """End the watcher at once, its children with it."""
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGTERM)
    daemon.wait()


def address(site: Site) -> str:
    """Return the address of a site's CouchDB database, with credentials if there are any."""
    statusdb = site.options["statusdb"]
    scheme, _, host = statusdb["url"].partition("://")
    login = (
        f"{quote(statusdb['username'], safe='')}:{quote(statusdb['password'], safe='')}@"
        if "username" in statusdb
        else ""
    )
    return f"{scheme}://{login}{host}/{quote(statusdb['database'], safe='')}"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in plain text."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if not number:
            print("  " + "  ".join("-" * width for width in widths))


def spread(seconds: Sequence[float]) -> list[str]:
    """Return median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(seconds)
    picked = (statistics.median(ordered), ordered[max(-(-len(ordered) * 99 // 100) - 1, 0)], ordered[-1])
    return [f"{1000 * value:.1f}" for value in picked]


def cpu_seconds(pid: int) -> float:
    """Return how much CPU time a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def memory(pid: int, field: str = "VmRSS") -> float:
    """Return a process's memory in MB: VmRSS, or VmHWM for its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def watches(pid: int) -> int:
    """Return how many inotify watches a process holds, as the kernel counts them."""
    found = 0
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        found += entry.read_text().count("inotify wd:")
    return found
