"""What strace saw of a command and its children: one call a line, in the order in which the calls ended."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

LINE = re.compile(r"(?P<pid>\d+) +(?:<\.\.\. \w+ resumed>)?(?P<call>.*?)(?P<cut> <unfinished \.\.\.>)?\n?")


def require_strace(unavailable: Callable[[str], NoReturn]) -> None:
    """Skip (or fail in CI) when there is no strace."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")


def traced(command: Sequence[str], calls: str, trace: Path, *, longest: int = 32, **options: Any) -> str:
    """Run a command, write its calls to `trace` and return them; of each string, `longest` bytes."""
    strace = ["strace", "-f", "-y", "-v", "-s", str(longest), "-e", f"trace={calls}", "-o", str(trace)]
    subprocess.run([*strace, *command], check=True, capture_output=True, **options)
    with trace.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        return join(lines)


def join(lines: Iterable[str]) -> str:
    """Put together what strace cut in two because another thread's call came between."""
    begun: dict[str, str] = {}
    whole = []
    for line in lines:
        match = LINE.fullmatch(line)
        assert match, line
        call = begun.pop(match["pid"], "") + match["call"]
        if match["cut"]:
            begun[match["pid"]] = call
        else:
            whole.append(f"{match['pid']} {call}\n")
    return "".join(whole + [f"{pid} {call}\n" for pid, call in begun.items()])
