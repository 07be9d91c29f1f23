"""Two nodes, deterministic delays, and every combination of a few faults at each instant at which something happens."""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

from tests.sim.faults import Fault, Faults
from tests.sim.invariants import Violation
from tests.sim.world import Shape, World, quickly

SHAPE = Shape(timeout_s=2.0, tick_s=1.0, rounds_up=0, lease_s=None, stop_timeout_s=0.3, nodes=2)
LENGTH_S = 2.4
HAND_OVER_AT = 1.0
"""In the nominal run the first leader is asked to step down then, so that there is a hand-over to disturb."""

KINDS = (
    *("cut link", "cut follower", "outage", "drop", "lose answer", "kill sidecar", "kill guard", "kill both"),
    *("stop sidecar", "hang sidecar", "stop guard", "freeze", "suspend", "delete znodes", "close session"),
)
IN_PAIRS = (
    *("cut link", "cut follower", "lose answer", "kill sidecar", "kill guard"),
    *("stop sidecar", "hang sidecar", "stop guard", "freeze", "delete znodes"),
)
APART_S = 1e-4
LASTING_S = (0.35, 2.0)
"""Below a third of the lease, and beyond the whole of it."""

ENDLESS = {"drop", "lose answer", "kill sidecar", "kill guard", "kill both", "delete znodes", "close session"}
"""These do not last, so there is one of each and not one for each duration."""


class Chosen(NamedTuple):
    """One fault of a combination."""

    at: float
    kind: str
    node: int
    lasts_s: float


class Even(random.Random):
    """Chance without chance: always the middle, always the first."""

    def random(self) -> float:
        return 0.5

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2

    def choice(self, seq: Sequence[Any]) -> Any:
        return seq[0]

    def sample(self, population: Sequence[Any], k: int, **_: Any) -> list[Any]:
        return list(population)[:k]


def play(combination: Sequence[Chosen]) -> World:
    """Play the nominal run with these faults, heal, and wait for a leader."""
    world = World(0, rng=Even(), shape=SHAPE)
    faults = Faults(world)
    faults.nothing_drawn = world.rng
    for chosen in combination:
        world.at(chosen.at, partial(_happen, world, faults, chosen))
    world.at(HAND_OVER_AT, lambda: faults.step_down(world.nodes[0]))
    world.run(LENGTH_S)
    faults.heal()
    world.await_leader()
    return world


def _happen(world: World, faults: Faults, chosen: Chosen) -> None:
    faults.lasts_s = chosen.lasts_s
    faults.happen(Fault(chosen.at, chosen.kind, 0), world.nodes[chosen.node])


def instants() -> list[float]:
    """Return an instant between any two things that happen in the nominal run."""
    world = World(0, rng=Even(), shape=SHAPE)
    world.trace = deque()
    world.at(HAND_OVER_AT, lambda: Faults(world).step_down(world.nodes[0]))
    world.run(LENGTH_S - SHAPE.timeout_s / 2)
    times = sorted({round(at, 4) for at, _ in world.trace})
    return [(a + b) / 2 for a, b in itertools.pairwise([0.0, *times]) if b - a > APART_S]


def choices(at: Sequence[float], kinds: Sequence[str], lasting_s: Sequence[float] = LASTING_S) -> list[Chosen]:
    return [
        Chosen(instant, kind, node, lasts_s)
        for instant in at
        for kind in kinds
        for node in range(SHAPE.nodes)
        for lasts_s in (lasting_s[:1] if kind in ENDLESS else lasting_s)
    ]


def combinations(singles: Sequence[float], pairs: Sequence[float]) -> Iterator[tuple[Chosen, ...]]:
    """Every single fault at each of `singles`, every pair of the lasting ones at the fewer `pairs`."""
    yield from ((chosen,) for chosen in choices(singles, KINDS))
    yield from itertools.combinations(choices(pairs, IN_PAIRS, LASTING_S[1:]), 2)


def explore(some: Sequence[tuple[Chosen, ...]]) -> tuple[int, str]:
    """Return how many were played, and what was broken, if anything was."""
    with quickly():
        for count, combination in enumerate(some, 1):
            try:
                play(combination)
            except Violation as broken:
                return count, f"{combination}\n{broken}"
    return len(some), ""


def explore_all(found: Sequence[tuple[Chosen, ...]]) -> tuple[int, str]:
    """Do the same over all processors."""
    chunks = [found[at : at + 250] for at in range(0, len(found), 250)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        results = list(pool.map(explore, chunks))
    return sum(count for count, _ in results), next((broken for _, broken in results if broken), "")
