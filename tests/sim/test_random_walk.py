"""The two state machines, joined in a world of faults that is drawn from a seed.

S1, S2 and S3 are checked all the time, L1 after everything has healed, L2 for short faults. A seed that fails says so,
with the faults that it takes and what happened last; `python -m tests.sim --seed N` shows it again.
`ZKBEAT_SIM_SEEDS` sets how many are tried, `ZKBEAT_SIM_FIRST` where to begin.
"""

from __future__ import annotations

import os

import pytest

from tests.sim import runs

SEEDS = int(os.environ.get("ZKBEAT_SIM_SEEDS", "20000"))
FIRST = int(os.environ.get("ZKBEAT_SIM_FIRST", "0"))

SEEN_IN_A_THOUSAND = {
    "child started": 1500,
    "eviction: deleted": 100,
    "eviction: bad version": 20,
    "guard kills at a deadline": 200,
    "kernel kills at a deadline": 40,
    "guard doubted": 50,
    "hung sidecar killed": 10,
    "guard removes the znode": 100,
    "quorum leader changed": 500,
    "znode gone: expiry": 30,
    "znode gone: operator": 200,
    "term ended: asked to step down": 20,
    "term ended: the session was lost": 20,
    "term ended: the leadership is gone": 50,
    "term ended: beat's loop has not turned": 3,
    "paused child stopped": 10,
    "gate opened": 100,
    "parked process ended": 30,
    "ambiguous renew": 50,
    "ambiguous leave": 5,
    "ambiguous evict": 2,
    "ambiguous enter": 2,
    "fault: freeze": 50,
    "fault: suspend": 50,
}
"""How often each of these must have happened, at the least: a walk that meets none of them proves nothing."""


@pytest.mark.timeout(0)
def test_never_two_children_and_never_none_for_long():
    outcome = runs.play_many(FIRST, SEEDS)
    print(f"\n{outcome.table()}\n{outcome.seeds} seeds, {outcome.seeds / outcome.cpu_s:.0f} a second of each processor")
    if outcome.failed:
        pytest.fail(runs.told(outcome), pytrace=False)
    assert outcome.seeds == SEEDS
    if SEEDS >= 1000:
        wanted = {what: at_least * SEEDS // 1000 for what, at_least in SEEN_IN_A_THOUSAND.items()}
        seldom = {what: outcome.counts[what] for what, count in wanted.items() if outcome.counts[what] < count}
        assert not seldom, f"met too seldom: {seldom}"
