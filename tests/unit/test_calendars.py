"""When celery's schedules are due: the same instants that celery finds by asking, whoever asks, and however late."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedule, solar
from hypothesis import given, settings
from hypothesis import strategies as st

from zkbeat.core.schedule import COUNTED_AT_MOST, Due, Policy, decide, to_datetime, to_us
from zkbeat.schedule import calendars

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
SPRING = to_us(datetime(2026, 3, 28, 22, tzinfo=timezone.utc))
"""The evening before 02:00 becomes 03:00 in Berlin."""
AUTUMN = to_us(datetime(2026, 10, 24, 20, tzinfo=timezone.utc))
"""The evening before 03:00 becomes 02:00."""
PLAIN = to_us(datetime(2026, 6, 10, 11, 58, 30, tzinfo=timezone.utc))

_apps = {}


def in_zone(made, zone="UTC"):
    """Return the schedule, as an app with that time zone has it."""
    if zone not in _apps:
        _apps[zone] = Celery(set_as_current=False)
        _apps[zone].conf.timezone = zone
    made.app = _apps[zone]
    return made


def stepped(made, last, until):
    """Return the due times that follow from each other, as a leader that is never late finds them."""
    found = []
    while (last := calendars.dues_of(made, last).after(last)) is not None and last <= until:
        found.append(last)
    return found


def polled(made, last, until, every=MINUTE):
    """Return when celery, asked again and again, says that it is due; each run is the last run then."""
    clock = [last]
    zone = made.tz
    made.nowfun = lambda: to_datetime(clock[0]).astimezone(zone)
    found = []
    try:
        while clock[0] <= until:
            if made.is_due(to_datetime(last).astimezone(zone)).is_due:
                found.append(clock[0])
                last = clock[0]
            clock[0] += every
    finally:
        made.nowfun = None
    return found


# the same as celery


CRONTABS = {
    "each minute": {},
    "each five minutes": {"minute": "*/5"},
    "half past": {"minute": "30"},
    "half past two": {"minute": "30", "hour": "2"},
    "each quarter from one to three": {"minute": "*/15", "hour": "1-3"},
    "each six hours": {"minute": "0", "hour": "*/6"},
    "on Sundays at half past two": {"minute": "30", "hour": "2", "day_of_week": "sun"},
    "on the last days of a month": {"minute": "30", "hour": "2", "day_of_month": "28-31"},
    "on the first of some months": {"minute": "0", "hour": "0", "day_of_month": "1", "month_of_year": "4,11"},
}


@pytest.mark.parametrize("fields", CRONTABS.values(), ids=CRONTABS)
@pytest.mark.parametrize(
    ("zone", "start"),
    [("UTC", PLAIN - 30 * SECOND), (BERLIN, SPRING), (BERLIN, AUTUMN)],
    ids=["ordinary days", "the night that is short", "the night that is long"],
)
def test_a_crontab_is_due_in_the_minutes_in_which_celery_runs_it(fields, zone, start):
    """The clock changes in it, or not; each day is gone through minute by minute."""
    made = in_zone(crontab(**fields), zone)
    assert stepped(made, start, start + 30 * HOUR) == polled(made, start, start + 30 * HOUR)


FIELDS = st.fixed_dictionaries(
    {
        "minute": st.sampled_from(["*", "*/7", "0", "59", "0,30", "10-50/20"]),
        "hour": st.sampled_from(["*", "*/5", "0", "1-3", "23", "2,14"]),
        "day_of_week": st.sampled_from(["*", "sun", "mon-fri", "6,0"]),
        "day_of_month": st.sampled_from(["*", "1", "28-31", "*/2", "25,29"]),
        "month_of_year": st.sampled_from(["*", "3,10", "*/2"]),
    }
)


@settings(max_examples=20, deadline=None)
@given(
    fields=FIELDS,
    zone=st.sampled_from(["UTC", BERLIN, NEW_YORK, "Asia/Kolkata", "Australia/Lord_Howe"]),
    start=st.sampled_from([SPRING, AUTUMN, PLAIN]),
    offset=st.integers(0, DAY),
)
def test_any_crontab_is_due_in_the_minutes_in_which_celery_runs_it(fields, zone, start, offset):
    made = in_zone(crontab(**fields), zone)
    last = (start + offset) // MINUTE * MINUTE
    assert stepped(made, last, last + DAY) == polled(made, last, last + DAY)


@pytest.mark.parametrize("event", ["sunrise", "sunset", "solar_noon", "dawn_civil"])
@pytest.mark.parametrize("zone", ["UTC", NEW_YORK])
def test_the_sun_is_where_celery_has_it(event, zone):
    made = in_zone(solar(event, 52.5, 13.4), zone)
    ours = stepped(made, PLAIN, PLAIN + 3 * DAY)
    theirs = polled(made, PLAIN, PLAIN + 3 * DAY, every=10 * MINUTE)
    assert len(ours) == len(theirs)
    assert all(0 <= later - sooner <= 10 * MINUTE for sooner, later in zip(ours, theirs, strict=True))


def test_far_in_the_north_the_sun_rises_again_in_autumn():
    made = in_zone(solar("sunset", 78.2, 15.6), BERLIN)
    sunset = calendars.dues_of(made, PLAIN).after(PLAIN)
    assert to_datetime(sunset).month == 8


@pytest.mark.parametrize("found", [-500_000, -1000, -1, 0, 1, 500, 30 * SECOND])
def test_one_sunset_is_found_once(found):
    """From the very instant of an event, and from close by, the next search may find it once more."""
    made = in_zone(solar("sunset", 52.5, 13.4), BERLIN)
    sunset = calendars.dues_of(made, PLAIN).after(PLAIN)
    assert calendars.dues_of(made, PLAIN).after(sunset + found) - sunset > 23 * HOUR


@pytest.mark.parametrize("seconds", [90, 600, 7200, 86400])
@pytest.mark.parametrize("start", [SPRING, AUTUMN])
def test_what_is_relative_is_due_at_the_minutes_in_which_celery_runs_it(seconds, start):
    made = in_zone(schedule(seconds, relative=True), BERLIN)
    ours = stepped(made, start, start + 26 * HOUR)
    theirs = polled(made, start, start + 26 * HOUR, every=30 * SECOND)
    assert [one // MINUTE for one in ours] == [one // MINUTE for one in theirs]


@pytest.mark.parametrize("seconds", [0.05, 1, 7.25, 86400])
def test_an_interval_goes_on_from_its_last_due_time_without_drift(seconds):
    dues = calendars.dues_of(in_zone(schedule(seconds)), PLAIN)
    assert dues.every == int(seconds * SECOND)
    last = PLAIN
    for step in range(1, 2000):
        last = dues.after(last)
        assert last == PLAIN + step * dues.every


@pytest.mark.parametrize("seconds", [0, -5])
def test_an_interval_of_nothing_still_moves_on(seconds):
    assert calendars.dues_of(in_zone(schedule(seconds)), PLAIN).after(PLAIN) > PLAIN


# the clock changes


def local(instants, zone=BERLIN):
    return [f"{to_datetime(one).astimezone(ZoneInfo(zone)):%d %H:%M}" for one in instants]


def test_half_past_two_is_at_half_past_three_in_the_night_that_has_none():
    made = in_zone(crontab(minute="30", hour="2"), BERLIN)
    assert local(stepped(made, SPRING, SPRING + 2 * DAY)) == ["29 03:30", "30 02:30"]


def test_half_past_two_is_once_in_the_night_that_has_two():
    made = in_zone(crontab(minute="30", hour="2"), BERLIN)
    assert local(stepped(made, AUTUMN, AUTUMN + 2 * DAY)) == ["25 02:30", "26 02:30"]


def test_the_hour_that_comes_twice_counts_once():
    """As celery has it (#10107)."""
    made = in_zone(crontab(minute="30"), BERLIN)
    assert local(stepped(made, AUTUMN, AUTUMN + 8 * HOUR)) == [
        *("24 22:30", "24 23:30", "25 00:30", "25 01:30", "25 02:30"),
        *("25 03:30", "25 04:30"),
    ]


# whoever asks, and however late


@settings(max_examples=30, deadline=None)
@given(
    fields=FIELDS,
    zone=st.sampled_from(["UTC", BERLIN]),
    start=st.sampled_from([SPRING, PLAIN]),
    late=st.integers(0, DAY),
)
def test_who_comes_late_finds_the_instant_that_who_was_in_time_would_have(fields, zone, start, late):
    made = in_zone(crontab(**fields), zone)
    now = start + late
    in_time = stepped(made, start, now)
    due = decide(start, now, calendars.dues_of(made, now), Policy())
    if not in_time:
        assert due is None
    else:
        assert due == Due(in_time[-1], in_time[-1], missed=min(len(in_time), COUNTED_AT_MOST) - 1)


@given(late=st.integers(0, 400 * DAY))
@settings(max_examples=20, deadline=None)
def test_of_a_year_of_sunsets_the_latest_is_found(late):
    made = in_zone(solar("sunset", 52.5, 13.4))
    due = decide(PLAIN, PLAIN + late, calendars.dues_of(made, PLAIN + late), Policy())
    if due is None:
        assert late < DAY
    else:
        assert due.last <= PLAIN + late
        following = calendars.dues_of(made, PLAIN).after(due.last)
        assert PLAIN + late < following
        assert 23 * HOUR < following - due.last < 25 * HOUR


@given(asked=st.integers(0, 10 * DAY))
def test_a_due_time_does_not_depend_on_when_somebody_asks(asked):
    for made in (crontab(minute="*/5"), solar("sunset", 52.5, 13.4), schedule(90, relative=True), schedule(7)):
        known = in_zone(made, BERLIN)
        assert calendars.dues_of(known, PLAIN + asked).after(PLAIN) == calendars.dues_of(known, PLAIN).after(PLAIN)


def test_asking_leaves_the_schedule_s_own_clock_alone():
    made = in_zone(crontab(), BERLIN)
    calendars.dues_of(made, PLAIN).after(PLAIN)
    assert made.nowfun is None


# somebody's own class


class Flag(BaseSchedule):
    """Due when it is raised; knows no instants."""

    raised = False

    def is_due(self, last_run_at):
        assert last_run_at.tzinfo is not None
        return self.raised, 20.0


class Stubborn(crontab):
    """A crontab that never runs."""

    def is_due(self, _last_run_at):
        return False, 5.0


def test_a_class_that_only_says_whether_it_is_due_is_due_now():
    flag = in_zone(Flag())
    assert calendars.dues_of(flag, PLAIN).after(PLAIN - HOUR) == PLAIN + 20 * SECOND
    flag.raised = True
    assert calendars.dues_of(flag, PLAIN).after(PLAIN - HOUR) == PLAIN
    assert decide(PLAIN - HOUR, PLAIN, calendars.dues_of(flag, PLAIN), Policy()) == Due(PLAIN, PLAIN)


def test_a_class_that_is_always_due_is_not_due_before_its_last_run():
    """Asked by a leader whose clock is behind its predecessor's."""
    flag = in_zone(Flag())
    flag.raised = True
    assert decide(PLAIN + 5 * SECOND, PLAIN, calendars.dues_of(flag, PLAIN), Policy()) is None


def test_a_class_derived_from_celery_s_is_asked_itself():
    dues = calendars.dues_of(in_zone(Stubborn()), PLAIN)
    assert dues.after(PLAIN - DAY) == PLAIN + 5 * SECOND
    assert not dues.calendar


def test_a_class_that_wants_to_be_asked_at_once_is_not_asked_in_a_spin():
    flag = in_zone(Flag())
    flag.is_due = lambda _last: (False, 0)
    assert calendars.dues_of(flag, PLAIN).after(PLAIN - HOUR) > PLAIN


def test_celery_s_starting_deadline_is_for_crontabs():
    assert calendars.is_crontab(crontab())
    assert not calendars.is_crontab(schedule(10))
    assert not calendars.is_crontab(Flag())


# fingerprints


SAME = [
    (lambda: schedule(60), lambda: schedule(timedelta(minutes=1))),
    (lambda: schedule(0.5), lambda: schedule(timedelta(milliseconds=500))),
    (lambda: crontab(minute="*/20"), lambda: crontab(minute=[40, 0, 20])),
    (lambda: crontab(day_of_week="mon,fri"), lambda: crontab(day_of_week={5, 1})),
    (lambda: crontab(minute=5), lambda: crontab(minute="5")),
    (lambda: crontab(month_of_year="jan-mar"), lambda: crontab(month_of_year="1,2,3")),
    (lambda: solar("sunset", 52, 13), lambda: solar("sunset", 52.0, 13.0)),
]
DIFFERENT = [
    lambda: schedule(60),
    lambda: schedule(61),
    lambda: schedule(60.000001),
    lambda: schedule(60, relative=True),
    crontab,
    lambda: crontab(minute="*/20"),
    lambda: crontab(hour="*/20"),
    lambda: crontab(day_of_month="1"),
    lambda: crontab(month_of_year="1"),
    lambda: crontab(day_of_week="1"),
    lambda: solar("sunset", 52, 13),
    lambda: solar("sunrise", 52, 13),
    lambda: solar("sunset", 52, 13.1),
    Flag,
    Stubborn,
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_a_schedule_that_is_written_differently_is_the_same(one, other):
    assert calendars.fingerprint(in_zone(one())) == calendars.fingerprint(in_zone(other()))


def test_schedules_that_differ_have_marks_that_differ():
    marks = [calendars.fingerprint(in_zone(make())) for make in DIFFERENT]
    marks += [calendars.fingerprint(in_zone(crontab(), BERLIN))]
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 12 for mark in marks)


def test_an_interval_does_not_change_with_the_time_zone_for_it_means_the_same_there():
    assert calendars.fingerprint(in_zone(schedule(60), BERLIN)) == calendars.fingerprint(in_zone(schedule(60)))


_PRINT = """
from celery import Celery
from celery.schedules import crontab, schedule, solar
from zkbeat.schedule.calendars import fingerprint
app = Celery(set_as_current=False)
days = crontab(minute="*/7", hour={3, 20, 11, 1}, day_of_week="sun,wed,sat")
for made in (days, schedule(0.1), solar("sunset", 1, 2)):
    made.app = app
    print(fingerprint(made))
"""


def test_a_fingerprint_is_the_same_in_every_process():
    """A set of numbers or names has another order in each."""
    said = {
        subprocess.run(
            [sys.executable, "-c", _PRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "31337")
    }
    assert len(said) == 1
    marks = said.pop().split()
    assert len(set(marks)) == 3


def test_what_was_due_is_stepped_through_in_order():
    for made in (crontab(minute="*/5"), solar("sunset", 52.5, 13.4), schedule(90, relative=True), schedule(7)):
        found = stepped(in_zone(made, BERLIN), AUTUMN, AUTUMN + DAY)
        assert found
        assert all(sooner < later for sooner, later in itertools.pairwise(found))


@pytest.mark.parametrize("in_s", [5, 20, 59, 61])
def test_a_solar_event_soon_after_an_entry_was_first_seen_is_due(in_s):
    """Only from the instant of an event itself the next one is meant, since ephem may find that one once more."""
    noon = solar("solar_noon", 0, 0)
    noon.nowfun = lambda: datetime(2026, 1, 1, 11, 0, tzinfo=timezone.utc)
    event = to_us(noon.nowfun() + noon.remaining_estimate(noon.nowfun()))
    first_seen = event - in_s * 1_000_000
    after = calendars.dues_of(noon, event + 1_000_000).after
    assert abs(after(first_seen) - event) < 1_000_000
    assert after(event) - event > 23 * 3600 * 1_000_000
