"""A world in memory for the two state machines: a ZooKeeper, its followers, kazoo's Lock, links, processes, and faults.

Everything is simulated, time too, and drawn from one seed. `core.term` and `core.custody` are real; what the edges do
with them is imitated: requests that are slow or lost on the way there or back, followers that are cut off with their
clients and read from what they knew, sessions that a quorum leader hears of only when followers report, processes that
are killed, stopped and continued, children that ignore TERM. What must never happen is checked whenever it could
(`Violation`).
"""

from __future__ import annotations

import contextlib
import heapq
import random
from collections import deque
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.sim.node import Child, Node
from tests.sim.zookeeper import Follower, ZooKeeper
from zkbeat.core import custody, events, term
from zkbeat.core.lease import agree
from zkbeat.core.record import Control, line

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS_AT_MOST = 50_000

LONGEST_BACK_OFF_S = 20.0
"""A child that ends by itself time and again is not the subject here: what a few such ends can cost."""


class Violation(AssertionError):  # noqa: N818  # what it is, not what went wrong here
    """An invariant is broken; the message holds the seed and what happened last."""


class World:
    """A few nodes, one ensemble, and what happens to them."""

    def __init__(self, seed: int, *, strict: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        self.seed, self.strict = seed, strict
        self.now = 0.0
        self.heap: list[tuple[float, int, Any]] = []
        self.scheduled = self.steps = 0
        self.trace: deque[tuple[float, tuple[object, ...]]] = deque(maxlen=80)
        self.timeout_s = rng.choice([2.0, 4.0, 10.0])
        self.tick_s = self.timeout_s * rng.choice([0.1, 0.2, 0.5, 0.5])
        self.rounds_up = rng.choice([0, 1])  # 0: the earliest that the protocol allows, no later than it must be
        lease_s = rng.choice([None, None, max(1.0, self.timeout_s / 3)])
        self.lease = agree(self.timeout_s, lease_s)
        self.settings = term.Settings(
            session_timeout_s=self.timeout_s, lease_s=lease_s, stop_timeout_s=rng.choice([0.0, 0.5, 5.0])
        )
        self.children: list[Child] = []
        self.last_epoch = (0, "")
        self.zk = ZooKeeper(self)
        self.nodes = [Node(self, name) for name in "ABC"[: rng.choice([2, 3])]]

    # time

    def at(self, instant: float, then: Any) -> None:
        self.scheduled += 1
        heapq.heappush(self.heap, (max(instant, self.now), self.scheduled, then))

    def after(self, delay_s: float, then: Any) -> None:
        self.at(self.now + delay_s, then)

    def run(self, until: float, done: Any = lambda: False) -> bool:
        while self.heap and self.heap[0][0] <= until:
            self.now, _, then = heapq.heappop(self.heap)
            self.steps += 1
            self.require(self.steps < STEPS_AT_MOST, "something goes round in circles")
            then()
            if done():
                return True
        self.now = until
        return bool(done())

    # what must be

    def say(self, *what: object) -> None:
        self.trace.append((self.now, what))

    def require(self, truth: object, what: str) -> None:
        if not truth:
            happened = "\n".join(f"{at:9.4f} {' '.join(map(str, words))}" for at, words in self.trace)
            raise Violation(f"{what}\nseed {self.seed}, T {self.timeout_s}, L {self.lease.length_s}\n{happened}")

    def started(self, child: Child) -> None:
        """One child at a time, and each under a newer epoch, which is that of a znode that its node once had."""
        self.say(f"{child.node.name} child starts, epoch {child.epoch}")
        self.children = [other for other in self.children if other.alive]
        for other in self.children:
            self.require(not other.alive, f"S1: the children of {other.node.name} and {child.node.name} live at a time")
        same = self.last_epoch == (child.epoch, child.znode)
        self.require(same or child.epoch > self.last_epoch[0], "S2: the epoch does not increase")
        znode = self.zk.znodes.get(child.znode)
        self.require(znode is None or znode.epoch == child.epoch, "S2: this is not the epoch of this znode")
        self.last_epoch = (child.epoch, child.znode)
        self.children.append(child)

    def check_progress(self, machine: Any, state: Any, time: Any, now: float) -> None:
        """Told that its deadline has come, a machine has another one, or none."""
        due = machine.next_deadline(state)
        if due is not None:
            after = machine.next_deadline(machine.step(state, time, max(due, now))[0])
            self.require(after is None or after > max(due, now), f"busy loop: {state}")

    def leader(self) -> Node | None:
        """Return the node whose child runs, if it knows that and has a lease."""
        return next((child.node for child in self.children if child.alive and self._leads(child.node)), None)

    def _leads(self, node: Node) -> bool:
        return node.alive and not node.stopped and bool(term.snapshot(node.state, node.clock())["leader"])

    # what happens

    def ordeal(self) -> float:
        """Have faults happen, heal everything, and return how long it took until somebody led (L1)."""
        self.disturb(4 * self.timeout_s)
        self.run(4 * self.timeout_s)
        self.heal()
        healed_at = self.now
        self.await_leader()
        return self.now - healed_at

    def await_leader(self) -> Node:
        limit_s = 3 * self.timeout_s + LONGEST_BACK_OFF_S
        self.require(self.run(self.now + limit_s, lambda: self.leader() is not None), "L1: nobody leads")
        return next(child.node for child in self.children if child.alive)

    def robbery(self) -> None:
        """The leader's znode is deleted while it is cut off, and those who wait have seen everything late."""
        leader = self.await_leader()
        for other in self.nodes:
            other.slow_s = 0.0 if other is leader else self.timeout_s / 3
        self.run(self.now + self.rng.uniform(0.3, 3) * self.timeout_s)
        leader.linked = False
        self.zk.delete(next(child.znode for child in self.children if child.alive), "operator")
        for other in self.nodes:
            other.slow_s = 0.0
        self.run(self.now + 2 * self.timeout_s)

    def stall(self) -> None:
        """The leader's requests are slow, and then it is cut off together with its follower."""
        leader = self.await_leader()
        leader.slow_s = self.timeout_s / 3
        self.run(self.now + self.rng.uniform(0.1, 2) * self.timeout_s)
        self.zk.cut(leader.client.follower)
        self.run(self.now + 2 * self.timeout_s)

    def short_fault(self) -> None:
        """Nothing is stopped for a fault that is shorter than a third of the lease (L2)."""
        self.await_leader()
        self.run(self.now + self.timeout_s / 2)
        child = next(child for child in self.children if child.alive)
        node, lasts_s = child.node, self.lease.length_s / 3 * self.rng.uniform(0.3, 1)
        fault = self.rng.choice((self._cut_link, self._outage, self._drop, self._stop_sidecar, self._slow))
        self.say(node.name, "FAULT", fault.__name__, lasts_s)
        self.run(self.now + self.rng.uniform(0, self.timeout_s))
        self._while = lambda: lasts_s  # type: ignore[method-assign]
        fault(node)
        node.slow_s = min(node.slow_s, lasts_s / 2)
        self.run(self.now + lasts_s + self.timeout_s)
        self.require(child.alive and self.leader() is node, "L2: a short fault has stopped the child")

    def disturb(self, until: float) -> None:
        """Have faults happen until then."""
        faults = (
            *(self._cut_link, self._cut_follower, self._outage, self._slow, self._drop, self._kill_sidecar),
            *(self._kill_guard, self._kill_both, self._stop_sidecar, self._stop_guard, self._step_down, self._pause),
            *(self._end_sidecar, self._child_dies, self._delete_znodes, self._slow_down_the_others),
        )
        instant = self.now
        while (instant := instant + self.rng.expovariate(1 / (0.5 * self.timeout_s))) < until:
            self.at(instant, self._fault(self.rng.choice(faults)))

    def _fault(self, fault: Any) -> Any:
        def happen() -> None:
            leader = self.leader()
            node = leader if leader is not None and self.rng.random() < 0.7 else self.rng.choice(self.nodes)
            self.say(f"{node.name} FAULT {fault.__name__[1:]}")
            fault(node)

        return happen

    def _while(self) -> float:
        return self.rng.choice([0.05, 0.3, 0.8, 1.5, 2.5]) * self.timeout_s * self.rng.uniform(0.5, 1)

    def _cut_link(self, node: Node) -> None:
        node.linked, connection, client = False, node.client.connection, node.client
        self.after(self.rng.choice([0, 0.2, 0.5]) * self.timeout_s, lambda: client.break_off(connection))
        self.after(self._while(), lambda: self._mend_link(node))

    def _mend_link(self, node: Node) -> None:
        if not node.linked:
            node.linked = True
            node.client.break_off()

    def _cut_follower(self, node: Node) -> None:
        follower = node.client.follower
        if all(other.cut_at is None for other in self.zk.followers) and self.zk.up:
            self.zk.cut(follower)
            self.after(self.rng.uniform(0, 1.5) * self.timeout_s, lambda: self._drop_clients(follower))
            self.after(self._while(), lambda: self._mend_follower(follower))

    def _drop_clients(self, follower: Follower) -> None:
        for node in self.nodes:
            if node.client.follower is follower and follower.cut_at is not None:
                node.client.break_off()

    def _mend_follower(self, follower: Follower) -> None:
        self._drop_clients(follower)
        follower.cut_at = follower.view = None

    def _outage(self, _node: Node) -> None:
        self.zk.up = False
        for node in self.nodes:
            self.after(self.rng.uniform(0, 0.2), node.client.break_off)
        self.after(self._while(), self.zk.reelect)

    def _slow(self, node: Node) -> None:
        node.slow_s = self.rng.choice([0.02, 0.1, 0.3]) * self.timeout_s
        self.after(self._while(), lambda: setattr(node, "slow_s", 0.0))

    def _slow_down_the_others(self, node: Node) -> None:
        """Who waits sees late what happens to the leader."""
        for other in self.nodes:
            if other is not node:
                other.slow_s = self.rng.choice([0.1, 0.3]) * self.timeout_s
        self.after(2 * self.timeout_s, lambda: [setattr(other, "slow_s", 0.0) for other in self.nodes])

    def _drop(self, node: Node) -> None:
        node.client.break_off()

    def _kill_sidecar(self, node: Node) -> None:
        if node.guard is None or not node.guard.stopped:
            node.kill()

    def _kill_guard(self, node: Node) -> None:
        if node.guard is not None:
            node.guard.kill()

    def _kill_both(self, node: Node) -> None:
        self._kill_guard(node)
        node.kill()

    def _stop_sidecar(self, node: Node) -> None:
        if node.alive and (node.guard is None or not node.guard.stopped):
            node.stopped, life = True, node.life
            self.after(self._while(), lambda: node.life == life and node.go_on())

    def _stop_guard(self, node: Node) -> None:
        if node.alive and not node.stopped and node.guard is not None:
            node.guard.stopped = True
            self.after(self._while(), node.guard.go_on)

    def _step_down(self, node: Node) -> None:
        head = next(iter(line(list(self.zk.znodes))), None)
        if self.rng.random() < 0.5 or head is None:
            node.post(events.StepDownRequested("a signal"))
        else:
            self._set_control(Control(step_down=self.zk.znodes[head].epoch))

    def _pause(self, _node: Node) -> None:
        self._set_control(Control(paused=True))
        self.after(self._while(), lambda: self._set_control(Control()))

    def _set_control(self, control: Control) -> None:
        self.zk.control = control
        self.zk.fire("control")

    def _end_sidecar(self, node: Node) -> None:
        node.post(events.StopRequested("a signal", hurry=self.rng.random() < 0.3))

    def _child_dies(self, node: Node) -> None:
        if node.guard is not None and node.guard.lives():
            node.guard._die(custody.ChildEnded())

    def _delete_znodes(self, _node: Node) -> None:
        for name in line(list(self.zk.znodes))[: self.rng.choice([1, 1, 3])]:
            self.zk.delete(name, "operator")
        if self.rng.random() < 0.3:
            self.zk.ledger, self.zk.ledger_version = None, self.zk.ledger_version + 1
            self.zk.fire("ledger")

    def heal(self) -> None:
        self.zk.reelect()
        for follower in self.zk.followers:
            self._mend_follower(follower)
        for node in self.nodes:
            self._mend_link(node)
            node.slow_s = 0.0
            node.go_on()
            if node.guard is not None:
                node.guard.go_on()
        self._set_control(Control())


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Copy frozen dataclasses by their dictionaries: `dataclasses.replace` would be a third of all the time."""

    def replace(of: Any, **changes: Any) -> Any:
        new = object.__new__(type(of))
        new.__dict__.update(of.__dict__, **changes)
        return new

    with mock.patch.object(term, "replace", replace), mock.patch.object(custody, "replace", replace):
        yield
