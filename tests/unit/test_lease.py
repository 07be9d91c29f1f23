"""The lease's arithmetic, held against a brute-force model of what it is derived from.

The model knows nothing of the derivation: it has a follower that reports to the quorum's leader, at instants of its
own, which sessions were active since its last report; a session with its activities; and a cut right after an
acknowledged renewal. It looks up when the leader last heard of the session.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zkbeat.core.lease import (
    DRIFT,
    KILL_MARGIN_S,
    LARGEST_SHARE,
    MIN_LEASE_S,
    MIN_SESSION_TIMEOUT_S,
    Activity,
    Lease,
    LeaseError,
    agree,
    evict_after_s,
)

EPSILON = 1e-6


@dataclass
class Ensemble:
    """A follower and the quorum's leader, as one session sees them."""

    timeout_s: float
    report_every_s: float
    phase_s: float
    received: list[float] = field(default_factory=list)
    announced: list[float] = field(default_factory=list)

    def expiry(self, cut_at: float) -> float:
        """Return the earliest instant at which the session may expire, if the follower is cut off then."""
        heard = max(self.announced)
        report = self.phase_s + math.floor((cut_at - self.phase_s) / self.report_every_s) * self.report_every_s
        while report > heard:
            if any(report - self.report_every_s < at <= report for at in self.received):
                return report + self.timeout_s
            report -= self.report_every_s
        return heard + self.timeout_s


shares = st.floats(0, 1, allow_nan=False)


@st.composite
def histories(draw):
    """Draw (lease, ensemble, the first send, then what happens: waits, delays there and back, reconnects)."""
    timeout_s = draw(st.sampled_from([2.0, 4.0, 10.0, 30.0]))
    length_s = MIN_LEASE_S + draw(shares) * (timeout_s * LARGEST_SHARE - MIN_LEASE_S)
    lease = agree(timeout_s, draw(st.sampled_from([None, length_s])))
    report_every_s = timeout_s * (0.02 + 0.23 * draw(shares))
    ensemble = Ensemble(timeout_s, report_every_s, draw(shares) * report_every_s)
    connected_at = 0.0
    ensemble.announced.append(connected_at)
    first_at = draw(shares) * 2 * timeout_s
    ping = first_at - draw(shares) * timeout_s / 3  # kazoo's, while this was a standby
    while ping > connected_at:
        ensemble.received.append(ping)
        ping -= timeout_s / 3 * (1 - 0.1 * draw(shares))
    delays = st.one_of(st.just(0.0), st.just(0.0), shares.map(lambda share: share * timeout_s / 3))
    waits = st.one_of(st.just(lease.renew_every_s), shares.map(lambda share: share * timeout_s / 2))
    happens = st.tuples(waits, delays, delays, st.sampled_from([False, False, False, True]))
    return lease, ensemble, first_at, draw(st.lists(happens, min_size=1, max_size=8))


def _margins(history, naive=None):
    """Yield, after each acknowledged renewal, how long before the earliest expiry the child is dead."""
    lease, ensemble, sent_at, happens = history
    connected_at = max(ensemble.announced)
    active: tuple[Activity, ...] = ()
    for wait_s, there_s, back_s, reconnects in happens:
        received_at = sent_at + there_s
        answered_at = received_at + back_s
        ensemble.received.append(received_at)
        active = lease.remember(active, sent_at, answered_at, connected_at)
        hard = naive(lease, sent_at) if naive is not None else lease.deadlines(active).hard
        yield ensemble.expiry(received_at) - hard
        sent_at = max(answered_at, sent_at + wait_s)
        if reconnects:
            connected_at = sent_at
            ensemble.announced.append(sent_at + there_s)
            sent_at += there_s


SLOW_AFTER_A_CONNECT = (
    agree(2.0, None),
    Ensemble(timeout_s=2.0, report_every_s=0.5, phase_s=0.125, announced=[0.0]),
    0.0625,
    [(2 / 9, 1 / 6, 0.0, False), (2 / 9, 0.0, 0.0, False), (2 / 9, 0.0, 0.0, False)],
)
"""The only report fell between the connect and the slow first renewal, and named nothing."""


@given(histories())
@example(SLOW_AFTER_A_CONNECT)
@settings(max_examples=2000, deadline=None)
def test_the_child_is_dead_a_twelfth_before_the_session_can_expire(history):
    for margin_s in _margins(history):
        assert margin_s >= history[0].session_timeout_s / 12 - EPSILON


def _history(timeout_s, report_every_s, phase_s, pings, happens, first_at):
    ensemble = Ensemble(timeout_s, report_every_s, phase_s, received=list(pings), announced=[0.0])
    return agree(timeout_s, None), ensemble, first_at, happens


NAIVE = {
    "the session timeout": lambda lease, sent_at: sent_at + lease.session_timeout_s,
    "the lease, whatever came before": lambda lease, sent_at: sent_at + lease.length_s,
}


@pytest.mark.parametrize("naive", NAIVE.values(), ids=NAIVE)
def test_the_model_refutes_deadlines_that_forget_what_came_before(naive):
    # The second request was long on its way, and its answer too: the report at 3.1 came just before it, and the next
    # one would have come just after the cut.
    stalled = [(2.0, 0.0, 0.0, False), (2.0, 1.1, 2.8, False), (0.0, 0.0, 0.0, False)]
    assert min(_margins(_history(12.0, 3.0, 0.1, [], stalled, 0.1), naive)) < 0
    assert min(_margins(_history(12.0, 3.0, 0.1, [], stalled, 0.1))) >= 1 - EPSILON
    # Elected just before a report, which is cut off: the one before it came between two pings.
    elected = [(2.0, 0.0, 0.0, False)]
    assert min(_margins(_history(12.0, 3.0, 0.1, [3.05, 7.0], elected, 9.05), naive)) < 0
    assert min(_margins(_history(12.0, 3.0, 0.1, [3.05, 7.0], elected, 9.05))) >= 1 - EPSILON


@given(st.floats(2, 60), shares, st.lists(st.floats(0, 0.02), min_size=3, max_size=12))
def test_regular_renewals_with_prompt_answers_get_the_whole_lease(timeout_s, share, answers):
    length_s = MIN_LEASE_S + share * (timeout_s * LARGEST_SHARE - MIN_LEASE_S)
    lease = agree(timeout_s, length_s)
    active: tuple[Activity, ...] = ()
    sent_at = 100.0
    for number, answer_s in enumerate(answers * 4):
        active = lease.remember(active, sent_at, sent_at + answer_s, connected_at=1.0)
        deadlines = lease.deadlines(active)
        if sent_at >= 100.0 + timeout_s / 4 + lease.renew_every_s:
            assert deadlines.hard == pytest.approx(sent_at + lease.length_s), number
        next_at = sent_at + lease.renew_every_s + 0.005  # a timer is never early
        assert deadlines.soft > next_at or timeout_s < 2.5, number
        sent_at = next_at


@given(histories())
def test_what_is_remembered_stays_small_and_in_order(history):
    lease, _, sent_at, happens = history
    active: tuple[Activity, ...] = ()
    for wait_s, *_ in happens * 20:
        active = lease.remember(active, sent_at, sent_at, 0.0)
        sent_at += max(wait_s, lease.session_timeout_s / 100)
    assert len(active) <= 30
    assert list(active) == sorted(active)


@given(histories())
def test_what_is_forgotten_did_not_matter(history):
    lease, _, sent_at, happens = history
    active: tuple[Activity, ...] = ()
    everything: list[Activity] = []
    for wait_s, there_s, back_s, _ in happens:
        active = lease.remember(active, sent_at, sent_at + there_s + back_s, 0.0)
        everything = [*(everything or active[:-1]), active[-1]]
        assert lease.deadlines(active) == lease.deadlines(tuple(everything))
        sent_at = max(sent_at + there_s + back_s, sent_at + wait_s)


@given(st.floats(), st.one_of(st.none(), st.floats()))
@example(float("nan"), None)
@example(10.0, float("nan"))
@example(10.0, float("inf"))
def test_what_is_agreed_keeps_the_inequality_and_all_else_is_refused(timeout_s, requested_s):
    with contextlib.suppress(LeaseError):
        lease = agree(timeout_s, requested_s)
        assert lease.session_timeout_s >= MIN_SESSION_TIMEOUT_S
        assert MIN_LEASE_S <= lease.length_s <= lease.session_timeout_s * LARGEST_SHARE + 1e-9
        assert 2 * lease.renew_every_s < lease.session_timeout_s / 4
        assert lease.renew_every_s <= lease.length_s / 4


@pytest.mark.parametrize(
    ("timeout_s", "requested_s", "says"),
    [
        (1.9, None, "needs at least 2 s"),
        (-1.0, None, "too short"),
        (10.0, 0.5, "at least 1 s"),
        (10.0, 6.7, "at most two thirds of it, 6.667 s"),
    ],
)
def test_a_refusal_says_which_figure_and_what_it_may_be(timeout_s, requested_s, says):
    with pytest.raises(LeaseError, match=says):
        agree(timeout_s, requested_s)


def test_an_evictor_waits_longer_than_the_slowest_clock_and_kill_take():
    lease = agree(10.0, 3.0)
    assert lease.evict_after_s == evict_after_s(3.0) == pytest.approx(3.0 * (1 + DRIFT) + KILL_MARGIN_S)


def test_a_lease_stands_for_itself():
    assert Lease(10.0, 5.0) == agree(10.0, 5.0)
