from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zkbeat.core import custody
from zkbeat.core.custody import (
    ANSWER_WITHIN_S,
    ORPHAN_GRACE_S,
    Act,
    AllDead,
    Answered,
    Begin,
    Child,
    ChildEnded,
    Custody,
    Extend,
    Forward,
    Kill,
    Park,
    ParkedEnded,
    Publish,
    SidecarGone,
    Signal,
    Stop,
    Time,
    kernel_deadline,
    next_deadline,
    step,
)
from zkbeat.core.lease import KILL_MARGIN_S


def after(*happened):
    """Return the state and all that was done after (event, at) pairs."""
    state, done = Custody(), []
    for event, at in happened:
        state, actions = step(state, event, at)
        done += actions
    return state, done


BEGUN = (Begin(soft=5.0, hard=7.0), 0.0)


def test_the_lease_is_readable_before_the_child_runs():
    assert after(BEGUN)[1] == [Publish(5.0, 7.0), Act.SPAWN]


def test_a_missed_deadline_terminates_and_then_kills():
    state, done = after(BEGUN, (Time(), 5.0))
    assert done[2:] == [Act.TERMINATE]
    assert next_deadline(state) == 7.0
    state, done = step(state, Time(), 7.0)
    assert done == [Act.KILL]
    state, done = step(state, AllDead(), 7.1)
    assert done == [Act.REPORT_DEAD]
    assert state.overdue
    assert next_deadline(state) == 7.1 + ANSWER_WITHIN_S


def test_a_guard_that_was_held_up_past_both_deadlines_does_both_at_once():
    assert after(BEGUN, (Time(), 9.0))[1][2:] == [Act.TERMINATE, Act.KILL]


def test_an_extension_moves_the_deadlines_but_never_back_and_never_after_they_have_passed():
    assert after(BEGUN, (Extend(6.0, 8.0), 1.0))[1][2:] == [Publish(6.0, 8.0)]
    assert after(BEGUN, (Extend(4.0, 6.0), 1.0))[1][2:] == []
    assert after(BEGUN, (Time(), 5.0), (Extend(9.0, 11.0), 5.1))[1][2:] == [Act.TERMINATE]
    assert after(BEGUN, (Extend(9.0, 11.0), 7.0))[1][2:] == [Act.TERMINATE, Act.KILL]


def test_an_order_that_comes_after_its_own_deadline_starts_nothing_and_is_answered():
    state, done = after((Begin(5.0, 7.0), 7.0))
    assert done == [Act.REPORT_DEAD]
    assert state.overdue
    assert step(state, Answered(), 7.1)[1] == [Act.END]


def test_a_child_that_was_asked_to_stop_is_killed_at_the_time_given_and_no_later_than_the_deadline():
    state, done = after(BEGUN, (Stop(kill_at=3.0), 1.0))
    assert done[2:] == [Act.TERMINATE]
    assert next_deadline(state) == 3.0
    assert next_deadline(after(BEGUN, (Stop(kill_at=30.0), 1.0))[0]) == 7.0
    assert next_deadline(after(BEGUN, (Stop(3.0), 1.0), (Stop(2.0), 1.5), (Stop(9.0), 1.6))[0]) == 2.0


def test_a_lease_goes_on_while_the_child_takes_its_time_to_stop():
    state, done = after(BEGUN, (Stop(kill_at=30.0), 1.0), (Extend(9.0, 11.0), 2.0))
    assert done[3:] == [Publish(9.0, 11.0)]
    assert next_deadline(state) == 11.0


def test_what_a_child_leaves_behind_is_killed_and_only_then_reported():
    assert after(BEGUN, (ChildEnded(), 1.0), (AllDead(), 1.1))[1][2:] == [Act.KILL, Act.REPORT_DEAD]


def test_signals_go_to_a_child_that_lives_and_to_nobody_else():
    assert after((Forward(12), 0.0))[1] == []
    assert after(BEGUN, (Forward(12), 1.0))[1][2:] == [Signal(12)]
    assert after(BEGUN, (Kill(), 1.0), (Forward(12), 1.1))[1][2:] == [Act.KILL]


def test_an_orphan_gets_a_moment_to_end_and_its_znode_goes_only_after_it():
    state, done = after(BEGUN, (SidecarGone(), 1.0))
    assert done[2:] == [Act.TERMINATE, Act.PREPARE_REMOVAL]
    assert next_deadline(state) == 1.0 + ORPHAN_GRACE_S
    state, done = step(state, Time(), 2.0)
    assert done == [Act.KILL]
    assert step(state, AllDead(), 2.1)[1] == [Act.REMOVE_ZNODE, Act.END]


def test_an_orphan_is_not_granted_more_than_its_lease():
    assert next_deadline(after(BEGUN, (SidecarGone(), 6.5))[0]) == 7.0


def test_a_place_in_the_line_goes_with_its_sidecar():
    assert after((SidecarGone(), 0.0))[1] == [Act.PREPARE_REMOVAL, Act.REMOVE_ZNODE, Act.END]


def test_a_sidecar_that_does_not_answer_is_killed_before_the_znode_goes():
    state, done = after(BEGUN, (ChildEnded(), 1.0), (AllDead(), 1.1), (Time(), 1.1 + ANSWER_WITHIN_S))
    assert done[4:] == [Act.KILL_SIDECAR, Act.PREPARE_REMOVAL, Act.REMOVE_ZNODE, Act.END]
    assert next_deadline(state) is None
    assert step(state, SidecarGone(), 2.2)[1] == []


def test_a_sidecar_that_answers_keeps_its_znode():
    assert after(BEGUN, (ChildEnded(), 1.0), (AllDead(), 1.1), (Answered(), 1.2))[1][4:] == [Act.END]
    assert after((Answered(), 0.0))[1] == [Act.END]
    assert after(BEGUN, (Answered(), 1.0))[1][2:] == []


@pytest.mark.parametrize("second", [BEGUN, (Begin(50.0, 70.0), 1.0)])
def test_a_guard_holds_one_child_in_its_life(second):
    assert after(BEGUN, second)[1] == [Publish(5.0, 7.0), Act.SPAWN]
    assert after(BEGUN, (Kill(), 0.5), (AllDead(), 0.6), second)[1].count(Act.SPAWN) == 1


offsets = st.floats(-1, 10)
events = st.one_of(
    st.builds(lambda soft, more: ("begin", soft, soft + abs(more)), offsets, offsets),
    st.builds(lambda soft, more: ("extend", soft, soft + abs(more)), offsets, offsets),
    st.builds(lambda kill: ("stop", kill), offsets),
    st.sampled_from([Kill(), Answered(), SidecarGone(), ChildEnded(), AllDead(), Time(), Forward(1), "wait"]),
)


def _event(drawn, now):
    if isinstance(drawn, tuple):
        kind, *at = drawn
        return {"begin": Begin, "extend": Extend, "stop": Stop}[kind](*(now + offset for offset in at))
    return drawn


@given(st.lists(st.tuples(events, st.floats(0, 3)), max_size=30))
@settings(max_examples=500, deadline=None)
def test_whatever_happens_in_whatever_order(history):
    """No order of events makes the guard overlook a deadline, remove a znode under a child, or run in circles."""
    state, now = Custody(), 0.0
    done: list[custody.Action] = []
    for drawn, passed in history:
        now += passed
        event = Time() if drawn == "wait" else _event(drawn, now)
        if isinstance(event, ChildEnded | AllDead) and (Act.SPAWN not in done or state.child is Child.DEAD):
            continue  # these are no facts
        if drawn == "wait":
            now = max(now, next_deadline(state) or now)
        hard = state.hard
        state, actions = step(state, event, now)
        done += actions
        if state.child is Child.ALIVE:
            assert now < min(at for at in (state.hard, state.kill_at) if at is not None)
        published = [action for action in actions if isinstance(action, Publish)]
        assert not published or hard is None or now < hard < published[0].hard
        assert Act.REMOVE_ZNODE not in actions or state.child in {Child.NONE, Child.DEAD}
        assert done.count(Act.SPAWN) <= 1
        assert done.count(Act.TERMINATE) <= 1
        assert done.count(Act.END) <= 1
        assert (Act.END in done) == state.done
        due = next_deadline(state)
        if due is not None:
            later = next_deadline(step(state, Time(), max(due, now))[0])
            assert later is None or later > max(due, now)
    if state.child is Child.KILLED:
        state, actions = step(state, AllDead(), now)
    if state.child is Child.DEAD and not state.done:
        state, actions = step(state, Time(), now + ANSWER_WITHIN_S + 1)
        assert state.done


# what is parked


def test_what_is_parked_is_opened_in_the_place_of_a_start():
    assert after((Park(), 0.0), BEGUN)[1] == [Act.PARK, Publish(5.0, 7.0), Act.OPEN]


def test_what_is_parked_is_no_child_and_has_no_deadline():
    state, _ = after((Park(), 0.0))
    assert next_deadline(state) is None
    assert kernel_deadline(state) is None
    assert step(state, Answered(), 1.0)[1] == [Act.END]


def test_to_park_anew_ends_the_one_that_is_parked():
    assert after((Park(), 0.0), (Park(), 1.0))[1] == [Act.PARK, Act.UNPARK, Act.PARK]


def test_what_was_parked_and_is_gone_is_started_plainly():
    assert after((Park(), 0.0), (ParkedEnded(), 1.0), BEGUN)[1] == [Act.PARK, Publish(5.0, 7.0), Act.SPAWN]


@pytest.mark.parametrize("earlier", [[BEGUN], [BEGUN, (Kill(), 1.0)], [(SidecarGone(), 1.0)]])
def test_nothing_is_parked_beside_a_child_or_for_nobody(earlier):
    state, _ = after(*earlier)
    assert step(state, Park(), 2.0) == (state, [])


# the kernel's part


def test_the_kernel_steps_in_after_the_hard_deadline_within_the_kill_margin():
    state, _ = after(BEGUN)
    assert 7.0 < kernel_deadline(state) < 7.0 + KILL_MARGIN_S
    state, _ = step(state, Extend(soft=8.0, hard=9.0), 3.0)
    assert 9.0 < kernel_deadline(state) < 9.0 + KILL_MARGIN_S


@pytest.mark.parametrize("event", [Kill(), ChildEnded()])
def test_the_kernel_has_nothing_to_do_once_everything_was_sent_its_kill(event):
    assert kernel_deadline(after(BEGUN, (event, 1.0))[0]) is None
