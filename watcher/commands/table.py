"""A table for a terminal, or for a program that reads it line by line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from watcher.text import printable


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: on a terminal in its width, elsewhere one line for each row. Without rows, nothing."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    if not rows:
        return
    if sys.stdout is not None and sys.stdout.isatty():
        _show_on_terminal(lines)
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _show_on_terminal(lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  # it takes long to import, and a pipe needs none of it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*lines[0], box=None, pad_edge=False)
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    Console().print(table)
