"""What the simulation has found, each as a course of events of its own."""

from __future__ import annotations

from tests.sim.faults import Fault, Faults
from tests.sim.world import World, quickly


def test_a_node_that_is_frozen_shortly_while_an_extension_is_under_way_keeps_its_child():
    """The sidecar counted the time in which it was frozen itself against its guard."""
    with quickly():
        assert all(_keeps_its_child(seed) for seed in range(20))


def _keeps_its_child(seed):
    world = World(seed)
    faults, leader = Faults(world), world.await_leader()
    world.run(world.now + world.timeout_s)
    assert world.run(world.now + world.timeout_s, lambda: leader.state.unconfirmed_since is not None)
    child, faults.lasts_s = world.living(), world.lease.length_s * 0.32
    faults.happen(Fault(world.now, "freeze", seed), leader)
    world.run(world.now + faults.lasts_s + world.timeout_s)
    return child.alive
