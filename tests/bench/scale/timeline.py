"""What was recorded of contenders, and what it says: arithmetic only."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WRITES = ("Create", "SetData", "Delete", "Transaction")
READS = ("GetData", "GetChildren", "Exists")

BYTES_PER_NAME = 54
"""What a contender takes in the answer to GetChildren: a length, then 32 + 8 + 10 characters of its znode's name."""

RENEWALS_OF_A_TAKE_OVER = 2
"""The first of a term and the one when its child has started; the next one is due an interval later."""

BIN_S = 0.1


class Record(NamedTuple):
    """Something that happened to, or was done by, a contender, at an instant of CLOCK_BOOTTIME."""

    at: float
    number: int
    kind: str
    what: Any = None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, p99 and the largest, in milliseconds."""
    return {
        "p50_ms": round(statistics.median(values) * 1000, 2),
        "p99_ms": round(percentile(values, 0.99) * 1000, 2),
        "max_ms": round(max(values) * 1000, 2),
    }


def requests(records: Iterable[Record]) -> dict[str, Any]:
    """Count what was asked for: by kind, as writes and reads, and the names in the answers."""
    records = list(records)
    kinds = Counter(str(one.what) for one in records if one.kind == "request")
    return {
        "writes": sum(kinds[kind] for kind in WRITES),
        "reads": sum(kinds[kind] for kind in READS),
        "watches": sum(one.kind == "watch" for one in records),
        "names": sum(int(one.what) for one in records if one.kind == "names"),
        "kinds": dict(sorted(kinds.items())),
    }


def hand_over(records: Sequence[Record], old: int, began_at: float) -> dict[str, Any]:
    """Return what one hand-over took, and what it cost.

    `began_at`: when the old leader's child was dead, and it began to give the leadership away; or when it fell silent.
    The cost is all that the two leaders and the next one in line have asked for, until the new leader's renewals go on
    as they always do; what others ask for meanwhile has nothing to do with it, and is counted apart.
    """
    later = sorted((one for one in records if one.at >= began_at), key=lambda one: one.at)
    elected = next(one for one in later if one.kind == "elected" and one.number != old)
    new = elected.number
    started = next(one for one in later if one.kind == "started" and one.number == new)
    renewals = [one.at for one in later if one.kind == "renew" and one.number == new and one.at >= elected.at]
    until = renewals[RENEWALS_OF_A_TAKE_OVER] if len(renewals) > RENEWALS_OF_A_TAKE_OVER else math.inf
    nearest = {one.number for one in later if one.kind == "queued" and one.what == 1 and one.at < until}
    meanwhile = [one for one in later if one.at < until]
    concerned = {old, new, *nearest}
    return {
        "elected_s": round(elected.at - began_at, 4),
        "started_s": round(started.at - began_at, 4),
        "cost": requests(one for one in meanwhile if one.number in concerned),
        "others": requests(one for one in meanwhile if one.number not in concerned),
    }


def renewals(records: Sequence[Record], leader: int, lasted_s: float) -> dict[str, Any]:
    """Return what a renewal costs while nothing else happens: the leader's own, and what the first in line does."""
    count = sum(one.kind == "renew" and one.number == leader for one in records)
    watching = {one.number for one in records if one.kind == "queued" and one.what == 1}
    cost = requests(one for one in records if one.number in {leader, *watching})
    others = requests(one for one in records if one.number not in {leader, *watching})
    return {
        "renewals": count,
        "seconds": round(lasted_s, 1),
        "each": {key: round(cost[key] / count, 2) for key in ("writes", "reads", "watches", "names")},
        "kinds": cost["kinds"],
        "others": others,
    }


def reconnects(
    records: Sequence[Record], began_at: float, since: float, sessions: dict[int, int], expected: int
) -> dict[str, Any]:
    """Return how the contenders came back after an outage.

    `since`: when what was missing was started again; times count from the first connect after that.
    `sessions`: each contender's before.
    """
    later = sorted((one for one in records if one.at >= began_at), key=lambda one: one.at)
    connects = [one for one in later if one.kind == "connected" and one.at >= since]
    again_at = connects[0].at
    first: dict[int, float] = {}
    for one in connects:
        first.setdefault(one.number, one.at - again_at)
    last = {one.number: one.what for one in connects}
    told: dict[int, float] = {}
    for one in later:
        if one.kind == "renewed" and one.at - again_at >= first.get(one.number, math.inf):
            told.setdefault(one.number, one.at - again_at)
    came = sorted(first.values())
    refused = sum(one.kind == "refused" and one.at < again_at for one in later)
    after = [one for one in later if one.at >= again_at]
    started = [one.at - again_at for one in after if one.kind == "started"]
    return {
        "expected": expected,
        "outage_s": round(again_at - began_at, 2),
        "came_back": len(first),
        "sessions_kept": sum(last[number] == session for number, session in sessions.items() if number in last),
        "p50_s": round(percentile(came, 0.5), 2),
        "p95_s": round(percentile(came, 0.95), 2),
        "last_s": round(came[-1], 2),
        "most_in_100_ms": max(histogram([one.at for one in connects]).values()),
        "connects": len(connects),
        "refused_per_contender_and_s": round(refused / expected / max(again_at - began_at, BIN_S), 2),
        "child_stopped": any(one.kind == "stopped" for one in later),
        "started_s": round(started[0], 2) if started else None,
        "settled_s": round(max(told.values()), 2) if told else None,
        "said": dict(Counter(str(one.what) for one in later if one.kind == "said")),
        "requests": requests(after),
        "came_back_at": [round(at, 2) for at in came],
    }


def histogram(instants: Sequence[float], width_s: float = BIN_S) -> dict[int, int]:
    """Count the instants in each bin."""
    return dict(Counter(math.floor(at / width_s) for at in instants))


def server_delta(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return what servers have done and used a second between two samples."""
    lasted_s = after["at"] - before["at"]
    return {key: round((value - before[key]) / lasted_s, 2) for key, value in after.items() if key != "at"}
