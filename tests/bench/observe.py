"""What is seen after a fault, as figures: seconds (`_s`), counted from the fault where the name says nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.figures import duplicates, longest_gap
from tests.bench.node import started_at
from tests.support.waiting import wait_until
from zkbeat import clock

if TYPE_CHECKING:
    from tests.bench.stage import Scene

TAKES_OVER_WITHIN_S = 40.0

WATCH_A_DEAD_ONE_FOR_S = 3.0
"""How long to look out for messages of the old publisher once it is dead and the new one has begun."""

WATCH_FOR_S = 10.0
"""The same while it is not dead; and for any other publisher, where there should be none."""


def observe(scene: Scene, *, hands_over: bool) -> dict[str, float]:
    """Watch what follows a fault that was done; return its figures, times in seconds from the fault."""
    if hands_over:
        new = wait_until(
            lambda: scene.broker.first_of_another(scene.child, scene.fault_at),
            TAKES_OVER_WITHIN_S,
            "a tick of another publisher",
            scene.logs,
        )
        dead = scene.death.at is not None
        since = max(new.at, scene.thawed_at or 0.0, scene.nothing_left_at or 0.0)
        watch_for_s = WATCH_A_DEAD_ONE_FOR_S if dead and scene.thawed_at is None else WATCH_FOR_S
        scene.pass_time(max(since + watch_for_s - clock.now(), 0.0))
    else:
        scene.pass_time(WATCH_FOR_S)
    figures = _figures(scene, hands_over=hands_over)
    return {name: round(value, 3) for name, value in figures.items() if value is not None}


def _figures(scene: Scene, *, hands_over: bool) -> dict[str, float | None]:
    broker, begun_at, dead_at = scene.broker, scene.fault_at, scene.death.at
    new = broker.first_of_another(scene.child, begun_at)
    leaders = scene.leading()
    elected_at = leaders[0]["at"] - leaders[0]["elected_to_started_s"] if leaders else None
    figures: dict[str, float | None] = {
        "dup": duplicates(broker.ticks, scene.child, begun_at),
        "gap_s": longest_gap(broker.ticks, begun_at, clock.now()),
        "outage_s": _since(begun_at, scene.outage_ended_at),
    }
    if not hands_over:
        return {**figures, "touched": float(dead_at is not None or new is not None or bool(leaders))}
    figures |= {
        "child_dead_s": _since(begun_at, dead_at),
        "znode_gone_after_death_s": _since(dead_at, scene.znode_gone_at),
        "elected_s": _since(begun_at, elected_at),
        "elected_after_death_s": _since(dead_at, elected_at),
        "elected_after_outage_s": _since(scene.outage_ended_at, elected_at),
        "first_tick_s": _since(begun_at, new.at if new else None),
    }
    if new is not None:
        # The first new child may not have been the first to publish. An old one that still runs overlaps until now.
        started = min([started_at(new.pid), *(said["at"] for said in leaders)])
        figures["overlap_s"] = max((dead_at or clock.now()) - started, 0.0)
    if scene.thawed_at is not None:
        figures["ticks_after_thaw"] = sum(tick.at > scene.thawed_at for tick in broker.of(scene.child))
    if scene.nothing_left_at is not None:
        figures["left"] = len(scene.leader.pids())
        figures["nothing_left_s"] = _since(begun_at, scene.nothing_left_at)
    return figures


def _since(start: float | None, end: float | None) -> float | None:
    return end - start if start is not None and end is not None else None
