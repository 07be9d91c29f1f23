"""What is done to a world: each fault is one entry of a list, so that a shorter list can be tried."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zkbeat.core import custody, events
from zkbeat.core.record import Control, line

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World
    from tests.sim.zookeeper import Follower

AT_THE_LEADER = 0.7
EVERY = 0.35
"""The mean time between two faults, as a share of the session timeout."""

LASTING = (0.05, 0.2, 0.5, 1.2, 2.0)


@dataclass(frozen=True)
class Fault:
    """One entry: when, what, and the seed of what it draws for itself, whom it meets and how long it lasts."""

    at: float
    kind: str
    seed: int


def plan(world: World, until: float) -> list[Fault]:
    """Draw the faults of a world, up to that instant."""
    drawn, found, kinds = random.Random(world.seed ^ 0x5EED), [], KINDS_BY_WEIGHT
    at = drawn.uniform(0, 0.5) * world.timeout_s
    while at < until:
        found.append(Fault(at, drawn.choice(kinds), drawn.getrandbits(32)))
        # Faults come in bursts: two at once find more than two with peace between them.
        at += 0.0 if drawn.random() < 0.15 else drawn.expovariate(1 / (EVERY * world.timeout_s))
    return found


class Faults:
    """Does them to one world."""

    def __init__(self, world: World) -> None:
        self.world, self.zk = world, world.zk
        self.rng = world.rng
        self.lasts_s: float | None = None
        """How long each lasts, where that is not drawn."""
        self.nothing_drawn: random.Random | None = None
        """What to draw from, where nothing is to be left to chance."""

    def expect(self, faults: list[Fault]) -> None:
        for fault in faults:
            self.world.at(fault.at, lambda fault=fault: self.happen(fault))

    def happen(self, fault: Fault, node: Node | None = None) -> None:
        self.rng = rng = self.nothing_drawn or random.Random(fault.seed)
        if node is None:
            leader = self.world.leader()
            node = leader if leader is not None and rng.random() < AT_THE_LEADER else rng.choice(self.world.nodes)
        self.world.say(node.name, "FAULT", fault.kind)
        self.world.count(f"fault: {fault.kind}")
        KINDS[fault.kind][1](self, node)

    def _while(self) -> float:
        if self.lasts_s is not None:
            return self.lasts_s
        return self.rng.choice(LASTING) * self.world.timeout_s * self.rng.uniform(0.5, 1)

    # the network

    def cut_link(self, node: Node) -> None:
        node.linked, connection, client = False, node.client.connection, node.client
        noticed_s = self.rng.choice([0, 0.2, 0.5]) * self.world.timeout_s
        self.world.after(noticed_s, lambda: client.break_off(connection))
        self.world.after(self._while(), lambda: self.mend_link(node))

    def mend_link(self, node: Node) -> None:
        if not node.linked and not node.frozen:
            node.linked = True
            node.client.break_off()

    def slow(self, node: Node) -> None:
        node.slow_s = self.rng.choice([0.02, 0.1, 0.3]) * self.world.timeout_s
        if self.lasts_s is not None:
            node.slow_s = min(node.slow_s, self.lasts_s / 2)
        self.world.after(self._while(), lambda: setattr(node, "slow_s", 0.0))

    def slow_down_the_others(self, node: Node) -> None:
        """Who waits sees late what happens to the leader."""
        for other in self.world.nodes:
            if other is not node:
                other.slow_s = self.rng.choice([0.1, 0.3]) * self.world.timeout_s
        self.world.after(2 * self.world.timeout_s, self._all_fast)

    def _all_fast(self) -> None:
        for node in self.world.nodes:
            node.slow_s = 0.0

    def drop(self, node: Node) -> None:
        node.client.break_off()

    def lose_answer(self, node: Node) -> None:
        """The next write of a kind is done, and its answer is lost."""
        node.loses = self.rng.choice(["any", "renew", "enter", "evict", "leave"])
        if node.loses == "evict":
            for other in self.world.nodes:
                other.loses = "evict"

    # the ensemble

    def cut_follower(self, node: Node) -> None:
        follower = node.client.follower
        if all(other.cut_at is None for other in self.zk.followers) and self.zk.up:
            self.zk.cut(follower)
            noticed_s = self.rng.uniform(0, 1.5) * self.world.timeout_s
            self.world.after(noticed_s, lambda: self._drop_clients(follower))
            self.world.after(self._while(), lambda: self.mend_follower(follower))

    def _drop_clients(self, follower: Follower) -> None:
        for node in self.world.nodes:
            if node.client.follower is follower and follower.cut_at is not None:
                node.client.break_off()

    def mend_follower(self, follower: Follower) -> None:
        self._drop_clients(follower)
        follower.cut_at = follower.view = None

    def outage(self, _node: Node) -> None:
        self._down(self._while())

    def change_quorum_leader(self, _node: Node) -> None:
        """Short, and all sessions begin their time anew."""
        self._down(self.rng.uniform(0.02, 0.15) * self.world.timeout_s)

    def _down(self, for_s: float) -> None:
        self.zk.up = False
        for node in self.world.nodes:
            self.world.after(self.rng.uniform(0, 0.2), node.client.break_off)
        self.world.after(for_s, self.zk.reelect)

    # processes

    def kill_sidecar(self, node: Node) -> None:
        node.kill()

    def kill_guard(self, node: Node) -> None:
        if node.guard is not None:
            node.guard.kill()

    def kill_both(self, node: Node) -> None:
        self.kill_guard(node)
        node.kill()

    def stop_sidecar(self, node: Node) -> None:
        if node.alive:
            node.stopped, life = True, node.life
            self.world.after(self._while(), lambda: node.life == life and not node.frozen and node.go_on())

    def hang_sidecar(self, node: Node) -> None:
        """Its loop does not turn, while kazoo's threads go on, and their pings keep the session."""
        if node.alive:
            node.hung, life = True, node.life
            self.world.after(self._while(), lambda: node.life == life and not node.frozen and node.go_on())

    def stop_guard(self, node: Node) -> None:
        if node.guard is not None:
            guard, guard.stopped = node.guard, True
            self.world.after(self._while(), lambda: node.frozen or guard.go_on())

    def stop_guard_then_sidecar(self, node: Node) -> None:
        """Nobody of ours is left to keep the deadline, and the child runs on."""
        guard, life, rest_s = node.guard, node.life, self._while()
        if guard is None or not node.alive:
            return
        guard.stopped = True
        self.world.after(self.rng.uniform(0, 0.3) * self.world.lease.length_s, lambda: self._stop(node, life))
        first, second = self.rng.sample([guard.go_on, lambda: node.life == life and node.go_on()], 2)
        self.world.after(rest_s + self.world.lease.length_s / 3, lambda: node.frozen or first())
        self.world.after(rest_s + self.world.lease.length_s / 2, lambda: node.frozen or second())

    def _stop(self, node: Node, life: int) -> None:
        if node.life == life and node.alive:
            node.stopped = True

    def freeze(self, node: Node) -> None:
        """Every process of the node, its child too."""
        self._freeze(node)
        self.world.after(self._while(), lambda: self.thaw(node))

    def suspend(self, node: Node) -> None:
        """The machine: its clock goes on, nothing runs, nothing of it is on the network."""
        if not node.frozen:
            node.linked = False
            self.freeze(node)

    def thaw_at_the_deadline(self, node: Node) -> None:
        """Guard and sidecar are stopped, and go on with orders in the socket when the deadline has just passed."""
        guard, life = node.guard, node.life
        if guard is None or not node.alive or not guard.lives() or guard.state.hard is None:
            return
        guard.stopped = True
        gap_s = guard.state.hard - node.clock()
        self.world.after(gap_s * self.rng.uniform(0.2, 0.4), lambda: self._stop(node, life))
        self.world.after(gap_s + self.rng.uniform(-0.02, 0.08), lambda: self._both_go_on(node, guard, life))

    def _both_go_on(self, node: Node, guard: Any, life: int) -> None:
        if not node.frozen:
            guard.go_on()
            if node.life == life:
                node.go_on()

    def _freeze(self, node: Node) -> None:
        node.frozen = node.stopped = True
        if node.guard is not None:
            node.guard.stopped = True

    def thaw(self, node: Node) -> None:
        if not node.frozen:
            return
        node.frozen = False
        awake = [node.go_on] + ([node.guard.go_on] if node.guard is not None else [])
        for go_on in self.world.rng.sample(awake, len(awake)):
            go_on()
        self.mend_link(node)

    def child_dies(self, node: Node) -> None:
        if node.guard is not None and node.guard.lives():
            node.guard._die(custody.ChildEnded())

    def stick(self, node: Node) -> None:
        """The beat runs on and sends nothing."""
        if self.world.shape.launched and node.guard is not None and node.guard.child is not None:
            node.guard.child.stuck = True

    def end_parked(self, node: Node) -> None:
        for any_node in [node, *self.world.nodes]:
            if any_node.guard is not None:
                any_node.guard.end_parked()

    # people

    def reload(self, node: Node) -> None:
        node.post(events.ReloadRequested())

    def step_down(self, node: Node) -> None:
        head = next(iter(line(list(self.zk.znodes))), None)
        if self.rng.random() < 0.5 or head is None:
            node.post(events.StepDownRequested("a signal"))
        else:
            self.set_control(Control(step_down=self.zk.znodes[head].epoch))

    def pause(self, _node: Node) -> None:
        self.set_control(Control(paused=True))
        self.world.after(self._while(), lambda: self.set_control(Control()))

    def set_control(self, control: Control) -> None:
        self.zk.control = control
        self.zk.fire("control")

    def end_sidecar(self, node: Node) -> None:
        node.post(events.StopRequested("a signal", hurry=self.rng.random() < 0.3))

    def delete_znodes(self, _node: Node) -> None:
        for name in line(list(self.zk.znodes))[: self.rng.choice([1, 1, 3])]:
            self.zk.delete(name, "operator")
        if self.rng.random() < 0.3:
            self.zk.ledger, self.zk.ledger_version = None, self.zk.ledger_version + 1
            self.zk.fire("ledger")

    def close_session(self, node: Node) -> None:
        """Somebody closes the session from elsewhere."""
        if node.client.session in self.zk.sessions:
            self.zk.close(node.client.session, "operator")

    def heal(self) -> None:
        self.zk.reelect()
        for follower in self.zk.followers:
            self.mend_follower(follower)
        for node in self.world.nodes:
            self.thaw(node)
            self.mend_link(node)
            node.slow_s, node.loses = 0.0, ""
            node.go_on()
            if node.guard is not None:
                node.guard.go_on()
        child = self.world.living()
        if child is not None and not self.world.settings.restart_stuck:
            child.stuck = False
        self.set_control(Control())


KINDS: dict[str, tuple[int, Any]] = {
    "cut link": (3, Faults.cut_link),
    "cut follower": (3, Faults.cut_follower),
    "outage": (2, Faults.outage),
    "change quorum leader": (2, Faults.change_quorum_leader),
    "slow": (2, Faults.slow),
    "slow down the others": (2, Faults.slow_down_the_others),
    "drop": (2, Faults.drop),
    "lose answer": (3, Faults.lose_answer),
    "kill sidecar": (2, Faults.kill_sidecar),
    "kill guard": (2, Faults.kill_guard),
    "kill both": (2, Faults.kill_both),
    "stop sidecar": (2, Faults.stop_sidecar),
    "hang sidecar": (2, Faults.hang_sidecar),
    "stop guard": (2, Faults.stop_guard),
    "stop guard, then sidecar": (1, Faults.stop_guard_then_sidecar),
    "thaw at the deadline": (1, Faults.thaw_at_the_deadline),
    "freeze": (2, Faults.freeze),
    "suspend": (2, Faults.suspend),
    "child dies": (1, Faults.child_dies),
    "stick": (2, Faults.stick),
    "end parked": (1, Faults.end_parked),
    "reload": (1, Faults.reload),
    "step down": (2, Faults.step_down),
    "pause": (2, Faults.pause),
    "end sidecar": (2, Faults.end_sidecar),
    "delete znodes": (2, Faults.delete_znodes),
    "close session": (1, Faults.close_session),
}

KINDS_BY_WEIGHT = [kind for kind, (weight, _) in KINDS.items() for _ in range(weight)]

SHORT_ONES = ("cut link", "outage", "drop", "stop sidecar", "slow", "hang sidecar", "freeze")
"""What stops nothing as long as it is shorter than a third of the lease (L2)."""
