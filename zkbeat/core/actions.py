"""What a sidecar is to do: orders of `core.term` that the edges carry out. Instants are CLOCK_BOOTTIME seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zkbeat.core.lease import Deadlines
from zkbeat.core.record import Member


@dataclass(frozen=True)
class Rival:
    """The leader, as the first in line watches it."""

    node: str
    version: int | None = None
    member: Member | None = None
    seen_at: float | None = None
    dead_at: float | None = None
    """When it was evicted: its child is certainly dead by then."""
    evict_at: float | None = None


@dataclass(frozen=True)
class Join:
    """Contend in a thread of its own, with a fresh Election."""

    attempt: int


@dataclass(frozen=True)
class Leave:
    """End that attempt: leave the line, or end the leader function so that kazoo releases the leadership.

    `led`: our znode, if this node stands in the ledger with it; its child is dead, and the ledger is to say so.
    """

    attempt: int
    led: str | None = None


@dataclass(frozen=True)
class LookAgain:
    """Have kazoo look at the whole line once more, not only at who is just before us."""

    attempt: int


@dataclass(frozen=True)
class LookAt:
    """Read another contender's znode."""

    node: str


@dataclass(frozen=True)
class Evict:
    """Delete a contender's znode, if it is still at this version."""

    node: str
    version: int


@dataclass(frozen=True)
class Renew:
    """Write our record into our election znode. `sent_at` is echoed in the answer."""

    node: str
    sent_at: float


@dataclass(frozen=True)
class ReadLedger:
    """Read the ledger and watch it."""


@dataclass(frozen=True)
class Enter:
    """Write into the ledger that this node leads, if the ledger is still at this version and our znode exists."""

    node: str
    version: int
    lease_s: float


@dataclass(frozen=True)
class ReadControl:
    """Read the control znode and watch it."""


@dataclass(frozen=True)
class Place:
    """Tell the guard, and note on disk, which znode is ours, and whether it stands in the ledger."""

    node: str
    led: bool = False


@dataclass(frozen=True)
class SpawnGuard:
    """Start a guard."""


@dataclass(frozen=True)
class AnswerGuard:
    """Tell the guard that it may end."""


@dataclass(frozen=True)
class KillGuard:
    """Kill a guard that does not do its duty; the kernel kills its child."""


@dataclass(frozen=True)
class Park:
    """Have the guard load the command's app in advance, or anew."""


@dataclass(frozen=True)
class StartChild:
    """Start the command, to be dead at these deadlines unless they are extended."""

    epoch: int
    node: str
    deadlines: Deadlines


@dataclass(frozen=True)
class ExtendLease:
    """Move the guard's deadlines."""

    deadlines: Deadlines


@dataclass(frozen=True)
class StopChild:
    """TERM now, KILL at `kill_at`."""

    kill_at: float


@dataclass(frozen=True)
class KillChild:
    """KILL to everything, now."""


@dataclass(frozen=True)
class TermBegan:
    """Write down that a term has begun; `after` is who led before, as far as this node saw."""

    epoch: int
    after: Rival | None


@dataclass(frozen=True)
class TermEnded:
    """Write down why a term has ended."""

    epoch: int
    why: str


@dataclass(frozen=True)
class NewSession:
    """Drop the client, and with it the session, and make another."""


@dataclass(frozen=True)
class Close:
    """Close the session and end with this code."""

    code: int


@dataclass(frozen=True)
class Say:
    """A line for the log."""

    level: str
    event: str
    message: str
    fields: dict[str, Any] = field(default_factory=dict)


Action = (
    Join
    | Leave
    | LookAgain
    | LookAt
    | Evict
    | Renew
    | ReadLedger
    | Enter
    | ReadControl
    | Place
    | SpawnGuard
    | AnswerGuard
    | KillGuard
    | Park
    | StartChild
    | ExtendLease
    | StopChild
    | KillChild
    | TermBegan
    | TermEnded
    | NewSession
    | Close
    | Say
)
