"""Each invariant is found broken by a history of a few facts that breaks it."""

from __future__ import annotations

import pytest

from tests.sim.invariants import (
    BY_HAND,
    EVICTED,
    EXPIRED,
    LEFT,
    ChildDied,
    ChildStarted,
    Elected,
    FaultBegan,
    FaultEnded,
    Invariants,
    LeaseExtended,
    Published,
    Violation,
    ZnodeGone,
)

LEADS = [Elected(1.0, "a", 7), LeaseExtended(1.0, "a", 7, 5.0), ChildStarted(1.1, "a", 7, "child 1")]
DIES = ChildDied(4.0, "a", "child 1")
NEXT = [Elected(4.2, "b", 8), LeaseExtended(4.3, "b", 8, 9.0), ChildStarted(4.3, "b", 8, "child 2")]
L2 = {"lease_s": 3.0, "harmless_when_short": ["cut"]}

GOOD = {
    "a hand-over": [*LEADS, DIES, ZnodeGone(4.1, 7, LEFT), *NEXT],
    "an extension": [*LEADS, LeaseExtended(4.9, "a", 7, 9.0), Published(8.9, "a", 7, 1)],
    "a lease that was passed by less than the margin": [*LEADS, ChildDied(5.2, "a", "child 1")],
    "a znode that somebody deletes": [*LEADS, ZnodeGone(2.0, 7, BY_HAND), DIES],
    "a long fault": [*LEADS, FaultBegan(2.0, "cut", "a"), FaultEnded(3.2, "cut", "a"), DIES],
    "another fault beside a short one": [
        *(*LEADS, FaultBegan(2.0, "cut", "a"), FaultEnded(2.1, "cut", "a"), FaultBegan(3.9, "kill", "a")),
        DIES,
    ],
}

BAD = {
    "S1 lives on": ("S1", [*LEADS, Elected(5.3, "b", 8)]),
    "S1 starts late": ("S1", [*LEADS[:2], ChildStarted(5.3, "a", 7, "child 1")]),
    "S1 two at once": ("S1", [*LEADS, *NEXT]),
    "S2 the same": ("S2", [*LEADS, DIES, Elected(4.2, "b", 7)]),
    "S2 started under an old one": ("S2", [*LEADS[:2], Elected(1.05, "b", 8), LEADS[2]]),
    "S3 left too early": ("S3", [*LEADS, ZnodeGone(3.9, 7, LEFT), DIES]),
    "S3 evicted too early": ("S3", [*LEADS, ZnodeGone(3.9, 7, EVICTED), DIES]),
    "S3 expired under it": ("S3", [*LEADS, ZnodeGone(3.9, 7, EXPIRED), DIES]),
    "S4": ("S4", [*LEADS, DIES, *NEXT, Published(4.4, "b", 8, 1), Published(4.5, "a", 7, 9)]),
    "L2": ("L2", [*LEADS, FaultBegan(2.0, "cut", "a"), FaultEnded(2.9, "cut", "a"), DIES]),
}


def see(history):
    invariants = Invariants(**L2)
    for fact in history:
        invariants.see(fact)
    return invariants


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_good_history_is_good(history):
    see(sorted(history, key=lambda fact: fact.at))


@pytest.mark.parametrize(("name", "history"), BAD.values(), ids=BAD)
def test_a_broken_invariant_is_found_and_named(name, history):
    with pytest.raises(Violation, match=name):
        see(history)


def test_once_it_is_quiet_a_child_runs():
    invariants = see(LEADS)
    invariants.quiet(2.0, 1.0)
    invariants.see(DIES)
    with pytest.raises(Violation, match="L1"):
        invariants.quiet(4.5, 1.0)
