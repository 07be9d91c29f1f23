"""A clock that is wrong, or jumps, neither silences beat nor makes it run in a burst; and is named, once."""

from __future__ import annotations

import itertools
import sqlite3
import time
from datetime import datetime, timedelta, timezone

import pytest

HOUR_S = 3600
MONTHS_S = 120 * 24 * HOUR_S


def tick_s(kind):
    return 1 if kind == "database" else 0.5  # django-celery-beat knows whole numbers only


def often(kind):
    return {"tick": {"schedule": tick_s(kind)}}


def in_step(messages, kind):
    """Fail if any two are closer together than their interval."""
    due = [message.due for message in messages]
    for sooner, later in itertools.pairwise(due):
        assert later - sooner >= timedelta(seconds=tick_s(kind) * 0.9), due


@pytest.mark.parametrize(
    ("kind", "ahead_s"),
    [
        ("persistent", HOUR_S),
        ("persistent", MONTHS_S),
        ("database", MONTHS_S),
        ("redbeat", MONTHS_S),
        ("zookeeper", MONTHS_S),
    ],
)
def test_the_successor_of_a_leader_whose_clock_was_ahead(kind, ahead_s, make_beat, redis):
    first = make_beat(kind, often(kind))
    first.shift(ahead_s)
    with first:
        first.wait_for(lambda: redis.count() >= 2, "messages")
        assert first.stop() == 0, first.log
    redis.client.delete("celery")
    second = make_beat(kind, often(kind))
    second.shift(0)
    with second:
        second.wait_for(lambda: redis.count() >= 3, "messages", 10)
        assert second.logged("lay in the future") == 1, second.log
        in_step(redis.messages(), kind)
        assert not second.logged("jumped"), second.log


@pytest.mark.parametrize("use_tz", [True, False], ids=["aware", "naive"])
def test_a_last_run_in_the_future_that_came_into_the_database_meanwhile(use_tz, make_beat, redis):
    # Not of the entry that ticks: what that one has to write goes over what was written meanwhile.
    with make_beat(
        "database", {**often("database"), "rare": {"schedule": 4}, "seldom": {"schedule": 3600}}, use_tz=use_tz
    ) as beat:
        beat.wait_for(lambda: redis.count() >= 1, "a message")
        in_future = datetime.now(timezone.utc) + timedelta(days=100)
        _write_last_run(beat, in_future)
        beat.wait_logged("lay in the future")
        beat.wait_for(lambda: "rare" in {message.task for message in redis.messages()}, "it runs")
        assert beat.logged("lay in the future") == 1, beat.log
        _touch(beat)  # whatever else changes: everything is read anew
        beat.wait_for(lambda: beat.logged("Schedule changed") >= 2, "it is read anew")
        sent = redis.count()
        beat.wait_for(lambda: redis.count() >= sent + 2, "messages")
        assert beat.logged("lay in the future") == 1, beat.log
        assert beat.stop() == 0, beat.log
        for name in ("rare", "seldom"):  # saved, though one of them never ran
            assert _last_run(beat, name) < in_future - timedelta(days=99), name


def _sql(beat, statement, *values):
    with sqlite3.connect(beat.directory / "db.sqlite3", timeout=10) as database:
        return database.execute(statement, values).fetchall()


def _write_last_run(beat, at):
    text = at.strftime("%Y-%m-%d %H:%M:%S.%f")
    _sql(beat, "update django_celery_beat_periodictask set last_run_at = ? where name != 'tick'", text)
    _touch(beat)


def _touch(beat):
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")
    _sql(beat, "update django_celery_beat_periodictasks set last_update = ?", now)


def _last_run(beat, name):
    text = _sql(beat, "select last_run_at from django_celery_beat_periodictask where name = ?", name)[0][0]
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def test_a_clock_that_jumps_while_it_runs(kind, make_beat, redis):
    minute = (time.gmtime().tm_min + 30) % 60
    schedule = {**often(kind), "rare": {"schedule": 1800}, "hourly": {"schedule": {"minute": str(minute)}}}
    with make_beat(kind, schedule) as beat:
        beat.wait_for(lambda: redis.count() >= 2, "messages")
        for jumps, shift in enumerate([HOUR_S, HOUR_S - 600], 1):
            beat.shift(shift)
            beat.wait_for(lambda jumps=jumps: beat.logged("the wall clock jumped") == jumps, "it is noticed")
            before = redis.messages()
            beat.wait_for(lambda before=before: redis.count() >= len(before) + 3, "messages", 10)
            sent = [message.task for message in redis.messages()]
            # Whatever is due by the time of day runs once; an interval has not passed because the clock was set.
            assert (sent.count("hourly"), sent.count("rare")) == (1, 0), beat.log
            ticks = [message for message in redis.messages()[len(before) :] if message.task == "tick"]
            in_step(ticks, kind)
        assert beat.logged("the wall clock jumped") == 2, beat.log
        assert beat.logged("lay in the future") == 0, beat.log
        assert beat.stop() == 0, beat.log


def test_what_a_jump_moved_in_django_celery_beat_is_reckoned_from_the_model(make_beat, redis):
    """Its schedule keeps entries with an old last run; a heap rebuilt from those would run all of them again."""
    schedule = {f"each {number}": {"schedule": 2.0} for number in range(5)}
    with make_beat("database", schedule) as beat:
        beat.wait_for(lambda: redis.count() >= 5, "one message each")
        beat.shift(HOUR_S)
        beat.wait_logged("the wall clock jumped")
        beat.wait_for(lambda: redis.count() >= 10, "one more each")
        for name in schedule:
            first, second = (message.due for message in redis.messages() if message.task == name)
            assert (second - first).total_seconds() == pytest.approx(HOUR_S + 2, abs=0.5)
