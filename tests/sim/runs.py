"""Many seeds over all processors, and one seed with everything that it did."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.sim import faults
from tests.sim.invariants import Violation
from tests.sim.scenarios import WALK, is_a_walk, play
from tests.sim.world import World, quickly

CHUNK = 100
NAMED = 3
"""So many seeds that failed are named; one is enough to look at."""


@dataclass
class Outcome:
    """What some seeds have shown."""

    seeds: int = 0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.seeds += other.seeds
        self.cpu_s += other.cpu_s
        self.counts.update(other.counts)
        self.failed = sorted(self.failed + other.failed)

    def table(self) -> str:
        return "\n".join(f"{count:10,} {what}" for what, count in sorted(self.counts.items(), key=_most_first))


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def play_some(first: int, seeds: int) -> Outcome:
    """Play seeds one after another, in this process; ends with the first that fails."""
    outcome, began = Outcome(), time.process_time()
    collects = gc.isenabled()
    gc.freeze()
    gc.disable()  # a world is a web of closures; it is let go of as a whole, below
    try:
        with quickly():
            for seed in range(first, first + seeds):
                outcome.seeds += 1
                try:
                    outcome.counts.update(play(seed).counts)
                except Violation as broken:
                    outcome.failed.append((seed, str(broken)))
                    break
    finally:
        gc.collect()
        if collects:
            gc.enable()
    outcome.cpu_s = time.process_time() - began
    return outcome


def play_many(
    first: int, seeds: int, processes: int | None = None, progress: Callable[[Outcome], None] = lambda _outcome: None
) -> Outcome:
    """Play seeds over some processes, by default one for each processor; no more are begun after one has failed."""
    processes = processes or os.cpu_count() or 1
    total, chunks = Outcome(), _chunks(first, seeds)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running: set[Future[Outcome]] = set()
        while True:
            while len(running) < 2 * processes and not total.failed and (chunk := next(chunks, None)) is not None:
                running.add(pool.submit(play_some, *chunk))
            if not running:
                return total
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                total.add(one.result())
            progress(total)


def _chunks(first: int, seeds: int) -> Iterator[tuple[int, int]]:
    for at in range(first, first + seeds, CHUNK):
        yield at, min(CHUNK, first + seeds - at)


def shrink(seed: int) -> tuple[list[faults.Fault], str]:
    """Leave out faults as long as the seed still fails; return those that are needed, and what is broken.

    What the world draws for itself changes with each fault that is left out, so another instant may fail; it is a
    failure all the same.
    """
    broken = fails(seed, ())
    planned = faults.plan(World(seed), WALK * World(seed).timeout_s) if is_a_walk(seed) else []
    without: set[int] = set()
    left_out_more = True
    while broken is not None and left_out_more:
        left_out_more = False
        for at in range(len(planned)):
            told = fails(seed, without | {at}) if at not in without else None
            if told is not None:
                without.add(at)
                broken, left_out_more = told, True
    return [fault for at, fault in enumerate(planned) if at not in without], broken or ""


def fails(seed: int, without: set[int] | tuple[()]) -> str | None:
    try:
        with quickly():
            play(seed, without)
    except Violation as broken:
        return str(broken)
    return None


def told(outcome: Outcome) -> str:
    """Name the seeds that failed; the first one shrunk, with its trace."""
    seed, broken = outcome.failed[0]
    needed, shrunk = shrink(seed)
    listed = "\n".join(f"  at {fault.at:.3f} s: {fault.kind}" for fault in needed) or "  none of a plan's"
    named = ", ".join(str(failed) for failed, _ in outcome.failed[:NAMED])
    again = f"python -m tests.sim --seed {seed}"
    return f"failed: {named} (again: {again})\n{shrunk or broken}\n\nthe faults that this takes:\n{listed}"
