"""The lease: how long a leader may go without a renewal before its child must be dead.

All times are seconds; instants are on CLOCK_BOOTTIME of the node that uses them.
No instant is ever sent to another node.

The derivation
--------------

`T` is the negotiated session timeout, `L` the lease, `tick` the server's tickTime, `s(n)` the instant just before the
n-th *acknowledged* renewal, a quorum write, was sent.

1. The quorum's leader owns expiry: a session expires no earlier than `T` after that server last *heard* of it (it
   rounds up to its next tick, never down; a new quorum leader starts every session's timer anew).
2. A write does not count as hearing. A follower reports which sessions were active when it answers the leader's ping,
   every `tick/2`; only a reconnect is announced at once. A write that was acknowledged proves no more than that the
   follower was still part of the quorum then, so that every report due before `s(n)` had arrived.
3. The last report before `s(n)` was at most `tick/2` old and named the session if it had been active since the report
   before it; else an earlier report did, at or after that earlier activity.
4. A default server grants no `T < 2 tick`, so `tick/2 <= T/4`: a session that was active between any two reports was
   heard of at or after `s(n) - T/4`. It cannot expire before `s(n) + 3T/4`, and a child that is dead at `s(n) + L`,
   `L <= 2T/3`, is dead `T/12` before that. What a report's way may vary by has to fit into that twelfth.
5. Reports that fell between two activities `a` and `b` named nothing, and only `a` is certain to have been heard of.
   All that is known of when `b` was received is that it was before it was answered, at `r(b)`. Let `p` be the last
   report before `s(n)`, and the first that named the session be the `m`-th before that. Then `s(a) <= p - m tick/2`,
   `p < r(b)` and `s(n) < p + tick/2`, so it was heard of after `s(n) - (m + 1) tick/2`, where `tick/2` is more than
   `s(n) - r(b)` and at most `T/4` and `(r(b) - s(a)) / m`. The child must be dead `T/12` before the earliest expiry
   that any `m` allows. With two renewals within each `T/4` and prompt answers that is never earlier than by point 4;
   at the `L/4` that point 4 asks for, one slow answer or one late timer would cost `T/12`.
6. Two things stand in for a renewal. A connect is announced to the quorum's leader at once, so it is an `a`; but there
   may have been no report between it and `b` at all, and then the connect itself is what was heard of last. Before
   the first renewal of a term there were kazoo's pings, one every `T/3` while this process runs and its connection
   works: one of them is the `a` before that renewal, and by point 5, between any two of them, the session was heard
   of after `s(n) - T/2`.

Eviction, a contender deleting the leader's znode before its session expires, does not rest on `T` at all: the evictor
counts `L`, plus what two clocks may drift and a kill may take, from the instant when it *saw* the last renewal, which
is later than when that was sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

MIN_SESSION_TIMEOUT_S = 2.0
"""Below this, T/12 is no longer a margin in which a kill is certain."""

MIN_LEASE_S = 1.0

LARGEST_SHARE = 2.0 / 3.0
"""L may be at most this share of T (point 4)."""

DRIFT = 0.01
"""How far two nodes' BOOTTIME clocks may run apart, as a share: NTP slews by 500 ppm at most, crystals by 200."""

KILL_MARGIN_S = 0.25
"""What the guard may be late by: it has only to be scheduled once and to send one signal."""


class LeaseError(ValueError):
    """The timings asked for break the inequality; the message says which and what to do."""


@dataclass(frozen=True)
class Deadlines:
    """When the child of a lease that is not renewed again is asked to stop (TERM), and killed (KILL)."""

    soft: float
    hard: float


class Activity(NamedTuple):
    """Something of the session's that a server has certainly received."""

    sent_at: float
    received_by: float
    """When the answer was here: it was received before that."""
    pinged: bool = False
    """This is the earliest that kazoo's last ping can be, and more of them went before it."""
    announced: bool = False
    """A connect: the quorum's leader heard of it at once, and perhaps of nothing since."""


@dataclass(frozen=True)
class Lease:
    """A lease that keeps the inequality. Make one with `agree`."""

    session_timeout_s: float
    length_s: float

    @property
    def renew_every_s(self) -> float:
        """The longest time between the sends of two renewals, as long as answers are prompt.

        Two of them, and what a timer is late, fit into `T/4` (point 5).
        """
        return min(self.length_s / 4, self.session_timeout_s / 9)

    @property
    def evict_after_s(self) -> float:
        """How long a contender must have seen no renewal before it may delete the leader's znode."""
        return evict_after_s(self.length_s)

    def earliest_expiry(self, active: tuple[Activity, ...]) -> float:
        """Before this instant ZooKeeper cannot have given the leadership away (points 4 to 6).

        `active`: oldest first, as `remember` keeps them; the last one is the last acknowledged renewal.
        """
        last = active[-1].sent_at
        recent = last - self.session_timeout_s / 4
        heard = recent
        for a, b in zip(active, active[1:]):  # noqa: B905, RUF007
            heard = min(heard, self._heard_of(a, b, last))
            if a.pinged and b.sent_at > recent:
                heard = min(heard, last - self.session_timeout_s / 2)
            if a.announced and b.received_by > recent:
                heard = min(heard, a.sent_at)
        return heard + self.session_timeout_s

    def _heard_of(self, a: Activity, b: Activity, last: float) -> float:
        """When the quorum's leader has heard of us, if the last report before `last` came before `b` did."""
        gap_s, since_s, longest_s = b.received_by - a.sent_at, last - b.received_by, self.session_timeout_s / 4
        earliest = last
        for reports in range(1, int(gap_s / longest_s) + 2):
            apart_s = min(longest_s, gap_s / reports)
            if apart_s > since_s:
                earliest = min(earliest, last - (reports + 1) * apart_s)
        return max(a.sent_at, earliest)

    def remember(
        self, active: tuple[Activity, ...], sent_at: float, received_by: float, connected_at: float
    ) -> tuple[Activity, ...]:
        """Add an acknowledged renewal, and forget what no longer bears on `earliest_expiry`.

        `received_by`: when the acknowledgment was here.
        `connected_at`: an instant before the session's last connect was sent.
        """
        if not active:
            pinged_at = sent_at - self.session_timeout_s / 3
            at = max(connected_at, pinged_at)
            pinged = connected_at < pinged_at
            active = (Activity(at, at, pinged=pinged, announced=not pinged),)
        elif connected_at > active[-1].sent_at:
            active = (Activity(connected_at, connected_at, announced=True),)
        known = (*active, Activity(sent_at, received_by))
        older = sum(1 for activity in known if activity.received_by <= sent_at - self.session_timeout_s / 4)
        return known[max(older - 1, 0) :]

    def deadlines(self, active: tuple[Activity, ...]) -> Deadlines:
        """When the child must be stopped if nothing is renewed after `active`."""
        hard = min(
            active[-1].sent_at + self.length_s,
            self.earliest_expiry(active) - self.session_timeout_s / 12,
        )
        return Deadlines(soft=hard - self.length_s / 4, hard=hard)


def evict_after_s(length_s: float) -> float:
    """How long without a renewal proves that a lease of `length_s` has run out and its child is dead."""
    return length_s * (1 + DRIFT) + KILL_MARGIN_S


def agree(session_timeout_s: float, requested_s: float | None) -> Lease:
    """Return the lease for a session timeout, by default the longest that is safe.

    Raises LeaseError if either figure is not a number, too small, or the lease too long for the session timeout.
    """
    if not math.isfinite(session_timeout_s) or session_timeout_s < MIN_SESSION_TIMEOUT_S:
        raise LeaseError(
            f"a session timeout of {session_timeout_s:g} s is too short: "
            f"zkbeat needs at least {MIN_SESSION_TIMEOUT_S:g} s"
        )
    longest_s = session_timeout_s * LARGEST_SHARE
    length_s = longest_s if requested_s is None else requested_s
    if not math.isfinite(length_s) or length_s < MIN_LEASE_S:
        raise LeaseError(f"a lease of {length_s:g} s is too short: it must be at least {MIN_LEASE_S:g} s")
    if length_s > longest_s + 1e-9:
        raise LeaseError(
            f"a lease of {length_s:g} s is too long for a session timeout of {session_timeout_s:g} s: the child could "
            f"outlive the session; it may be at most two thirds of it, {longest_s:.4g} s"
        )
    return Lease(session_timeout_s, length_s)
