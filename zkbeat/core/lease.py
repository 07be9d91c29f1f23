"""The lease: how long a leader may go without a renewal before its child must be dead.

All times are seconds; instants are on CLOCK_BOOTTIME of the node that uses them.
No instant is ever sent to another node.

The derivation
--------------

`T` is the negotiated session timeout, `L` the lease, `tick` the server's tickTime, `s(n)` the instant just before the
n-th *acknowledged* renewal, a quorum write, was sent.

1. The quorum's leader owns expiry: a session expires no earlier than `T` after that server last *heard* of it (it rounds
   up to its next tick, never down; a new quorum leader starts every session's timer anew).
2. A write does not count as hearing. A follower reports which sessions were active when it answers the leader's ping,
   every `tick/2`; only a reconnect is announced at once. A write that was acknowledged proves no more than that the
   follower was still part of the quorum then, so that every report due before `s(n)` had arrived.
3. The last report before `s(n)` was at most `tick/2` old and named the session if it had been active since the report
   before it; else an earlier report did, at or after that earlier activity. With renewals at least every `L/4` the
   quorum's leader has therefore heard of the session at or after `s(n) - max(L/4, tick/2)`.
4. A default server grants no `T < 2 tick`, so `tick/2 <= T/4`, and `L <= 2T/3` makes `L/4 <= T/6`. Hence the session
   cannot expire before `s(n) + 3T/4`, and a child that is dead at `s(n) + L` is dead `T/12` before that.
5. Where renewals did not keep their interval (slow replies, a link that stalled, one sent at once after another), a
   report that fell into the gap between two activities `a < b` may have named nothing, and only `a` is certain to have
   been heard of. For some tick there is such a report after the gap's `a` if the gap is longer than what came after it,
   `b - a > s(n) - b`, and if it lies within the last `T/4`. The child must be dead `T/12` before `a + T` then.
6. Two things stand in for a renewal as the `a` of point 5: a reconnect, which the follower announces to the quorum's
   leader at once, and, before the first renewal of a term, kazoo's pings, one every `T/3` while this process runs.

Eviction, a contender deleting the leader's znode before its session expires, does not rest on `T` at all: the evictor
counts `L`, plus what two clocks may drift and a kill may take, from the instant when it *saw* the last renewal, which
is later than when that was sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Lease:
    """A lease that keeps the inequality. Make one with `agree`."""

    session_timeout_s: float
    length_s: float

    @property
    def renew_every_s(self) -> float:
        """The longest time between the sends of two renewals."""
        return self.length_s / 4

    @property
    def evict_after_s(self) -> float:
        """How long a contender must have seen no renewal before it may delete the leader's znode."""
        return evict_after_s(self.length_s)

    def earliest_expiry(self, active: tuple[float, ...]) -> float:
        """Before this instant ZooKeeper cannot have given the leadership away (points 4 and 5).

        `active`: the session's activities that were certainly received, oldest first, as `remember` keeps them; the last
        one is the send of the last acknowledged renewal.
        """
        last = active[-1]
        recent = last - self.session_timeout_s / 4
        gaps = zip(active, active[1:])  # noqa: B905, RUF007: pairs, on Python 3.10 too
        heard = min([recent, *(a for a, b in gaps if b > recent and b - a > last - b)])
        return heard + self.session_timeout_s

    def remember(self, active: tuple[float, ...], sent_at: float, connected_at: float) -> tuple[float, ...]:
        """Add an acknowledged renewal, and forget what no longer bears on `earliest_expiry`.

        `connected_at`: an instant before the session's last connect was sent.
        """
        if not active:
            active = (max(connected_at, sent_at - self.session_timeout_s / 3),)
        elif connected_at > active[-1]:
            active = (connected_at,)
        known = (*active, sent_at)
        older = sum(1 for at in known if at <= sent_at - self.session_timeout_s / 4)
        return known[max(older - 1, 0) :]

    def deadlines(self, active: tuple[float, ...]) -> Deadlines:
        """When the child must be stopped if nothing is renewed after `active`."""
        hard = min(
            active[-1] + self.length_s,
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
