"""The same hand-overs for three schedulers under zkbeat (celery's own with a file on each node, RedBeat, ours), and for
RedBeat by itself.

Most entries are due every minute, since celery has an exact idea of that, and a fault comes shortly before each full
one. A minute counts by when its task ran, the same for all: `never` if no run began within it, `twice` if more than one
did. celery's own intervals drift, and begin anew with each beat; so of those, for all, only how far apart two runs are
counts: more than 1.5 periods, and what would have been between them never ran; less than half of one, and it ran twice.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.bench.schedule.alone import AloneTeam
from tests.bench.schedule.handovers import KINDS, Field, Team, order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.bench.schedule.entries import Entry

CONTESTANTS: dict[str, tuple[str, type[Team]]] = {
    "PersistentScheduler": ("celery.beat:PersistentScheduler", Team),
    "RedBeatScheduler": ("redbeat.RedBeatScheduler", Team),
    "RedBeatScheduler, by itself": ("redbeat.RedBeatScheduler", AloneTeam),
    "zookeeper": ("zookeeper", Team),
}
"""By label: the scheduler class, and who runs it."""
LEFT_OUT = ("ZooKeeper frozen past the lease",)
"""All share one ensemble, and each would thaw it for the others."""

BEFORE_S = 1.5
"""How long before the full minute the fault comes."""

LATE_S = 5.0
MINUTE_S = 60


@dataclass
class Kept:
    """What became of the minutes that were due, of all entries."""

    due: int = 0
    never: int = 0
    twice: int = 0
    late: int = 0
    """Begun more than LATE_S after the full minute."""
    late_s: list[float] = field(default_factory=list)
    """Of each hand-over's minute: how late the last entry ran."""


def count(runs: Iterable[dict[str, Any]], minutes: Iterable[int], names: Iterable[str]) -> Kept:
    """Count what was run in each of these minutes (their first seconds, since 1970), by each of these entries."""
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        name = run["tick"].rpartition("@")[0]
        found.setdefault((name, int(run["at"] // MINUTE_S) * MINUTE_S), []).append(run["at"])
    kept = Kept()
    names = list(names)
    for minute in minutes:
        begun = [found.get((name, minute), []) for name in names]
        kept.due += len(begun)
        kept.never += sum(not one for one in begun)
        kept.twice += sum(len(one) > 1 for one in begun)
        late = [min(one) - minute for one in begun if one]
        kept.late += sum(seconds > LATE_S for seconds in late)
        kept.late_s.append(round(max(late, default=0.0), 2))
    return kept


def count_intervals(
    runs: Iterable[dict[str, Any]], entries: Iterable[Entry], since_s: float, until_s: float
) -> dict[str, int]:
    """Count by how far apart the runs of each interval are, from `since_s` to `until_s`, whoever sent them."""
    begun: dict[str, list[float]] = {}
    for run in runs:
        if since_s <= run["at"] <= until_s:
            begun.setdefault(run["tick"].rpartition("@")[0], []).append(run["at"])
    found = {"due": 0, "never": 0, "twice": 0}
    for entry in entries:
        at = sorted(begun.get(entry.name, []))
        found["due"] += int((until_s - since_s) // entry.when)
        found["twice"] += sum(b - a < entry.when / 2 for a, b in itertools.pairwise(at))
        gaps = (b - a for a, b in itertools.pairwise([since_s, *at, until_s]))
        found["never"] += sum(round(gap / entry.when) - 1 for gap in gaps if gap > 1.5 * entry.when)
    return found


def measure(
    rounds: int, entries: int, seed: int, say: Callable[[str], None] = print
) -> tuple[dict[str, Kept], dict[str, dict[str, int]]]:
    """Carry out so many hand-overs, a minute each, with all at a time; return the minutes and the intervals of each."""
    minutes: list[int] = []
    with Field() as stage, ThreadPoolExecutor(len(CONTESTANTS)) as pool:
        teams = {
            name: stage.team(f"t{number}", "beside", entries, scheduler, once=scheduler == "zookeeper", kind=kind)
            for number, (name, (scheduler, kind)) in enumerate(CONTESTANTS.items())
        }
        for team in teams.values():
            team.wait_leader()
            team.wait_ready()
        _sleep_until(_next_minute() + BEFORE_S)  # all have run once
        since_s = time.time()
        kinds = [kind for kind in KINDS if kind not in LEFT_OUT]
        for number, kind in enumerate(order(kinds, rounds, seed), 1):
            minute = _next_minute()
            _sleep_until(minute - BEFORE_S)
            list(pool.map(lambda team, kind=kind: _hand_over(team, kind), teams.values()))
            minutes += [minute, minute + MINUTE_S]  # and the one after it, in which a stale file shows
            _sleep_until(minute + MINUTE_S + MINUTE_S / 2)
            say(f"{number}/{rounds} {kind}: { ({name: len(team.runs()) for name, team in teams.items()}) }")
        _sleep_until(_next_minute())
        until_s = time.time()
        kept, intervals = {}, {}
        for name, team in teams.items():
            runs = team.runs()
            kept[name] = count(runs, minutes, [entry.name for entry in team.mix if entry.kind == "crontab"])
            of = [entry for entry in team.mix if entry.kind == "interval"]
            intervals[name] = count_intervals(runs, of, since_s, until_s)
        return kept, intervals


def _hand_over(team: Team, kind: str) -> None:
    leader = team.leader()
    if leader is None:
        raise RuntimeError(f"{team.name}: nobody leads\n{team.report()}")
    epoch = leader.says("epoch")
    KINDS[kind](team, leader)
    team.wait_leader(epoch)
    team.wait_ready()


def _next_minute() -> int:
    return (int(time.time()) // MINUTE_S + 1) * MINUTE_S


def _sleep_until(at: float) -> None:
    time.sleep(max(at - time.time(), 0.0))
