"""Real workers that go one step at a time: each waits before every call to the database or the archive_store.

It also waits before each of its own looks and strokes in the archive_store's directories, wherever in a call they are.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from harness import Bench
from sites import PATIENCE_SECONDS

from watcher.archiving import Outcome, Worker
from watcher.errors import Interrupted, StatusDBUnavailable
from watcher.model import Run


class Died(BaseException):
    """The worker's process has ended: what it calls from now on does not happen."""


class Gate:
    """Where a worker's thread waits before each step until it is let go on, or dies."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._permits = 0
        self._is_waiting = False
        self._has_ended = False
        self.next_step = ""
        self.is_dead = False
        self.loses_next_answer = False
        self.refuses_next_write = False

    def pass_one(self, step: str) -> None:
        """Wait for a permit to do `step`; called by the worker's thread."""
        with self._changed:
            self.next_step = step
            self._is_waiting = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._permits or self.is_dead)
            self._is_waiting = False
            if self.is_dead:
                raise Died
            self._permits -= 1

    def end(self) -> None:
        """Note that the worker's thread has nothing more to do."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def let(self, steps: int) -> None:
        """Let the worker do so many steps, and wait until it has."""
        with self._changed:
            self._permits += steps
            self._changed.notify_all()
            self._await(lambda: self._has_ended or (self._is_waiting and not self._permits))

    def kill(self) -> None:
        """Let the worker die where it is, and wait until it has."""
        with self._changed:
            self.is_dead = True
            self._changed.notify_all()
            self._await(lambda: self._has_ended)

    @property
    def is_over(self) -> bool:
        """Whether the worker has nothing more to do."""
        return self._has_ended

    def _await(self, reached: Callable[[], bool]) -> None:
        assert self._changed.wait_for(reached, PATIENCE_SECONDS), "the worker hangs"


FILE_STEPS = {"open", "os.listdir", "os.link", "os.rename", "os.remove"}
"""What Python audits of a file before it happens. To look whether a name is there is not among it."""


class _Here(threading.local):
    """The gate of the worker whose thread this is, and the directories in which it waits before each file step."""

    gate: Gate | None = None
    directories: tuple[Path, ...] = ()


_here = _Here()


@cache  # an audit hook is never taken out again
def gate_file_steps() -> None:
    """Let workers' threads wait before each step on a file, as far as they have a gate."""
    sys.addaudithook(_wait_before)


def _wait_before(event: str, arguments: tuple[Any, ...]) -> None:
    if _here.gate and event in FILE_STEPS and isinstance(arguments[0], str | os.PathLike):
        path = Path(arguments[0])
        if path in _here.directories or path.parent in _here.directories:
            _here.gate.pass_one(event)


class Gated:
    """`real`, with the gate before each call."""

    def __init__(self, real: Any, gate: Gate) -> None:
        self._real = real
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return (lambda *args, **kwargs: self._call(name, found, args, kwargs)) if callable(found) else found

    def _call(self, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        gate = self._gate
        gate.pass_one(name)
        if name == "put" and gate.refuses_next_write:
            gate.refuses_next_write = False
            raise StatusDBUnavailable("refused, says the test")
        result = method(*args, **kwargs)
        if name == "put" and gate.loses_next_answer:
            gate.loses_next_answer = False
            raise StatusDBUnavailable("the answer is lost, says the test")
        return result


class SteppedWorker:
    """One attempt at a run in a thread of its own, which waits at its gate."""

    def __init__(self, bench: Bench, run: Run) -> None:
        self.gate = Gate()
        self.outcome: Outcome | None = None
        self.bug: Exception | None = None
        make_store, gate = bench.make_store, self.gate
        gated = replace(
            bench, archive_store=Gated(bench.archive_store, gate), make_store=lambda: Gated(make_store(), gate)
        )
        self._worker: Worker = gated.worker()
        self._directories = (bench.archive_store.destination, bench.archive_store.keys)
        document = bench.document(run)
        stale_rev = document["_rev"] if document["status"] == "processing" else None
        self._thread = threading.Thread(target=self._work, args=(run, stale_rev), daemon=True)
        gate_file_steps()
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether the attempt is over."""
        return not self._thread.is_alive()

    def let(self, steps: int) -> None:
        """Let it do so many steps."""
        self.gate.let(steps)
        self._reap()

    def let_beyond(self, landmarks: Collection[str], steps: int) -> None:
        """Let it go on until it is about to do one of the landmarks, and then so many steps; or to its end."""
        self.let(1)
        while not self.has_ended and self.gate.next_step not in landmarks:
            self.let(1)
        self.let(steps)

    def stop(self) -> None:
        """Tell it to stop, as a second signal does."""
        self._worker.cancel(Interrupted("stopped, says the test"))

    def die(self) -> None:
        """Let it die."""
        self.gate.kill()
        self._thread.join(PATIENCE_SECONDS)

    def finish(self) -> None:
        """Let it go to its end."""
        while not self.has_ended:
            self.let(1)

    def _reap(self) -> None:
        if self.gate.is_over:
            self._thread.join(PATIENCE_SECONDS)

    def _work(self, run: Run, stale_rev: str | None) -> None:
        _here.gate, _here.directories = self.gate, self._directories
        try:
            self.outcome = self._worker.work(run, stale_rev)
        except (Died, StatusDBUnavailable):
            return
        except Exception as error:
            self.bug = error
            raise
        finally:
            self.gate.end()
