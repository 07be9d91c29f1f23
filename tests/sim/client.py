"""A kazoo client in memory, and what kazoo's Election does with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.sim.zookeeper import FAILED, LOST, NO_NODE, Follower, Znode
from zkbeat.core import events
from zkbeat.core.record import Member, line

if TYPE_CHECKING:
    from tests.sim.node import Node


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
        self.served: dict[int, str] = {}
        """The writes that are done, and not answered yet."""
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
        for what in self.served.values():
            self.world.count(f"ambiguous {what}")
        self.served.clear()
        self.node.inside(lambda: self._suspended(pending))

    def _suspended(self, pending: dict[int, Any]) -> None:
        self.node.post(events.Suspended(), self)
        for then in pending.values():
            if self.world.rng.random() < 0.8:  # else it raced the loss, and is never answered
                then(LOST)
        self._wake_attempts()
        self._connect()

    def call(self, serve: Any, then: Any, what: str = "") -> None:
        """Have the server do something; `then` gets what it returns, or `LOST`, or is never called.

        `what` it is that is written; a read, without one, is answered by a follower that is cut off, too.
        """
        world, connection = self.world, self.connection
        if self.stopped:
            return
        if not self.connected:
            world.after(0.01, lambda: self.node.inside(lambda: then(LOST)))
            return
        self.calls = call = self.calls + 1
        self.pending[call] = then

        def answer(result: Any) -> None:
            if self.connection == connection and self.connected and self.pending.pop(call, None) is not None:
                self.served.pop(call, None)
                then(result)

        self.there_at = max(self.there_at, world.now + self.node.delay())
        world.at(self.there_at, lambda: self._arrive(call, connection, what, serve, answer))

    def _arrive(self, call: int, connection: int, what: str, serve: Any, answer: Any) -> None:
        world = self.world
        if self.connection != connection or (not self.connected and world.rng.random() < 0.5):
            return
        if not self.node.linked or not self.zk.up or (self.follower.cut_at is not None and what):
            return
        if self.session in self.zk.sessions:
            self.zk.active(self.zk.sessions[self.session])
        result = serve()
        if what not in {"", "read"}:
            self.served[call] = what
            if self.node.loses in {what, "any"}:
                self.node.loses = ""
                self.break_off()
                return
        self.back_at = max(self.back_at, world.now + self.node.delay())
        world.at(self.back_at, lambda: self.node.inside(lambda: answer(result)))

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
        client.call(self._prepare, lambda _result: self._acquire(), "prepare")

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
            self.client.call(self._find, self._found)
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
        session = self.client.session or 0
        self.client.call(lambda: self.zk.create(session, self.prefix, self.member), self._created, "create")

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
            self.client.call(lambda: line(list(self.client.view())), self._looked)

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
            self.client.call(lambda: self._watch(ahead[-1]), self._watched)

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
            self.client.call(self._find_and_delete, self._cleaned_up, "leave")
        elif self.led == znode:
            self.node.left_behind = (znode, True)
            self.client.call(lambda: self.zk.leave(znode, "release", led=True), self._cleaned_up, "leave")
        else:
            self.client.call(lambda: self.zk.delete(znode, "release"), self._cleaned_up, "leave")

    def _find_and_delete(self) -> str | None:
        found = self._find()
        return found and self.zk.delete(found, "release")

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
