"""A ZooKeeper in memory: a quorum leader that owns sessions and znodes, and followers that relay activity late."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zkbeat.core.record import Control, Ledger, Member

if TYPE_CHECKING:
    from tests.sim.world import World

LOST, NO_NODE, BAD_VERSION, EXPIRED = "connection loss", "no node", "bad version", "session expired"
FAILED = {LOST, NO_NODE, BAD_VERSION, EXPIRED}


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
            session.reported_at = follower.phase + (math.floor((self.world.now - follower.phase) / half) + 1) * half

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
        self.world.count("quorum leader changed")
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
        self.world.entered(name[:1], self.znodes[name].epoch)
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
        self.world.gone(name, znode.epoch, by)
        self.fire(name)

    def fire(self, name: str) -> None:
        for wake in self.watchers.pop(name, []):
            self.world.after(self.world.rng.uniform(0.0005, 0.004), wake)
