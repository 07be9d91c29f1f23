"""The simulation by hand: `python -m tests.sim --seeds 100000`, or `--seed 17` for one with its trace."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim import runs, trace
from tests.sim.invariants import Violation
from tests.sim.scenarios import play
from tests.sim.world import quickly

PROGRESS_EVERY_S = 5.0


class Progress:
    """A line now and then."""

    def __init__(self, seeds: int) -> None:
        self.seeds, self.began, self.said = seeds, time.monotonic(), time.monotonic()

    def __call__(self, outcome: runs.Outcome) -> None:
        now = time.monotonic()
        if now - self.said >= PROGRESS_EVERY_S:
            self.said = now
            print(f"{outcome.seeds:,} of {self.seeds:,} seeds, {self.rate(outcome)}", flush=True)

    def rate(self, outcome: runs.Outcome) -> str:
        by_wall = outcome.seeds / max(time.monotonic() - self.began, 1e-9)
        by_cpu = outcome.seeds / max(outcome.cpu_s, 1e-9)
        return f"{by_wall:.0f} a second, {by_cpu:.0f} for each second of processor time"


def one(seed: int) -> int:
    """Play one seed and say what it did last."""
    try:
        with quickly():
            world = play(seed)
    except Violation:
        print(runs.told(runs.Outcome(failed=[(seed, "")])))
        return 1
    print(f"seed {seed}: {world.shape}\n{trace.written(world.trace)}\nnothing is broken")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="default: one for each processor")
    parser.add_argument("--seed", type=int, help="play this one, with its trace")
    asked = parser.parse_args()
    if asked.seed is not None:
        return one(asked.seed)
    progress = Progress(asked.seeds)
    outcome = runs.play_many(asked.first, asked.seeds, asked.processes, progress)
    print(outcome.table())
    print(f"{outcome.seeds:,} seeds from {asked.first}, {progress.rate(outcome)}")
    if outcome.failed:
        print(runs.told(outcome))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
