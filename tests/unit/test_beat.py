"""What a launched beat is watched for, and what is loaded in advance for the next one."""

from __future__ import annotations

import re

import pytest

from tests.unit.driving import connected, leading, renewed, standby, starting
from zkbeat.core import actions as do
from zkbeat.core import events as ev
from zkbeat.core.pulse import Pulse
from zkbeat.core.term import Guard, next_deadline, snapshot

SILENCE_S = 20.0


def ticking(**chosen):
    """Return a leader whose beat has just sent something, and sleeps until 3 s from now."""
    sidecar = leading(launched=True, max_silence_s=SILENCE_S, **chosen)
    pulse = Pulse(at=sidecar.now, wake_at=sidecar.now + 3.0, published_at=sidecar.now, count=1, name="entry")
    return sidecar.tell(ev.Pulsed(pulse))


def later(sidecar, at):
    """Let time pass, and renewals go on, until an instant; return all that was said."""
    said = []
    while sidecar.now < at:
        due = next_deadline(sidecar.state)
        sidecar.tell(ev.Time(), at=min(due, at))
        said += sidecar.said
        if sidecar.did(do.Renew):
            renewed(sidecar)
            said += sidecar.said
            sidecar.tell(ev.GuardConfirmed())
    return said


# ticks


def test_a_beat_that_sleeps_and_wakes_up_is_never_silent():
    sidecar = ticking()
    for turn in range(1, 50):
        at = sidecar.now + 5.0
        assert "silent" not in later(sidecar, at)
        sidecar.tell(ev.Pulsed(Pulse(at=at, wake_at=at + 5.0, published_at=1.0, count=turn, name="entry")))
    assert snapshot(sidecar.state, sidecar.now)["ready"]


@pytest.mark.parametrize(
    ("pulse", "says"),
    [
        (Pulse(at=103.0, wake_at=103.0, published_at=1.0, published_wall=1.0, count=1, name="e"), "has not turned"),
        (Pulse(at=103.0, wake_at=500.0, owing_since=103.0, count=0, name="e"), "could not send 'e' for 20 s; it has"),
        (Pulse(at=103.0, wake_at=110.0, owing_since=103.0, published_wall=60, count=7), "00:01:00 UTC .7 in this term"),
    ],
)
def test_a_beat_that_owes_something_for_too_long_is_not_ready_and_this_is_said_once(pulse, says):
    sidecar = ticking().tell(ev.Pulsed(pulse))
    assert later(sidecar, 103.0 + SILENCE_S - 0.001).count("silent") == 0
    assert snapshot(sidecar.state, sidecar.now)["ready"]
    assert later(sidecar, 103.0 + SILENCE_S + 30).count("silent") == 1
    found = snapshot(sidecar.state, 103.0 + SILENCE_S)
    assert (found["ready"], found["leader"], found["ticking"]) == (False, True, False)
    assert re.search(says, found["why"])


def test_a_beat_that_never_says_a_word_is_silent_from_its_start_on():
    sidecar = leading(launched=True, max_silence_s=SILENCE_S)
    assert "silent" in later(sidecar, sidecar.now + SILENCE_S)
    assert "has not begun to tick" in snapshot(sidecar.state, sidecar.now)["why"]


def test_a_beat_that_ticks_again_is_ready_again():
    sidecar = ticking()
    later(sidecar, sidecar.now + 3.0 + SILENCE_S)
    sidecar.tell(ev.Pulsed(Pulse(at=sidecar.now, wake_at=sidecar.now + 3, count=2, name="entry")))
    assert sidecar.said == ["ticking"]
    assert snapshot(sidecar.state, sidecar.now)["ready"]


def test_a_silent_beat_is_left_alone_unless_it_was_asked_to_be_restarted():
    sidecar = ticking()
    later(sidecar, sidecar.now + 3.0 + SILENCE_S)
    assert not sidecar.did(do.StopChild, do.KillChild)
    sidecar = ticking(restart_stuck=True)
    later(sidecar, sidecar.now + 3.0 + SILENCE_S)
    assert sidecar.did(do.StopChild)
    assert sidecar.tell(ev.ChildDead(0)).did(do.Leave), "another node is to try"


def test_a_command_that_is_not_launched_is_never_silent():
    sidecar = leading(max_silence_s=SILENCE_S)
    assert "silent" not in later(sidecar, sidecar.now + 100 * SILENCE_S)
    assert "ticking" not in snapshot(sidecar.state, sidecar.now)


def test_the_word_of_an_earlier_child_is_forgotten_with_it():
    sidecar = ticking().tell(ev.ChildDead(1))
    assert sidecar.state.beat.pulse is None


# loaded in advance


def test_a_standby_loads_the_app_once_its_guard_is_there():
    assert connected(preload=True).did(do.Park) == [do.Park()]
    assert not connected().did(do.Park)


def test_what_waits_is_loaded_once_and_told_to_the_others():
    sidecar = standby(preload=True).tell(ev.Parked(77, 40960))
    assert sidecar.said == ["preloaded"]
    assert sidecar.did(do.Renew), "its memory is in the record"
    assert not sidecar.did(do.Park)
    assert snapshot(sidecar.state, sidecar.now)["preloaded"] == {"is": "waiting", "pid": 77, "kib": 40960, "reloads": 0}


def test_what_could_not_be_loaded_is_not_tried_again_and_the_child_started_plainly():
    sidecar = connected(preload=True).tell(ev.Unparked("the app has started threads"))
    assert sidecar.said == ["not-preloaded"]
    assert not sidecar.tell(ev.Time(), at=sidecar.now + 5).did(do.Park)
    assert starting(preload=True).did(do.StartChild)


def test_the_next_guard_loads_it_anew():
    sidecar = leading(preload=True).tell(ev.ChildDead(1), at=103.0)
    assert sidecar.state.guard is Guard.STARTING
    assert sidecar.tell(ev.GuardReady()).did(do.Park)


def test_a_reload_loads_what_waits_anew():
    sidecar = standby(preload=True).tell(ev.Parked(77, 40960)).tell(ev.ReloadRequested())
    assert sidecar.did(do.Park) == [do.Park()]
    assert sidecar.tell(ev.Parked(78, 40960)).said == ["preloaded"]


@pytest.mark.parametrize("chosen", [{"preload": True}, {"preload": False}])
def test_a_reload_leaves_a_running_beat_alone(chosen):
    sidecar = leading(**chosen).tell(ev.ReloadRequested())
    assert sidecar.said == ["reload"]
    assert not sidecar.did(do.Park, do.StopChild, do.KillChild)
