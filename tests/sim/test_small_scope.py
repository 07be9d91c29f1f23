"""Not by chance: every fault at every instant of a nominal run of two nodes, and every pair at some of them."""

from __future__ import annotations

import pytest

from tests.sim import small_scope

PAIRED = 6
"""At so many instants, spread over the run, pairs are tried."""

AT_LEAST = 9000


@pytest.mark.timeout(0)
def test_no_combination_of_two_faults_breaks_anything():
    at = small_scope.instants()
    found = list(small_scope.combinations(at, at[:: -(-len(at) // PAIRED)]))
    count, broken = small_scope.explore_all(found)
    print(f"\n{count} combinations, single faults at {len(at)} instants")
    if broken:
        pytest.fail(broken, pytrace=False)
    assert count == len(found) >= AT_LEAST


def test_the_nominal_run_hands_over_once():
    counts = small_scope.play(()).counts
    assert counts["child started"] == counts["elected"] == 2
