"""A sidecar's machine, driven event by event to where a test begins."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from zkbeat.core import actions as do
from zkbeat.core import events as ev
from zkbeat.core.record import Ledger
from zkbeat.core.term import Settings, State, Time, next_deadline, step

T = 12.0
LEASE_S = 8.0
ME, THEM = "me__lock__0000000001", "them__lock__0000000000"
LEFT = Ledger(led=THEM, lease=LEASE_S, left=True)


@dataclass
class Sidecar:
    """A state, a clock, and what was done last."""

    state: State = field(default_factory=lambda: State(Settings(session_timeout_s=T)))
    now: float = 100.0
    done: list = field(default_factory=list)

    def tell(self, *happened, at=None):
        self.now = self.now if at is None else at
        self.done = []
        for event in happened:
            self.state, actions = step(self.state, event, self.now)
            self.done += actions
        return self

    def did(self, *kinds):
        return [action for action in self.done if isinstance(action, kinds)]

    def served(self):
        """Let time pass to the next deadline."""
        return self.tell(Time(), at=max(next_deadline(self.state), self.now))

    @property
    def said(self):
        return [action.event for action in self.did(do.Say)]


def connected(**chosen):
    sidecar = Sidecar(State(Settings(session_timeout_s=T, **chosen)))
    return sidecar.tell(ev.Began(), ev.GuardReady(), ev.Connected(7, T, 99.9))


def standby(**chosen):
    sidecar = connected(**chosen).tell(ev.Queued(1, ME, 1, THEM))
    # What the first answer has measured, a second write tells the others.
    return sidecar.tell(ev.Renewed(ME, sidecar.now, 7, 5, 0.0)).tell(ev.Renewed(ME, sidecar.now, 7, 5, 0.0))


def elected(**chosen):
    return connected(**chosen).tell(ev.Queued(1, ME, 0, None), ev.Elected(1, ME))


def renewed(sidecar, **changes):
    return sidecar.tell(replace(ev.Renewed(ME, sidecar.state.term.sent_at, 7, 5, 0.0), **changes))


def starting(**chosen):
    sidecar = elected(**chosen).tell(ev.ControlRead(None), ev.LedgerRead(LEFT, 3))
    return renewed(sidecar).tell(ev.Entered(ME, ok=True))


def leading(**chosen):
    sidecar = starting(**chosen).tell(ev.ChildStarted(42))
    return renewed(sidecar).tell(ev.GuardConfirmed())
