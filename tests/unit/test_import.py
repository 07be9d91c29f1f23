"""What an import decides, and the Python that it prints."""

from __future__ import annotations

import shelve
import sys
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from celery import schedules
from celery.beat import ScheduleEntry
from django_celery_beat.tzcrontab import TzAwareCrontab
from hypothesis import given, settings
from hypothesis import strategies as st

from zkbeat.core.schedule import State, key_of, to_us
from zkbeat.operate import OperatorError
from zkbeat.schedule import moving_in
from zkbeat.schedule.moving_in import Found, decide, definitions

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
NOW_US = to_us(NOW)
SECOND_US = 1_000_000

instants = st.integers(min_value=-(10**9), max_value=10**9).map(lambda us: NOW + timedelta(microseconds=us))
counts = st.integers(min_value=0, max_value=1000)


@dataclass(frozen=True)
class Odd(schedules.BaseSchedule):
    def __repr__(self) -> str:
        return "<odd\n one>"


def defined(text: str) -> dict:
    names: dict = {}
    exec(text, names)
    return names["beat_schedule"]


@settings(deadline=None)
@given(instants, counts, st.none() | st.builds(State, instants.map(to_us), counts, counts, st.sampled_from(["", "f"])))
def test_no_entry_moves_backwards_nor_far_ahead(last, count, there):
    (one,) = decide([Found("e", last, count)], {"e": there} if there is not None else {}, NOW_US)
    assert one.state.last <= max(NOW_US + SECOND_US, there.last if there is not None else 0)
    assert there is None or one.state.last >= there.last
    if one.what == "kept":
        assert one.state is there
    else:
        assert one.what == "imported"
        assert one.state.fingerprint is None
        assert one.state.count >= count
        assert there is None or one.state.missed == there.missed
        assert one.state.last == (to_us(last) if last <= NOW + timedelta(seconds=1) else NOW_US)


def test_a_clock_that_is_a_little_ahead_is_believed():
    # Taken as now, a crontab's due time that the old beat has sent a moment ago would be sent once more.
    (one,) = decide([Found("e", NOW + timedelta(milliseconds=900))], {}, NOW_US)
    assert (one.state.last, one.why) == (NOW_US + 900_000, "")


def test_a_naive_instant_is_in_utc_and_a_long_name_has_its_key():
    name = "x" * 500
    (one,) = decide([Found(name, NOW.replace(tzinfo=None))], {key_of(name): State(NOW_US)}, NOW_US)
    assert (one.what, one.why) == ("kept", "the same run is in ZooKeeper already")


def test_what_has_not_run_is_skipped_and_what_the_app_has_not_is_said():
    found = [Found("new"), Found("off", NOW, skip="is disabled"), Found("alien", NOW), Found("known", NOW)]
    new, off, alien, known = decide(found, {}, NOW_US, ["known"])
    assert [one.what for one in (new, off, alien, known)] == ["skipped", "skipped", "imported", "imported"]
    assert (off.why, alien.why, known.why) == ("is disabled", "the app has no such entry", "")


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.schedule(timedelta(seconds=0.25)),
        schedules.schedule(timedelta(hours=1), relative=True),
        schedules.crontab(),
        schedules.crontab(minute="*/5", hour=[1, 2], day_of_week={1, 5}, month_of_year=3),
        schedules.solar("sunset", -37.81, 144.96),
    ],
)
def test_a_schedule_of_celerys_own_comes_back_as_it_was(schedule):
    entry = defined(definitions([Found("e", task="t", schedule=schedule)], "UTC"))["e"]
    again = schedules.maybe_schedule(entry["schedule"])
    assert again == schedule
    assert getattr(again, "relative", None) == getattr(schedule, "relative", None)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40, deadline=None)
@given(st.text(), st.text(), st.lists(json_like), st.dictionaries(st.text(), json_like))
def test_names_and_arguments_come_back_as_they_were(name, task, args, kwargs):
    found = Found(name, task=task, schedule=schedules.crontab(), args=args, kwargs=kwargs)
    entries = defined(definitions([found], "UTC"))
    assert entries.keys() == {name}
    assert entries[name]["task"] == task
    assert list(entries[name].get("args", [])) == args
    assert entries[name].get("kwargs", {}) == kwargs


def test_a_crontab_of_another_time_zone_is_only_a_comment():
    there = TzAwareCrontab(minute="30", tz=ZoneInfo("Europe/Berlin"))
    found = [Found("e", task="t", schedule=there)]
    text = definitions(found, "UTC")
    assert defined(text) == {}
    assert "its time zone is Europe/Berlin, and the app's is UTC" in text
    assert "schedules.crontab(minute='30')" in text
    assert defined(definitions(found, "Europe/Berlin")).keys() == {"e"}


def test_what_cannot_be_expressed_is_a_comment_that_says_why():
    text = definitions(
        [
            Found("odd\nname", task="t", schedule=Odd()),
            Found("object", task="t", schedule=schedules.crontab(), args=[object()]),
            Found("off", task="t", schedule=schedules.crontab(), inexpressible="it is disabled"),
            Found("none", task="t"),
            Found("ends", schedule=schedules.crontab(), options={"expires": NOW}, notes=("it\nends",)),
        ],
        "UTC",
    )
    assert defined(text).keys() == {"ends"}
    for says in ("celery has no such schedule", "its args: object cannot be written", "it is disabled", "# it ends"):
        assert says in text


@pytest.mark.parametrize("backend", ["dbm.dumb", "dbm.gnu", "dbm.ndbm", "dbm.sqlite3"])
@pytest.mark.parametrize("name", ["celerybeat-schedule", "schedule.db"])
def test_a_shelve_of_any_backend_is_read_and_stays_as_it_is(tmp_path, backend, name):
    dbm = pytest.importorskip(backend)
    path = tmp_path / name
    with shelve.Shelf(dbm.open(str(path), "c")) as store:
        store["entries"] = {"e": ScheduleEntry("e", "t", NOW, 7, 1.0)}
    before = {one.name: (one.read_bytes(), one.stat().st_mtime_ns) for one in tmp_path.iterdir()}
    for given_as in (path, *tmp_path.iterdir()):
        assert moving_in.read_shelve(given_as) == [Found("e", NOW, 7)]
    assert {one.name: (one.read_bytes(), one.stat().st_mtime_ns) for one in tmp_path.iterdir()} == before


def test_what_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(moving_in, "READ_WITHIN_S", 0.05)
    with pytest.raises(OperatorError, match="no answer from Redis within"):
        moving_in._within(threading.Event().wait, "Redis")


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redbeat", None)
    monkeypatch.setitem(sys.modules, "redbeat.schedulers", None)
    with pytest.raises(OperatorError, match="celery-redbeat is not installed here") as raised:
        moving_in.read_redbeat(None)
    assert raised.value.exit_code == 78
