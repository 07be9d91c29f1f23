"""A seed that fails says which of its faults it takes; one that does not is the same each time."""

from __future__ import annotations

from tests.sim import faults, runs, scenarios
from tests.sim.world import World, quickly
from zkbeat.core import custody


def test_a_seed_is_the_same_each_time():
    with quickly():
        first, second = scenarios.play(7), scenarios.play(7)
    assert first.counts == second.counts
    assert list(map(str, first.trace)) == list(map(str, second.trace))


def test_what_is_left_out_for_speed_changes_nothing():
    with quickly():
        quick = scenarios.play(8)
    assert quick.counts == scenarios.play(8).counts


def test_a_failure_is_shrunk_to_the_faults_that_it_takes(monkeypatch):
    monkeypatch.setattr(custody, "kernel_deadline", lambda _state: None)
    seed = next(seed for seed in range(500) if scenarios.is_a_walk(seed) and runs.fails(seed, ()))
    planned = faults.plan(World(seed), scenarios.WALK * World(seed).timeout_s)
    needed, broken = runs.shrink(seed)
    assert 0 < len(needed) < len(planned)
    assert broken.startswith("S1: ")
    told = runs.told(runs.Outcome(failed=[(seed, broken)]))
    assert f"--seed {seed}" in told
    assert all(fault.kind in told for fault in needed)
