"""A world in memory for the two state machines: a ZooKeeper, its followers, kazoo's Lock, links, processes, and faults.

Everything is simulated, time too, and drawn from one seed. `core.term` and `core.custody` are real; what the edges do
with them is imitated: requests that are slow or lost on the way there or back, followers that are cut off with their
clients and read from what they knew, sessions that a quorum leader hears of only when followers report, processes that
are killed, stopped and continued, machines that are suspended, children that ignore TERM. What must never happen is
checked whenever it could (`invariants`, and `require` for what only a simulation can know).
"""

from __future__ import annotations

import contextlib
import heapq
import random
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.sim import invariants as inv
from tests.sim import trace
from tests.sim.invariants import Invariants, Violation
from tests.sim.node import Child, Node
from tests.sim.zookeeper import ZooKeeper
from zkbeat.core import custody, term
from zkbeat.core.lease import Lease, agree
from zkbeat.core.record import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS_AT_MOST = 50_000
REMEMBERED = 80

LONGEST_BACK_OFF_S = 20.0
"""A child that ends by itself time and again is not the subject here: what a few such ends can cost."""

GONE = {"expiry": inv.EXPIRED, "operator": inv.BY_HAND, "eviction": inv.EVICTED}


@dataclass(frozen=True)
class Shape:
    """What is different from world to world."""

    timeout_s: float
    tick_s: float
    rounds_up: int
    """0: sessions expire as early as the protocol allows, no later than they must."""
    lease_s: float | None
    stop_timeout_s: float
    nodes: int
    launched: bool = False
    preload: bool = False
    restart_stuck: bool = False
    founded: bool = True
    """The ledger says that the last leader has left: there is no wait for it."""


def draw(rng: random.Random) -> Shape:
    """Draw the shape of a world."""
    timeout_s = rng.choice([2.0, 4.0, 10.0])
    launched = rng.random() < 0.2
    return Shape(
        timeout_s=timeout_s,
        tick_s=timeout_s * rng.choice([0.1, 0.2, 0.5, 0.5]),
        rounds_up=rng.choice([0, 1]),
        lease_s=rng.choice([None, None, max(1.0, timeout_s / 3)]),
        stop_timeout_s=rng.choice([0.0, 0.5, 5.0]),
        nodes=rng.choice([2, 2, 3]),
        launched=launched,
        preload=rng.random() < 0.2,
        restart_stuck=launched and rng.random() < 0.5,
        founded=rng.random() < 0.8,
    )


class World:
    """A few nodes, one ensemble, and what happens to them."""

    def __init__(
        self, seed: int, *, strict: bool = False, rng: random.Random | None = None, shape: Shape | None = None
    ) -> None:
        self.rng = rng or random.Random(seed)
        self.seed, self.strict = seed, strict
        self.shape = shape = shape or draw(self.rng)
        self.now = 0.0
        self.heap: list[tuple[float, int, Any]] = []
        self.scheduled = self.steps = 0
        self.trace: deque[tuple[float, tuple[object, ...]]] = deque(maxlen=REMEMBERED)
        self.counts: Counter[str] = Counter()
        self.timeout_s, self.tick_s, self.rounds_up = shape.timeout_s, shape.tick_s, shape.rounds_up
        self.lease = agree(shape.timeout_s, shape.lease_s)
        self.settings = term.Settings(
            session_timeout_s=shape.timeout_s,
            lease_s=shape.lease_s,
            stop_timeout_s=shape.stop_timeout_s,
            launched=shape.launched,
            preload=shape.preload,
            max_silence_s=shape.timeout_s,
            restart_stuck=shape.restart_stuck,
        )
        self.invariants = Invariants()
        self.children: list[Child] = []
        self.last_epoch = (0, "")
        self.zk = ZooKeeper(self)
        if shape.founded:
            self.zk.ledger = Ledger("before", self.lease.length_s, left=True)
        self.nodes = [Node(self, name) for name in "ABC"[: shape.nodes]]

    # time

    def at(self, instant: float, then: Any) -> None:
        self.scheduled += 1
        now = self.now
        heapq.heappush(self.heap, (max(now, instant), self.scheduled, then))

    def after(self, delay_s: float, then: Any) -> None:
        self.scheduled += 1
        heapq.heappush(self.heap, (self.now + delay_s, self.scheduled, then))

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        heap, pop = self.heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, then = pop(heap)
            self.steps += 1
            then()
            if done is not None and done():
                return True
            if self.steps > STEPS_AT_MOST:
                self.fail("L1", "something goes round in circles")
        self.now = until
        return done is not None and done()

    # what must be

    def say(self, *what: object) -> None:
        self.trace.append((self.now, what))

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def require(self, truth: object, name: str, what: str) -> None:
        if not truth:
            self.fail(name, what)

    def fail(self, name: str, what: str) -> None:
        header = f"seed {self.seed}, T {self.timeout_s:g} s, L {self.lease.length_s:.3g} s, {self.shape}"
        raise Violation(name, f"{what}\n{header}\n{trace.written(self.trace)}")

    def see(self, fact: inv.Fact) -> None:
        """Tell the invariants, and what happened before if one is broken."""
        try:
            self.invariants.see(fact)
        except Violation as broken:
            self.fail(broken.name, str(broken).partition(": ")[2])

    def look(self) -> None:
        try:
            self.invariants.look(self.now)
        except Violation as broken:
            self.fail(broken.name, str(broken).partition(": ")[2])

    def entered(self, node: str, epoch: int) -> None:
        """A node stands in the ledger; to write that once more, after a lost answer, is no other leadership."""
        if epoch != self.invariants._epoch:
            self.count("elected")
            self.see(inv.Elected(self.now, node, epoch))

    def gone(self, name: str, epoch: int, by: str) -> None:
        """An election znode is removed."""
        self.say("ZooKeeper:", name, "is removed:", by)
        self.count(f"znode gone: {by}")
        for child in self.children:
            # A process that was stopped until just before it was elected has sent no pings (`core.lease`, point 6):
            # then its session may expire too early, and only the ledger stands between its child and the next.
            if child.alive and child.znode == name and by == "expiry":
                by = "operator" if child.started_at < child.node.stopped_until + self.timeout_s else by
        self.see(inv.ZnodeGone(self.now, epoch, GONE.get(by, inv.LEFT)))

    def started(self, child: Child) -> None:
        """Each child under the epoch of a znode that its node once had, and not under an older one's."""
        self.say(child.node.name, "child starts, epoch", child.epoch)
        self.count("child started")
        same = self.last_epoch == (child.epoch, child.znode)
        self.require(same or child.epoch > self.last_epoch[0], "S2", "the epoch does not increase")
        znode = self.zk.znodes.get(child.znode)
        self.require(znode is None or znode.epoch == child.epoch, "S2", "this is not the epoch of this znode")
        self.last_epoch = (child.epoch, child.znode)
        self.children = [child]
        self.see(inv.ChildStarted(self.now, child.node.name, child.epoch, child.number))

    def died(self, child: Child) -> None:
        self.say(child.node.name, "child is dead")
        self.see(inv.ChildDied(self.now, child.node.name, child.number))

    def check_progress(self, machine: Any, state: Any, time: Any, now: float) -> None:
        """Told that its deadline has come, a machine has another one, or none."""
        due = machine.next_deadline(state)
        if due is not None:
            after = machine.next_deadline(machine.step(state, time, max(due, now))[0])
            self.require(after is None or after > max(due, now), "busy loop", str(state))

    def living(self) -> Child | None:
        return next((child for child in self.children if child.alive), None)

    def leader(self) -> Node | None:
        """Return the node whose child runs, if it knows that and has a lease."""
        child = self.living()
        return child.node if child is not None and not child.stuck and self._leads(child.node) else None

    def _leads(self, node: Node) -> bool:
        if not node.alive or node.stopped or node.state.child is not term.Child.RUNNING:
            return False
        return bool(term.snapshot(node.state, node.clock())["leader"])

    def await_leader(self) -> Node:
        """L1: within a bound somebody leads."""
        limit_s = 3 * self.timeout_s + LONGEST_BACK_OFF_S
        if not self.run(self.now + limit_s, lambda: self.leader() is not None):
            self.fail("L1", "nobody leads")
        return self.children[0].node


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Leave out what takes half of the time, and changes nothing.

    Frozen dataclasses are copied by their dictionaries, and the deadlines of a lease are computed once, not each time
    that a rule looks at them.
    """
    compute = Lease.deadlines
    known: list[Any] = [None, None, None]

    def replace(of: Any, **changes: Any) -> Any:
        new = object.__new__(type(of))
        new.__dict__.update(of.__dict__, **changes)
        return new

    def deadlines(self: Lease, active: Any) -> Any:
        if known[0] is not active or known[1] is not self:
            known[:] = active, self, compute(self, active)
        return known[2]

    with (
        mock.patch.object(term, "replace", replace),
        mock.patch.object(custody, "replace", replace),
        mock.patch.object(Lease, "deadlines", deadlines),
    ):
        yield
