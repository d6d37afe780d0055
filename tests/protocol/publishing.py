"""A model of how a run is claimed, published, adopted and recorded, small enough to be explored to its last state.

It has what `watcher.archiving` and `watcher.statusdb` do to one run's document and files,
one effect a step; hours of tar and gpg are one step. There are no clocks: a claim may be taken over at
any moment, a worker may die, be told to stop, or sleep between any two steps, answers get lost, the
power fails, a staged archive rots or vanishes, and a stranger's file appears under a final name.

`Rules` says which safeguards are in force: each can be left out to see what it is good for.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

NOBODY = 0
FOREIGN = -1
"""Whose a final name is: the token of the archive that has it, NOBODY's or a stranger's."""

PENDING, PROCESSING, ENCRYPTED = "pending", "processing", "encrypted"
ABSENT, PARTIAL, CACHED, STORED = "-", "partial", "cached", "stored"
"""What a file holds: nothing, a part, all of it in memory only, all of it on the disk."""

WHOLE = (CACHED, STORED)
KEY, MANIFEST, ARCHIVE, RECEIPT = range(4)
"""The files of a claim. The first three get final names, in this order."""

NO_NAMES = (False, False, False, False)
ALL_NAMES = (True, True, True, False)
POWER_CUT = "the power fails"


@dataclass(frozen=True)
class Rules:
    """The safeguards."""

    writes_compare_revisions: bool = True
    conflicts_compare_tokens: bool = True
    announces_before_naming: bool = True
    adopts_by_digest: bool = True
    looks_at_staged_names_first: bool = True
    removes_what_it_does_not_adopt: bool = True
    spares_what_came_after_its_claim: bool = True
    finds_announced_files_by_their_own_token: bool = True
    stages_a_receipt: bool = True
    links_instead_of_renaming: bool = True
    syncs_files_before_announcing: bool = True
    syncs_names_before_clearing: bool = True


@dataclass(frozen=True)
class Faults:
    """What may happen beside the workers' own steps."""

    crashes: bool = True
    stops: bool = True
    lost_answers: bool = True
    power_cuts: bool = False
    rot: bool = False
    """A staged archive whose maker is gone is damaged, or any staged archive is removed."""

    strangers: bool = False


class Document(NamedTuple):
    """The run document."""

    status: str = PENDING
    holder: int = NOBODY
    archive: int = NOBODY


class Staged(NamedTuple):
    """What one claim has staged: what is in key, manifest and archive, which a final name may share."""

    contents: tuple[str, str, str] = (ABSENT, ABSENT, ABSENT)
    names: tuple[bool, bool, bool, bool] = NO_NAMES
    """Which staged names there are."""

    is_promised: bool = False
    """Whether it was finished by who then held the run: that must not be thrown away."""


class Worker(NamedTuple):
    """One worker's memory. `step` is what it does next."""

    step: str = "idle"
    token: int = NOBODY
    is_current: bool = False
    """Whether nobody has written the document since this worker read or wrote it."""

    announced: int = NOBODY
    target: int = NOBODY
    part: int = KEY
    """Which of the target's files the step is about."""

    earlier: tuple[int, ...] = ()


class State(NamedTuple):
    """Everything. Index 0 of `staged` is token 1."""

    document: Document
    staged: tuple[Staged, ...]
    finals: tuple[int, int, int]
    """Whose the final names are."""

    are_durable: tuple[bool, bool, bool]
    """Whether these would survive a power cut."""

    workers: tuple[Worker, ...]
    claims: int
    misfortunes: int
    """How many power cuts, rotten files and strangers may still come."""


class Violation(AssertionError):
    """A promise is broken; the text says which."""


def initial(workers: int, claims: int, misfortunes: int) -> State:
    """Return a pending run, with workers that have not seen it, which may claim it so many times in all."""
    staged, nobodys, durable = (Staged(),) * claims, (NOBODY,) * 3, (False,) * 3
    return State(Document(), staged, nobodys, durable, (Worker(),) * workers, claims, misfortunes)


Successors = Iterator[tuple[str, State]]


class Protocol:
    """The transitions under given rules and faults."""

    def __init__(self, rules: Rules = Rules(), faults: Faults = Faults()) -> None:
        self.rules = rules
        self.faults = faults

    def successors(self, state: State) -> Successors:
        """Yield what may happen next, with its name."""
        for number, worker in enumerate(state.workers):
            step: Callable[[State, int, Worker], Successors] = getattr(self, f"_{worker.step}")
            yield from step(state, number, worker)
            if worker.step != "idle" and self.faults.crashes:
                yield f"{number} dies", _with_worker(state, number, Worker())
            if worker.step not in ("idle", "claim") and self.faults.stops:
                yield f"{number} stops", self._ended(state, number, worker)
        yield from self._misfortunes(state)

    # The worker's story, step by step

    def _idle(self, state: State, number: int, worker: Worker) -> Successors:
        if state.claims and state.document.status != ENCRYPTED:
            token = len(state.staged) - state.claims + 1
            earlier = tuple(
                other for other in range(1, len(state.staged) + 1) if any(state.staged[other - 1].names)
            )  # fmt: skip
            after = state._replace(claims=state.claims - 1)
            yield (
                f"{number} looks",
                _with_worker(after, number, Worker("claim", token, is_current=True, earlier=earlier)),
            )

    def _claim(self, state: State, number: int, worker: Worker) -> Successors:
        claimed = Document(PROCESSING, worker.token, state.document.archive)
        if worker.is_current:
            yield from self._write(state, number, worker, claimed, "choose")
        elif state.document.holder == worker.token:  # the answer was lost
            yield f"{number} has claimed", _with_worker(state, number, self._believing(state, worker, "choose"))
        else:
            yield f"{number} was too slow", _with_worker(state, number, Worker())

    def _choose(self, state: State, number: int, worker: Worker) -> Successors:
        if worker.announced:
            chosen = worker._replace(step="look", target=worker.announced, part=KEY)
        elif finished := [token for token in worker.earlier if _has_receipt(state, token)]:
            chosen = worker._replace(step="announce", target=finished[0])
        else:
            chosen = worker._replace(step="sweep")
        yield f"{number} chooses", _with_worker(state, number, chosen)

    def _look(self, state: State, number: int, worker: Worker) -> Successors:
        yield from self._looked(state, number, worker, "look_again", again=False)

    def _look_again(self, state: State, number: int, worker: Worker) -> Successors:
        yield from self._looked(state, number, worker, "drop", again=True)

    def _looked(self, state: State, number: int, worker: Worker, otherwise: str, *, again: bool) -> Successors:
        """Look for one file under one of its two names; `otherwise` is where a bad one leads."""
        part, files = worker.part, state.staged[worker.target - 1]
        at_staged = again != self.rules.looks_at_staged_names_first
        is_there = self._finds(worker) and files.names[part] if at_staged else state.finals[part] == worker.target
        if is_there and (files.contents[part] in WHOLE or not self.rules.adopts_by_digest):
            after = _next_part(worker, "look", "name")
        else:
            after = worker._replace(step=otherwise)
        yield f"{number} looks at a file", _with_worker(state, number, after)

    def _finds(self, worker: Worker) -> bool:
        """Whether the staged names of the target are known: without its own token, only if the last claim made it."""
        return self.rules.finds_announced_files_by_their_own_token or worker.target == max(worker.earlier, default=0)

    def _drop(self, state: State, number: int, worker: Worker) -> Successors:
        if self.rules.removes_what_it_does_not_adopt:
            state = self._dropped(state, (worker.target,))
        more = [token for token in worker.earlier if _has_receipt(state, token) and token != worker.target]
        after = worker._replace(step="announce" if more else "sweep", target=more[0] if more else NOBODY)
        yield f"{number} drops it", _with_worker(state, number, after)

    def _sweep(self, state: State, number: int, worker: Worker) -> Successors:
        doomed = worker.earlier
        if not self.rules.spares_what_came_after_its_claim:
            doomed = tuple(token for token in range(1, len(state.staged) + 1) if token != worker.token)
        if self.rules.removes_what_it_does_not_adopt:
            state = self._dropped(state, doomed)
        step = "unannounce" if worker.announced else "refuse"
        yield f"{number} sweeps", _with_worker(state, number, worker._replace(step=step, target=NOBODY))

    def _unannounce(self, state: State, number: int, worker: Worker) -> Successors:
        yield from self._write(state, number, worker, Document(PROCESSING, worker.token), "refuse")

    def _refuse(self, state: State, number: int, worker: Worker) -> Successors:
        is_free = not any(state.finals)
        after = worker._replace(step="begin" if is_free else "give_back")
        yield f"{number} looks at the final names", _with_worker(state, number, after)

    def _begin(self, state: State, number: int, worker: Worker) -> Successors:
        if any(state.staged[token - 1].names[ARCHIVE] for token in worker.earlier):
            raise Violation("an archive is made again beside what was left")
        begun = _with_staged(state, worker.token, Staged((ABSENT, ABSENT, PARTIAL), (False, False, True, False)))
        yield f"{number} begins", _with_worker(begun, number, worker._replace(step="finish"))

    def _finish(self, state: State, number: int, worker: Worker) -> Successors:
        content = STORED if self.rules.syncs_files_before_announcing else CACHED
        if not state.staged[worker.token - 1].names[ARCHIVE]:
            yield f"{number} finds its archive gone", _with_worker(state, number, worker._replace(step="give_back"))
            return
        made = _with_staged(state, worker.token, Staged((content,) * 3, ALL_NAMES))
        step = "write_receipt" if self.rules.stages_a_receipt else "announce"
        yield (
            f"{number} finishes",
            _with_worker(made, number, worker._replace(step=step, target=worker.token, part=KEY)),
        )

    def _write_receipt(self, state: State, number: int, worker: Worker) -> Successors:
        mine = state.staged[worker.token - 1]
        is_holder = state.document.holder == worker.token
        mine = mine._replace(names=(*mine.names[:RECEIPT], True), is_promised=is_holder and all(mine.names[:RECEIPT]))
        state = _with_staged(state, worker.token, mine)
        yield f"{number} writes the receipt", _with_worker(state, number, worker._replace(step="announce"))

    def _announce(self, state: State, number: int, worker: Worker) -> Successors:
        then = "name" if worker.target == worker.token else "look"
        worker = worker._replace(part=KEY)
        if not self.rules.announces_before_naming:
            yield f"{number} says nothing", _with_worker(state, number, worker._replace(step=then))
            return
        announced = Document(PROCESSING, worker.token, worker.target)
        yield from self._write(state, number, worker, announced, then)

    def _name(self, state: State, number: int, worker: Worker) -> Successors:
        if self.rules.links_instead_of_renaming:
            yield from self._named(state, number, worker)
        elif state.finals[worker.part] == NOBODY:
            yield f"{number} sees a free name", _with_worker(state, number, worker._replace(step="rename"))
        else:
            yield from self._named(state, number, worker)

    def _rename(self, state: State, number: int, worker: Worker) -> Successors:
        if state.finals[worker.part] not in (NOBODY, worker.target):
            raise Violation("a file under a final name is overwritten")
        yield from self._named(state, number, worker)

    def _named(self, state: State, number: int, worker: Worker) -> Successors:
        part, files = worker.part, state.staged[worker.target - 1]
        owner, then = state.finals[part], _next_part(worker, "name", "sync")
        if owner == NOBODY and files.names[part]:
            yield f"{number} names a file", _with_worker(_with_final(state, part, worker.target), number, then)
        elif owner == NOBODY:
            yield f"{number} has nothing to name", self._lost(state, number, worker)
        elif owner == worker.target and (files.contents[part] in WHOLE or not self.rules.adopts_by_digest):
            yield f"{number} finds it named", _with_worker(state, number, then)
        else:
            yield f"{number} finds another's file", _with_worker(state, number, worker._replace(step="give_back"))

    def _sync(self, state: State, number: int, worker: Worker) -> Successors:
        if self.rules.syncs_names_before_clearing:
            state = state._replace(are_durable=(True, True, True))
        yield f"{number} syncs the names", _with_worker(state, number, worker._replace(step="clear"))

    def _clear(self, state: State, number: int, worker: Worker) -> Successors:
        state = _without_staged(state, range(1, len(state.staged) + 1))
        yield f"{number} clears what is staged", _with_worker(state, number, worker._replace(step="record"))

    def _record(self, state: State, number: int, worker: Worker) -> Successors:
        yield from self._write(state, number, worker, Document(ENCRYPTED, NOBODY, worker.target), "idle")

    def _give_back(self, state: State, number: int, worker: Worker) -> Successors:
        back = Document(PENDING, NOBODY, worker.announced)
        for what, after in self._write(state, number, worker, back, "idle"):
            is_over = after.workers[number].step == "idle"
            yield what, self._ended(after, number, worker) if is_over else after

    # What steps have in common

    def _write(self, state: State, number: int, worker: Worker, wanted: Document, then: str) -> Successors:
        """Write the document as a holder does (or a claimant), over the revision that it has last seen."""
        is_mine = state.document.holder == worker.token or worker.step == "claim"
        if worker.is_current or not self.rules.writes_compare_revisions:
            written = _with_document(state, wanted)
            if worker.step == "announce" and worker.target == worker.token and is_mine:
                written = _with_staged(written, worker.token, state.staged[worker.token - 1]._replace(is_promised=True))
            done = worker._replace(step=then, is_current=True, announced=wanted.archive)
            yield f"{number} writes", _with_worker(written, number, Worker() if then == "idle" else done)
            if self.faults.lost_answers and then != "idle":
                yield f"{number} writes, unanswered", written
        elif is_mine or not self.rules.conflicts_compare_tokens:
            yield f"{number} reads its document", _with_worker(state, number, worker._replace(is_current=True))
        else:
            yield f"{number} has lost the claim", self._lost(state, number, worker)

    def _believing(self, state: State, worker: Worker, step: str) -> Worker:
        return worker._replace(step=step, is_current=True, announced=state.document.archive)

    def _dropped(self, state: State, tokens: Iterable[int]) -> State:
        """Return the state without these claims' staged names. Final names that may be theirs are synced first."""
        if self.rules.syncs_names_before_clearing and any(state.finals):
            state = state._replace(are_durable=(True, True, True))
        return _without_staged(state, tokens)

    def _lost(self, state: State, number: int, worker: Worker) -> State:
        if _is_published(state):
            return _with_worker(self._dropped(state, (worker.token,)), number, Worker())
        return self._ended(state, number, worker)

    def _ended(self, state: State, number: int, worker: Worker) -> State:
        """Leave the run, keeping what is finished: it may be adopted."""
        if not _has_receipt(state, worker.token):
            state = self._dropped(state, (worker.token,))
        return _with_worker(state, number, Worker())

    def _misfortunes(self, state: State) -> Successors:
        if not state.misfortunes:
            return
        less = state._replace(misfortunes=state.misfortunes - 1)
        if self.faults.power_cuts:
            yield from _power_cuts(less)
        if self.faults.rot:
            yield from _rot(less)
        if self.faults.strangers:
            yield from _strangers(less)


def _rot(state: State) -> Successors:
    busy = {token for worker in state.workers for token in (worker.token, worker.target)}
    for token, files in enumerate(state.staged, 1):
        for part in (MANIFEST, ARCHIVE):
            if not files.names[part] or token == state.finals[part]:
                continue
            gone = _with_content(files, part, ABSENT)
            gone = gone._replace(names=(*files.names[:part], False, *files.names[part + 1 :]))
            yield f"staged file {part} of {token} vanishes", _with_staged(state, token, gone)
            if files.contents[part] in WHOLE and token not in busy:
                yield f"file {part} of {token} rots", _with_staged(state, token, _with_content(files, part, PARTIAL))


def _with_content(files: Staged, part: int, content: str) -> Staged:
    return files._replace(contents=(*files.contents[:part], content, *files.contents[part + 1 :]))


def _strangers(state: State) -> Successors:
    for part, owner in enumerate(state.finals):
        if owner == NOBODY:
            yield "a stranger's file appears", _with_final(state, part, FOREIGN)


def _power_cuts(state: State) -> Successors:
    """All workers are gone, what was in memory only is spoilt, and each name that was not synced may be gone."""
    staged = tuple(files._replace(contents=tuple(map(_after_cut, files.contents))) for files in state.staged)
    calm = state._replace(staged=staged, workers=(Worker(),) * len(state.workers))
    for keeps in itertools.product((True, False), repeat=3):
        may_go = [
            not (kept or durable) and owner > 0
            for kept, durable, owner in zip(keeps, state.are_durable, state.finals, strict=True)
        ]
        finals = tuple(NOBODY if gone else owner for gone, owner in zip(may_go, state.finals, strict=True))
        yield POWER_CUT, calm._replace(finals=finals)


def _after_cut(content: str) -> str:
    return PARTIAL if content == CACHED else content


def _next_part(worker: Worker, step: str, last: str) -> Worker:
    """Return the worker about to do the step for the next file; after the last file it goes on to `last`."""
    if worker.part == ARCHIVE:
        return worker._replace(step=last, part=KEY)
    return worker._replace(step=step, part=worker.part + 1)


def _is_published(state: State) -> bool:
    return state.finals[KEY] != NOBODY and state.finals[ARCHIVE] != NOBODY


def _with_final(state: State, part: int, owner: int) -> State:
    finals = (*state.finals[:part], owner, *state.finals[part + 1 :])
    return state._replace(finals=finals, are_durable=(*state.are_durable[:part], False, *state.are_durable[part + 1 :]))


def _with_worker(state: State, number: int, worker: Worker) -> State:
    return state._replace(workers=(*state.workers[:number], worker, *state.workers[number + 1 :]))


def _with_document(state: State, document: Document) -> State:
    workers = tuple(worker._replace(is_current=False) for worker in state.workers)
    return state._replace(document=document, workers=workers)


def _with_staged(state: State, token: int, files: Staged) -> State:
    return state._replace(staged=(*state.staged[: token - 1], files, *state.staged[token:]))


def _has_receipt(state: State, token: int) -> bool:
    return state.staged[token - 1].names[RECEIPT]


def _without_staged(state: State, tokens: Iterable[int]) -> State:
    """Return the state without these claims' staged names; contents without any name are forgotten."""
    for token in tokens:
        files = state.staged[token - 1]
        if any(files.names):
            _refuse_to_lose(state, token, files)
            kept = tuple(
                content if owner == token else ABSENT
                for content, owner in zip(files.contents, state.finals, strict=True)
            )
            state = _with_staged(state, token, Staged(kept))
    return state


def _refuse_to_lose(state: State, token: int, files: Staged) -> None:
    if files.is_promised and all(content in WHOLE for content in files.contents) and not _is_published(state):
        raise Violation("a finished archive is thrown away")


def check(state: State) -> None:
    """Raise Violation if the state breaks a promise."""
    for part, owner in enumerate(state.finals):
        if owner > 0 and state.staged[owner - 1].contents[part] == ABSENT:
            raise Violation("a final name belongs to a file that is gone")  # the model's own mistake
    if state.document.status == ENCRYPTED:
        archive = state.document.archive
        if set(state.finals) != {archive}:
            raise Violation("the document says encrypted, and its files are not the recorded ones")
        if not all(content in WHOLE for content in state.staged[archive - 1].contents):
            raise Violation("the document says encrypted, and a final name shows a partial file")


def explore(protocol: Protocol, start: State, at_most: int = 3_000_000) -> Collection[State]:
    """Visit every state that can be reached, checking each; return them all.

    Raises Violation with the shortest way there, and RuntimeError if there are more than `at_most`.
    """
    came_from: dict[State, tuple[str, State] | None] = {start: None}
    queue = deque([start])
    rescued: set[State] = set()
    while queue:
        state = queue.popleft()
        try:
            check(state)
            _check_rescue(protocol, state, rescued)
            for what, successor in protocol.successors(state):
                _check_names(state, successor, what)
                # Which worker is which does not matter.
                after = successor._replace(workers=tuple(sorted(successor.workers)))
                if after not in came_from:
                    came_from[after] = (what, state)
                    queue.append(after)
        except Violation as error:
            raise Violation(f"{error}:\n" + "\n".join(_way(came_from, state))) from None
        if len(came_from) > at_most:
            raise RuntimeError(f"more than {at_most} states")
    return came_from.keys()


def _check_names(before: State, after: State, what: str) -> None:
    """Raise Violation if a final name is taken away, or from one file for another; only power may take it."""
    for old, new in zip(before.finals, after.finals, strict=True):
        if old not in (NOBODY, new) and what != POWER_CUT:
            raise Violation("a final name is taken away")


def _is_half_rotten(state: State) -> bool:
    """Whether a file has its final name, and what can rot of the same claim is gone or damaged: for people."""
    return any(
        state.finals[part] != owner and not (files.names[part] and files.contents[part] in WHOLE)
        for owner, files in enumerate(state.staged, 1)
        if owner in state.finals
        for part in (MANIFEST, ARCHIVE)
    )


def _check_rescue(protocol: Protocol, state: State, rescued: set[State]) -> None:
    """Raise Violation unless one more worker, left alone, ends the run encrypted with nothing staged left."""
    if FOREIGN in state.finals or _is_half_rotten(state) or state.document.status == ENCRYPTED:
        return
    calm = state._replace(staged=(*state.staged, Staged()), workers=(Worker(),), claims=1, misfortunes=0)
    if calm in rescued:
        return
    rescued.add(calm)
    faultless = Protocol(protocol.rules, Faults(crashes=False, stops=False, lost_answers=False))
    at = calm
    while at.document.status != ENCRYPTED:
        steps = list(faultless.successors(at))
        if not steps:
            raise Violation(f"nobody ends the run: {calm}")
        ((_, at),) = steps
        check(at)
    if any(any(files.names) for files in at.staged):
        raise Violation("something staged is left behind")


def _way(came_from: dict[State, tuple[str, State] | None], state: State) -> list[str]:
    steps: list[str] = [f"  then {state}"]
    while (arrival := came_from[state]) is not None:
        what, state = arrival
        steps.append(f"  {what}")
    return steps[::-1]
