"""Several nodes with one schedule: the real scheduler and store, on a ZooKeeper, a broker and clocks of our own.

Whatever a transaction writes is held against the oracle as it goes through, and each message as it is sent. Nothing
here uses zkbeat's own arithmetic, or reads its znodes with its own code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from celery import Celery
from kombu.exceptions import OperationalError

from tests.schedule import oracle
from tests.schedule.fake import Ensemble, Session
from zkbeat import client
from zkbeat.launcher import clocks
from zkbeat.schedule import calendars, scheduler
from zkbeat.schedule.store import Store
from zkbeat.settings import Place

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = "/zkbeat/e"
STATE = f"{BASE}/schedule/state"
INTENT = f"{BASE}/schedule/intent"
CONTROL = f"{BASE}/schedule/control"
SECOND = oracle.SECOND
FORGET = 30 * 86400 * SECOND
SOLAR_SLACK = SECOND
BUSY_TURNS = 3000
WALKED = 10_000
SEEN_AFTER = 1_000_000
BUCKET_BYTES = 4096 + 512


class Crash(BaseException):
    """The process is gone, from one instruction to the next."""


class Ended(BaseException):
    """The process ended itself: it is fenced."""


class Broken(BaseException):
    """What is never to happen has; the scheduler would take an AssertionError for a broker that refuses."""


@dataclass
class Entry:
    """What an app defines."""

    kind: Any
    catch_up: str | None = None
    within_s: float | None = None


@dataclass
class Broker:
    down_until: int = 0
    delivers: bool = False
    """Whether a message arrives though the publish fails."""


class Beat(scheduler.ZooKeeperScheduler):
    """The scheduler of one node, whose messages go to the world."""

    producer = None
    world: World
    node: Node

    def _open(self) -> Any:
        return Store(Place(access=self.node, base=self._place.base), self._leader)

    def apply_async(self, entry: Any, **_options: Any) -> None:
        self.world.publish(self.node, entry)


@dataclass(eq=False)
class Node:
    """One process that is beat."""

    world: World
    app: Any
    znode: str | None
    epoch: str
    offset: int = 0
    session: Any = None
    beat: Any = None
    alive: bool = True
    turn_now: int = 0
    turn_boot: int = 0
    added: dict[str, Entry] = field(default_factory=dict)

    @property
    def now(self) -> int:
        return self.world.now + self.offset

    def start(self) -> None:
        """Take over; that may take until ZooKeeper answers."""
        environ = {scheduler.LEADER_ZNODE: self.znode, scheduler.EPOCH: self.epoch} if self.znode else {}
        self.app.now = lambda: oracle.moment(self.now).astimezone(self.app.timezone)
        self.app.conf.zkbeat_unfenced = self.znode is None
        self.turn_now = self.now
        cls = type("Beat", (Beat,), {"world": self.world, "node": self})
        with patch.dict(os.environ, environ):
            self._run(lambda: setattr(self, "beat", cls(self.app)))

    def turn(self) -> float:
        """Take one turn of the loop; return how long it wants to sleep."""
        self.turn_now, self.turn_boot = self.now, self.world.boot
        slept = [0.0]
        self._run(lambda: slept.__setitem__(0, self.beat.tick()))
        return slept[0]

    def stop(self) -> None:
        """End as celery does: `close` in the signal handler, and again when the loop has ended."""

        def close() -> None:
            self.beat.close()
            self.beat.close()

        self._run(close)
        self.alive = False

    def _run(self, step: Callable[[], None]) -> None:
        acting, self.world.acting = self.world.acting, self
        try:
            step()
        except (Crash, Ended):
            self.alive = False
        except Broken as broken:
            raise AssertionError(*broken.args) from broken
        finally:
            self.world.acting = acting


@dataclass(frozen=True)
class Sent:
    """How things stood when a transaction was sent; it may go through much later."""

    node: Node
    planned_at: int
    planned_boot: int
    now: int
    beat: Any


class World:
    """The znodes, the time, the broker, the nodes, and what is known of what they did."""

    def __init__(self, start: int, zone: str, entries: dict[str, Entry], *, fenced: bool) -> None:
        self.now = self.boot = start
        self.zone = zone
        self.entries = dict(entries)
        self.policies = {name: entry for name, entry in entries.items() if entry.catch_up is not None}
        self.kinds: dict[str, Any] = {}
        self.fenced = fenced
        self.ensemble = Ensemble()
        self.ensemble.on_commit = self._committed_by
        self.broker = Broker()
        self.unreachable_until = 0
        self.nodes: list[Node] = []
        self.acting: Node | None = None
        self.trap: tuple[int, Callable[[], None]] | None = None
        self.epoch = 0
        self.trouble = False
        """Whether anything went wrong that allows a second message of one tick."""
        self.writer: Node | None = None
        self.last_due: dict[str, int] = {}
        self.names: dict[str, tuple[str, int, str | None]] = {}
        self.sent: Counter[tuple[str, int, str | None]] = Counter()
        self.budget: Counter[tuple[str, int, str | None]] = Counter()
        self.nonces: set[str] = set()
        self.unreported: set[tuple[str, int, str | None]] = set()
        self.held: dict[str, list[Any]] = {}
        self.held_since: dict[str, int] = {}
        self._patches = contextlib.ExitStack()
        self._patch()

    # the edges

    def _patch(self) -> None:
        clock = SimpleNamespace(now=lambda: self.boot / SECOND, wall=lambda: self.now / SECOND)

        def end(_why: str) -> None:
            raise Ended

        for module, name, stand_in in (
            (scheduler, "clock", clock),
            (clocks, "clock", clock),
            (scheduler, "fence", SimpleNamespace(end=end)),
            (client, "plain_client", lambda node, on_error: self._connect(node)),  # noqa: ARG005
            (client, "stop_within", lambda session, _within_s: session.stop()),
        ):
            self._patches.enter_context(patch.object(module, name, stand_in))

    def close(self) -> None:
        self._patches.close()

    def _connect(self, node: Node) -> Session:
        def reaches() -> bool:
            return self.boot >= self.unreachable_until

        node.session = Session(
            self.ensemble, reaches, self.point, lambda: Sent(node, node.turn_now, node.turn_boot, node.now, node.beat)
        )
        return node.session

    def point(self) -> None:
        """Somewhere in a turn: what was planned for the so-and-so-many-th of these happens here."""
        if self.trap is None:
            return
        left, act = self.trap
        self.trap = (left - 1, act) if left > 1 else None
        if left <= 1:
            act()

    # time and nodes

    def pass_time(self, us: int) -> None:
        self.now += us
        self.boot += us

    @property
    def leader(self) -> Node | None:
        """The node that was elected last, if it is still there."""
        living = [node for node in self.nodes if node.alive]
        return living[-1] if living else None

    def elect(self, offset: int = 0) -> Node:
        """Have a new node lead: the former's znode is gone, whatever the former does."""
        self.epoch += 1
        znode = f"{BASE}/election/{self.epoch:010d}" if self.fenced else None
        if znode is not None:
            for former in [path for path in self.ensemble.znodes if path.startswith(f"{BASE}/election/")]:
                del self.ensemble.znodes[former]
            self.ensemble.znodes[znode] = b"", 0
        app = _app(self.zone, [node.app for node in self.nodes if node.alive])
        node = Node(self, app, znode, str(self.epoch), offset)
        self.nodes.append(node)
        self.define(node)
        node.start()
        return node

    def define(self, node: Node) -> None:
        """Give the node's app what the entries are now."""
        conf = node.app.conf
        conf.beat_schedule = {
            name: {"task": "tasks.run", "schedule": self._make(node, entry.kind)}
            for name, entry in self.entries.items()
        }
        conf.zkbeat_catch_up = {
            name: entry.catch_up if entry.within_s is None else (entry.catch_up, entry.within_s)
            for name, entry in self.policies.items()
        }

    def add(self, node: Node, name: str, entry: Entry) -> None:
        """Add an entry to a running scheduler; only that one knows it."""
        node.added[name] = entry
        node.beat.add(name=name, task="tasks.run", schedule=self._make(node, entry.kind))

    def _make(self, node: Node, kind: Any) -> Any:
        made = kind.make()
        made.app = node.app
        self.kinds[calendars.fingerprint(made)] = kind
        return made

    def turns(self, node: Node, at_most: int, until: int | None = None) -> None:
        """Let the node's loop run."""
        for _ in range(at_most):
            if not node.alive:
                return
            slept = node.turn()
            if until is not None and self.now + slept * SECOND > until:
                return
            self.pass_time(int(slept * SECOND))

    def control(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Have an operator write what they ask for."""
        data, version = self.ensemble.znodes.get(CONTROL, (b'{"v":1,"held":{},"requests":[]}', -1))
        said = json.loads(data)
        change(said)
        self.ensemble.znodes[CONTROL] = json.dumps(said).encode(), version + 1
        self.held = said["held"]
        self.held_since = {key: self.held_since.get(key, self.boot) for key in self.held}

    # what is sent

    def publish(self, node: Node, entry: Any) -> None:
        """Take a message, or fail, or both."""
        self.point()
        down = self.boot < self.broker.down_until
        if not down or self.broker.delivers:
            try:
                self._check_message(node, entry)
            except AssertionError as error:
                raise Broken(*error.args) from error
        if down:
            raise OperationalError("the broker takes nothing")
        self.point()

    def _check_message(self, node: Node, entry: Any) -> None:
        options = entry.options
        headers = options["headers"]
        name, nonce = headers["zkbeat-tick"], headers["zkbeat-nonce"]
        assert name in self.names, f"{name!r} was sent, and nobody said that it would be"
        tick = self.names[name]
        assert _key(str(entry.name)) == tick[0], "the message of another entry"
        said = hashlib.sha256(f"{BASE}\n{name}".encode("utf-8", "surrogatepass")).digest()
        assert options["task_id"] == str(uuid.UUID(bytes=said[:16], version=5))
        assert options["retry"] is False
        assert headers["zkbeat-epoch"] == (node.epoch if self.fenced else "")
        assert nonce not in self.nonces, "a nonce that was used already"
        self.nonces.add(nonce)
        self.sent[tick] += 1
        if self.boot < self.broker.down_until:
            self.trouble = True
            self.budget[tick] += 1
        assert self.sent[tick] <= self.budget[tick], f"{name} was sent {self.sent[tick]} times"
        assert self.sent[tick] == 1 or self.trouble, f"{name} was sent twice, and nothing had gone wrong"

    def names_of(self, key: str) -> list[tuple[str, int, str | None]]:
        """Return the ticks of an entry that were intended, ever."""
        return [tick for tick in self.names.values() if tick[0] == key]

    # what is written

    def states(self) -> dict[str, list[Any]]:
        return _states(self.ensemble.znodes)

    def intent(self) -> list[tuple[str, int, str | None]]:
        return _ticks(self.ensemble.znodes)

    def _committed_by(self, before: dict[str, tuple[bytes, int]], by: Sent) -> None:
        if self.fenced:
            assert by.node.znode in self.ensemble.znodes, "a leader that was deposed got a transaction through"
        old, new = _states(before), self.states()
        earlier, later = _ticks(before), self.intent()
        added = [tick for tick in later if tick not in earlier]
        assert len(set(later)) == len(later), "one tick, owed twice"
        owing = [key for key, _due, request in later if request is None]
        assert len(set(owing)) == len(owing), "an entry that is owed is not due again before that went out"
        by_key = {key: (due, request) for key, due, request in added if request is None}
        self._check_take_over(by, earlier)
        for tick in added:
            self._check_intended(by, *tick)
        for tick in [tick for tick in earlier if tick not in later]:
            self._check_struck_off(by, tick, old, new)
        for key in old.keys() | new.keys():
            if old.get(key) != new.get(key):
                due = by_key.pop(key, (None,))[0]
                self._check_moved(by, key, old.get(key), new.get(key), due)
        assert not by_key, "ticks of entries that did not move on"
        for path, (data, _version) in self.ensemble.znodes.items():
            if path.startswith(f"{STATE}/") and len(json.loads(data)["entries"]) > 1:
                assert len(data) < BUCKET_BYTES, "a bucket that has grown too large"

    def _check_take_over(self, by: Sent, owed: list[tuple[str, int, str | None]]) -> None:
        """Whoever reads the schedule anew sends what is owed, also what another has sent already."""
        if self.writer is not by.node:
            self.writer = by.node
            for tick in owed:
                self.budget[tick] += 1
                self.trouble |= self.sent[tick] > 0

    def _check_intended(self, by: Sent, key: str, due: int, request: str | None) -> None:
        tick = key, due, request
        name = f"{key}@{oracle.moment(due).isoformat()}" + (f"#{request}" if request is not None else "")
        assert name not in self.names, f"{name} was intended twice"
        self.names[name] = tick
        self.budget[tick] += 1
        self.unreported.add(tick)
        if request is not None:
            return
        assert due <= by.planned_at, f"{name} is not due yet"
        held_since = self.held_since.get(key, by.planned_boot)
        assert by.planned_boot < held_since + SEEN_AFTER or key not in self.held, f"{name} is held back"
        assert due > self.last_due.get(key, -(2**62)), f"{name} comes after a later one"
        self.last_due[key] = due

    def _check_struck_off(
        self, by: Sent, tick: tuple[str, int, str | None], old: dict[str, list[Any]], new: dict[str, list[Any]]
    ) -> None:
        key, _due, request = tick
        self.unreported.discard(tick)
        if self.sent[tick]:
            return
        if request is None:
            counted = key not in new or new[key][2] > old[key][2]
            assert counted, f"{tick} was neither sent nor counted as missed"
        else:
            assert key not in by.beat._keys, f"{tick} was asked for, and never sent"

    def _check_moved(
        self, by: Sent, key: str, before: list[Any] | None, after: list[Any] | None, due: int | None
    ) -> None:
        if after is None:
            assert before[3] == ""
            assert before[0] < by.now - FORGET, f"{key!r} was forgotten too soon"
            self.last_due.pop(key, None)
            return
        last, count, missed, mark, _following = after
        if before is None:
            assert last <= by.now
            assert (count, missed, due) == (0, 0, None), f"{key!r} is new, and has a past"
            return
        if mark == "":
            assert due is None
            assert last == before[0] or before[0] < last <= by.now
            return
        kind = self.kinds[mark]
        if before[3] != mark:
            assert due is None
            assert after[1:3] == before[1:3]
            self._check_adopted(by, kind, before[0], last)
            return
        assert count == before[1] + (due is not None)
        if last == before[0]:
            assert due is None
            assert missed == before[2] + 1, f"{key!r}: nothing but a tick that is given up leaves the last due time"
            return
        self._check_decided(by, key, kind, before, after, due)

    def _check_adopted(self, by: Sent, kind: Any, before: int, last: int) -> None:
        if isinstance(kind, oracle.Grid):
            assert last == before or before < last <= by.now
            return
        latest = oracle.latest(kind, before, last + SOLAR_SLACK, self.zone)
        assert last == before or abs(last - latest) <= SOLAR_SLACK, f"{kind} from {before}: {last} is no due time"
        if isinstance(kind, oracle.Relative) and oracle.count(kind, before, by.planned_at, self.zone) > WALKED:
            return  # more than are gone through at once
        overdue = oracle.count(kind, max(last, before), by.planned_at, self.zone)
        assert not overdue, (
            f"{kind} from {before} to {last}: {overdue} were due before it was known, at {by.planned_at}"
        )

    def _check_decided(
        self, by: Sent, key: str, kind: Any, before: list[Any], after: list[Any], due: int | None
    ) -> None:
        now = by.planned_at
        if isinstance(kind, oracle.Grid):
            assert before[0] // oracle.GRID < after[0] // oracle.GRID
            assert after[0] <= now
            return
        if isinstance(kind, oracle.Relative) and due is None and after[2] - before[2] == WALKED:
            return  # so many of them that the next turn goes on with it
        entry = self._policy(key)
        expected = oracle.decide(kind, before[0], now, self.zone, *entry)
        slack = SOLAR_SLACK if isinstance(kind, oracle.Solar) else 0
        assert expected is not None, f"{key!r} ({kind}) was not due"
        done = expected.agrees(after[0], due, after[2] - before[2], slack)
        assert done, f"{key!r} ({kind}, {entry}) from {before} at {now}: {after}, and not {expected}"

    def _policy(self, key: str) -> tuple[str, float | None]:
        for name, entry in self.policies.items():
            if _key(name) == key:
                return entry.catch_up, entry.within_s
        return "once", None

    # the end

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self.trap = None
        self.unreachable_until = self.broker.down_until = 0
        self.ensemble.deliver_late()
        for node in self.nodes:
            if node.session is not None:
                node.session.fates.clear()

    def settle_down(self, at_most: int) -> bool:
        """Let the leader do what there is to do; say whether it came to its end."""
        self.heal()
        leader = self.leader
        if leader is None or not self.fenced:  # one of several knows only what it has to write about
            leader = self.elect()
        for node in self.nodes:
            if node is not leader:
                node.alive = False
        self.pass_time(2 * SECOND)
        busy = 0
        for _ in range(at_most):
            slept = leader.turn()
            assert leader.alive, "the leader is gone, and nothing was wrong"
            busy = busy + 1 if slept == 0 else 0
            assert busy < BUSY_TURNS, "it turns and turns"
            if slept and not self.intent():
                return True
            self.pass_time(int(slept * SECOND))
        return False

    def check_all_is_done(self) -> None:
        """See that nothing is owed or overlooked, and that the book is what stands in ZooKeeper."""
        leader = self.leader
        assert not self.unreported, f"{self.unreported} were intended, and nothing came of them"
        states = self.states()
        book = leader.beat._book
        assert {key: state.to_json() for key, state in book.states.items()} == states
        assert book.intent_version == self.ensemble.znodes[INTENT][1]
        defined = {_key(name): entry for name, entry in {**self.entries, **leader.added}.items()}
        assert {key for key, state in states.items() if state[3] != ""} == defined.keys()
        for key, entry in defined.items():
            if key in self.held:
                continue
            last = states[key][0]
            if isinstance(entry.kind, oracle.Grid):
                assert last // oracle.GRID >= leader.turn_now // oracle.GRID
            else:
                overdue = next(oracle.dues(entry.kind, last, leader.turn_now - 2, self.zone), None)
                assert overdue is None, f"{key!r} ({entry}) was due at {overdue}"


_APPS: dict[str, list[Any]] = {}


def _app(zone: str, taken: list[Any]) -> Any:
    """Return an app that no living node has; making one takes longer than all else."""
    apps = _APPS.setdefault(zone, [])
    for app in apps:
        if not any(app is one for one in taken):
            return app
    app = Celery(set_as_current=False)
    app.conf.update(timezone=zone, result_expires=None, zkbeat_hosts="nowhere:1", zkbeat_name="e")
    apps.append(app)
    return app


def _key(name: str) -> str:
    """Return what an entry is known by, as the documentation of the znodes has it."""
    if len(name) <= 200:
        return name
    return f"{name[:180]}...{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _states(znodes: dict[str, tuple[bytes, int]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for path, (data, _version) in znodes.items():
        if path.startswith(f"{STATE}/"):
            entries = json.loads(data)["entries"]
            assert not entries.keys() & found.keys(), "an entry in two buckets"
            found |= entries
    return found


def _ticks(znodes: dict[str, tuple[bytes, int]]) -> list[tuple[str, int, str | None]]:
    if INTENT not in znodes:
        return []
    return [(one[0], one[1], one[2] if len(one) > 2 else None) for one in json.loads(znodes[INTENT][0])["ticks"]]
