"""Each message says of which term it is, for which due time, and in which attempt it was sent."""

from __future__ import annotations

import itertools
import json
import shelve
import sqlite3
import time

import pytest

from tests.launcher.beats import EPOCH

OWN = {"options": {"headers": {"own": "mine"}}}


def check(messages):
    assert {message.headers["zkbeat-epoch"] for message in messages} == {EPOCH}
    assert len({message.headers["zkbeat-nonce"] for message in messages}) == len(messages)
    assert {message.headers["own"] for message in messages} == {"mine"}
    # None of them grew on another one.
    assert len({tuple(sorted(message.headers)) for message in messages}) == 1
    due = [message.due for message in messages]
    assert all(later - sooner >= (due[1] - due[0]) / 2 for sooner, later in itertools.pairwise(due)), due


def kept(kind, beat, redis):
    """Return the entry's headers as its store has them."""
    if kind == "persistent":
        with shelve.open(str(beat.schedule_file), "r") as store:
            return store["entries"]["tick"].options["headers"]
    if kind == "redbeat":
        return json.loads(redis.client.hget("redbeat:tick", "definition"))["options"]["headers"]
    if kind == "database":
        with sqlite3.connect(beat.directory / "db.sqlite3") as database:
            rows = database.execute("select headers from django_celery_beat_periodictask where name = 'tick'")
            return json.loads(rows.fetchone()[0])
    return OWN["options"]["headers"]  # it keeps nothing


def test_the_headers_on_the_wire_and_nowhere_else(kind, make_beat, redis):
    with make_beat(kind, {"tick": {"schedule": 1, **OWN}}) as beat:
        beat.wait_for(lambda: redis.count() >= 3, "messages")
        assert beat.stop() == 0, beat.log
        messages = redis.messages()
        check(messages)
        assert kept(kind, beat, redis) == OWN["options"]["headers"]
        assert not beat.logged("the wall clock"), beat.log
        assert not beat.logged("in the future"), beat.log


def test_the_headers_through_rabbitmq(make_beat, rabbit):
    with make_beat("persistent", {"tick": {"schedule": 1, **OWN}}, broker=rabbit) as beat:
        beat.wait_for(lambda: rabbit.count() >= 3, "messages")
        check(rabbit.messages())
        assert beat.stop() == 0, beat.log


@pytest.mark.parametrize("kind", ["persistent", "database"])  # celery's crontab, and django-celery-beat's
def test_the_due_time_of_a_crontab_is_that_of_the_crontab(kind, make_beat, redis):
    beat = make_beat(kind, {"tick": {"schedule": {"minute": "*"}}})
    to_the_minute = 60 - time.time() % 60
    beat.shift(to_the_minute - 3)
    with beat:
        beat.wait_for(redis.count, "a message")
        due = redis.messages()[0].due
        assert (due.second, due.microsecond) == (0, 0)
        assert abs(due.timestamp() - to_the_minute - (time.time() - time.time() % 60)) < 120


def test_the_due_time_of_an_interval_follows_from_the_last_run(make_beat, redis):
    with make_beat("redbeat", {"tick": {"schedule": 1}}) as beat:
        beat.wait_for(lambda: redis.count() == 1, "a message")
        last = json.loads(redis.client.hget("redbeat:tick", "meta"))["last_run_at"]
        beat.wait_for(lambda: redis.count() == 2, "the next one")
        between = redis.messages()[1].due.timestamp() % 60 - (last["second"] + last["microsecond"] / 1e6)
        assert abs(between % 60 - 1.0) < 1e-5
