"""What must hold in every history, simulated or recorded: the named invariants of the protocol, checked fact by fact.

| | |
|---|---|
| S1 | A child that is not dead has a lease that has not run out, and no two of them are alive at once. |
| S2 | Epochs strictly increase. |
| S3 | A znode of an election goes by our hand only after the death of its child, and never expires before that. |
| S4 | What is published is of the latest epoch that has published. |
| L1 | Once faults are healed there is a running child within a bound. |
| L2 | A fault that is shorter than a third of the lease stops nothing. |

Facts are given in the order of time. Instants are seconds on one clock that is the same for all nodes.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from zkbeat.core.lease import KILL_MARGIN_S

LEFT, EVICTED, EXPIRED, BY_HAND = "left", "evicted", "expired", "deleted by hand"


class Violation(AssertionError):  # noqa: N818  # what it is, not what went wrong here
    """An invariant does not hold: its name, and what was seen."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


@dataclass(frozen=True)
class Elected:
    """A node has begun to lead, with this epoch."""

    at: float
    node: str
    epoch: int


@dataclass(frozen=True)
class ChildStarted:
    """The child of this node and epoch exists from now on; `child` tells it from all others."""

    at: float
    node: str
    epoch: int
    child: object


@dataclass(frozen=True)
class ChildDied:
    """The child is dead, with everything that it started."""

    at: float
    node: str
    child: object


@dataclass(frozen=True)
class LeaseExtended:
    """The lease of this node and epoch runs until `hard`."""

    at: float
    node: str
    epoch: int
    hard: float


@dataclass(frozen=True)
class ZnodeGone:
    """The election znode of this epoch is gone: left, evicted, expired, or deleted by hand."""

    at: float
    epoch: int
    why: str


@dataclass(frozen=True)
class Published:
    """A message has arrived that the child of this node and epoch has sent."""

    at: float
    node: str
    epoch: int
    tick: object


@dataclass(frozen=True)
class FaultBegan:
    """Something was done to a node, or, where that is empty, to what all of them share."""

    at: float
    what: str
    node: str


@dataclass(frozen=True)
class FaultEnded:
    """And undone."""

    at: float
    what: str
    node: str


Fact = Elected | ChildStarted | ChildDied | LeaseExtended | ZnodeGone | Published | FaultBegan | FaultEnded


@dataclass
class _Life:
    node: str
    epoch: int
    child: object
    hard: float


@dataclass
class _Fault:
    what: str
    node: str
    began: float
    ended: float = math.inf


class Invariants:
    """Checks one history. `see` and `quiet` raise Violation."""

    def __init__(
        self,
        *,
        kill_margin_s: float = KILL_MARGIN_S,
        lease_s: float | None = None,
        harmless_when_short: Collection[str] = (),
    ) -> None:
        """`kill_margin_s`: how long after its deadline a child may be seen alive.

        `lease_s` and `harmless_when_short`, the faults that L2 is about: without them it is not checked.
        """
        self._margin_s = kill_margin_s
        self._lease_s = lease_s
        self._harmless = frozenset(harmless_when_short)
        self._alive: dict[object, _Life] = {}
        self._leases: dict[tuple[str, int], float] = {}
        self._epoch = -1
        self._published = -1
        self._faults: list[_Fault] = []

    @property
    def alive(self) -> list[object]:
        """The children that are not dead."""
        return list(self._alive)

    def see(self, fact: Fact) -> None:
        """Take the next fact."""
        self.look(fact.at)
        match fact:
            case LeaseExtended():
                self._extended(fact)
            case ChildStarted():
                self._started(fact)
            case ChildDied():
                self._died(fact)
            case Elected():
                self._elected(fact)
            case ZnodeGone():
                self._gone(fact)
            case Published():
                self._sent(fact)
            case FaultBegan():
                self._faults.append(_Fault(fact.what, fact.node, fact.at))
            case FaultEnded():
                self._end_fault(fact)

    def look(self, at: float) -> None:
        """Look at what is alive at this instant (S1)."""
        for life in self._alive.values():
            if at > life.hard + self._margin_s:
                late_s = at - life.hard
                raise Violation("S1", f"{_who(life)} is alive {late_s:.3f} s after its lease ran out, at {at:.3f}")

    def quiet(self, at: float, bound_s: float) -> None:
        """Faults were healed `bound_s` ago: a child must be running (L1)."""
        self.look(at)
        if not self._alive:
            raise Violation("L1", f"no child runs at {at:.3f}, {bound_s:g} s after everything was healed")

    def _extended(self, fact: LeaseExtended) -> None:
        key = (fact.node, fact.epoch)
        hard = self._leases[key] = max(fact.hard, self._leases.get(key, -math.inf))
        for life in self._alive.values():
            if (life.node, life.epoch) == key:
                life.hard = hard

    def _started(self, fact: ChildStarted) -> None:
        new = _Life(fact.node, fact.epoch, fact.child, self._leases.get((fact.node, fact.epoch), math.inf))
        for other in self._alive.values():
            raise Violation("S1", f"{_who(new)} starts at {fact.at:.3f} while {_who(other)} is alive")
        if fact.epoch < self._epoch:
            raise Violation("S2", f"{_who(new)} starts at {fact.at:.3f}, and epoch {self._epoch} was elected before")
        self._alive[fact.child] = new
        self.look(fact.at)

    def _died(self, fact: ChildDied) -> None:
        life = self._alive.pop(fact.child, None)
        lease_s = self._lease_s
        if life is None or lease_s is None:
            return
        recent = [fault for fault in self._faults if fault.ended > fact.at - 2 * lease_s]
        if recent and all(fault.what in self._harmless and self._is_short(fault, fact.at) for fault in recent):
            what = ", ".join(fault.what for fault in recent)
            raise Violation("L2", f"{_who(life)} has died at {fact.at:.3f}, and nothing had happened but {what}")

    def _is_short(self, fault: _Fault, now: float) -> bool:
        return min(fault.ended, now) - fault.began < (self._lease_s or 0.0) / 3

    def _elected(self, fact: Elected) -> None:
        if fact.epoch <= self._epoch:
            raise Violation("S2", f"{fact.node} is elected with epoch {fact.epoch}, after {self._epoch}")
        self._epoch = fact.epoch

    def _gone(self, fact: ZnodeGone) -> None:
        for life in self._alive.values():
            if life.epoch == fact.epoch and fact.why != BY_HAND:
                raise Violation(
                    "S3", f"the znode of {_who(life)}, which is alive, is gone at {fact.at:.3f}: {fact.why}"
                )

    def _sent(self, fact: Published) -> None:
        if fact.epoch < self._published:
            late = f"{fact.node} has published {fact.tick!r} under epoch {fact.epoch}"
            raise Violation("S4", f"{late}, after epoch {self._published} had begun to, at {fact.at:.3f}")
        self._published = fact.epoch

    def _end_fault(self, fact: FaultEnded) -> None:
        for fault in self._faults:
            if (fault.what, fault.node) == (fact.what, fact.node) and math.isinf(fault.ended):
                fault.ended = fact.at


def _who(life: _Life) -> str:
    return f"the child of {life.node}, epoch {life.epoch}"
