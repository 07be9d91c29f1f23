"""What a seed plays: mostly a random walk through faults, sometimes a course of events that a walk seldom takes."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tests.sim.faults import SHORT_ONES, Fault, Faults, plan
from tests.sim.invariants import FaultBegan, FaultEnded, Invariants
from tests.sim.world import World

WALK = 3.0
"""How long faults go on, as a share of the session timeout."""

Scenario = Callable[[World, Faults, Collection[int]], None]


def walk(world: World, faults: Faults, without: Collection[int]) -> None:
    """Faults, then none, and then somebody leads within a bound (L1)."""
    until = WALK * world.timeout_s
    faults.expect([fault for at, fault in enumerate(plan(world, until)) if at not in without])
    world.run(until)
    faults.heal()
    world.await_leader()


def robbery(world: World, faults: Faults, _without: Collection[int]) -> None:
    """The leader's znode is deleted while it is cut off, and those who wait have seen everything late."""
    del faults
    leader = world.await_leader()
    for other in world.nodes:
        other.slow_s = 0.0 if other is leader else world.timeout_s / 3
    world.run(world.now + world.rng.uniform(0.3, 2) * world.timeout_s)
    child = world.living()
    if child is None:
        return
    child.node.linked = False
    world.zk.delete(child.znode, "operator")
    for other in world.nodes:
        other.slow_s = 0.0
    world.run(world.now + 1.5 * world.timeout_s)


def stall(world: World, faults: Faults, _without: Collection[int]) -> None:
    """The leader's requests are slow, and then it is cut off together with its follower."""
    del faults
    leader = world.await_leader()
    leader.slow_s = world.timeout_s / 3
    world.run(world.now + world.rng.uniform(0.1, 1.5) * world.timeout_s)
    world.zk.cut(leader.client.follower)
    world.run(world.now + 1.5 * world.timeout_s)


def short_fault(world: World, faults: Faults, _without: Collection[int]) -> None:
    """Nothing is stopped for a fault that is shorter than a third of the lease (L2)."""
    length_s = world.lease.length_s
    world.invariants = Invariants(lease_s=length_s, harmless_when_short=SHORT_ONES)
    leader = world.await_leader()
    world.run(world.now + world.rng.uniform(0.5, 1) * world.timeout_s)
    child = world.living()
    lasts_s = length_s / 3 * world.rng.uniform(0.3, 0.99)
    fault = Fault(world.now, world.rng.choice(SHORT_ONES), world.rng.getrandbits(32))
    faults.lasts_s = lasts_s
    world.see(FaultBegan(world.now, fault.kind, leader.name))
    faults.happen(fault, leader)
    world.run(world.now + lasts_s)
    world.see(FaultEnded(world.now, fault.kind, leader.name))
    world.run(world.now + world.timeout_s)
    kept = child is not None and child.alive and world.leader() is leader
    world.require(kept, "L2", "a short fault has stopped the child")


def held(world: World, faults: Faults, _without: Collection[int]) -> None:
    """Guard and sidecar of a leader are stopped, one after the other or with everything else."""
    kinds = ("stop guard, then sidecar", "thaw at the deadline", "freeze", "suspend", "hang sidecar")
    leader = world.await_leader()
    world.run(world.now + world.rng.uniform(0, 0.5) * world.timeout_s)
    faults.happen(Fault(world.now, world.rng.choice(kinds), world.rng.getrandbits(32)), leader)
    world.run(world.now + 2 * world.timeout_s)


def gate(world: World, faults: Faults, _without: Collection[int]) -> None:
    """A leader that is asked to load anew, while its child runs, starts, or stops."""
    leader = world.await_leader()
    for kind in ("reload", "step down", "reload", "end parked", "reload"):
        faults.happen(Fault(world.now, kind, world.rng.getrandbits(32)), leader)
        world.run(world.now + world.rng.uniform(0, 0.3))
    world.run(world.now + world.timeout_s)


EVERY = 20
SPECIAL: dict[int, Scenario] = {0: robbery, 1: stall, 2: short_fault, 3: short_fault, 4: held, 5: gate}
STRICT = 6
"""Which of twenty seeds also checks that a machine never wakes for nothing."""


def is_a_walk(seed: int) -> bool:
    return seed % EVERY not in SPECIAL


def play(seed: int, without: Collection[int] = (), scenario: Scenario | None = None) -> World:
    """Play a seed, without some of the faults of its plan; raises Violation."""
    world = World(seed, strict=seed % EVERY == STRICT)
    (scenario or SPECIAL.get(seed % EVERY, walk))(world, Faults(world), without)
    return world
