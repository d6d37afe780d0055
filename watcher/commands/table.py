"""Tables and lines for a terminal, or for a program that reads them line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from watcher.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType


class Table(NamedTuple):
    """A header, and rows of as many cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(blocks: Iterable[Table | str]) -> None:
    """Print tables and lines: on a terminal in its width, elsewhere one line for each row. Empty ones are left out."""
    for block in filter(_has_content, blocks):
        if is_terminal():
            from rich.console import Console  # noqa: PLC0415  # it takes long to import, and a pipe needs none of it

            Console().print(_rendered(block))
        else:
            _print_plain(block)


def follow(look: Callable[[], Iterable[Table | str]], seconds: float) -> None:
    """Show what `look` returns on the whole terminal, anew after so many seconds, until somebody ends it.

    The terminal is as before then. Elsewhere than on a terminal, each look is printed below the last.
    """
    if not is_terminal():
        while True:
            show(look())
            sys.stdout.flush()
            time.sleep(seconds)
    from rich.console import Console, Group  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(Group(*map(_rendered, filter(_has_content, look()))), refresh=True)
            time.sleep(seconds)


def is_terminal() -> bool:
    """Say whether the standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def _has_content(block: Table | str) -> bool:
    return bool(block.rows if isinstance(block, Table) else block)


def _print_plain(block: Table | str) -> None:
    if isinstance(block, str):
        print(printable(block))
        return
    lines = [[printable(cell) for cell in row] for row in (block.header, *block.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _rendered(block: Table | str) -> RenderableType:
    from rich import table, text  # noqa: PLC0415

    if isinstance(block, str):
        return text.Text(printable(block))
    rendered = table.Table(*block.header, box=None, pad_edge=False)
    for row in block.rows:
        rendered.add_row(*(text.Text(printable(cell)) for cell in row))
    return rendered
