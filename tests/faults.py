"""Runs a Python program, the watcher's command for one, with something happening to it: see `prefix`.

python tests/program.py HAPPENING PROGRAM ARGUMENT...
"""

from __future__ import annotations

import ctypes
import os
import random
import runpy
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from watcher.source import SENTINEL

SLOW_SECONDS = 0.3


def prefix(*faults: str) -> tuple[str, str, str]:
    """Return what goes before a program so that these happen to it: names of functions below."""
    return sys.executable, __file__, ",".join(faults)


def thread_ends() -> None:
    """At SIGUSR1 the thread that is named by `$THREAD` ends, as soon as it does anything."""

    def end(_number: int, _frame: FrameType | None) -> None:
        (victim,) = (thread for thread in threading.enumerate() if thread.name == os.environ["THREAD"])
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim.ident or 0), ctypes.py_object(SystemExit))
        sys.stderr.write(f"'{victim.name}' is to end\n")

    signal.signal(signal.SIGUSR1, end)


def slow_disk() -> None:
    """Each look at a sentinel takes longer than a period of `QUICK`."""
    real = os.lstat

    def lstat(path: Any, **options: Any) -> os.stat_result:
        if os.fspath(path).endswith(SENTINEL):
            time.sleep(SLOW_SECONDS)
        return real(path, **options)

    os.lstat = lstat  # type: ignore[assignment]


def dice() -> None:
    """Each throw is told, and gives a thousandth of the lowest number that it may."""

    def uniform(low: float, high: float) -> float:
        sys.stderr.write(f"thrown between {low} and {high}\n")
        return low / 1000

    random.uniform = uniform


if __name__ == "__main__":
    faults, program, *arguments = sys.argv[1:]
    for mishap in faults.split(","):
        globals()[mishap]()
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
