"""One contender: zkbeat's own machine and its own edge to ZooKeeper, without the processes of a node.

What a guard and a child would answer is answered at once, so that a thousand fit on one machine, and all that is left
between an event and its action is ZooKeeper, kazoo and `core.term`. Each request, each watch that fires and each step
of an election is noted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kazoo.protocol.serialization import Watch

from tests.bench.scale.timeline import Record
from zkbeat import __version__, clock
from zkbeat.access import Access
from zkbeat.core import actions, events, record, term
from zkbeat.ensemble import Ensemble, Post

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = ("celery", "-A", "proj", "beat")

CLOSE_WITHIN_S = 2.0


@dataclass(frozen=True)
class Spec:
    """What the contenders of one crew have in common. `elections`: each contends in one of its own."""

    hosts: str
    root: str
    session_timeout_s: float = 10.0
    elections: bool = False

    def name(self, number: int) -> str:
        return f"election-{number}" if self.elections else "election"


class _Noting(Ensemble):
    """zkbeat's edge to ZooKeeper, which notes what it asks for and what it is told."""

    def __init__(self, spec: Spec, number: int, post: Post, note: Callable[..., None]) -> None:
        self._note_down = note
        access = Access(spec.hosts, session_timeout_s=spec.session_timeout_s)
        super().__init__(access, spec.root, spec.name(number), post)

    def open(self) -> None:
        super().open()
        client = self._client
        call, read_watch = client._call, client._connection._read_watch_event

        def noted_call(request: Any, result: Any) -> Any:
            kind = type(request).__name__
            self._note_down("request", kind)
            if kind == "GetChildren":
                result.rawlink(self._note_names)
            return call(request, result)

        def noted_watch(buffer: Any, offset: int) -> Any:
            watch, _ = Watch.deserialize(buffer, offset)
            self._note_down("watch", watch.type)
            return read_watch(buffer, offset)

        # Nothing can have been asked for yet: the machine has not been told of the session.
        client._call, client._connection._read_watch_event = noted_call, noted_watch

    def _note_names(self, result: Any) -> None:
        if result.exception is None:
            self._note_down("names", len(result.value))

    def _connection_failed(self, error: Exception) -> None:
        self._note_down("refused")
        super()._connection_failed(error)


class Contender:
    """`wake` is called with the contender and an event, in any thread; `step` belongs to the loop's thread."""

    def __init__(
        self, number: int, spec: Spec, wake: Callable[[Contender, events.Event], None], records: list[Record]
    ) -> None:
        self.number = number
        self._wake = wake
        self._records = records
        self._fallen_silent = False
        self._identity = record.Member(
            id=f"contender-{number}",
            host=f"host-{number}",
            pid=os.getpid(),
            version=__version__,
            digest=record.digest(COMMAND),
            since=round(clock.wall(), 3),
        )
        settings = term.Settings(session_timeout_s=spec.session_timeout_s, digest=self._identity.digest)
        self.state = term.State(settings=settings)
        self._ensemble = _Noting(spec, number, self._post, self._note)

    @property
    def leads(self) -> bool:
        return self.state.phase is term.Phase.LEADING and not self._fallen_silent

    @property
    def settled(self) -> bool:
        """Whether it leads, or stands by in the line and its record has been written."""
        state = self.state
        waits = state.phase is term.Phase.STANDBY and state.node is not None and state.offset_s is not None
        return state.connected and (self.leads or (waits and state.announced_at is None))

    @property
    def znode(self) -> str | None:
        return self._ensemble.znode(self.state.node) if self.state.node is not None else None

    @property
    def next_deadline(self) -> float | None:
        return None if self._fallen_silent else term.next_deadline(self.state)

    def begin(self) -> None:
        self._ensemble.open()
        self.step(events.Began())

    def fall_silent(self) -> float | None:
        """Do nothing any more, as if its node were lost; its session stays. Return when its last renewal was sent."""
        self._fallen_silent = True
        return self.state.term.sent_at if self.state.term is not None else None

    def abandon(self) -> None:
        """Drop the session of a contender that has fallen silent."""
        self._ensemble.leave(self.state.attempt, None)
        self._ensemble.close(CLOSE_WITHIN_S)

    def step(self, event: events.Event) -> None:
        if self._fallen_silent:
            return
        self.state, todo = term.step(self.state, event, clock.now())
        for action in todo:
            self._carry_out(action)

    def _post(self, event: events.Event) -> None:
        self._note_event(event)
        self._wake(self, event)

    def _note(self, kind: str, what: object = None) -> None:
        self._records.append(Record(clock.now(), self.number, kind, what))

    def _note_event(self, event: events.Event) -> None:
        match event:
            case events.Connected(session):
                self._note("connected", session)
            case events.Queued(_, _, ahead):
                self._note("queued", ahead)
            case events.Renewed(_, sent_at):
                self._note("renewed", round(clock.now() - sent_at, 6))
            case events.Suspended() | events.Lost() | events.Elected():
                self._note(type(event).__name__.lower())

    def _carry_out(self, action: actions.Action) -> None:
        if not self._guard(action):
            self._ask(action)

    def _guard(self, action: actions.Action) -> bool:
        """Answer in the place of a guard and its child."""
        match action:
            case actions.SpawnGuard():
                self._wake(self, events.GuardReady())
            case actions.StartChild():
                self._note("started")
                self._wake(self, events.ChildStarted(os.getpid()))
            case actions.ExtendLease():
                self._wake(self, events.GuardConfirmed())
            case actions.StopChild() | actions.KillChild():
                self._note("stopped", self.state.stopped_for)
                self._wake(self, events.ChildDead(0))
            case actions.KillGuard():
                self._wake(self, events.GuardGone())
            case actions.Say("warning" | "error", event):
                self._note("said", event)
            case actions.Say() | actions.Place() | actions.AnswerGuard() | actions.Park():
                pass
            case _:
                return False
        return True

    def _ask(self, action: actions.Action) -> None:  # noqa: C901, PLR0912  # as the sidecar's own
        ensemble = self._ensemble
        match action:
            case actions.Renew(node, sent_at):
                self._note("renew")
                ensemble.renew(node, sent_at, self._member())
            case actions.Join(attempt):
                self._note("join")
                ensemble.join(attempt, self._member())
            case actions.Leave(attempt, led):
                self._note("leave", led)
                ensemble.leave(attempt, led)
            case actions.ReadLedger():
                ensemble.read_ledger()
            case actions.Enter(node, version, lease_s):
                ensemble.enter(node, version, lease_s)
            case actions.LookAgain(attempt):
                ensemble.look_again(attempt)
            case actions.LookAt(node):
                ensemble.look_at(node)
            case actions.Evict(node, version):
                self._note("evict")
                ensemble.evict(node, version)
            case actions.ReadControl():
                ensemble.read_control()
            case actions.TermBegan(epoch, after):
                ensemble.term_began(epoch, self._identity.id, after, self.state.offset_s or 0.0)
            case actions.TermEnded(epoch, why):
                ensemble.term_ended(epoch, why, self.state.offset_s or 0.0)
            case actions.NewSession():
                ensemble.renew_session()
            case actions.Close():
                ensemble.close(CLOSE_WITHIN_S)

    def _member(self) -> record.Member:
        return term.member(self.state, self._identity, clock.now(), clock.wall())
