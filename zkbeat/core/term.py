"""What the sidecar decides: when to join the line, to start the child, to stop it, to give the leadership away.

`step(state, event, now)` is a pure function. Nothing here does I/O, draws a random number or reads a clock; `now` and
all instants are CLOCK_BOOTTIME seconds of this node. The edges (`ensemble`, `link`, `sidecar`) report what happened as
events and carry out the actions, in order.

A term, from its events to its end:

    Elected -> Renew, ReadControl, ReadLedger -> Renewed -> Enter -> Entered
            -> StartChild -> ChildStarted -> (Renew -> Renewed -> ExtendLease)*
            -> StopChild or KillChild -> ChildDead -> Leave -> ElectionEnded -> Join ...

The rules that the safety of the whole rests on, each in one place below:

- the child is started only after a renewal of this very term was acknowledged, and before its soft deadline (`_lead`);
- and only once the last leader's child is known to be dead: the ledger says so, or this node has evicted it, or its
  lease has run out since this node was elected (`_ledger_read`); that its znode is gone is no proof, anybody may have
  deleted it;
- deadlines count from the *send* of an acknowledged renewal, never from its reply (`Renewed`);
- a renewal that was refused, or the loss of the session, kills at once; a lost connection alone does nothing;
- once the soft deadline has passed the term is over, whatever arrives afterwards (`_keep_lease`);
- the leadership is left only when no child is left (`_settle`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from zkbeat.core.actions import (
    Action,
    AnswerGuard,
    Close,
    Enter,
    Evict,
    ExtendLease,
    Join,
    KillChild,
    KillGuard,
    Leave,
    LookAgain,
    LookAt,
    NewSession,
    Park,
    Place,
    ReadControl,
    ReadLedger,
    Renew,
    Rival,
    Say,
    SpawnGuard,
    StartChild,
    StopChild,
    TermBegan,
    TermEnded,
)
from zkbeat.core.beat import Beat, Parking
from zkbeat.core.events import (
    Began,
    ChildDead,
    ChildStarted,
    Connected,
    ControlRead,
    ControlTouched,
    Elected,
    ElectionEnded,
    Entered,
    Event,
    EvictionTried,
    GuardConfirmed,
    GuardGone,
    GuardReady,
    LedgerRead,
    LedgerTouched,
    Lost,
    MemberSeen,
    Parked,
    Powerless,
    Pulsed,
    Queued,
    Refused,
    ReloadRequested,
    RenewalFailed,
    Renewed,
    StepDownRequested,
    StopRequested,
    Suspended,
    Time,
    Unparked,
    Unreachable,
)
from zkbeat.core.lease import KILL_MARGIN_S, Activity, Deadlines, Lease, LeaseError, agree, evict_after_s
from zkbeat.core.record import Control, Ledger, Member

LEAVE_WITHIN_S = 2.0
"""How long leaving the line may take at the end, before the session is closed with our place still in it."""

FIRST_BACK_OFF_S = 1.0
LONGEST_BACK_OFF_S = 60.0
HEALTHY_AFTER_S = 60.0
"""A child that lived this long had started well: the back-off begins at the beginning again."""

LOOK_AGAIN_TIMEOUTS = 3.0
"""After how many session timeouts one who stands further back looks at the whole line again."""

LINE_LOOKED_AT = 30
"""In a longer line, those at its end do so less often, in proportion: a thousand ask five times a second in all."""

ANNOUNCE_EVERY_S = 300.0
"""How often a standby writes its record: so that its clock's offset is known, and a lost place in the line noticed."""

OFFSET_WARNED_S = 2.0

RETRY_S = 0.25
"""How soon what failed on a live connection is tried again."""

GUARD_STARTS_WITHIN_S = 10.0
"""A guard that is not ready by then never will be; without one, a leader would lead for ever and run nothing."""

DOUBTED_AFTER = 3 / 8
"""After what share of the lease a guard that confirms nothing is doubted: a stop of less than a third stops nothing."""

EXIT_CONFIG = 78
EXIT_NO_PERMISSION = 77
EXIT_NO_ENSEMBLE = 69


class Phase(Enum):
    """What a node is doing, in a word."""

    CONNECTING = "connecting"
    STANDBY = "standby"
    STARTING = "starting"
    LEADING = "leading"
    STOPPING = "stopping"
    PAUSED = "paused"
    BACKING_OFF = "backing off"
    CLOSING = "closing"
    CLOSED = "closed"


class Guard(Enum):
    """The guard process: each one holds one child at most, and ends with it."""

    NONE = "none"
    STARTING = "starting"
    READY = "ready"
    HOLDING = "holding a child"
    KILLED = "killed"


class Child(Enum):
    """The child with everything that it started; NONE only once their death is confirmed."""

    NONE = "none"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    KILLED = "killed"


@dataclass(frozen=True)
class Settings:
    """What the user chose, as far as decisions depend on it."""

    session_timeout_s: float = 10.0
    lease_s: float | None = None
    stop_timeout_s: float = 10.0
    connect_timeout_s: float | None = None
    rejoin: bool = True
    strict: bool = False
    max_clock_offset_s: float | None = None
    digest: str = ""
    launched: bool = False
    """The child is started through the launcher, so it says how it is."""
    preload: bool = False
    max_silence_s: float = 20.0
    restart_stuck: bool = False


@dataclass(frozen=True)
class Term:
    """A leadership of this node's."""

    node: str
    elected_at: float
    epoch: int | None = None
    active: tuple[Activity, ...] = ()
    """The acknowledged renewals, as `Lease.remember` keeps them."""
    sent_at: float | None = None
    """The send of the renewal that is in flight, or of the last one."""
    in_flight: bool = False
    due_at: float = 0.0
    control: Control | None = None
    control_read: bool = False
    ledger: Ledger | None = None
    ledger_version: int | None = None
    """None until it was read."""
    proven: bool = False
    """The last leader's child is certainly dead."""
    wait_until: float | None = None
    """When that will be so, if it is not yet."""
    entering: bool = False
    may_stand_in_ledger: bool = False
    """It was tried to enter: the answer may be lost, and what was tried done."""
    entered: bool = False
    """This node stands in the ledger as the leader."""
    started_at: float | None = None
    ending: str | None = None
    """Why this term is to end; once set, it only ever ends."""


@dataclass(frozen=True)
class State:
    """Everything the sidecar remembers."""

    settings: Settings
    begun_at: float = 0.0
    connected: bool = False
    connected_at: float = 0.0
    ever_connected: bool = False
    session: int | None = None
    lease: Lease | None = None
    attempt: int = 0
    contending: bool = False
    leaving_since: float | None = None
    node: str | None = None
    announce_at: float = 0.0
    announced_at: float | None = None
    """When a standby's record was sent whose answer is still to come."""
    rival: Rival | None = None
    took_over_from: Rival | None = None
    head_checked: bool = False
    queued_by: float | None = None
    """When kazoo's thread must have told our place in the line, after joining, a reconnect, or a change in the line.

    None if nothing is to be told. A call of its that raced a reconnect may never return (kazoo has no timeout there).
    """
    look_again_at: float | None = None
    """When to look at the whole line again, as one who stands further back."""
    term: Term | None = None
    guard: Guard = Guard.NONE
    guard_due_at: float = 0.0
    """When to start a guard; when the one that was started is to be ready."""
    unconfirmed_since: float | None = None
    """When the extension was sent to the guard that it has not confirmed yet."""
    child: Child = Child.NONE
    pid: int | None = None
    kill_at: float | None = None
    stopped_for: str | None = None
    beat: Beat = field(default_factory=Beat)
    reloads: int = 0
    """How often it was asked to load the app anew, for whoever waits for that."""
    offset_s: float | None = None
    offset_warned: bool = False
    failures: int = 0
    back_off_until: float | None = None
    back_off_why: str | None = None
    exit_code: int | None = None
    """Set once the sidecar is to end."""
    closed: bool = False

    @property
    def deadlines(self) -> Deadlines | None:
        """Those of the current term, if a renewal was acknowledged."""
        if self.term is None or self.lease is None or not self.term.active:
            return None
        return self.lease.deadlines(self.term.active)

    @property
    def phase(self) -> Phase:
        """What this node is doing: derived, so that it cannot contradict the facts."""
        if self.closed:
            return Phase.CLOSED
        if self.child in {Child.STOPPING, Child.KILLED}:
            return Phase.STOPPING
        if self.exit_code is not None:
            return Phase.CLOSING
        if self.child is Child.RUNNING:
            return Phase.LEADING
        if self.term is not None:
            paused = self.term.control is not None and self.term.control.paused
            return Phase.PAUSED if paused and self.child is Child.NONE else Phase.STARTING
        if self.back_off_until is not None:
            return Phase.BACKING_OFF
        return Phase.STANDBY if self.connected and self.contending else Phase.CONNECTING


Step = tuple[State, list[Action]]


def next_deadline(state: State) -> float | None:
    """When `Time` must be told at the latest, or None if nothing is due by itself."""
    due: list[float | None] = []
    settings = state.settings
    if state.closed:
        return None
    if not state.ever_connected and settings.connect_timeout_s is not None and state.exit_code is None:
        due.append(state.begun_at + settings.connect_timeout_s)
    if (state.guard is Guard.NONE and state.exit_code is None) or state.guard is Guard.STARTING:
        due.append(state.guard_due_at)
    if state.back_off_until is not None and not state.contending:
        due.append(state.back_off_until)
    if state.leaving_since is not None:
        due.append(_leave_by(state))
    elif _awaits_place(state):
        due.append(state.queued_by)
    if _stands_back(state):
        due.append(state.look_again_at)
    if state.rival is not None and state.connected and state.leaving_since is None and state.exit_code is None:
        due.append(state.rival.evict_at)
    if _may_announce(state):
        due += [state.announce_at, _unheard_at(state)]
    due += _term_deadlines(state)
    return min((at for at in due if at is not None), default=None)


def _term_deadlines(state: State) -> list[float | None]:
    """When something of the current term, or of its child, is due."""
    due: list[float | None] = []
    term, deadlines = state.term, state.deadlines
    if term is not None:
        due.append(term.wait_until)
    if term is not None and state.connected and state.lease is not None:
        if not term.in_flight:
            due.append(term.due_at)
        elif term.sent_at is not None:
            due.append(term.sent_at + state.lease.length_s / 3)
    if state.child is not Child.NONE and state.guard is not Guard.KILLED:
        if state.child is Child.KILLED:
            due.append((state.kill_at or 0.0) + KILL_MARGIN_S / 2)
        elif deadlines is not None:
            due += [deadlines.soft if term is None or term.ending is None else None, deadlines.hard, state.kill_at]
        if state.unconfirmed_since is not None and state.lease is not None:
            due.append(state.unconfirmed_since + state.lease.length_s * DOUBTED_AFTER)
    if _may_fall_silent(state) and not state.beat.silent:
        due.append(_silent_at(state))
    return due


def step(state: State, event: Event, now: float) -> Step:
    """Take one event; return the new state and what to do, in order.

    Events of an attempt, a znode or a guard that is not the current one any more change nothing.
    """
    state, actions = _react(state, event, now)
    state, more = _settle(state, now)
    return state, actions + more


def _react(state: State, event: Event, now: float) -> Step:  # noqa: C901, PLR0912
    match event:
        case Began():
            return replace(state, begun_at=now), []
        case Connected():
            return _connected(state, event, now)
        case Suspended():
            return _suspended(state, now)
        case Lost():
            return _lost(state, now)
        case Refused(code, message):
            return _give_up(state, code, message, now)
        case Unreachable(message) if not state.connected:
            return state, [Say("warning", "unreachable", message)]
        case Queued() if event.attempt == state.attempt and state.contending:
            return _queued(state, event, now)
        case MemberSeen():
            return _member_seen(state, event, now)
        case EvictionTried(node, deleted) if state.rival is not None and state.rival.node == node:
            return _eviction_tried(state, state.rival, deleted=deleted, now=now)
        case Elected(attempt, node):
            return _elected(state, attempt, node, now)
        case ElectionEnded(attempt, error) if attempt == state.attempt:
            return _election_ended(state, error, now)
        case Renewed():
            return _renewed(state, event, now)
        case RenewalFailed():
            return _renewal_failed(state, event, now)
        case LedgerTouched() if state.term is not None and state.connected and not state.term.entered:
            return state, [ReadLedger()]
        case LedgerRead() if state.term is not None and not state.term.entered:
            return _ledger_read(state, state.term, event, now)
        case Entered() if state.term is not None and state.term.node == event.node:
            return _entered(state, state.term, ok=event.ok, now=now)
        case ControlTouched() if state.term is not None and state.connected:
            return state, [ReadControl()]
        case ControlRead(control) if state.term is not None:
            return _control_read(state, state.term, control, now)
        case GuardReady() if state.guard is Guard.STARTING:
            led = state.term is not None and state.term.entered
            ready = replace(state, guard=Guard.READY)
            return ready, [Place(state.node, led=led)] if state.node is not None else []
        case Parked(pid, kib) if state.beat.parking is Parking.LOADING:
            return _parked(state, pid, kib, now)
        case Unparked(why) if state.beat.parking in {Parking.LOADING, Parking.WAITING}:
            state = replace(state, beat=Beat(parking=Parking.REFUSED))
            return state, [Say("warning", "not-preloaded", f"not preloaded, will be started plainly: {why}")]
        case ReloadRequested():
            return _reload(state)
        case Pulsed(pulse) if state.child is Child.RUNNING:
            return replace(state, beat=replace(state.beat, pulse=pulse)), []
        case GuardConfirmed():
            return replace(state, unconfirmed_since=None), []
        case GuardGone():
            return _guard_gone(state, now)
        case Powerless(pid):
            message = f"the guard may not kill process {pid}, which runs as another user: its lease cannot be kept"
            return state, [Say("error", "powerless", message, {"pid": pid})]
        case ChildStarted(pid) if state.child is Child.STARTING:
            return _child_started(state, pid, now)
        case ChildDead() if state.child is not Child.NONE:
            return _child_dead(state, event, now)
        case StopRequested(why, hurry):
            return _stop_requested(state, why, hurry=hurry, now=now)
        case StepDownRequested(why):
            return _step_down(state, why, now)
        case Time():
            return _doubt_guard(state, now)
    return state, []


# the session


def _connected(state: State, event: Connected, now: float) -> Step:
    settings = state.settings
    actions: list[Action] = []
    if event.session != state.session:
        state, actions = _lost(state, now)
        asked_s = settings.session_timeout_s
        try:
            lease = agree(event.session_timeout_s, settings.lease_s)
        except LeaseError as error:
            granted = f"ZooKeeper grants a session timeout of {event.session_timeout_s:g} s, asked for {asked_s:g} s: "
            state, more = _give_up(state, EXIT_CONFIG, granted + str(error), now)
            return state, actions + more
        fields = {"session_timeout_s": event.session_timeout_s, "lease_s": round(lease.length_s, 3)}
        message = f"connected: session timeout {event.session_timeout_s:g} s, lease {lease.length_s:.3g} s"
        level = "info"
        if not math.isclose(event.session_timeout_s, asked_s, abs_tol=0.001):
            level, message = (
                "warning",
                f"{message}; asked for a session timeout of {asked_s:g} s, which was not granted",
            )
        actions.append(Say(level, "connected", message, fields))
        state = replace(state, session=event.session, lease=lease)
    elif not state.connected:
        actions.append(Say("info", "reconnected", "reconnected within the session"))
    state = replace(state, connected=True, ever_connected=True, connected_at=event.sent_at)
    state = replace(state, queued_by=now + _patience_s(state), announce_at=now, announced_at=None)
    if state.term is not None:
        # What was in flight may never be answered. The control's watch is lost as well.
        # Until that was read again, `_still_unread` asks once more with each renewal.
        term = replace(state.term, in_flight=False, due_at=now, entering=False, control_read=False)
        state = replace(state, term=term)
        actions += [ReadControl(), ReadLedger()]
    return state, actions


def _suspended(state: State, now: float) -> Step:
    """Say so; nothing is stopped for it, but by the lease."""
    if not state.connected:
        return state, []
    message, deadlines = "the connection to ZooKeeper is lost", state.deadlines
    if state.child is not Child.NONE and deadlines is not None:
        message += f": the child is stopped in {max(deadlines.soft - now, 0.0):.1f} s unless it comes back"
    return replace(state, connected=False), [Say("warning", "suspended", message)]


def _lost(state: State, now: float) -> Step:
    """The session is gone: somebody else may lead already."""
    had_session = state.session is not None
    state = replace(state, connected=False, session=None, rival=None, node=None)
    actions: list[Action] = []
    if state.term is not None:
        state, actions = _end_term(state, "the session was lost", kill_at=now, now=now)
    elif had_session and state.exit_code is None:
        actions = [Say("warning", "session-lost", "the session was lost: joining again with a new one")]
    if state.contending and state.term is None and state.leaving_since is None:
        state = replace(state, leaving_since=now)
        actions.append(Leave(state.attempt))
    return state, actions


def _give_up(state: State, code: int, message: str, now: float) -> Step:
    """End for a reason that trying again does not mend."""
    if state.exit_code is not None:
        return state, []
    state = replace(state, exit_code=code)
    actions: list[Action] = [Say("error", "giving-up", message, {"exit_code": code})]
    if state.term is not None:
        state, more = _end_term(state, message, kill_at=now + state.settings.stop_timeout_s, now=now)
        actions += more
    return state, actions


# the line


def _queued(state: State, event: Queued, now: float) -> Step:
    new = state.node != event.node
    actions: list[Action] = []
    if new:
        state = replace(state, announce_at=now, announced_at=None)
        actions.append(Place(event.node))
        place = "first in line" if event.ahead <= 1 else f"number {event.ahead} in line"
        if event.ahead:
            fields = {"node": event.node, "ahead": event.ahead}
            actions.append(Say("info", "standby", f"standing by, {place} behind the leader", fields))
    rival = None
    if event.ahead == 1 and event.head is not None:
        same = state.rival is not None and state.rival.node == event.head
        rival = state.rival if same else Rival(event.head)
    if event.head is not None and (event.ahead == 1 or new):
        actions.append(LookAt(event.head))
    gone = state.rival if event.ahead == 0 else None
    state = replace(state, node=event.node, rival=rival, took_over_from=gone or state.took_over_from)
    # The head of the line is yet to be told that it is elected.
    state = replace(state, queued_by=now + _patience_s(state) if event.ahead == 0 else None)
    again_s = LOOK_AGAIN_TIMEOUTS * _patience_s(state) * max(event.ahead / LINE_LOOKED_AT, 1.0)
    return replace(state, look_again_at=now + again_s if event.ahead > 1 else None), actions


def _member_seen(state: State, event: MemberSeen, now: float) -> Step:
    actions: list[Action] = []
    member = event.member
    if not state.head_checked:
        state = replace(state, head_checked=True)
        state, actions = _check_head(state, member, now)
    rival = state.rival
    if rival is None or rival.node != event.node or rival.version == event.version or state.lease is None:
        return state, actions
    evict_at = None
    if member is not None:
        evict_at = now + max(state.lease.evict_after_s, evict_after_s(member.lease or 0.0))
    rival = replace(rival, version=event.version, member=member, seen_at=now, evict_at=evict_at)
    return replace(state, rival=rival), actions


def _check_head(state: State, member: Member | None, now: float) -> Step:
    if member is None:
        message = "the record of the leader is not to be understood: it will not be evicted, only expire"
        return state, [Say("warning", "foreign-record", message)]
    mine = state.settings.digest
    if not member.digest or member.digest == mine:
        return state, []
    message = f"the leader, {member.id}, runs another command than this node (digest {member.digest}, here {mine})"
    fields = {"leader": member.id, "digest": mine, "leader_digest": member.digest}
    if state.settings.strict:
        return _give_up(state, EXIT_CONFIG, message + ", and --strict was given", now)
    return state, [
        Say("error", "different-command", f"{message}: all contenders of one name must run the same", fields)
    ]


def _eviction_tried(state: State, rival: Rival, *, deleted: bool, now: float) -> Step:
    # Not deleted: look again, and count anew from what is seen then. It may have been seen already, while this slow
    # answer was on its way: so the next try is due when it was, and not sooner.
    if not deleted:
        return state, [LookAt(rival.node)]
    # Only this proves it. A znode that went in another way may have been renewed since it was last seen.
    state = replace(state, rival=replace(rival, evict_at=None, dead_at=now), queued_by=now + _patience_s(state))
    who = rival.member.id if rival.member else rival.node
    waited_s = round(now - rival.seen_at, 3) if rival.seen_at is not None else None
    message = f"evicted {who}: no renewal seen for {waited_s} s, its lease has run out"
    return state, [Say("warning", "evicted", message, {"leader": who, "silent_s": waited_s})]


def _elected(state: State, attempt: int, node: str, now: float) -> Step:
    if attempt == state.attempt and state.term is not None:
        return state, []  # told twice; leaving would give away what a child runs under
    if attempt != state.attempt or state.term is not None or state.leaving_since is not None or not state.contending:
        return state, [Leave(attempt)]
    term = Term(node=node, elected_at=now, due_at=now)
    state = replace(state, term=term, node=node, rival=None, back_off_until=None, queued_by=None)
    return state, [Place(node), ReadControl(), ReadLedger()]


def _election_ended(state: State, error: str | None, now: float) -> Step:
    actions: list[Action] = []
    state = replace(state, contending=False, leaving_since=None, node=None, rival=None)
    if state.term is not None:
        # Not reachable while the leader function waits for our word; if it ever is, the znode is gone.
        state, actions = _end_term(state, "the election ended under us", kill_at=now, now=now)
    if error is not None and state.exit_code is None:
        state = replace(state, back_off_until=now + FIRST_BACK_OFF_S, back_off_why="the election failed")
        actions.append(Say("warning", "election-failed", f"could not stay in the election: {error}; joining again"))
    return state, actions


# the lease


def _renewed(state: State, event: Renewed, now: float) -> Step:
    term, lease = state.term, state.lease
    if event.node != state.node or lease is None:
        return state, []
    first = state.offset_s is None
    state, actions = _note_offset(state, event.offset_s)
    if term is None or event.node != term.node:
        # What the first write has measured, a second one tells the others.
        return replace(state, announced_at=None, announce_at=now if first else state.announce_at), actions
    if event.owner != state.session or term.epoch not in {None, event.epoch}:
        state, more = _end_term(state, "the election znode belongs to another session", kill_at=now, now=now)
        return state, actions + more
    if event.sent_at < (term.active[-1].sent_at if term.active else term.elected_at):
        return state, actions  # a late answer to an earlier renewal, or to what was written before the election
    if term.active:
        actions += _still_unread(term)
    active = lease.remember(term.active, event.sent_at, now, state.connected_at)
    term = replace(term, epoch=event.epoch, active=active)
    if event.sent_at == term.sent_at:
        term = replace(term, in_flight=False, due_at=event.sent_at + lease.renew_every_s)
    overdue = state.child is not Child.NONE and state.deadlines is not None and now >= state.deadlines.soft
    if overdue:
        return state, actions  # too late: the guard has acted on the deadline, `_keep_deadlines` will say so
    state = replace(state, term=term)
    limit_s = state.settings.max_clock_offset_s
    if limit_s is not None and event.offset_s is not None and abs(event.offset_s) > limit_s and term.ending is None:
        why = f"this node's clock is off by {event.offset_s:+.1f} s, more than --max-clock-offset {limit_s:g}"
        state, more = _end_term(state, why, kill_at=now + state.settings.stop_timeout_s, now=now)
        state = replace(state, back_off_until=now + LONGEST_BACK_OFF_S, back_off_why=why)
        actions += more
    extended = state.deadlines
    if state.child is not Child.NONE and extended is not None:
        since = state.unconfirmed_since if state.unconfirmed_since is not None else now
        state = replace(state, unconfirmed_since=since)
        actions.append(ExtendLease(extended))
    return state, actions


def _still_unread(term: Term) -> list[Action]:
    """Ask again for what should have come by now: an answer may be lost, and without it nothing starts."""
    asked: list[Action] = [] if term.control_read else [ReadControl()]
    if not term.entered and (term.ledger_version is None or term.entering):
        asked.append(ReadLedger())
    return asked


def _note_offset(state: State, offset_s: float | None) -> Step:
    """Remember how far this node's clock is off the quorum leader's; warn once, each time that it becomes too much."""
    if offset_s is None:
        return state, []
    off = abs(offset_s) > OFFSET_WARNED_S
    actions: list[Action] = []
    if off and not state.offset_warned:
        message = f"this node's clock is {offset_s:+.1f} s off ZooKeeper's: look at NTP here and there"
        actions.append(Say("warning", "clock-offset", message, {"offset_s": offset_s}))
    return replace(state, offset_s=offset_s, offset_warned=off), actions


def _renewal_failed(state: State, event: RenewalFailed, now: float) -> Step:
    term = state.term
    if term is None and event.refused and event.node == state.node and state.contending and state.leaving_since is None:
        # Somebody has deleted our place in the line, and kazoo waits on as if it were still there.
        return replace(state, leaving_since=now), [Leave(state.attempt)]
    if term is None or event.node != term.node:
        return replace(state, announced_at=None), []
    if event.refused:
        return _end_term(state, f"the leadership is gone ({event.reason})", kill_at=now, now=now)
    if event.sent_at == term.sent_at and term.in_flight:
        state = replace(state, term=replace(term, in_flight=False, due_at=now + RETRY_S))
    return state, []


# the ledger


def _ledger_read(state: State, term: Term, event: LedgerRead, now: float) -> Step:
    """Find out whether the last leader's child is dead, or how long it may still live."""
    ledger, last, lease = event.ledger, state.took_over_from, state.lease
    term = replace(term, ledger=ledger, ledger_version=event.version, entering=False)
    actions: list[Action] = []
    if term.proven or (ledger is not None and (ledger.left or ledger.led == term.node)):
        return replace(state, term=replace(term, proven=True, wait_until=None)), []
    if ledger is not None and last is not None and last.node == ledger.led and last.dead_at is not None:
        wait_until = last.dead_at
    elif term.wait_until is not None:
        wait_until = term.wait_until
    else:
        # Nobody knows when it was last renewed: reckon that it was just now, and with the longest lease we know of.
        seen_s = last.member.lease if last is not None and last.member is not None else None
        lengths_s = [ledger.lease if ledger else 0.0, lease.length_s if lease else 0.0, seen_s or 0.0]
        wait_until = now + evict_after_s(max(lengths_s))
    if wait_until > now and term.wait_until is None:
        left_s = wait_until - now
        why = "the last leader may still run its command"
        if ledger is None:
            why = "this election is new, or its znodes were deleted under a leader that may still run"
        message = f"elected, waiting up to {left_s:.2f} s: {why}"
        actions.append(Say("info", "waiting", message, {"wait_s": round(left_s, 3)}))
    return replace(state, term=replace(term, wait_until=wait_until)), actions


def _entered(state: State, term: Term, *, ok: bool, now: float) -> Step:
    if ok:
        return replace(state, term=replace(term, entering=False, entered=True)), [Place(term.node, led=True)]
    # The ledger has changed, which its watch tells, or our znode is gone, which a renewal tells: no loop here.
    retry_at = min(term.due_at, now + RETRY_S)
    return replace(state, term=replace(term, entering=False, ledger_version=None, due_at=retry_at)), []


# control


def _control_read(state: State, term: Term, control: Control | None, now: float) -> Step:
    was_paused = term.control is not None and term.control.paused
    state = replace(state, term=replace(term, control=control, control_read=True))
    if control is None:
        return state, []
    actions: list[Action] = []
    if control.paused and not was_paused:
        reason = f": {control.reason}" if control.reason else ""
        message = f"paused by {control.by or 'an operator'}{reason}"
        fields = {"by": control.by, "reason": control.reason}
        actions.append(Say("warning", "paused", message, fields))
        if state.child in {Child.STARTING, Child.RUNNING}:
            state, more = _stop_child(state, message, now + state.settings.stop_timeout_s, now)
            actions += more
    elif was_paused and not control.paused:
        actions.append(Say("info", "resumed", f"resumed by {control.by or 'an operator'}", {"by": control.by}))
    return state, actions


def _step_down(state: State, why: str, now: float) -> Step:
    if state.term is None:
        return state, [Say("info", "not-leading", f"{why}, but this node does not lead")]
    if state.term.ending is not None:
        return state, []
    return _end_term(state, why, kill_at=now + state.settings.stop_timeout_s, now=now)


def _stop_requested(state: State, why: str, *, hurry: bool, now: float) -> Step:
    kill_at = now if hurry else now + state.settings.stop_timeout_s
    actions: list[Action] = []
    if state.exit_code is None:
        state = replace(state, exit_code=0)
        actions.append(Say("info", "stopping", f"stopping: {why}"))
    elif not hurry:
        return state, []
    if state.term is not None and state.term.ending is None:
        state, more = _end_term(state, why, kill_at=kill_at, now=now)
    else:
        state, more = _stop_child(state, why, kill_at, now)
    return state, actions + more


# guard and child


def _guard_gone(state: State, now: float) -> Step:
    expected = state.guard is Guard.KILLED
    state = replace(state, guard=Guard.NONE, unconfirmed_since=None, guard_due_at=now + RETRY_S, beat=Beat())
    if state.child is Child.NONE:
        return state, [Say("warning", "guard-gone", "the guard ended: starting another")]
    actions: list[Action] = []
    why = state.stopped_for or "the guard was killed"
    if not expected:
        actions.append(Say("error", "guard-gone", "the guard is gone, and the child with it"))
    state = replace(state, child=Child.NONE, pid=None, kill_at=None, stopped_for=None)
    if state.term is not None and state.term.ending is None:
        state, more = _end_term(state, why, kill_at=now, now=now)
        actions += more
    return state, actions


def _parked(state: State, pid: int, kib: int, now: float) -> Step:
    state = replace(state, beat=replace(state.beat, parking=Parking.WAITING, parked_pid=pid, parked_kib=kib))
    message = f"preloaded: process {pid} holds the app and waits, {kib / 1024:.0f} MB"
    state = replace(state, announce_at=min(state.announce_at, now))
    return state, [Say("info", "preloaded", message, {"pid": pid, "kib": kib})]


def _reload(state: State) -> Step:
    """Load anew what waits; a beat that runs keeps the code that it was started with."""
    if not state.settings.preload:
        return state, [Say("info", "reload", "asked to reload, but nothing is preloaded")]
    if state.child is not Child.NONE:
        message = "asked to reload: this node leads, and its beat keeps its code until the term ends (zkbeat step-down)"
        return state, [Say("info", "reload", message)]
    state = replace(state, beat=Beat(), reloads=state.reloads + 1)  # `_park` does the rest
    return state, [Say("info", "reload", "asked to reload: loading the app anew")]


def _child_started(state: State, pid: int, now: float) -> Step:
    term = state.term
    state = replace(state, child=Child.RUNNING, pid=pid)
    if term is None or term.epoch is None:
        return state, []
    first = term.started_at is None
    state = replace(state, term=replace(term, started_at=now))
    took_s = round(now - term.elected_at, 3)
    before = state.took_over_from
    who = f", taking over from {before.member.id}" if before and before.member else ""
    silent_s = round(now - before.seen_at, 3) if before and before.seen_at is not None else None
    since = f" {silent_s} s after its last renewal was seen" if who and silent_s is not None else ""
    message = f"leading: epoch {term.epoch}, child {pid} started {took_s} s after the election{who}{since}"
    fields = {
        "epoch": term.epoch,
        "child": pid,
        "elected_to_started_s": took_s,
        "after": before.member.id if before and before.member else None,
        "since_last_renewal_s": silent_s,
    }
    actions: list[Action] = [Say("info", "leading", message, fields)]
    if first:
        actions.append(TermBegan(term.epoch, before))
    # The record says so at once, not only with the next renewal.
    return replace(state, term=replace(term, started_at=now, due_at=now)), actions


def _child_dead(state: State, event: ChildDead, now: float) -> Step:
    term, code = state.term, event.code
    asked = state.child in {Child.STOPPING, Child.KILLED}
    by_itself = not asked and not event.overdue
    if event.error is not None:
        why = f"cannot run the command: {event.error}"
    elif by_itself:
        why = f"the child ended by itself, exit code {code}"
    else:
        why = state.stopped_for or "the lease ran out"
    lived_s = now - term.started_at if term is not None and term.started_at is not None else 0.0
    state = replace(state, child=Child.NONE, pid=None, kill_at=None, stopped_for=None, unconfirmed_since=None)
    state = replace(state, guard=Guard.NONE, guard_due_at=now, beat=Beat())
    level = "error" if by_itself else "info"
    actions: list[Action] = [
        AnswerGuard(),
        Say(level, "child-dead", f"the child is dead (exit code {code}): {why}", {"exit_code": code, "why": why}),
    ]
    if by_itself:
        state, more = _unasked_exit(state, code, why, lived_s, now)
        actions += more
    if asked and term is not None and term.ending is None:  # only paused: the term goes on, and its record is to say so
        return replace(state, term=replace(term, due_at=now)), actions
    state, more = _end_term(state, why, kill_at=now, now=now)
    return state, actions + more


def _unasked_exit(state: State, code: int | None, why: str, lived_s: float, now: float) -> Step:
    if not state.settings.rejoin:
        if state.exit_code is None:
            state = replace(state, exit_code=code if code is not None else 1)
        return state, []
    failures = 1 if lived_s >= HEALTHY_AFTER_S else state.failures + 1
    pause_s = min(FIRST_BACK_OFF_S * 2.0 ** (failures - 1), LONGEST_BACK_OFF_S)
    message = f"backing off for {pause_s:g} s: the child ended by itself ({failures} in a row)"
    state = replace(state, failures=failures, back_off_until=now + pause_s, back_off_why=why)
    return state, [Say("warning", "backing-off", message, {"back_off_s": pause_s, "failures": failures})]


def _stop_child(state: State, why: str, kill_at: float, now: float) -> Step:
    """Stop the child, or bring forward the end of one that is being stopped."""
    if state.child in {Child.NONE, Child.KILLED}:
        return state, []
    state = replace(state, stopped_for=state.stopped_for or why)
    if kill_at <= now:
        return replace(state, child=Child.KILLED, kill_at=now), [KillChild()]
    if state.child is Child.STOPPING:
        if state.kill_at is not None and state.kill_at <= kill_at:
            return state, []
        return replace(state, kill_at=kill_at), [StopChild(kill_at)]
    return replace(state, child=Child.STOPPING, kill_at=kill_at), [StopChild(kill_at)]


def _end_term(state: State, why: str, kill_at: float, now: float) -> Step:
    """The term is to end: stop the child first; `_settle` leaves once it is dead."""
    term = state.term
    actions: list[Action] = []
    if term is not None and term.ending is None:
        state = replace(state, term=replace(term, ending=why))
        if state.child is not Child.NONE or term.epoch is not None:
            actions.append(Say("info", "term-ending", f"ending the term: {why}", {"epoch": term.epoch, "why": why}))
    state, more = _stop_child(state, why, kill_at, now)
    return state, actions + more


# what follows from the facts, whatever event brought them


def _settle(state: State, now: float) -> Step:
    actions: list[Action] = []
    running = (_keep_guard, _obey, _keep_lease, _watch_ticks, _wait, _lead, _park)
    for rule in (*running, _leave, _evict, _look_again, _announce, _contend, _close):
        state, more = rule(state, now)
        actions += more
    return state, actions


def _keep_guard(state: State, now: float) -> Step:
    """A guard is ready before there is anything to guard."""
    if state.guard is Guard.NONE and state.exit_code is None and now >= state.guard_due_at:
        return replace(state, guard=Guard.STARTING, guard_due_at=now + GUARD_STARTS_WITHIN_S), [SpawnGuard()]
    return state, []


def _obey(state: State, now: float) -> Step:
    """Step down if this very term is asked to; the request may have been read before our epoch was known."""
    term = state.term
    if term is None or term.epoch is None or term.ending is not None or term.control is None:
        return state, []
    if term.control.step_down != term.epoch:
        return state, []
    return _step_down(state, f"asked to step down by {term.control.by or 'an operator'}", now)


def _keep_lease(state: State, now: float) -> Step:
    """Renew in time; stop what is overdue. The guard keeps the same deadlines without us."""
    actions: list[Action] = []
    term, lease = state.term, state.lease
    if term is not None and lease is not None and state.connected:
        if term.in_flight and term.sent_at is not None and now >= term.sent_at + lease.length_s / 3:
            term = replace(term, in_flight=False, due_at=now)  # a request that raced a reconnect is never answered
        if not term.in_flight and now >= term.due_at:
            term = replace(term, in_flight=True, sent_at=now)
            actions.append(Renew(term.node, now))
        if term is not state.term:
            state = replace(state, term=term)
    state, more = _keep_deadlines(state, now)
    return state, actions + more


def _keep_deadlines(state: State, now: float) -> Step:
    """Stop what is overdue."""
    actions: list[Action] = []
    deadlines = state.deadlines
    if state.child in {Child.NONE, Child.KILLED} or state.guard is Guard.KILLED or deadlines is None:
        return state, actions
    if now >= deadlines.soft:
        state, actions = _end_term(state, "the lease ran out", kill_at=deadlines.hard, now=now)
    if state.child is Child.STOPPING and state.kill_at is not None and now >= state.kill_at:
        state, more = _stop_child(state, "", now, now)
        actions += more
    return state, actions


def _doubt_guard(state: State, now: float) -> Step:
    """Get rid of a guard that does not do its duty.

    Decided only when time has passed, so after all that has happened by then was told: where the loop itself was held
    up, the guard's word may be waiting behind other events.
    """
    stuck = state.guard is Guard.STARTING and now >= state.guard_due_at
    if state.child is not Child.NONE and state.guard is not Guard.KILLED:
        since, lease = state.unconfirmed_since, state.lease
        if since is not None and lease is not None and now > since + lease.length_s * (DOUBTED_AFTER + 1 / 24):
            # Told so late, we did not run either: the guard has had no more time than we (found in simulation). Its own
            # deadline, and the kernel's, stand all the while.
            state = replace(state, unconfirmed_since=now)
        elif since is not None and lease is not None:
            stuck |= now >= since + lease.length_s * DOUBTED_AFTER
        # Half of what a kill may take is left for this way.
        stuck |= state.child is Child.KILLED and now >= (state.kill_at or 0.0) + KILL_MARGIN_S / 2
    if not stuck:
        return state, []
    message = "the guard does not answer: killing it, and the child with it"
    return replace(state, guard=Guard.KILLED), [Say("error", "guard-stuck", message), KillGuard()]


def _may_fall_silent(state: State) -> bool:
    return state.settings.launched and state.child is Child.RUNNING and state.term is not None


def _silent_at(state: State) -> float:
    started_at = state.term.started_at if state.term is not None else None
    return state.beat.silent_at(started_at, state.settings.max_silence_s)


def _watch_ticks(state: State, now: float) -> Step:
    """Say that a beat has fallen silent, and that it ticks again; with --restart-stuck, let another node try."""
    term = state.term
    if term is None or not _may_fall_silent(state):
        return state, []
    silent = now >= _silent_at(state)
    if silent is state.beat.silent:
        return state, []
    state = replace(state, beat=replace(state.beat, silent=silent))
    if not silent:
        return state, [Say("info", "ticking", "beat ticks again")]
    why = state.beat.silence(term.started_at, now)
    actions: list[Action] = [Say("error", "silent", why)]
    if state.settings.restart_stuck and term.ending is None:
        state, more = _end_term(state, why, kill_at=now + state.settings.stop_timeout_s, now=now)
        actions += more
    return state, actions


def _wait(state: State, now: float) -> Step:
    """Know the last leader's child to be dead once its lease has certainly run out."""
    term = state.term
    if term is None or term.wait_until is None or now < term.wait_until:
        return state, []
    return replace(state, term=replace(term, proven=True, wait_until=None)), []


def _lead(state: State, now: float) -> Step:
    """Start the child, once the term is proven by a renewal, the guard is there and nobody has paused us."""
    term, deadlines = state.term, state.deadlines
    if term is None or deadlines is None or term.epoch is None or term.ending is not None:
        return state, []
    paused = term.control is not None and term.control.paused
    may = state.child is Child.NONE and state.guard is Guard.READY and term.control_read and not paused
    if not may or now >= deadlines.soft or not state.connected:
        return state, []
    if not term.entered:
        lease = state.lease
        if not term.proven or term.entering or term.ledger_version is None or lease is None:
            return state, []
        return replace(state, term=replace(term, entering=True, may_stand_in_ledger=True)), [
            Enter(term.node, term.ledger_version, lease.length_s)
        ]
    state = replace(state, child=Child.STARTING, guard=Guard.HOLDING, beat=Beat())
    return state, [StartChild(term.epoch, term.node, deadlines)]


def _park(state: State, now: float) -> Step:  # noqa: ARG001  # as all rules
    """Load the app in advance, once for each guard."""
    may = state.guard is Guard.READY and state.child is Child.NONE and state.exit_code is None
    if not may or not state.settings.preload or state.beat.parking is not Parking.NONE:
        return state, []
    return replace(state, beat=Beat(parking=Parking.LOADING)), [Park()]


def _leave(state: State, now: float) -> Step:
    """Give the leadership away, or the place in line; never while anything of ours may still run."""
    actions: list[Action] = []
    term = state.term
    if term is not None and term.ending is None and state.exit_code is not None:
        state = replace(state, term=replace(term, ending="stopped"))
        term = state.term
    if term is not None and term.ending is not None and state.child is Child.NONE:
        if term.epoch is not None:
            actions.append(TermEnded(term.epoch, term.ending))
        state = replace(state, term=None, took_over_from=None)
        if state.contending and state.leaving_since is None:
            state = replace(state, leaving_since=now)
            actions.append(Leave(state.attempt, led=term.node if term.may_stand_in_ledger else None))
    if state.exit_code is not None and state.term is None and state.contending and state.leaving_since is None:
        state = replace(state, leaving_since=now)
        actions.append(Leave(state.attempt))
    if _awaits_place(state) and state.queued_by is not None and now >= state.queued_by:
        state = replace(state, leaving_since=now)
        actions += [Say("warning", "no-place", "kazoo does not tell our place in the line"), Leave(state.attempt)]
    by = _leave_by(state)
    if by is not None and now >= by and state.exit_code is None and state.child is Child.NONE:
        # Its thread is stuck in a call that is never answered.
        state, more = _anew(state, "leaving the election takes too long")
        actions += more
    return state, actions


def _leave_by(state: State) -> float | None:
    """When leaving has taken too long; None while it cannot be done, or need not be.

    Without a connection nobody can leave, and to drop what is just connecting would only make the next one wait: a
    thousand nodes that come back at once to an ensemble would keep it from ever serving them.
    """
    if state.leaving_since is None:
        return None
    if state.exit_code is not None:
        return state.leaving_since + LEAVE_WITHIN_S
    return max(state.leaving_since, state.connected_at) + _patience_s(state) if state.connected else None


def _anew(state: State, why: str) -> Step:
    """Drop the session for another one: it ends with its client, and takes our znode along."""
    state = replace(
        state, contending=False, leaving_since=None, connected=False, session=None, node=None, announced_at=None
    )
    return state, [Say("warning", "new-session", f"{why}: dropping the session for another one"), NewSession()]


def _evict(state: State, now: float) -> Step:
    """Delete the leader's znode once its lease has certainly run out, at the version that was last seen."""
    rival = state.rival
    if rival is None or rival.version is None or rival.evict_at is None or now < rival.evict_at:
        return state, []
    if not state.connected or state.leaving_since is not None or state.exit_code is not None:
        return state, []
    state = replace(state, rival=replace(rival, evict_at=now + LEAVE_WITHIN_S))
    return state, [Evict(rival.node, rival.version)]


def _stands_back(state: State) -> bool:
    waits = state.contending and state.term is None and state.leaving_since is None and state.connected
    return waits and state.exit_code is None and state.look_again_at is not None


def _look_again(state: State, now: float) -> Step:
    """Find out that only one is left before us, who may be hung, or a znode of ours that nobody knows of.

    kazoo is woken only when the one just before us goes. If that one lives but does nothing, nobody is told that all
    others before it have gone, and that it is to be evicted (found in simulation).
    """
    if not _stands_back(state) or state.look_again_at is None or now < state.look_again_at:
        return state, []
    return replace(state, look_again_at=now + LOOK_AGAIN_TIMEOUTS * _patience_s(state)), [LookAgain(state.attempt)]


def _patience_s(state: State) -> float:
    """How long kazoo's thread may take: an ensemble that answers more slowly grants no lease either."""
    return state.lease.session_timeout_s if state.lease is not None else LEAVE_WITHIN_S


def _awaits_place(state: State) -> bool:
    waits = state.contending and state.term is None and state.leaving_since is None
    return waits and state.connected and state.exit_code is None and state.queued_by is not None


def _may_announce(state: State) -> bool:
    waits = state.node is not None and state.term is None and state.contending and state.leaving_since is None
    return waits and state.connected and state.exit_code is None


def _unheard_at(state: State) -> float | None:
    """When a standby whose record was not answered has waited long enough: no live connection is that slow."""
    return state.announced_at + state.settings.session_timeout_s if state.announced_at is not None else None


def _announce(state: State, now: float) -> Step:
    """Write a standby's record now and then; without an answer kazoo hangs, and only seems to be connected."""
    unheard_at = _unheard_at(state)
    if unheard_at is not None and now >= unheard_at and _may_announce(state):
        return _anew(state, "ZooKeeper does not answer, though kazoo thinks that it is connected")
    if state.node is None or not _may_announce(state) or now < state.announce_at:
        return state, []
    return replace(state, announce_at=now + ANNOUNCE_EVERY_S, announced_at=now), [Renew(state.node, now)]


def _contend(state: State, now: float) -> Step:
    """Join at the end of the line."""
    if state.back_off_until is not None and now >= state.back_off_until:
        state = replace(state, back_off_until=None, back_off_why=None)
    free = state.connected and not state.contending and state.term is None and state.child is Child.NONE
    if not free or state.exit_code is not None or state.guard is not Guard.READY or state.back_off_until is not None:
        return state, []
    attempt = state.attempt + 1
    state = replace(state, attempt=attempt, contending=True, head_checked=False, node=None)
    return replace(state, queued_by=now + _patience_s(state)), [Join(attempt)]


def _close(state: State, now: float) -> Step:
    """End, once nothing runs and the line is left, or leaving it takes too long."""
    limit_s = state.settings.connect_timeout_s
    if limit_s is not None and not state.ever_connected and now >= state.begun_at + limit_s and state.exit_code is None:
        state = replace(state, exit_code=EXIT_NO_ENSEMBLE)
        message = f"no ZooKeeper within {limit_s:g} s (--connect-timeout)"
        return replace(state, closed=True), [Say("error", "giving-up", message), AnswerGuard(), Close(EXIT_NO_ENSEMBLE)]
    if state.exit_code is None or state.closed or state.child is not Child.NONE:
        return state, []
    by = _leave_by(state)
    stuck = by is not None and now >= by
    if state.contending and state.connected and not stuck:
        return state, []
    return replace(state, closed=True), [AnswerGuard(), Close(state.exit_code)]


# what others are told


def member(state: State, base: Member, now: float, wall: float) -> Member:
    """Return this node's record: `base` (who it is) and what it does; `wall` is the time of day at `now`."""
    term = state.term
    started_at = term.started_at if term is not None else None
    return replace(
        base,
        state=state.phase.value,
        lease=round(state.lease.length_s, 3) if state.lease else None,
        offset=round(state.offset_s, 3) if state.offset_s is not None else None,
        child=state.pid,
        term_since=round(wall - (now - started_at), 3) if started_at is not None else None,
        tick=round(state.beat.pulse.published_wall, 3) if state.beat.pulse and state.beat.pulse.count else None,
        parked=round(state.beat.parked_kib / 1024, 1) if state.beat.parking is Parking.WAITING else None,
    )


def snapshot(state: State, now: float) -> dict[str, Any]:
    """Return what `zkbeat health` is told. Ages in seconds."""
    term, deadlines, beat = state.term, state.deadlines, state.beat
    phase = state.phase
    holds_lease = deadlines is not None and now < deadlines.soft
    leader = phase is Phase.LEADING and holds_lease
    watched = _may_fall_silent(state)
    silent = watched and now >= _silent_at(state)
    why = state.back_off_why if phase is Phase.BACKING_OFF else None
    if silent:
        why = beat.silence(term.started_at if term is not None else None, now)
    standby = phase is Phase.STANDBY and state.node is not None
    found: dict[str, Any] = {
        "state": phase.value,
        "ready": standby or (leader and not silent) or (phase is Phase.PAUSED and holds_lease),
        "leader": leader,
        "connected": state.connected,
        "epoch": term.epoch if term is not None else None,
        "child": state.pid,
        "lease_left_s": round(deadlines.hard - now, 3) if deadlines is not None and term is not None else None,
        "why": why,
    }
    if watched:
        started_at = term.started_at if term is not None else None
        found |= beat.snapshot(state.settings.max_silence_s, started_at, now)
    if state.settings.preload:
        found["preloaded"] = {
            "is": beat.parking.value,
            "pid": beat.parked_pid,
            "kib": beat.parked_kib,
            "reloads": state.reloads,
        }
    return found
