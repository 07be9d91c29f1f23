"""What may happen to a sidecar: facts that the edges report to `core.term`. Instants are CLOCK_BOOTTIME seconds."""

from __future__ import annotations

from dataclasses import dataclass

from zkbeat.core.pulse import Pulse
from zkbeat.core.record import Control, Ledger, Member


@dataclass(frozen=True)
class Began:
    """The sidecar has started."""


@dataclass(frozen=True)
class Connected:
    """A session is live: a new one, or the old one over a new connection."""

    session: int
    session_timeout_s: float
    sent_at: float
    """An instant before the handshake was sent."""


@dataclass(frozen=True)
class Suspended:
    """The connection is lost; the session may live on."""


@dataclass(frozen=True)
class Lost:
    """The session is gone, and with it every znode of ours."""


@dataclass(frozen=True)
class Refused:
    """ZooKeeper, or we, will not go on with this ensemble: credentials, rights, certificates, a missing chroot."""

    code: int
    message: str


@dataclass(frozen=True)
class Unreachable:
    """There is still no connection, and why."""

    message: str


@dataclass(frozen=True)
class Queued:
    """Our place in the line: `ahead` contenders are before us, `head` is the first of them."""

    attempt: int
    node: str
    ahead: int
    head: str | None


@dataclass(frozen=True)
class MemberSeen:
    """What another contender's znode says; `member` is None if that is not to be understood."""

    node: str
    version: int
    member: Member | None


@dataclass(frozen=True)
class EvictionTried:
    """Whether a conditional delete went through; if not, the leader had renewed or the connection failed."""

    node: str
    deleted: bool


@dataclass(frozen=True)
class Elected:
    """kazoo's Election calls its leader function."""

    attempt: int
    node: str


@dataclass(frozen=True)
class ElectionEnded:
    """The thread of that attempt has left the line."""

    attempt: int
    error: str | None = None


@dataclass(frozen=True)
class Renewed:
    """A renewal was acknowledged; what the znode's Stat says."""

    node: str
    sent_at: float
    owner: int
    epoch: int
    offset_s: float | None = None
    """This node's wall clock minus the quorum leader's, in seconds."""


@dataclass(frozen=True)
class RenewalFailed:
    """A renewal was not acknowledged. `refused`: because the leadership is not ours any more."""

    node: str
    sent_at: float
    refused: bool
    reason: str


@dataclass(frozen=True)
class LedgerTouched:
    """The ledger has changed, or its watch was lost."""


@dataclass(frozen=True)
class LedgerRead:
    """What the ledger says; None: nothing, or nothing to be understood."""

    ledger: Ledger | None
    version: int


@dataclass(frozen=True)
class Entered:
    """Whether this node stands in the ledger as the leader."""

    node: str
    ok: bool


@dataclass(frozen=True)
class ControlTouched:
    """The control znode has changed, or its watch was lost."""


@dataclass(frozen=True)
class ControlRead:
    """What operators ask for; None: it could not be read."""

    control: Control | None


@dataclass(frozen=True)
class GuardReady:
    """A guard waits for its child."""


@dataclass(frozen=True)
class GuardConfirmed:
    """The guard has put the last extension into force."""


@dataclass(frozen=True)
class GuardGone:
    """The guard has ended, and nothing that it held is alive."""


@dataclass(frozen=True)
class Powerless:
    """The guard may not kill this process of the child's: it runs as another user."""

    pid: int


@dataclass(frozen=True)
class Parked:
    """A process that has loaded the child's app waits at its gate; `kib`: the memory that it takes."""

    pid: int
    kib: int


@dataclass(frozen=True)
class Unparked:
    """None waits there: it could not be loaded in advance, or is gone."""

    why: str


@dataclass(frozen=True)
class ReloadRequested:
    """The app has changed: what was loaded in advance is to be loaded anew."""


@dataclass(frozen=True)
class Pulsed:
    """The launched beat has said something new about itself."""

    pulse: Pulse


@dataclass(frozen=True)
class ChildStarted:
    """The command runs."""

    pid: int


@dataclass(frozen=True)
class ChildDead:
    """The child and everything it started are dead. `code` as a shell gives it."""

    code: int | None
    overdue: bool = False
    """The guard stopped it for a deadline, before this side asked."""
    error: str | None = None


@dataclass(frozen=True)
class StopRequested:
    """TERM or INT, or the parent is gone; `hurry`: somebody is impatient."""

    why: str
    hurry: bool = False


@dataclass(frozen=True)
class StepDownRequested:
    """Somebody wants another leader."""

    why: str


@dataclass(frozen=True)
class Time:
    """Time has passed."""


Event = (
    Began
    | Connected
    | Suspended
    | Lost
    | Refused
    | Unreachable
    | Queued
    | MemberSeen
    | EvictionTried
    | Elected
    | ElectionEnded
    | Renewed
    | RenewalFailed
    | LedgerTouched
    | LedgerRead
    | Entered
    | ControlTouched
    | ControlRead
    | GuardReady
    | GuardConfirmed
    | GuardGone
    | Powerless
    | Parked
    | Unparked
    | ReloadRequested
    | Pulsed
    | ChildStarted
    | ChildDead
    | StopRequested
    | StepDownRequested
    | Time
)
