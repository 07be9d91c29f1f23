"""One node: what the edges do with the real machine of the sidecar; a process that is stopped, killed, and hangs."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from tests.sim.client import Attempt, Client
from tests.sim.guard import Child, Guard
from tests.sim.zookeeper import EXPIRED, LOST, NO_NODE, Znode
from zkbeat.core import actions as do
from zkbeat.core import custody, events, term
from zkbeat.core.lease import DRIFT
from zkbeat.core.record import Member

if TYPE_CHECKING:
    from tests.sim.world import World

__all__ = ["Child", "Guard", "Node"]

EPOCH = 1000.0
"""What a node's clock shows at the beginning: nothing may depend on its starting at 0."""

REASON = re.compile(r"^.*?(?= by | for | tick,| \(|$)")
"""Why a term has ended, without whom and how long."""

DEAD = {term.Child.NONE, term.Child.KILLED}


class Node:
    """One node: a sidecar and its guard, processes that can be stopped and killed."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        # Any two clocks run apart by what the protocol allows for at most.
        self.rate = 1 + world.rng.choice([-0.5, 0.0, 0.5]) * DRIFT
        self.life = 0
        self.alive = self.stopped = False
        self.hung = self.frozen = False
        """hung: the loop of the sidecar does not turn, kazoo's threads do; frozen: nothing of the node runs."""
        self.linked = True
        self.loses = ""
        """The next write of this kind is done, and its answer is lost with the connection."""
        self.slow_s = self.stopped_until = 0.0
        self.left_behind: tuple[str, bool] | None = None
        self.note: tuple[str, bool] | None = None
        self.guard: Guard | None = None
        self.start()

    def clock(self) -> float:
        return self.world.now * self.rate + EPOCH

    def at(self, instant: float, then: Any) -> None:
        self.world.at((instant - EPOCH) / self.rate + 1e-6, then)

    def delay(self) -> float:
        delay_s = self.world.rng.uniform(0.0003, 0.003)
        return delay_s + self.world.rng.uniform(0, self.slow_s) if self.slow_s else delay_s

    def start(self) -> None:
        self.life += 1
        self.alive, self.stopped = True, False
        self.left_behind = self.note
        self.inbox: deque[events.Event] = deque()
        self.backlog: list[Any] = []
        self.turning = False
        self.wake_at: float | None = None
        self.due: float | None = None
        self.state = term.State(self.world.settings)
        self.client = Client(self)
        self.attempt: Attempt | None = None
        self.step(events.Began())
        self._sleep(term.next_deadline(self.state))

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
        if self.stopped or self.hung:
            self.backlog.append(lambda: self.turn(life))
            return
        self.turning = False
        while self.inbox and self.alive:
            self.step(self.inbox.popleft())
        if not self.alive:
            return
        due = term.next_deadline(self.state)
        if due is not None and due <= self.clock():
            self.step(events.Time())
            due = term.next_deadline(self.state)
        self._sleep(due)

    def step(self, event: events.Event) -> None:
        now = self.clock()
        if not isinstance(event, events.Time):
            self.world.say(self.name, "<-", event)
        self.state, todo = term.step(self.state, event, now)
        if isinstance(event, events.Lost):
            kept = self.state.child in DEAD or self.state.guard is term.Guard.KILLED
            self.world.require(kept, "S1", f"{self.name} goes on with its child, told that its session is lost")
        for action in todo:
            self.carry_out(action)
            if not self.alive:
                return
        if self.world.strict:
            self.world.check_progress(term, self.state, events.Time(), now)

    def _sleep(self, due: float | None) -> None:
        """Wake up in time; an alarm that is set already rings too early at worst."""
        if not self.alive:
            return
        self.due = due
        if due is not None and (self.wake_at is None or due < self.wake_at):
            self.wake_at, life = due, self.life
            self.at(max(due, self.clock()), lambda: due == self.wake_at and self._woken(life))

    def _woken(self, life: int) -> None:
        if life != self.life:
            return
        self.wake_at = None
        if self.due is not None and self.due > self.clock() and not self.inbox:
            self._set_alarm()
        else:
            self.turn(life)

    def _set_alarm(self) -> None:
        due, life = self.due, self.life
        self.wake_at = due
        self.at(due or 0.0, lambda: due == self.wake_at and self._woken(life))

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            self.client.stopped = True  # without closing: the session lives on
            self.client.connected = False
            if self.guard is not None:
                self.guard.tell(custody.SidecarGone())
            self.world.say(self.name, "sidecar is dead")
            self._restart_later()

    def _restart_later(self) -> None:
        self.world.after(self.world.rng.uniform(0.3, 3), self._restart)

    def _restart(self) -> None:
        if self.frozen or (self.guard is not None and (self.guard.alive or self.guard.lives())):
            self._restart_later()  # the host lock
        else:
            self.guard = None
            self.start()

    def go_on(self) -> None:
        self.stopped_until = self.world.now if self.stopped else self.stopped_until
        self.stopped = self.hung = False
        backlog, self.backlog = self.backlog, []
        for then in backlog:
            self.inside(then)

    # what the edges do

    def member(self) -> Member:
        return term.member(self.state, Member(id=self.name), self.clock(), 0.0)

    def carry_out(self, action: do.Action) -> None:  # noqa: C901, PLR0912, PLR0915  # one case an action
        if isinstance(action, do.Say):
            return
        zk, client, guard = self.world.zk, self.client, self.guard
        self.world.say(self.name, "->", action)
        match action:
            case do.Renew(node, sent_at):
                member, session = self.member(), client.session or 0
                client.call(
                    lambda: zk.write(session, node, member), lambda got: self._renewed(node, sent_at, got), "renew"
                )
            case do.ReadControl():
                touched = self._watch(client, "control", events.ControlTouched())
                client.call(
                    touched, lambda got: got == LOST or self.post(events.ControlRead(zk.control), client), "read"
                )
            case do.ReadLedger():
                touched = self._watch(client, "ledger", events.LedgerTouched())
                client.call(touched, lambda got: got == LOST or self.post(events.LedgerRead(*got), client), "read")
            case do.Enter(node, version, lease_s):
                number = client.session or 0
                client.call(
                    lambda: zk.enter(number, node, version, lease_s),
                    lambda got: self.post(events.Entered(node, got is True), client),
                    "enter",
                )
            case do.Join(attempt):
                self.attempt = Attempt(attempt, client, self.member())
            case do.Leave(attempt, led):
                if self.attempt is not None and self.attempt.number == attempt:
                    self.attempt.leave(led)
            case do.LookAgain(attempt):
                if self.attempt is not None and self.attempt.number == attempt:
                    self.attempt.wake()
            case do.LookAt(node):
                client.call(lambda: client.view().get(node), lambda got: self._seen(node, got))
            case do.Evict(node, version):
                client.call(
                    lambda: zk.delete(node, "eviction", version), lambda got: self._evicted(client, node, got), "evict"
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
                self.world.count("guard doubted")
                guard.kill()
            case do.Park() if guard is not None:
                guard.tell(custody.Park())
            case do.StartChild(epoch, node, deadlines) if guard is not None:
                guard.order = (node, epoch)
                guard.tell(custody.Begin(deadlines.soft, deadlines.hard))
            case do.ExtendLease(deadlines) if guard is not None:
                guard.tell(custody.Extend(deadlines.soft, deadlines.hard))
            case do.StopChild(kill_at) if guard is not None:
                if self.state.term is not None and self.state.term.ending is None:
                    self.world.count("paused child stopped")
                guard.tell(custody.Stop(kill_at))
            case do.KillChild() if guard is not None:
                guard.tell(custody.Kill())
            case do.TermEnded(_epoch, why):
                self.world.count(f"term ended: {REASON.match(why)[0]}")
            case do.NewSession():
                self.world.count("session dropped")
                client.stop()
                self.attempt, self.client = None, Client(self)
            case do.Close():
                client.stop()
                self.world.say(self.name, "ends")
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

    def _evicted(self, client: Client, node: str, got: str) -> None:
        self.world.count(f"eviction: {got}")
        self.post(events.EvictionTried(node, got == "deleted"), client)

    def _seen(self, node: str, got: Znode | str | None) -> None:
        if isinstance(got, Znode):
            self.post(events.MemberSeen(node, got.version, got.member))
