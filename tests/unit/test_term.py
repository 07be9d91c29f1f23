from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.driving import (
    LEASE_S,
    LEFT,
    ME,
    THEM,
    Sidecar,
    T,
    connected,
    elected,
    leading,
    renewed,
    standby,
    starting,
)
from zkbeat.core import actions as do
from zkbeat.core import events as ev
from zkbeat.core import term
from zkbeat.core.lease import KILL_MARGIN_S
from zkbeat.core.pulse import Pulse
from zkbeat.core.record import Control, Ledger, Member
from zkbeat.core.term import Child, Guard, Phase, Settings, State, Time, next_deadline, step

# before a child is started


def test_a_guard_is_ready_before_the_line_is_joined():
    sidecar = Sidecar().tell(ev.Began(), ev.Connected(7, T, 99.9))
    assert sidecar.did(do.SpawnGuard)
    assert not sidecar.did(do.Join)
    assert sidecar.tell(ev.GuardReady()).did(do.Join) == [do.Join(1)]


def test_being_elected_starts_nothing():
    sidecar = connected().tell(ev.Queued(1, ME, 0, None)).tell(ev.Elected(1, ME), at=101.0)
    asked = [do.ReadControl(), do.ReadLedger(), do.Renew(ME, 101.0)]
    assert sidecar.did(do.Renew, do.ReadControl, do.ReadLedger, do.StartChild) == asked


def test_being_told_twice_of_an_election_changes_nothing():
    assert leading().tell(ev.Elected(1, ME)).done == []


ANSWERS = {
    "control": lambda sidecar: sidecar.tell(ev.ControlRead(None)),
    "ledger": lambda sidecar: sidecar.tell(ev.LedgerRead(LEFT, 3)),
    "renewal": renewed,
}


@pytest.mark.parametrize("last", ANSWERS)
def test_the_ledger_is_entered_once_renewal_control_and_ledger_are_known_and_only_then_a_child_started(last):
    sidecar = elected()
    for answer in [*(name for name in ANSWERS if name != last), last]:
        assert not sidecar.did(do.Enter)
        ANSWERS[answer](sidecar)
    assert sidecar.did(do.Enter, do.StartChild) == [do.Enter(ME, 3, LEASE_S)]
    assert sidecar.tell(ev.Entered(ME, ok=True)).did(do.StartChild)
    assert sidecar.tell(ev.Entered(ME, ok=True), Time()).did(do.StartChild) == []


def test_the_deadlines_count_from_the_send():
    sidecar = elected().tell(ev.ControlRead(None), ev.LedgerRead(LEFT, 3), at=100.5)
    renewed(sidecar).tell(ev.Entered(ME, ok=True), at=101.0)
    (start,) = sidecar.did(do.StartChild)
    assert start.epoch == 5
    assert start.deadlines.hard <= 100.0 + LEASE_S


def test_what_was_written_on_the_standby_is_no_renewal_of_the_term():
    sidecar = standby().tell(ev.Queued(1, ME, 0, None), ev.Elected(1, ME), at=101.0)
    sidecar.tell(ev.ControlRead(None), ev.LedgerRead(LEFT, 3), ev.Renewed(ME, 100.0, 7, 5))
    assert not sidecar.did(do.Enter)
    assert renewed(sidecar).did(do.Enter)


@pytest.mark.parametrize("changes", [{"owner": 8}, {"epoch": 6}])
def test_a_znode_of_another_session_ends_the_term_and_the_child(changes):
    sidecar = leading()
    sidecar.tell(Time(), at=next_deadline(sidecar.state))
    assert renewed(sidecar, **changes).did(do.KillChild)


def test_a_stale_attempt_is_not_elected():
    sidecar = standby().tell(ev.Lost(), ev.Elected(1, ME))
    assert sidecar.state.term is None
    assert do.Leave(1) in sidecar.done
    sidecar.tell(ev.ElectionEnded(1), ev.Connected(8, T, 100.0), ev.Elected(1, ME))
    assert sidecar.state.term is None


# the ledger


@pytest.mark.parametrize(
    ("ledger", "waits"),
    [
        (LEFT, False),
        (Ledger(led=ME, lease=LEASE_S), False),
        (Ledger(led=THEM, lease=LEASE_S), True),
        (None, True),
    ],
)
def test_a_last_leader_that_is_not_known_to_be_dead_is_waited_for(ledger, waits):
    sidecar = elected().tell(ev.ControlRead(None), ev.LedgerRead(ledger, 3))
    assert bool(renewed(sidecar).did(do.Enter)) is not waits
    if waits:
        assert sidecar.state.term.wait_until > 100.0 + LEASE_S


def test_an_evicted_leader_is_not_waited_for():
    sidecar = standby().tell(ev.MemberSeen(THEM, 4, Member("them", lease=LEASE_S)))
    due = sidecar.state.rival.evict_at
    assert sidecar.tell(Time(), at=due).did(do.Evict) == [do.Evict(THEM, 4)]
    sidecar.tell(ev.EvictionTried(THEM, deleted=True), ev.Queued(1, ME, 0, None), ev.Elected(1, ME))
    sidecar.tell(ev.ControlRead(None), ev.LedgerRead(Ledger(led=THEM, lease=LEASE_S), 3))
    assert renewed(sidecar).did(do.Enter)


def test_a_leader_whose_znode_went_in_another_way_is_waited_for_from_now_and_not_from_when_it_was_seen():
    """It may have renewed after it was last seen, and its znode been deleted then (found by the simulation)."""
    sidecar = standby().tell(ev.MemberSeen(THEM, 4, Member("them", lease=LEASE_S)))
    sidecar.tell(ev.Queued(1, ME, 0, None), ev.Elected(1, ME), at=106.0)
    sidecar.tell(ev.LedgerRead(Ledger(led=THEM, lease=LEASE_S), 3))
    assert sidecar.state.term.wait_until > 106.0 + LEASE_S


def test_an_entry_that_is_refused_is_tried_again_with_what_is_read_then_and_not_in_a_loop():
    """Each refusal used to send two requests, each of which was refused (found by the simulation)."""
    sidecar = elected().tell(ev.ControlRead(None), ev.LedgerRead(LEFT, 3))
    renewed(sidecar)
    assert sidecar.tell(ev.Entered(ME, ok=False), Time()).did(do.Enter, do.ReadLedger) == []
    assert sidecar.served().did(do.Renew)
    assert renewed(sidecar).did(do.ReadLedger, do.Enter) == [do.ReadLedger()]
    assert sidecar.tell(ev.LedgerRead(LEFT, 4)).did(do.Enter) == [do.Enter(ME, 4, LEASE_S)]


# eviction


def test_a_leader_is_evicted_at_the_version_seen_a_lease_after_it_was_seen():
    sidecar = standby().tell(ev.MemberSeen(THEM, 4, Member("them", lease=LEASE_S)), at=103.0)
    assert sidecar.tell(Time(), at=103.0 + LEASE_S).did(do.Evict) == []
    sidecar.tell(ev.MemberSeen(THEM, 5, Member("them", lease=LEASE_S)))
    assert sidecar.state.rival.evict_at > 103.0 + 2 * LEASE_S


def test_the_slow_answer_to_an_eviction_does_not_bring_the_next_one_forward():
    """The version seen meanwhile was evicted a quarter of a second later (found by the simulation)."""
    sidecar = standby().tell(ev.MemberSeen(THEM, 4, Member("them", lease=LEASE_S)))
    sidecar.served()
    assert sidecar.did(do.Evict)
    sidecar.tell(ev.MemberSeen(THEM, 9, Member("them", lease=LEASE_S)), ev.EvictionTried(THEM, deleted=False))
    assert sidecar.did(do.LookAt)
    assert sidecar.state.rival.evict_at > sidecar.now + LEASE_S
    assert sidecar.tell(Time(), at=sidecar.now + 1.0).did(do.Evict) == []


def test_a_record_that_is_not_understood_is_not_evicted():
    sidecar = standby().tell(ev.MemberSeen(THEM, 4, None))
    assert "foreign-record" in sidecar.said
    assert sidecar.state.rival.evict_at is None


def test_a_leader_with_a_longer_lease_is_given_all_of_it():
    sidecar = standby().tell(ev.MemberSeen(THEM, 4, Member("them", lease=30.0)))
    assert sidecar.state.rival.evict_at > sidecar.now + 30.0


# a thread of kazoo's that hangs


@pytest.mark.parametrize("why", ["joined", "reconnected", "evicted"])
def test_a_place_that_is_not_told_is_left_and_then_the_session_dropped(why):
    """kazoo's Lock has no timeouts: a call that raced a reconnect may hang, as the head of the line (simulation)."""
    sidecar = connected() if why == "joined" else standby()
    if why == "reconnected":
        sidecar.tell(ev.Suspended(), ev.Connected(7, T, 100.0))
    if why == "evicted":
        sidecar.tell(ev.MemberSeen(THEM, 4, Member("them"))).served()
        sidecar.tell(ev.EvictionTried(THEM, deleted=True))
    attempt = sidecar.state.attempt
    sidecar.tell(Time(), at=sidecar.now + T)
    assert sidecar.did(do.Leave) == [do.Leave(attempt)]
    assert sidecar.tell(Time(), at=sidecar.now + T).did(do.NewSession)
    assert not sidecar.state.contending


def test_a_line_that_cannot_be_left_without_a_connection_is_left_with_the_next_one():
    """To drop what is just connecting makes the next one wait: a thousand nodes would never get through."""
    sidecar = standby().tell(ev.Lost())
    assert sidecar.did(do.Leave)
    assert not sidecar.tell(Time(), at=sidecar.now + 10 * T).did(do.NewSession)
    sidecar.tell(ev.Connected(8, T, sidecar.now))
    assert not sidecar.tell(Time(), at=sidecar.now + 0.9 * T).did(do.NewSession)
    assert sidecar.tell(Time(), at=sidecar.now + 0.1 * T).did(do.NewSession)


def test_one_who_stands_further_back_looks_at_the_line_again_and_evicts_who_is_left_before_it():
    """The one just before may hang, and outlive all that stood before it: nobody would be told (simulation)."""
    sidecar = connected().tell(ev.Queued(1, ME, 2, THEM))
    sidecar.tell(ev.Renewed(ME, sidecar.now, 7, 5, 0.0)).tell(ev.Renewed(ME, sidecar.now, 7, 5, 0.0))
    assert sidecar.served().did(do.LookAgain) == [do.LookAgain(1)]
    assert sidecar.now == 100.0 + term.LOOK_AGAIN_TIMEOUTS * T
    hung = "hung__lock__0000000000"
    sidecar.tell(ev.Queued(1, ME, 1, hung), ev.MemberSeen(hung, 0, Member("hung", lease=LEASE_S)))
    assert sidecar.served().did(do.Evict) == [do.Evict(hung, 0)]


def test_the_first_in_line_has_no_need_to_look_again():
    sidecar = standby()
    assert not sidecar.tell(Time(), at=sidecar.now + 100 * T).did(do.LookAgain)


def test_a_standby_that_was_told_its_place_may_wait_for_ever():
    sidecar = standby()
    for _ in range(5):
        assert sidecar.served().did(do.Renew)
        assert not sidecar.did(do.Leave, do.NewSession)
        sidecar.tell(ev.Renewed(ME, sidecar.now, 7, 5, 0.0))


def test_a_place_in_the_line_that_was_deleted_is_taken_anew():
    sidecar = standby().tell(ev.RenewalFailed(ME, 100.0, refused=True, reason="no node"))
    assert sidecar.did(do.Leave)
    assert sidecar.tell(ev.ElectionEnded(1)).did(do.Join) == [do.Join(2)]


# leading


def test_a_renewal_extends_the_lease_and_the_next_is_due_in_time():
    sidecar = leading()
    due = next_deadline(sidecar.state)
    assert due <= sidecar.now + LEASE_S / 4
    assert sidecar.served().did(do.Renew) == [do.Renew(ME, due)]
    assert renewed(sidecar).did(do.ExtendLease)


def test_a_lost_connection_alone_stops_nothing_before_the_soft_deadline():
    sidecar = leading().tell(ev.Suspended())
    deadlines = sidecar.state.deadlines
    assert next_deadline(sidecar.state) == deadlines.soft or sidecar.state.unconfirmed_since is not None
    assert sidecar.tell(Time(), at=deadlines.soft - 0.01).did(do.StopChild, do.KillChild) == []
    assert sidecar.tell(Time(), at=deadlines.soft).did(do.StopChild) == [do.StopChild(deadlines.hard)]
    assert sidecar.tell(Time(), at=deadlines.hard).did(do.KillChild)


def test_a_renewal_that_is_answered_after_the_soft_deadline_is_too_late():
    sidecar = leading().served()
    soft = sidecar.state.deadlines.soft
    sent_at = sidecar.state.term.sent_at
    sidecar.tell(ev.Renewed(ME, sent_at, 7, 5), at=soft)
    assert sidecar.did(do.StopChild)
    assert not sidecar.did(do.ExtendLease)
    assert sidecar.state.term.ending


@pytest.mark.parametrize("end", [ev.Lost(), ev.RenewalFailed(ME, 0.0, refused=True, reason="gone")])
def test_a_leadership_that_is_gone_kills_at_once(end):
    assert leading().tell(end).did(do.KillChild)


def test_the_leadership_is_left_only_once_the_child_is_dead():
    sidecar = leading().tell(ev.StepDownRequested("asked"))
    assert sidecar.did(do.StopChild)
    for _ in range(3):
        assert not sidecar.did(do.Leave)
        sidecar.tell(Time())
    sidecar.tell(ev.ChildDead(0))
    assert sidecar.did(do.AnswerGuard, do.Leave) == [do.AnswerGuard(), do.Leave(1, led=ME)]


def test_a_request_that_is_never_answered_is_sent_again():
    sidecar = leading().served()
    first = sidecar.did(do.Renew)
    sidecar.served()
    assert sidecar.did(do.Renew)[0].sent_at > first[0].sent_at


def test_a_control_that_was_never_read_is_asked_for_again():
    sidecar = elected().tell(ev.LedgerRead(LEFT, 3))
    renewed(sidecar).served()
    assert renewed(sidecar).did(do.ReadControl) == [do.ReadControl()]


# control


def test_control_is_asked_for_again_if_the_first_answer_after_a_reconnect_is_lost():
    sidecar = leading().tell(ev.Suspended()).tell(ev.Connected(7, T, 100.0))
    assert renewed(sidecar).did(do.ReadControl)
    sidecar.tell(ev.ControlRead(None)).served()
    assert not renewed(sidecar).did(do.ReadControl)


def test_a_paused_leader_keeps_its_place_and_runs_nothing():
    sidecar = leading().tell(ev.ControlRead(Control(paused=True, by="ann")))
    assert sidecar.did(do.StopChild)
    sidecar.tell(ev.ChildDead(0), ev.GuardReady())
    assert sidecar.state.phase is Phase.PAUSED
    assert not sidecar.did(do.Leave, do.StartChild)
    assert sidecar.tell(ev.ControlRead(Control())).did(do.StartChild)


def test_a_pause_that_is_lifted_while_the_child_still_stops_starts_the_next_one():
    sidecar = leading().tell(ev.ControlRead(Control(paused=True)), ev.ControlRead(Control()))
    assert sidecar.tell(ev.ChildDead(0), ev.GuardReady()).did(do.StartChild)


def test_a_pause_while_the_child_is_starting_stops_it():
    sidecar = starting().tell(ev.ControlRead(Control(paused=True)))
    assert sidecar.did(do.StopChild)
    sidecar.tell(ev.ChildStarted(42))
    assert sidecar.state.child is Child.STOPPING


def test_a_step_down_of_this_epoch_is_obeyed_and_of_another_is_not():
    assert not leading().tell(ev.ControlRead(Control(step_down=4))).did(do.StopChild)
    assert leading().tell(ev.ControlRead(Control(step_down=5))).did(do.StopChild)


def test_a_step_down_that_was_read_before_the_epoch_was_known_is_obeyed():
    sidecar = elected().tell(ev.ControlRead(Control(step_down=5)))
    assert renewed(sidecar).did(do.Leave)


# the guard


def test_a_guard_that_does_not_start_is_killed_and_another_started():
    """Without one, an elected node would lead for ever and run nothing."""
    sidecar = elected().tell(ev.GuardGone()).tell(Time(), at=101.0)
    assert sidecar.did(do.SpawnGuard)
    sidecar.tell(Time(), at=sidecar.state.guard_due_at)
    assert sidecar.did(do.KillGuard)
    assert sidecar.tell(ev.GuardGone(), Time()).state.guard is Guard.NONE
    assert sidecar.tell(Time(), at=sidecar.state.guard_due_at).did(do.SpawnGuard)


def test_a_guard_that_does_not_confirm_is_killed():
    sidecar = leading().served()
    renewed(sidecar)
    assert not sidecar.tell(Time(), at=sidecar.now + LEASE_S / 3).did(do.KillGuard), "so short a stop stops nothing"
    assert sidecar.tell(Time(), at=sidecar.now + LEASE_S * (term.DOUBTED_AFTER - 1 / 3)).did(do.KillGuard)
    assert sidecar.tell(ev.GuardGone()).did(do.Leave)


def test_a_guard_whose_word_waits_behind_other_events_is_not_doubted():
    sidecar = leading().served()
    renewed(sidecar)
    sidecar.tell(ev.ControlTouched(), ev.GuardConfirmed(), Time(), at=sidecar.now + LEASE_S / 4 + 0.1)
    assert not sidecar.did(do.KillGuard)


def test_a_guard_that_does_not_kill_is_killed_within_the_margin():
    sidecar = leading().tell(ev.Lost())
    killed_at = sidecar.now
    assert sidecar.did(do.KillChild)
    assert sidecar.served().did(do.KillGuard)
    assert sidecar.now < killed_at + KILL_MARGIN_S


def test_the_loss_of_the_guard_is_the_end_of_the_term():
    sidecar = leading().tell(ev.GuardGone())
    assert sidecar.did(do.Leave)
    assert sidecar.state.child is Child.NONE


def test_a_guard_that_dies_with_a_dead_child_told_first_costs_one_term_and_not_two():
    sidecar = leading().tell(ev.ChildDead(1))
    assert sidecar.did(do.AnswerGuard, do.Leave)
    assert sidecar.tell(ev.GuardGone()).did(do.Leave, do.KillChild) == []


# the child's end


def test_a_child_that_ends_by_itself_is_backed_off_from_longer_each_time():
    sidecar = leading()
    pauses = []
    for _ in range(3):
        sidecar.tell(ev.ChildDead(1), ev.ElectionEnded(sidecar.state.attempt), ev.GuardReady())
        pauses.append(sidecar.state.back_off_until - sidecar.now)
        assert sidecar.state.phase is Phase.BACKING_OFF
        sidecar.tell(Time(), at=sidecar.state.back_off_until)
        attempt = sidecar.state.attempt
        sidecar.tell(ev.Queued(attempt, ME, 0, None), ev.Elected(attempt, ME), ev.ControlRead(None))
        renewed(sidecar.tell(ev.LedgerRead(LEFT, 3))).tell(ev.Entered(ME, ok=True), ev.ChildStarted(1))
    assert pauses == [1.0, 2.0, 4.0]


def test_a_child_may_end_zkbeat_with_its_own_code():
    sidecar = leading(rejoin=False).tell(ev.ChildDead(3), ev.ElectionEnded(1))
    assert sidecar.did(do.Close) == [do.Close(3)]


# the end


def test_a_stop_stops_the_child_then_leaves_then_closes():
    sidecar = leading().tell(ev.StopRequested("TERM"))
    assert sidecar.did(do.StopChild, do.Leave, do.Close) == [do.StopChild(sidecar.now + 10.0)]
    assert sidecar.tell(ev.ChildDead(0)).did(do.Leave, do.Close) == [do.Leave(1, led=ME)]
    assert sidecar.tell(ev.ElectionEnded(1)).did(do.Close) == [do.Close(0)]
    assert next_deadline(sidecar.state) is None


def test_a_stop_while_the_child_is_starting_waits_for_its_death():
    sidecar = starting().tell(ev.StopRequested("TERM"))
    assert sidecar.did(do.StopChild)
    sidecar.tell(ev.ChildStarted(42))
    assert not sidecar.did(do.Leave, do.Close)
    assert sidecar.tell(ev.ChildDead(0)).did(do.Leave)


def test_a_second_interrupt_kills():
    sidecar = leading().tell(ev.StopRequested("INT"), ev.StopRequested("INT", hurry=True))
    assert sidecar.did(do.StopChild, do.KillChild)[-1] == do.KillChild()


def test_a_line_that_cannot_be_left_does_not_keep_zkbeat_from_ending():
    sidecar = standby().tell(ev.StopRequested("TERM"))
    assert sidecar.did(do.Leave)
    assert sidecar.served().did(do.Close) == [do.Close(0)]
    assert sidecar.now <= 100.0 + term.LEAVE_WITHIN_S


def test_no_ensemble_within_the_time_given_is_an_exit():
    sidecar = Sidecar(State(Settings(session_timeout_s=T, connect_timeout_s=3.0))).tell(ev.Began(), ev.GuardReady())
    assert sidecar.served().did(do.Close) == [do.Close(69)]
    assert sidecar.now == 103.0


def test_a_new_session_is_a_new_attempt():
    sidecar = leading().tell(ev.Connected(8, T, 100.0))
    assert sidecar.did(do.KillChild)
    sidecar.tell(ev.ChildDead(137), ev.GuardReady())
    assert sidecar.did(do.Leave)
    assert sidecar.tell(ev.ElectionEnded(1)).did(do.Join) == [do.Join(2)]


def test_a_session_timeout_that_is_not_safe_ends_zkbeat():
    sidecar = Sidecar().tell(ev.Began(), ev.GuardReady(), ev.Connected(7, 1.0, 99.9))
    assert sidecar.did(do.Close) == [do.Close(78)]


# any order of events

nodes = st.sampled_from([ME, THEM])
attempts = st.integers(0, 3)
controls = st.one_of(st.none(), st.builds(Control, paused=st.booleans(), step_down=st.sampled_from([None, 5])))
happenings = st.one_of(
    st.builds(ev.Connected, st.integers(7, 8), st.just(T), st.just(0.0)),
    st.builds(ev.Queued, attempts, nodes, st.integers(0, 2), st.sampled_from([THEM])),
    st.builds(ev.MemberSeen, nodes, st.integers(0, 3), st.sampled_from([None, Member("them", lease=2.0)])),
    st.builds(ev.EvictionTried, nodes, st.booleans()),
    st.builds(ev.Elected, attempts, nodes),
    st.builds(ev.ElectionEnded, attempts, st.sampled_from([None, "error"])),
    st.builds(ev.Renewed, nodes, st.floats(-9, 0), st.integers(7, 8), st.integers(5, 6), st.sampled_from([None, 3.0])),
    st.builds(ev.RenewalFailed, nodes, st.floats(-9, 0), st.booleans(), st.just("why")),
    st.builds(ev.LedgerRead, st.sampled_from([None, LEFT, Ledger(led=THEM, lease=1.0)]), st.integers(0, 3)),
    st.builds(ev.Entered, nodes, st.booleans()),
    st.builds(ev.ControlRead, controls),
    st.builds(ev.ChildDead, st.integers(0, 1), st.booleans(), st.sampled_from([None, "error"])),
    st.builds(ev.Pulsed, st.builds(Pulse, *[st.floats(0, 200)] * 3, count=st.integers(0, 1))),
    st.builds(ev.StopRequested, st.just("why"), st.booleans()),
    st.builds(ev.Refused, st.just(77), st.just("why")),
    st.sampled_from(
        [
            *(ev.Suspended(), ev.Lost(), ev.Unreachable("why"), ev.LedgerTouched(), ev.ControlTouched(), Time()),
            *(ev.Parked(2, 1), ev.Unparked("why"), ev.ReloadRequested()),
            *(ev.GuardReady(), ev.GuardConfirmed(), ev.GuardGone(), ev.ChildStarted(1), ev.StepDownRequested("why")),
            *["time passes"] * 6,
        ]
    ),
)
beginnings = st.sampled_from([connected, standby, elected, starting, leading])
choices = st.fixed_dictionaries({"launched": st.booleans(), "preload": st.booleans(), "restart_stuck": st.booleans()})


@given(beginnings, choices, st.lists(st.tuples(happenings, st.floats(0, 4)), max_size=40))
@settings(max_examples=600, deadline=None)
def test_whatever_happens_in_whatever_order(begin, chosen, history):
    """No order of events, true or not, starts a child without a lease, leaves one behind, or runs in circles."""
    sidecar = begin(**chosen)
    for happens, passed in history:
        event = happens
        now = sidecar.now + passed
        if event == "time passes":
            event = Time()
            now = max(sidecar.now, next_deadline(sidecar.state) or now)
        if isinstance(event, (ev.Renewed, ev.RenewalFailed)):
            sent_at = sidecar.state.term.sent_at if sidecar.state.term is not None else None
            event = replace(
                event, sent_at=sent_at if sent_at is not None and event.sent_at > -5 else now + event.sent_at
            )
        alive = sidecar.state.child is not Child.NONE
        sidecar.tell(event, at=now)
        state = sidecar.state
        if state.closed and not alive:
            break
        for start in sidecar.did(do.StartChild):
            assert not alive
            assert now < start.deadlines.soft
            assert state.term.active
            assert state.term.entered
        if alive and state.child is not Child.NONE:
            assert not sidecar.did(do.Close, do.NewSession, do.StartChild, do.Join)
            assert not [leave for leave in sidecar.did(do.Leave) if leave.attempt == state.attempt and state.term]
        if state.child in {Child.STARTING, Child.RUNNING} and state.guard is not Guard.KILLED:
            assert now < state.deadlines.soft
        due = next_deadline(state)
        if due is not None:
            later = next_deadline(step(state, Time(), max(due, now))[0])
            assert later is None or later > max(due, now)
        assert isinstance(term.snapshot(state, now)["ready"], bool)
        assert Member.decode(term.member(state, Member("me"), now, 0.0).encode())


# what is not answered


def test_a_standby_whose_record_is_never_answered_makes_a_new_session():
    sidecar = standby()
    written_at = sidecar.state.announce_at
    assert sidecar.tell(Time(), at=written_at).did(do.Renew)
    assert not sidecar.tell(Time(), at=written_at + T - 0.1).did(do.NewSession)
    assert sidecar.tell(Time(), at=written_at + T).did(do.NewSession)
    assert "new-session" in sidecar.said
    assert sidecar.state.phase is Phase.CONNECTING


def test_a_standby_whose_record_is_answered_keeps_its_session():
    sidecar = standby()
    sidecar.tell(Time(), at=sidecar.state.announce_at)
    sidecar.tell(ev.Renewed(ME, sidecar.now, 7, 6))
    assert not sidecar.tell(Time(), at=sidecar.now + T).did(do.NewSession)


def test_a_reconnect_has_a_standby_write_its_record_anew():
    sidecar = standby()
    sidecar.tell(Time(), at=sidecar.state.announce_at)
    sidecar.tell(ev.Suspended(), at=sidecar.now + 1)
    assert sidecar.tell(ev.Connected(7, T, sidecar.now), at=sidecar.now + 1).did(do.Renew)


def test_a_term_whose_entry_may_have_been_written_is_certified_when_it_ends():
    sidecar = renewed(elected().tell(ev.ControlRead(None), ev.LedgerRead(LEFT, 3)))
    assert sidecar.did(do.Enter)
    # The answer is lost with the connection, and the term ends before the ledger is read again.
    sidecar.tell(ev.Suspended()).tell(ev.Connected(7, T, sidecar.now))
    assert sidecar.tell(ev.StepDownRequested("asked")).did(do.Leave) == [do.Leave(1, led=ME)]


def test_an_unknown_leaders_lease_is_reckoned_with_the_longest_that_was_seen():
    sidecar = standby().tell(ev.MemberSeen(THEM, 4, Member(id="them", lease=40.0)))
    sidecar.tell(ev.Queued(1, ME, 0, None), ev.Elected(1, ME), ev.ControlRead(None), ev.LedgerRead(None, 0))
    assert sidecar.state.term.wait_until == sidecar.now + term.evict_after_s(40.0)
