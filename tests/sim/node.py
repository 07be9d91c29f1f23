"""One node: what the edges, sidecar and guard, do with the two real machines; processes that are stopped and killed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.sim.client import Attempt, Client
from tests.sim.zookeeper import EXPIRED, LOST, NO_NODE, Znode
from zkbeat.core import actions as do
from zkbeat.core import custody, events, term
from zkbeat.core.custody import Act
from zkbeat.core.lease import KILL_MARGIN_S
from zkbeat.core.record import Member

if TYPE_CHECKING:
    from tests.sim.world import World


@dataclass
class Child:
    node: Node
    znode: str
    epoch: int
    started_at: float
    alive: bool = True
    robbed: bool = False
    """Its election znode has gone under it, by no fault of ours."""


class Node:
    """One node: a sidecar and its guard, processes that can be stopped and killed."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.rate = 1 + world.rng.uniform(-0.002, 0.002)
        self.life = 0
        self.alive = self.stopped = False
        self.linked = True
        self.slow_s = self.stopped_until = 0.0
        self.left_behind: tuple[str, bool] | None = None
        self.note: tuple[str, bool] | None = None
        self.guard: Guard | None = None
        self.start()

    def clock(self) -> float:
        return self.world.now * self.rate + 1000.0

    def at(self, instant: float, then: Any) -> None:
        self.world.at((instant - 1000.0) / self.rate + 1e-6, then)

    def delay(self) -> float:
        return self.world.rng.uniform(0.0003, 0.003) + (self.world.rng.uniform(0, self.slow_s) if self.slow_s else 0.0)

    def start(self) -> None:
        self.life += 1
        self.alive, self.stopped = True, False
        self.left_behind = self.note
        self.inbox: deque[events.Event] = deque()
        self.backlog: list[Any] = []
        self.turning = False
        self.wake_at: float | None = None
        self.state = term.State(self.world.settings)
        self.client = Client(self)
        self.attempt: Attempt | None = None
        self.step(events.Began())

    # the process

    def inside(self, then: Any, client: Client | None = None) -> None:
        """Run something of the sidecar's process: not while it is stopped, and not when it is dead."""
        if client is not None and client.stopped:
            return
        if self.alive and self.stopped:
            self.backlog.append(then)
        elif self.alive:
            then()

    def post(self, event: events.Event, client: Client | None = None) -> None:
        if not self.alive or (client is not None and client is not self.client):
            return
        self.inbox.append(event)
        if not self.turning:
            self.turning = True
            life = self.life
            self.world.after(self.world.rng.uniform(0.0001, 0.002), lambda: self.turn(life))

    def turn(self, life: int) -> None:
        if life != self.life or not self.alive:
            return
        if self.stopped:
            self.backlog.append(lambda: self.turn(life))
            return
        self.turning = False
        while self.inbox and self.alive:
            self.step(self.inbox.popleft())
        due = term.next_deadline(self.state)
        if self.alive and due is not None and due <= self.clock():
            self.step(events.Time())

    def step(self, event: events.Event) -> None:
        now = self.clock()
        self.state, todo = term.step(self.state, event, now)
        if not isinstance(event, events.Time):
            self.world.say(self.name, "<-", event)
        for action in todo:
            self.carry_out(action)
            if not self.alive:
                return
        due = term.next_deadline(self.state)
        if self.world.strict:
            self.world.check_progress(term, self.state, events.Time(), now)
        if due is not None and due != self.wake_at:
            self.wake_at, life = due, self.life
            self.at(max(due, now), lambda: due == self.wake_at and self._woken(life))

    def _woken(self, life: int) -> None:
        self.wake_at = None
        self.turn(life)

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            self.client.stopped = True  # without closing: the session lives on
            self.client.connected = False
            if self.guard is not None:
                self.guard.tell(custody.SidecarGone())
            self.world.say(f"{self.name} sidecar is dead")
            self._restart_later()

    def _restart_later(self) -> None:
        self.world.after(self.world.rng.uniform(0.3, 3), self._restart)

    def _restart(self) -> None:
        if self.guard is not None and (self.guard.alive or self.guard.lives()):
            self._restart_later()  # the host lock
        else:
            self.guard = None
            self.start()

    def go_on(self) -> None:
        self.stopped_until = self.world.now if self.stopped else self.stopped_until
        self.stopped = False
        backlog, self.backlog = self.backlog, []
        for then in backlog:
            self.inside(then)

    # what the edges do

    def member(self) -> Member:
        return term.member(self.state, Member(id=self.name), self.clock(), 0.0)

    def carry_out(self, action: do.Action) -> None:  # noqa: C901, PLR0912, PLR0915  # one case an action
        zk, client, guard = self.world.zk, self.client, self.guard
        if not isinstance(action, do.Say):
            self.world.say(self.name, "->", action)
        match action:
            case do.Renew(node, sent_at):
                member, session = self.member(), client.session or 0
                client.call(lambda: zk.write(session, node, member), lambda got: self._renewed(node, sent_at, got))
            case do.ReadControl():
                touched = self._watch(client, "control", events.ControlTouched())
                client.call(touched, lambda got: got == LOST or self.post(events.ControlRead(zk.control), client))
            case do.ReadLedger():
                touched = self._watch(client, "ledger", events.LedgerTouched())
                client.call(touched, lambda got: got == LOST or self.post(events.LedgerRead(*got), client))
            case do.Enter(node, version, lease_s):
                number = client.session or 0
                client.call(
                    lambda: zk.enter(number, node, version, lease_s),
                    lambda got: self.post(events.Entered(node, got is True), client),
                )
            case do.Join(attempt):
                self.attempt = Attempt(attempt, client, self.member())
            case do.Leave(attempt, led):
                if self.attempt is not None and self.attempt.number == attempt:
                    self.attempt.leave(led)
            case do.LookAt(node):
                client.call(lambda: client.view().get(node), lambda got: self._seen(node, got), write=False)
            case do.Evict(node, version):
                client.call(
                    lambda: zk.delete(node, "eviction", version),
                    lambda got: self.post(events.EvictionTried(node, got == "deleted"), client),
                )
            case do.Place(node, led):
                self.note = (node, led)
                if guard is not None:
                    guard.tell((node, led))
            case do.SpawnGuard():
                self.guard = Guard(self)
            case do.AnswerGuard() if guard is not None:
                guard.tell(custody.Answered())
                guard.forgotten, self.guard = True, None
            case do.KillGuard() if guard is not None:
                guard.kill()
            case do.StartChild(epoch, node, deadlines) if guard is not None:
                guard.order = (node, epoch)
                guard.tell(custody.Begin(deadlines.soft, deadlines.hard))
            case do.ExtendLease(deadlines) if guard is not None:
                guard.tell(custody.Extend(deadlines.soft, deadlines.hard))
            case do.StopChild(kill_at) if guard is not None:
                guard.tell(custody.Stop(kill_at))
            case do.KillChild() if guard is not None:
                guard.tell(custody.Kill())
            case do.NewSession():
                client.stop()
                self.attempt, self.client = None, Client(self)
            case do.Close():
                client.stop()
                self.world.say(f"{self.name} ends")
                self.alive = False
                self._restart_later()

    def _watch(self, client: Client, what: str, event: events.Event) -> Any:
        def serve() -> Any:
            connection, zk = client.connection, self.world.zk
            zk.watchers.setdefault(what, []).append(
                lambda: client.connection == connection and self.inside(lambda: self.post(event, client), client)
            )
            return (zk.ledger, zk.ledger_version)

        return serve

    def _renewed(self, node: str, sent_at: float, got: Znode | str) -> None:
        if isinstance(got, Znode):
            self.post(events.Renewed(node, sent_at, got.session, got.epoch, 0.0))
        else:
            self.post(events.RenewalFailed(node, sent_at, got in {NO_NODE, EXPIRED}, got))

    def _seen(self, node: str, got: Znode | str | None) -> None:
        if isinstance(got, Znode):
            self.post(events.MemberSeen(node, got.version, got.member))


class Guard:
    """One guard process, and its child."""

    def __init__(self, node: Node) -> None:
        self.node, self.world, self.life = node, node.world, node.life
        self.state = custody.Custody()
        self.alive, self.stopped, self.forgotten = True, False, False
        self.backlog: list[Any] = []
        self.place: tuple[str, bool] | None = None
        self.order = ("", 0)
        self.child: Child | None = None
        self.hard: float | None = None
        self.lease_until = 0.0
        self.next_at = 0.0
        self.wake_at: float | None = None
        self.overdue_error: str | None = None
        self.world.after(self.world.rng.uniform(0.01, 0.1), lambda: self._report(events.GuardReady()))

    def lives(self) -> bool:
        return self.child is not None and self.child.alive

    def _report(self, event: events.Event) -> None:
        if self.node.life == self.life and not self.forgotten:
            self.node.inside(lambda: self.forgotten or self.node.post(event))

    def tell(self, message: Any) -> None:
        """Over the socket: in order, and not at once."""
        self.next_at = max(self.next_at, self.world.now + self.world.rng.uniform(0.0001, 0.002))
        self.world.at(self.next_at, lambda: self._take(message))

    def _take(self, message: Any) -> None:
        if self.alive and self.stopped:
            self.backlog.append(message)
        elif self.alive and isinstance(message, tuple):
            self.place = message
        elif self.alive:
            if isinstance(message, (custody.Begin, custody.Extend)):
                self.lease_until = max(self.lease_until, message.hard)
                self.node.at(message.hard + KILL_MARGIN_S, self._check_lease)
            self.step(message)
            if isinstance(message, custody.Extend) and not self.backlog:
                self._report(events.GuardConfirmed())

    def step(self, event: custody.Event) -> None:
        if not self.alive or self.stopped:
            return
        now = self.node.clock()
        self.state, todo = custody.step(self.state, event, now)
        for action in todo:
            self.carry_out(action, now)
        if not self.alive:
            return
        if self.world.strict:
            self.world.check_progress(custody, self.state, custody.Time(), now)
        due = custody.next_deadline(self.state)
        if due is not None and due != self.wake_at:
            self.wake_at = due
            self.node.at(max(due, now), lambda: due == self.wake_at and self._woken())

    def _woken(self) -> None:
        self.wake_at = None
        self.step(custody.Time())

    def carry_out(self, action: custody.Action, now: float) -> None:  # noqa: C901
        rng, world = self.world.rng, self.world
        if action is not Act.END:
            world.say(self.node.name, "guard:", action)
        match action:
            case custody.Publish(_soft, hard):
                world.require(self.hard is None or now < self.hard, "S1: a deadline was moved after it had passed")
                self.hard = hard
            case Act.SPAWN:
                self._spawn()
            case Act.TERMINATE if self.lives():
                if rng.random() < 0.6:
                    world.after(rng.uniform(0.01, 0.5), lambda: self._die(custody.ChildEnded()))
            case Act.KILL:
                world.after(rng.uniform(0.001, 0.02), lambda: self._die(custody.AllDead()))
            case Act.REPORT_DEAD:
                self._report(events.ChildDead(0, self.state.overdue, self.overdue_error))
            case Act.KILL_SIDECAR:
                if self.node.life == self.life:
                    self.node.kill()
            case Act.REMOVE_ZNODE if self.place is not None:
                world.after(rng.uniform(0.05, 0.3), lambda place=self.place: self._remove(place, world.now + 10))
            case Act.END:
                self.alive = False

    def _check_lease(self) -> None:
        if self.node.clock() >= self.lease_until + KILL_MARGIN_S:
            self.world.require(not self.lives(), f"S1: the child of {self.node.name} outlives its lease")

    def _spawn(self) -> None:
        if self.world.rng.random() < 0.02:
            self.overdue_error = "cannot be run"
            self.world.after(0, lambda: self.step(custody.AllDead()))
            return
        self.child = Child(self.node, *self.order, self.world.now)
        self.world.started(self.child)
        self._report(events.ChildStarted(1))

    def _die(self, event: custody.Event) -> None:
        if self.child is not None and self.child.alive:
            self.child.alive = False
            self.world.say(f"{self.node.name} child is dead")
        if self.stopped:
            self.backlog.append(event)
        else:
            self.step(event)
            if self.alive and self.state.child is custody.Child.KILLED and event != custody.AllDead():
                self.world.after(0.01, lambda: self._die(custody.AllDead()))

    def _remove(self, place: tuple[str, bool], until: float) -> None:
        if self.node.linked and self.world.zk.up:
            self.world.zk.leave(place[0], "guard", led=place[1])
        elif self.world.now < until:
            self.world.after(0.1, lambda: self._remove(place, until))

    def kill(self) -> None:
        """kill -9: the kernel kills the child, and the sidecar buries what is left."""
        if self.alive:
            self.alive = False
            self.world.say(f"{self.node.name} guard is dead")
            self.world.after(self.world.rng.uniform(0.0005, 0.01), self._buried)

    def _buried(self) -> None:
        self._die(custody.AllDead())
        self._report(events.GuardGone())

    def go_on(self) -> None:
        self.stopped = False
        backlog, self.backlog = self.backlog, []
        for message in backlog:
            self._take(message)
        self.step(custody.Time())
