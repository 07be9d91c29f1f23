"""The two state machines, joined in a world of faults that is drawn from a seed.

S1, S2 and S3 are checked all the time, L1 after everything has healed, L2 for short faults. A seed that fails says so,
with what happened last; `World(seed).ordeal()` shows it again. `ZKBEAT_SIM_SEEDS` sets how many are tried,
`ZKBEAT_SIM_FIRST` where to begin.
"""

from __future__ import annotations

import os

import pytest

from tests.sim.world import World, quickly

SEEDS = int(os.environ.get("ZKBEAT_SIM_SEEDS", "2000"))
FIRST = int(os.environ.get("ZKBEAT_SIM_FIRST", "0"))
PARTS = 10


@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
def test_never_two_children_and_never_none_for_long(part):
    with quickly():
        for seed in range(FIRST + part, FIRST + SEEDS, PARTS):
            World(seed).ordeal()


def test_a_leader_that_is_robbed_while_it_is_cut_off_is_outlived_by_nobody_too_soon():
    with quickly():
        for seed in range(FIRST, FIRST + SEEDS // 5):
            World(seed).robbery()


def test_a_leader_whose_requests_stall_before_its_follower_is_cut_off_stops_in_time():
    with quickly():
        for seed in range(FIRST, FIRST + SEEDS // 5):
            World(seed).stall()


def test_a_short_fault_stops_nothing():
    with quickly():
        for seed in range(FIRST, FIRST + SEEDS // 5):
            World(seed).short_fault()


def test_a_deadline_that_is_served_is_followed_by_a_later_one_or_none():
    with quickly():
        for seed in range(FIRST, FIRST + SEEDS // 20):
            World(seed, strict=True).ordeal()
