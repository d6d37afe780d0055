"""Every state that the publishing protocol can reach keeps the promises, and each safeguard is needed for it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from publishing import ENCRYPTED, NOBODY, Faults, Protocol, Rules, State, Violation, explore, initial

ALL_FAULTS = Faults(power_cuts=True, rot=True, strangers=True)

BROKEN_PROMISES = {
    "writes_compare_revisions": "a finished archive is thrown away",
    "conflicts_compare_tokens": "a finished archive is thrown away",
    "announces_before_naming": "nobody ends the run",
    "adopts_by_digest": "a final name shows a partial file",
    "looks_at_staged_names_first": "nobody ends the run",
    "removes_what_it_does_not_adopt": "an archive is made again beside what was left",
    "spares_what_came_after_its_claim": "a finished archive is thrown away",
    "finds_announced_files_by_their_own_token": "a finished archive is thrown away",
    "stages_a_receipt": "a finished archive is thrown away",
    "links_instead_of_renaming": "a file under a final name is overwritten",
    "syncs_files_before_announcing": "nobody ends the run",
    "syncs_names_before_clearing": "nobody ends the run",
}


def is_adopted(state: State) -> bool:
    """Whether the run is encrypted with the archive of a claim that came before the last."""
    claims_made = len(state.staged) - state.claims
    return state.document.status == ENCRYPTED and NOBODY < state.document.archive < claims_made


def test_two_workers_keep_every_promise_in_every_state_they_can_reach() -> None:
    states = explore(Protocol(faults=ALL_FAULTS), initial(workers=2, claims=3, misfortunes=1))
    assert len(states) > 30_000
    assert any(map(is_adopted, states)), "the model has nothing to adopt"
    assert any(state.document.archive == 3 for state in states), "the model never makes an archive again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "claims", "misfortunes"), [(2, 4, 1), (3, 3, 1), (2, 3, 2)], ids=["long", "three", "unlucky"]
)
def test_more_workers_claims_and_misfortunes_keep_every_promise(workers: int, claims: int, misfortunes: int) -> None:
    assert len(explore(Protocol(faults=ALL_FAULTS), initial(workers, claims, misfortunes))) > 100_000


def test_every_safeguard_has_a_promise_that_it_keeps() -> None:
    assert BROKEN_PROMISES.keys() == {field.name for field in fields(Rules)}


@pytest.mark.parametrize("safeguard", BROKEN_PROMISES)
def test_a_promise_is_broken_without(safeguard: str) -> None:
    rules = replace(Rules(), **{safeguard: False})
    with pytest.raises(Violation, match=BROKEN_PROMISES[safeguard]):
        explore(Protocol(rules, ALL_FAULTS), initial(workers=2, claims=3, misfortunes=1))
