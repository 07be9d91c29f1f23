"""From what was seen to what was so: the facts that the checkers shared with the simulation (`tests.sim`) are given.

Three things have to be made good, all of them certain:

- A death is seen a moment after it happened. The next child's lock says whether it had happened by then.
- So it is with a death and the removal of the znode that rests on it, which ZooKeeper itself dates. Here nothing is
  proven, so the witness is allowed `SEEN_LATE_BY_S`, and no more.
- A process in the freezer of cgroup v1 cannot run, not even to die of the KILL that was sent to it. One that dies as
  soon as it is thawed counts as dead from when it was frozen. What it can send in between is not hidden: `leaks`
  counts that, which nobody promises to prevent (docs/explanation.md), and the checkers are not asked about it.

And a message that was handed to the network by a child with a lease, and arrives when that child is dead, is none that
the dead one has published: the kernel goes on sending, for as long as a link may be down. `in_flight` counts these.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tests.chaos.cluster import LEASE
from tests.chaos.faults import FAULTS
from tests.sim.invariants import (
    BY_HAND,
    EVICTED,
    EXPIRED,
    LEFT,
    ChildDied,
    ChildStarted,
    Elected,
    FaultBegan,
    FaultEnded,
    Invariants,
    LeaseExtended,
    Published,
    Violation,
    ZnodeGone,
)
from zkbeat.core.lease import KILL_MARGIN_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.history import Record

__all__ = [
    "Violation",
    "amiss",
    "check",
    "dead_after_lease_s",
    "facts",
    "hand_over_s",
    "in_flight",
    "late_messages",
    "leaks",
    "overlaps",
]

SEEN_LATE_BY_S = 0.05
DIES_AFTER_THAW_WITHIN_S = 1.0
_JUST_BEFORE_S = 1e-6

HARMLESS_WHEN_SHORT = frozenset(name for name, fault in FAULTS.items() if fault.harmless_when_short)
_WHY = {"left": LEFT, "removed": LEFT, "closed": LEFT, "evicted": EVICTED, "expired": EXPIRED, "deleted": BY_HAND}

# Where two have the same instant, the cause comes before its effect.
_ORDER = ("fault", "healed", "elected", "lease", "started", "message", "died", "gone", "quiet")


def check(records: Sequence[Record]) -> Invariants:
    """Have the checkers read a cluster's records. Raises Violation."""
    invariants = Invariants(
        kill_margin_s=KILL_MARGIN_S + SEEN_LATE_BY_S,
        lease_s=LEASE.length_s,
        harmless_when_short=HARMLESS_WHEN_SHORT,
    )
    for at, fact in facts(records):
        if isinstance(fact, float):
            invariants.quiet(at, fact)
        else:
            invariants.see(fact)
    return invariants


def facts(records: Sequence[Record]) -> list[tuple[float, Any]]:
    """Return the facts in the order of time; a float is the bound of a calm moment (L1)."""
    died = deaths(records)
    nodes = {record["epoch"]: record["node"] for record in records if record["is"] in {"made", "started"}}
    found = []
    apart = [*leaks(records), *in_flight(records)]
    for number, record in enumerate(records):
        if record["is"] == "message" and record["hard"]:
            # What the child itself has read, right before it sent.
            lease = LeaseExtended(record["sent_at"], record["node"], record["epoch"], record["hard"])
            found.append((record["sent_at"], _ORDER.index("lease"), number, lease))
        if record["is"] in _ORDER and record not in apart:
            at = died[record["child"]] if record["is"] == "died" else record["at"]
            found.append((at, _ORDER.index(record["is"]), number, _fact(record, at, nodes)))
    return [(at, fact) for at, _, _, fact in sorted(found, key=lambda one: one[:3])]


def _fact(record: Record, at: float, nodes: dict[int, str]) -> Any:
    match record["is"]:
        case "fault":
            return FaultBegan(at, record["what"], record["node"])
        case "healed":
            return FaultEnded(at, record["what"], record["node"])
        case "elected":
            return Elected(at, nodes.get(record["epoch"], ""), record["epoch"])
        case "lease":
            return LeaseExtended(at, record["node"], record["epoch"], record["hard"])
        case "started":
            return ChildStarted(at, record["node"], record["epoch"], record["child"])
        case "message":
            return Published(at, record["node"], record["epoch"], record["tick"])
        case "died":
            return ChildDied(at, record["node"], record["child"])
        case "gone":
            return ZnodeGone(at, record["epoch"], _WHY[record["why"]])
        case _:
            return float(record["bound_s"])


def deaths(records: Sequence[Record]) -> dict[str, float]:
    """Return when each child that was seen to die was dead."""
    seen = {record["child"]: record["at"] for record in records if record["is"] == "died"}
    starts = [record for record in records if record["is"] == "started"]
    gone = {record["epoch"]: record["at"] for record in records if record["is"] == "gone"}
    for start in starts:
        name = start["child"]
        if name not in seen:
            continue
        seen[name] = _dead_when_frozen(records, start, seen[name])
        alone = [one["at"] for one in starts if one["alone"] and one["at"] > start["at"]]
        removed_at = gone.get(start["epoch"], seen[name])
        late = [removed_at] if removed_at < seen[name] <= removed_at + SEEN_LATE_BY_S else []
        seen[name] = min(seen[name], *(at - _JUST_BEFORE_S for at in (*alone, *late)), float("inf"))
    return seen


def _dead_when_frozen(records: Sequence[Record], start: Record, died_at: float) -> float:
    for frozen, thawed in _frozen(records, start["node"]):
        if start["at"] <= frozen <= died_at <= thawed + DIES_AFTER_THAW_WITHIN_S:
            return frozen
    return died_at


def leaks(records: Sequence[Record]) -> list[Record]:
    """Return the messages of children between the thaw of their node and the death that was due in the meantime."""
    found = []
    died = {record["child"]: record["at"] for record in records if record["is"] == "died"}
    for start in (record for record in records if record["is"] == "started" and record["child"] in died):
        dead_from = _dead_when_frozen(records, start, died[start["child"]])
        if dead_from < died[start["child"]]:
            own = [one for one in records if one["is"] == "message" and _by(one, start)]
            found += [message for message in own if message["sent_at"] > dead_from]
    return found


def in_flight(records: Sequence[Record]) -> list[Record]:
    """Return the messages that were sent under a lease, and got to the broker when their sender was dead."""
    died = deaths(records)
    found = []
    for start in (record for record in records if record["is"] == "started" and record["child"] in died):
        dead_from = died[start["child"]]
        own = [one for one in records if one["is"] == "message" and one["at"] > dead_from and _by(one, start)]
        found += [one for one in own if one["sent_at"] <= min(dead_from, one["hard"])]
    return found


def _frozen(records: Sequence[Record], node: str) -> list[tuple[float, float]]:
    turns = [record for record in records if record["is"] in {"frozen", "thawed"} and record["node"] == node]
    return [(one["at"], two["at"]) for one, two in pairwise(turns) if (one["is"], two["is"]) == ("frozen", "thawed")]


def _by(message: Record, start: Record) -> bool:
    return _who(message) == _who(start)


def overlaps(records: Sequence[Record]) -> list[Record]:
    """Return the starts of children while another one lived."""
    died = deaths(records)
    starts = [record for record in records if record["is"] == "started"]
    lives = [(start["at"], died.get(start["child"], float("inf"))) for start in starts]
    return [start for start in starts if any(began < start["at"] < ended for began, ended in lives)]


def dead_after_lease_s(records: Sequence[Record], since: float) -> float:
    """Return the longest that a child lived after its lease had run out, of those that died since an instant."""
    died = deaths(records)
    leases: dict[tuple[str, int], float] = {}
    for lease in (record for record in records if record["is"] in {"lease", "message"}):
        key = lease["node"], lease["epoch"]
        leases[key] = max(lease["hard"], leases.get(key, 0.0))
    starts = [record for record in records if record["is"] == "started" and died.get(record["child"], -1.0) >= since]
    late = [died[one["child"]] - leases.get((one["node"], one["epoch"]), float("inf")) for one in starts]
    return max(0.0, *late, 0.0)


def late_messages(records: Sequence[Record]) -> list[Record]:
    """Return the messages that the broker got after one of a child that began later."""
    began = _starts(records)
    apart = [*leaks(records), *in_flight(records)]
    newest, late = 0.0, []
    for message in (record for record in records if record["is"] == "message" and record not in apart):
        at = began[_who(message)]
        newest = max(newest, at)
        late += [message] if at < newest else []
    return late


def hand_over_s(records: Sequence[Record], since: float, until: float = float("inf")) -> float | None:
    """Return the time from an instant to the first message of a child that began after it."""
    began = _starts(records)
    times = [one["at"] for one in records if one["is"] == "message" and since <= began[_who(one)] <= one["at"] < until]
    return min(times) - since if times else None


def amiss(records: Sequence[Record]) -> dict[str, list[float]]:
    """Return the instants at which there was what there should not be, or what nobody can prevent."""
    found = {
        "overlaps": overlaps(records),
        "late_messages": late_messages(records),
        "leaks": leaks(records),
        "in_flight": in_flight(records),
    }
    return {what: [one["at"] for one in ones] for what, ones in found.items()}


def _starts(records: Sequence[Record]) -> dict[tuple[Any, ...], float]:
    return {_who(record): record["at"] for record in records if record["is"] == "started"}


def _who(record: Record) -> tuple[Any, ...]:
    return record["node"], record["epoch"], record["own"]
