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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from zkbeat.core import actions as do
from zkbeat.core import custody, events, term
from zkbeat.core.custody import Act
from zkbeat.core.lease import KILL_MARGIN_S, agree
from zkbeat.core.record import Control, Ledger, Member, line

if TYPE_CHECKING:
    from collections.abc import Iterator

LOST, NO_NODE, BAD_VERSION, EXPIRED = "connection loss", "no node", "bad version", "session expired"
FAILED = {LOST, NO_NODE, BAD_VERSION, EXPIRED}

STEPS_AT_MOST = 50_000

LONGEST_BACK_OFF_S = 20.0
"""A child that ends by itself time and again is not the subject here: what a few such ends can cost."""


class Violation(AssertionError):  # noqa: N818  # what it is, not what went wrong here
    """An invariant is broken; the message holds the seed and what happened last."""


@dataclass
class Znode:
    session: int
    epoch: int
    member: Member
    version: int = 0


@dataclass
class Session:
    follower: Follower
    heard: float
    reported_at: float | None = None
    """When the follower's next report will name this session."""
    nodes: set[str] = field(default_factory=set)


@dataclass
class Follower:
    phase: float
    cut_at: float | None = None
    view: dict[str, Znode] | None = None
    """What it knew when it was cut off."""


@dataclass
class Child:
    node: Node
    znode: str
    epoch: int
    started_at: float
    alive: bool = True
    robbed: bool = False
    """Its election znode has gone under it, by no fault of ours."""


class ZooKeeper:
    """One quorum leader, which owns sessions and znodes, behind three followers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.up = True
        self.zxid = self.sequence = self.last_session = 0
        self.znodes: dict[str, Znode] = {}
        self.sessions: dict[int, Session] = {}
        self.followers = [Follower(world.rng.uniform(0, world.tick_s / 2)) for _ in range(3)]
        self.watchers: dict[str, list[Any]] = {}
        self.control: Control | None = None
        self.ledger: Ledger | None = None
        self.ledger_version = 0

    # sessions

    def open(self, follower: Follower) -> int:
        self.last_session += 1
        self.sessions[self.last_session] = Session(follower, self.world.now)
        self._expect_expiry(self.last_session)
        return self.last_session

    def touch(self, number: int, follower: Follower) -> bool:
        """A reconnect, which the quorum leader hears of at once."""
        session = self.sessions.get(number)
        if session is None:
            return False
        session.follower, session.heard, session.reported_at = follower, self.world.now, None
        return True

    def active(self, session: Session) -> None:
        if session.reported_at is None or session.reported_at <= self.world.now:
            self._take_report(session)
            follower, half = session.follower, self.world.tick_s / 2
            session.reported_at = follower.phase + (int((self.world.now - follower.phase) / half) + 1) * half

    def _take_report(self, session: Session) -> None:
        at, cut_at = session.reported_at, session.follower.cut_at
        if at is not None and at <= self.world.now and (cut_at is None or at < cut_at):
            session.heard = max(session.heard, at)
            session.reported_at = None

    def _expect_expiry(self, number: int) -> None:
        session, tick = self.sessions[number], self.world.tick_s
        due = (int((session.heard + self.world.timeout_s) / tick) + self.world.rounds_up) * tick
        self.world.at(max(due, session.heard + self.world.timeout_s), lambda: self._expire(number))

    def _expire(self, number: int) -> None:
        session = self.sessions.get(number)
        if session is None:
            return
        self._take_report(session)
        if not self.up:
            self.world.after(self.world.tick_s, lambda: self._expire(number))
        elif session.heard + self.world.timeout_s > self.world.now + 1e-9:
            self._expect_expiry(number)
        else:
            self.close(number, "expiry")

    def close(self, number: int, by: str) -> None:
        session = self.sessions.pop(number, None)
        for name in sorted(session.nodes) if session is not None else []:
            self.remove(name, by)
        for node in self.world.nodes:
            if node.client.session == number and node.linked:
                node.client.break_off()  # the server hangs up

    def reelect(self) -> None:
        """A new quorum leader starts every session's timer anew."""
        self.up = True
        for session in self.sessions.values():
            session.heard = self.world.now

    def cut(self, follower: Follower) -> None:
        for session in self.sessions.values():
            self._take_report(session)
        follower.cut_at, follower.view = self.world.now, {k: Znode(**vars(v)) for k, v in self.znodes.items()}

    # znodes

    def create(self, number: int, prefix: str, member: Member) -> str:
        if number not in self.sessions:
            return EXPIRED
        self.zxid += 1
        name = f"{prefix}__lock__{self.sequence:010d}"
        self.sequence += 1
        self.znodes[name] = Znode(number, self.zxid, member)
        self.sessions[number].nodes.add(name)
        return name

    def write(self, number: int, name: str, member: Member) -> Znode | str:
        if number not in self.sessions:
            return EXPIRED
        znode = self.znodes.get(name)
        if znode is None:
            return NO_NODE
        self.zxid += 1
        znode.member, znode.version = member, znode.version + 1
        self.fire(name)
        return Znode(**vars(znode))

    def delete(self, name: str, by: str, version: int | None = None) -> str:
        znode = self.znodes.get(name)
        if znode is None:
            return NO_NODE
        if version is not None and znode.version != version:
            return BAD_VERSION
        self.remove(name, by)
        return "deleted"

    def leave(self, name: str, by: str, *, led: bool) -> str:
        """Delete a dead one's znode and note in the ledger that its child is dead."""
        if led and self.ledger is not None and self.ledger.led == name and not self.ledger.left:
            self._write_ledger(Ledger(name, self.ledger.lease, left=True))
        return self.delete(name, by)

    def enter(self, number: int, name: str, version: int, lease_s: float) -> bool:
        if number not in self.sessions or name not in self.znodes or version != self.ledger_version:
            return False
        self._write_ledger(Ledger(name, lease_s))
        return True

    def _write_ledger(self, ledger: Ledger) -> None:
        self.ledger, self.ledger_version = ledger, self.ledger_version + 1
        self.fire("ledger")

    def remove(self, name: str, by: str) -> None:
        znode = self.znodes.pop(name)
        self.zxid += 1
        if znode.session in self.sessions:
            self.sessions[znode.session].nodes.discard(name)
        self.world.say(f"{name[:2]} {name[-4:]} is removed: {by}")
        for child in self.world.children:
            if child.alive and child.znode == name:
                # A process that was stopped until just before it was elected has sent no pings (`core.lease`, point 6):
                # then its session may expire too early, and only the ledger stands between its child and the next.
                mute = by == "expiry" and child.started_at < child.node.stopped_until + self.world.timeout_s
                child.robbed |= by == "operator" or mute
                self.world.require(child.robbed, f"S3: {by} removes the znode of {child.node.name}'s living child")
        self.fire(name)

    def fire(self, name: str) -> None:
        for wake in self.watchers.pop(name, []):
            self.world.after(self.world.rng.uniform(0.0005, 0.004), wake)


class Client:
    """A kazoo client: one session after another, requests in order, answers in order or never."""

    def __init__(self, node: Node) -> None:
        self.node, self.world, self.zk = node, node.world, node.world.zk
        self.session: int | None = None
        self.follower = self.zk.followers[0]
        self.connected = self.stopped = False
        self.connection = 0
        self.there_at = self.back_at = 0.0
        self.pending: dict[int, Any] = {}
        self.attempts: list[Attempt] = []
        self.calls = self.tries = 0
        self._connect()

    def _connect(self) -> None:
        if self.stopped or self.connected:
            return
        rng, world = self.world.rng, self.world
        if self.node.stopped:
            self.node.backlog.append(self._connect)
            return
        follower, sent_at = rng.choice(self.zk.followers), self.node.clock()
        if not (self.node.linked and self.zk.up and follower.cut_at is None):
            self.tries += 1
            longest_s = min(1.0, world.timeout_s / 12)
            world.after(min(0.05 * 1.5**self.tries, longest_s) * rng.uniform(0.6, 1), self._connect)
            return
        world.after(rng.uniform(0.001, 0.02), lambda: self._greeted(follower, sent_at))

    def _greeted(self, follower: Follower, sent_at: float) -> None:
        if self.stopped or self.connected or not (self.node.linked and self.zk.up and follower.cut_at is None):
            self._connect()
            return
        lost = self.session is not None and not self.zk.touch(self.session, follower)
        if self.session is None or lost:
            self.session = self.zk.open(follower)
        self.follower, self.connected, self.tries = follower, True, 0
        self.connection += 1
        number, connection = self.session, self.connection
        self.node.inside(lambda: self._tell(number, sent_at, lost=lost))
        self._ping(connection)

    def _tell(self, number: int, sent_at: float, *, lost: bool) -> None:
        if lost:
            self.node.post(events.Lost(), self)
        self.node.post(events.Connected(number, self.world.timeout_s, sent_at), self)
        self._wake_attempts()

    def _wake_attempts(self) -> None:
        for attempt in self.attempts:
            attempt.wake()

    def _ping(self, connection: int) -> None:
        if self.connection != connection or not self.connected or self.stopped:
            return
        if not self.node.stopped and self.node.linked and self.session in self.zk.sessions:
            self.zk.active(self.zk.sessions[self.session])
        self.world.after(self.world.timeout_s / 3, lambda: self._ping(connection))

    def break_off(self, connection: int | None = None) -> None:
        """The connection is lost, and noticed."""
        if not self.connected or connection not in {None, self.connection}:
            return
        self.connected = False
        pending, self.pending = self.pending, {}
        self.node.inside(lambda: self._suspended(pending))

    def _suspended(self, pending: dict[int, Any]) -> None:
        self.node.post(events.Suspended(), self)
        for then in pending.values():
            if self.world.rng.random() < 0.8:  # else it raced the loss, and is never answered
                then(LOST)
        self._wake_attempts()
        self._connect()

    def call(self, serve: Any, then: Any, *, write: bool = True) -> None:
        """Have the server do something; `then` gets what it returns, or `LOST`, or is never called."""
        world, connection = self.world, self.connection
        if self.stopped:
            return
        if not self.connected:
            world.after(0.01, lambda: self.node.inside(lambda: then(LOST)))
            return
        self.calls = call = self.calls + 1
        self.pending[call] = then

        def arrive() -> None:
            if self.connection != connection or (not self.connected and world.rng.random() < 0.5):
                return
            cut = self.follower.cut_at is not None
            if not self.node.linked or not self.zk.up or (cut and write):
                return
            if self.session in self.zk.sessions:
                self.zk.active(self.zk.sessions[self.session])
            result = serve()
            self.back_at = max(self.back_at, world.now + self.node.delay())
            world.at(self.back_at, lambda: self.node.inside(lambda: answer(result)))

        def answer(result: Any) -> None:
            if self.connection == connection and self.connected and self.pending.pop(call, None) is not None:
                then(result)

        self.there_at = max(self.there_at, world.now + self.node.delay())
        world.at(self.there_at, arrive)

    def view(self) -> dict[str, Znode]:
        return self.zk.znodes if self.follower.view is None else self.follower.view

    def stop(self) -> None:
        """As `KazooClient.stop`: closes the session if it can."""
        connected, self.connected, self.stopped = self.connected, False, True
        if connected and self.node.linked and self.zk.up and self.follower.cut_at is None and self.session:
            self.zk.close(self.session, "close")


class Attempt:
    """kazoo's Election and Lock (kazoo/recipe/lock.py), with what `ensemble` adds to it."""

    def __init__(self, number: int, client: Client, member: Member) -> None:
        self.number, self.client, self.member = number, client, member
        self.node, self.zk, self.world = client.node, client.zk, client.world
        self.lives = f"{self.node.name}{self.node.life:03d}"
        self.prefix = f"{self.lives}{number:03d}"
        self.znode: str | None = None
        self.led: str | None = None
        self.over = self.elected = self.waiting = self.tried = self.ended = False
        client.attempts.append(self)
        client.call(self._prepare, lambda _result: self._acquire())

    def _prepare(self) -> None:
        """Delete what earlier attempts of this life, and an earlier life, may have left in the line."""
        if self.node.left_behind is not None:
            self.zk.leave(self.node.left_behind[0], "the next attempt", led=self.node.left_behind[1])
            self.node.left_behind = None
        for name in [name for name in self.zk.znodes if name.startswith(self.lives)]:
            self.zk.delete(name, "the next attempt")

    def _later(self) -> None:
        self.world.after(self.world.rng.uniform(0.05, 0.5), lambda: self.node.inside(self._acquire, self.client))

    def _acquire(self) -> None:
        if self.ended or self.elected:
            return
        if self.over:
            self._clean_up()
        elif self.tried:
            self.client.call(self._find, self._found, write=False)
        else:
            self.tried = True
            self._create()

    def _find(self) -> str | None:
        return next((name for name in sorted(self.client.view()) if name.startswith(self.prefix)), None)

    def _found(self, found: str | None) -> None:
        if found in FAILED:
            self._later()
        elif found is None:
            self._create()
        else:
            self._created(found)

    def _create(self) -> None:
        self.client.call(lambda: self.zk.create(self.client.session or 0, self.prefix, self.member), self._created)

    def _created(self, result: str) -> None:
        if result in FAILED:
            self._later()
            return
        self.znode = result
        self._look()

    def _look(self) -> None:
        self.waiting = False
        if self.over:
            self._clean_up()
        else:
            self.client.call(lambda: line(list(self.client.view())), self._looked, write=False)

    def _looked(self, found: Any) -> None:
        if self.over:
            self._clean_up()
        elif found in FAILED if isinstance(found, str) else self.znode not in found:
            self._later()
        else:
            ahead = found[: found.index(self.znode)]
            head = ahead[0] if ahead else None
            self.node.post(events.Queued(self.number, self.znode, len(ahead), head), self.client)
            if not ahead:
                self.elected = True
                self.node.post(events.Elected(self.number, self.znode), self.client)
                return
            self.waiting = True
            self.client.call(lambda: self._watch(ahead[-1]), self._watched, write=False)

    def _watch(self, name: str) -> str:
        if name not in self.client.view():
            return NO_NODE
        if self.client.follower.view is None:
            connection = self.client.connection
            self.zk.watchers.setdefault(name, []).append(
                lambda: self.client.connection == connection and self.node.inside(self.wake, self.client)
            )
        return "watched"

    def _watched(self, result: str) -> None:
        if result != "watched" and self.waiting:
            self.waiting = False
            self._later() if result == LOST else self._look()

    def wake(self) -> None:
        if self.waiting and not self.ended:
            self._look()

    def leave(self, led: str | None) -> None:
        self.over, self.led = True, led
        if self.waiting or self.elected:
            self._clean_up()

    def _clean_up(self) -> None:
        if self.ended:
            return
        self.waiting = False
        znode = self.znode
        if znode is None:
            self.client.call(lambda: self._find() and self.zk.delete(self._find() or "", "release"), self._cleaned_up)
        elif self.led == znode:
            self.node.left_behind = (znode, True)
            self.client.call(lambda: self.zk.leave(znode, "release", led=True), self._cleaned_up)
        else:
            self.client.call(lambda: self.zk.delete(znode, "release"), self._cleaned_up)

    def _cleaned_up(self, result: str | None) -> None:
        if result == "deleted" and self.led is not None:
            self.node.left_behind = None
        if result == LOST and (self.elected or self.world.rng.random() < 0.5):
            self.world.after(0.1, lambda: self.node.inside(self._clean_up, self.client))
        else:
            self._end()

    def _end(self) -> None:
        self.ended = True
        if self in self.client.attempts:
            self.client.attempts.remove(self)
        self.node.post(events.ElectionEnded(self.number), self.client)


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
