"""What the guard decides: the process that is the child's parent and holds the lease's deadline.

The guard outlives the sidecar on purpose. Whatever becomes of the sidecar (killed, stopped, hung, cut off), the last
deadlines it passed on stand, and the guard keeps them: TERM at the soft one, KILL to everything at the hard one. Should
the guard itself not run by then (stopped, frozen with the whole node), the kernel kills it, and its child with it. Only
once everything is dead does it report, or, with nobody left to report to, have the term's znode removed.

`step(state, event, now)` is a pure function. `now` and all instants are CLOCK_BOOTTIME seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from zkbeat.core.lease import KILL_MARGIN_S

ORPHAN_GRACE_S = 1.0
"""How long a child may take to end after its sidecar is gone; a healthy beat takes a fifth of that."""

ANSWER_WITHIN_S = 1.0
"""A sidecar that has not answered the report of a missed deadline by then is hung, and is killed."""

KERNEL_AFTER_S = KILL_MARGIN_S * 0.4
"""How long after the hard deadline the kernel steps in: a guard that is awake has killed by then."""


class Child(Enum):
    """The life of the child, with all of its descendants, as the guard sees it."""

    NONE = "none"
    ALIVE = "alive"
    KILLED = "killed"
    DEAD = "dead"


@dataclass(frozen=True)
class Custody:
    """Everything the guard remembers."""

    child: Child = Child.NONE
    parked: bool = False
    """A process with the app loaded waits at its gate, or is on its way there; it is no child before that opens."""
    soft: float | None = None
    hard: float | None = None
    kill_at: float | None = None
    """When a child that was asked to stop is killed; None until it was asked."""
    sidecar_alive: bool = True
    overdue: bool = False
    """The child was stopped for a deadline, not because the sidecar asked."""
    answer_by: float | None = None
    done: bool = False


# Events


@dataclass(frozen=True)
class Park:
    """Load the child's app in advance, or anew: what waits with an older one is to go."""


@dataclass(frozen=True)
class ParkedEnded:
    """The process that was parked is gone."""


@dataclass(frozen=True)
class Begin:
    """The sidecar wants the child started, under these deadlines."""

    soft: float
    hard: float


@dataclass(frozen=True)
class Extend:
    """The lease was renewed."""

    soft: float
    hard: float


@dataclass(frozen=True)
class Stop:
    """Ask the child to stop; kill it at `kill_at`."""

    kill_at: float


@dataclass(frozen=True)
class Kill:
    """Kill the child and all that it started, now."""


@dataclass(frozen=True)
class Forward:
    """Pass a signal on to the child."""

    signal: int


@dataclass(frozen=True)
class Answered:
    """The sidecar knows that nothing runs: it is not hung, the znode is its own business, the guard may end."""


@dataclass(frozen=True)
class SidecarGone:
    """The sidecar's end of the socket is closed: its process has ended."""


@dataclass(frozen=True)
class ChildEnded:
    """The child itself has ended; what it started may still be alive."""


@dataclass(frozen=True)
class AllDead:
    """The child and every descendant are dead and reaped."""


@dataclass(frozen=True)
class Time:
    """Time has passed."""


Event = (
    Park | ParkedEnded | Begin | Extend | Stop | Kill | Forward | Answered | SidecarGone | ChildEnded | AllDead | Time
)


# Actions


class Act(Enum):
    """What the guard is to do now."""

    PARK = "start a process that loads the app and waits at the gate"
    UNPARK = "kill the one that waits there"
    OPEN = "open the gate: what was parked is the child"
    SPAWN = "spawn the child"
    TERMINATE = "TERM to the child's process group"
    KILL = "KILL to the child's group and all descendants, until none is left"
    REPORT_DEAD = "tell the sidecar that everything is dead"
    KILL_SIDECAR = "KILL to the sidecar"
    PREPARE_REMOVAL = "connect to ZooKeeper, to be ready for the next"
    REMOVE_ZNODE = "delete the term's election znode"
    END = "end the guard"


@dataclass(frozen=True)
class Signal:
    """Send this signal to the child."""

    signal: int


@dataclass(frozen=True)
class Publish:
    """Make the lease's deadlines known to whoever reads the lease in the child."""

    soft: float
    hard: float


Action = Act | Signal | Publish


def next_deadline(state: Custody) -> float | None:
    """When `Time` must be told at the latest, or None if nothing is due by itself."""
    due: list[float | None] = []
    if state.child is Child.ALIVE:
        due = [state.hard, state.kill_at, state.soft if state.kill_at is None else None]
    elif state.child is Child.DEAD and not state.done:
        due = [state.answer_by]
    return min((at for at in due if at is not None), default=None)


def kernel_deadline(state: Custody) -> float | None:
    """When the kernel is to kill the guard itself, and by the leash its child, should it not run at the hard deadline.

    Not once everything was sent its KILL: a guard that only waits for the dead has still to report, or to remove.
    """
    if state.child is not Child.ALIVE or state.hard is None:
        return None
    return state.hard + KERNEL_AFTER_S


def step(state: Custody, event: Event, now: float) -> tuple[Custody, list[Action]]:
    """Take one event; return the new state and what to do, in order.

    Events that make no sense where they come (an extension after the child's death) change nothing.
    """
    if state.done:
        return state, []
    state, actions = _react(state, event, now)
    state, more = _keep_deadlines(state, now)
    return state, actions + more


def _react(state: Custody, event: Event, now: float) -> tuple[Custody, list[Action]]:  # noqa: C901, PLR0912
    match event:
        case Begin(_, hard) if state.child is Child.NONE and state.sidecar_alive and now >= hard:
            # Told like the end of a child: the sidecar would wait for ever for one that was never started.
            late = replace(state, child=Child.DEAD, overdue=True, answer_by=now + ANSWER_WITHIN_S)
            return late, [Act.REPORT_DEAD]
        case Begin(soft, hard) if state.child is Child.NONE and state.sidecar_alive:
            begun = replace(state, child=Child.ALIVE, soft=soft, hard=hard, parked=False)
            return begun, [Publish(soft, hard), Act.OPEN if state.parked else Act.SPAWN]
        case Park() if state.child is Child.NONE and state.sidecar_alive:
            return replace(state, parked=True), [Act.UNPARK, Act.PARK] if state.parked else [Act.PARK]
        case ParkedEnded():
            return replace(state, parked=False), []
        case Extend(soft, hard) if state.child is Child.ALIVE and not state.overdue:
            # A deadline that has passed is never moved: the child was, or is being, stopped for it.
            if state.hard is not None and now < state.hard and hard > state.hard:
                return replace(state, soft=soft, hard=hard), [Publish(soft, hard)]
        case Stop(kill_at) if state.child is Child.ALIVE:
            return _terminate(state, kill_at)
        case Kill() | ChildEnded() if state.child is Child.ALIVE:
            return replace(state, child=Child.KILLED), [Act.KILL]
        case Forward(signal) if state.child is Child.ALIVE:
            return state, [Signal(signal)]
        case SidecarGone() if state.sidecar_alive:
            return _orphaned(replace(state, sidecar_alive=False), now)
        case AllDead() if state.child in {Child.ALIVE, Child.KILLED}:
            dead = replace(state, child=Child.DEAD, soft=None, hard=None, kill_at=None)
            if not state.sidecar_alive:
                return replace(dead, done=True), [Act.REMOVE_ZNODE, Act.END]
            return replace(dead, answer_by=now + ANSWER_WITHIN_S), [Act.REPORT_DEAD]
        case Answered() if state.child in {Child.NONE, Child.DEAD}:
            return replace(state, done=True), [Act.END]
    return state, []


def _keep_deadlines(state: Custody, now: float) -> tuple[Custody, list[Action]]:
    actions: list[Action] = []
    if state.child is Child.ALIVE:
        if state.soft is not None and now >= state.soft and not state.overdue:
            state = replace(state, overdue=True)
            state, actions = _terminate(state, state.hard if state.hard is not None else now)
        if now >= min(at for at in (state.kill_at, state.hard, now + 1) if at is not None):
            state = replace(state, child=Child.KILLED)
            actions.append(Act.KILL)
    elif not state.done and state.answer_by is not None and now >= state.answer_by:
        # Its pings would keep the leadership of a node that runs nothing.
        state = replace(state, done=True, sidecar_alive=False)
        actions += [Act.KILL_SIDECAR, Act.PREPARE_REMOVAL, Act.REMOVE_ZNODE, Act.END]
    return state, actions


def _terminate(state: Custody, kill_at: float) -> tuple[Custody, list[Action]]:
    """Ask the child to stop, once; a later request can only bring its end forward."""
    if state.kill_at is None:
        return replace(state, kill_at=kill_at), [Act.TERMINATE]
    return replace(state, kill_at=min(state.kill_at, kill_at)), []


def _orphaned(state: Custody, now: float) -> tuple[Custody, list[Action]]:
    match state.child:
        case Child.NONE:
            # A place in the line, perhaps already its head: nobody should have to wait for a dead contender.
            return replace(state, done=True), [Act.PREPARE_REMOVAL, Act.REMOVE_ZNODE, Act.END]
        case Child.ALIVE:
            state, actions = _terminate(state, now + ORPHAN_GRACE_S)
            return state, [*actions, Act.PREPARE_REMOVAL]
        case Child.KILLED:
            return state, [Act.PREPARE_REMOVAL]
        case Child.DEAD:
            return replace(state, done=True), [Act.PREPARE_REMOVAL, Act.REMOVE_ZNODE, Act.END]
    return state, []
