"""What a wrong clock may do to a schedule, as far as that is arithmetic; and the due time in a message's id."""

from __future__ import annotations

import types
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from zkbeat.launcher import brokers, stamp
from zkbeat.launcher.clocks import FUTURE_S, JUMP_S, Jump, Watch, as_utc, corrected, in_the_form_of

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
BERLIN = timezone(timedelta(hours=1))
FORMS = st.sampled_from([None, timezone.utc, BERLIN, timezone(timedelta(hours=-8))])
SECONDS = st.integers(-(10**8), 10**8)


def at(seconds, zone=timezone.utc):
    instant = NOW + timedelta(seconds=seconds)
    return instant.replace(tzinfo=None) if zone is None else instant.astimezone(zone)


@given(seconds=SECONDS, zone=FORMS, other=SECONDS)
def test_an_instant_keeps_its_form(seconds, zone, other):
    last = at(seconds, zone)
    assert as_utc(last) == at(seconds)
    formed = in_the_form_of(last, at(other))
    assert as_utc(formed) == at(other)
    assert formed.utcoffset() == last.utcoffset()


@given(seconds=SECONDS, zone=FORMS, elapses=st.booleans())
def test_without_a_jump_only_the_future_is_taken_as_now(seconds, zone, elapses):
    found = corrected(at(seconds, zone), NOW, elapses=elapses)
    if seconds <= FUTURE_S:
        assert found is None
    else:
        assert found is not None
        assert as_utc(found) == NOW
        assert (found.tzinfo is None) is (zone is None)


@given(ago=st.integers(0, 10**6), by=st.integers(2, 10**7))
def test_an_interval_keeps_its_phase_when_the_clock_jumps_forward(ago, by):
    found = corrected(at(-by - ago), NOW, elapses=True, jump=Jump(by, at(-by)))
    assert found == at(-ago)


@given(ran=st.integers(0, 10**5), since=st.integers(0, 10**5), by=st.integers(2, 10**7))
def test_an_interval_that_ran_here_keeps_its_phase_when_the_clock_jumps_back(ran, since, by):
    began = at(by - ran - since)
    found = corrected(at(by - ran), NOW, elapses=True, jump=Jump(-by, began))
    assert found == at(-ran)


@given(ago=st.integers(0, 10**6), by=st.integers(2, 10**5))
def test_an_interval_that_ran_before_is_not_moved_back(ago, by):
    # The clock before the jump said NOW + by when this process began.
    found = corrected(at(by - 1 - ago), NOW, elapses=True, jump=Jump(-by, at(by)))
    assert (as_utc(found) if found else at(by - 1 - ago)) == min(at(by - 1 - ago), NOW if by - 1 - ago > 1 else at(1))


@given(seconds=SECONDS, by=st.integers(-(10**6), 10**6))
def test_what_goes_by_the_time_of_day_is_never_moved_but_out_of_the_future(seconds, by):
    found = corrected(at(seconds), NOW, elapses=False, jump=Jump(by, NOW))
    assert found == (NOW if seconds > FUTURE_S else None)


@given(seconds=SECONDS, by=st.integers(-(10**6), 10**6), began=SECONDS, elapses=st.booleans())
def test_nothing_is_left_in_the_future(seconds, by, began, elapses):
    found = corrected(at(seconds), NOW, elapses=elapses, jump=Jump(by, at(began)))
    assert (as_utc(found) if found else at(seconds)) <= at(FUTURE_S)


@given(steps=st.lists(st.tuples(st.floats(0.1, 100), st.floats(-5000, 5000)), max_size=20))
def test_a_watch_tells_each_jump_and_no_slew(steps):
    wall, boot = 1.8e9, 1000.0
    watch = Watch(wall, boot)
    for passed, by in steps:
        wall, boot = wall + passed + by, boot + passed
        found = watch.jumped(wall, boot)
        if abs(by) < JUMP_S - 0.01:
            assert found == 0
        elif abs(by) > JUMP_S + 0.01:
            assert found == pytest.approx(by, abs=1e-3)


def test_a_watch_knows_when_it_began_by_the_clock_of_now():
    watch = Watch(1000.0, 5.0)
    assert watch.jumped(1010.0, 15.0) == 0
    assert watch.jumped(4620.0, 25.0) == 3600
    assert watch.began == 4600.0


# due times


@pytest.fixture
def app():
    app = Celery("t", set_as_current=False)
    app.conf.timezone = "Europe/Berlin"
    return app


@given(every=st.integers(1, 10**6), late_ms=st.integers(0, 10**9), zone=FORMS)
def test_the_due_time_of_an_interval_is_the_last_run_and_the_interval(every, late_ms, zone):
    entry = ScheduleEntry("e", "t", at(0, zone), schedule=schedule(every), app=Celery("t", set_as_current=False))
    assert stamp.due(entry, at(every + late_ms / 1000)) == at(every)


def test_the_due_time_of_a_crontab_is_the_first_after_the_last_run(app):
    entry = ScheduleEntry("e", "t", at(17, BERLIN), schedule=crontab(minute="*/5", app=app), app=app)
    assert stamp.due(entry, at(1000)) == at(300)
    assert stamp.headers(entry, "7", at(1000))[stamp.TICK] == "e@2026-03-01T12:05:00+00:00"


def test_a_schedule_that_cannot_tell_is_due_now(app):
    class Odd(crontab):
        def remaining_estimate(self, last_run_at, **_):
            raise ValueError(last_run_at)

    assert stamp.due(ScheduleEntry("e", "t", at(0), schedule=Odd(app=app), app=app), at(5)) == at(5)


def test_the_entry_and_its_schedule_are_left_as_they_are(app):
    options = {"headers": {"own": 1}, "queue": "q"}
    entry = ScheduleEntry("e", "t", at(0), schedule=crontab(app=app), options=options, app=app)
    before = dict(vars(entry)), dict(vars(entry.schedule))
    one = stamp.stamped(entry, stamp.headers(entry, "7", at(5)))
    one.options["headers"]["celery_beat_task"] = True  # as celery does
    assert (dict(vars(entry)), dict(vars(entry.schedule))) == before
    assert options == {"headers": {"own": 1}, "queue": "q"}
    assert one.options["queue"] == "q"
    assert set(one.options["headers"]) == {"own", "celery_beat_task", stamp.EPOCH, stamp.TICK, stamp.NONCE}


@pytest.mark.parametrize("options", [None, {}, {"headers": None}])
def test_an_entry_without_headers_gets_them(options):
    entry = types.SimpleNamespace(options=options)
    assert stamp.stamped(entry, {"a": "b"}).options["headers"] == {"a": "b"}


# brokers


def test_what_a_broker_lacks():
    assert len(brokers.lacks("redis", {})) == 2
    assert brokers.lacks("redis", {"socket_timeout": 1, "socket_connect_timeout": 1}) == []
    assert len(brokers.lacks("amqp", {"confirm_publish": False})) == 3
    assert brokers.lacks("amqp", {"read_timeout": 1, "write_timeout": 1}) == []
    assert brokers.lacks("sqs", {}) == []
