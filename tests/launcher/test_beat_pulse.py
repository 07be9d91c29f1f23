"""Whether beat does what is due can be read from its pulse."""

from __future__ import annotations

import signal
import time

import pytest

from tests.launcher.beats import CLASSES
from tests.support.waiting import wait_until
from zkbeat import clock

OFTEN = {"tick": {"schedule": 0.3}}


def silence_s(beat):
    """Return for how long something has been due that did not happen."""
    return max(clock.now() - beat.pulse().due_since, 0.0)


def test_a_healthy_beat_is_not_silent_and_counts_what_it_sends(kind, make_beat, redis):
    with make_beat(kind, OFTEN) as beat:
        beat.wait_for(lambda: redis.count() >= 3, "messages")
        beat.wait_for(lambda: beat.pulse().count == redis.count(), "each is counted")
        assert CLASSES[kind].replace(":", ".") in beat.log  # the banner has the class that the user chose
        said = beat.pulse()
        assert said.name == "tick"
        assert said.owing_since == 0
        assert said.published_at <= said.at <= clock.now()
        assert abs(said.published_wall - time.time()) < 5
        assert silence_s(beat) < 1, said


def test_a_beat_with_nothing_to_do_for_an_hour_sleeps_no_longer_than_it_may(kind, make_beat):
    with make_beat(kind, {"tick": {"schedule": 3600}}) as beat:
        said = beat.wait_for(lambda: beat.pulse().wake_at > beat.pulse().at and beat.pulse(), "beat sleeps")
        assert 0 < said.wake_at - said.at <= 5


def test_a_beat_with_nothing_to_do_for_an_hour_is_not_silent(make_beat):
    with make_beat("plain", {"tick": {"schedule": 3600}}) as beat:
        first = beat.wait_for(lambda: beat.pulse().wake_at > beat.pulse().at and beat.pulse(), "beat sleeps")
        beat.wait_for(lambda: beat.pulse().at >= first.wake_at, "it turns again")
        assert silence_s(beat) < 1
        assert beat.pulse().count == 0


def test_a_frozen_redis_is_a_publish_that_is_owed(make_beat, fresh_redis):
    with make_beat("persistent", OFTEN, broker=fresh_redis) as beat:
        beat.wait_for(lambda: beat.pulse().count >= 2, "publishes")
        fresh_redis.freeze()
        beat.wait_for(lambda: silence_s(beat) > 1, "silence", 5)
        assert beat.pulse().owing_since, beat.pulse()
        fresh_redis.thaw()
        beat.wait_for(lambda: not beat.pulse().owing_since, "what is owed goes out")


def test_a_frozen_rabbitmq_is_a_publish_that_is_owed(make_beat, rabbit):
    with make_beat("persistent", OFTEN, broker=rabbit) as beat:
        beat.wait_for(lambda: beat.pulse().count >= 2, "publishes")
        rabbit.freeze()
        beat.wait_for(lambda: silence_s(beat) > 1, "silence", 5)
        assert beat.pulse().owing_since, beat.pulse()
        rabbit.thaw()
        beat.wait_for(lambda: not beat.pulse().owing_since, "what is owed goes out")
        assert beat.stop() == 0, beat.log


def test_a_frozen_rabbitmq_is_not_noticed_by_who_wants_no_confirms(make_beat, rabbit):
    conf = {"broker_transport_options": {"confirm_publish": False}}
    with make_beat("persistent", OFTEN, broker=rabbit, conf=conf) as beat:
        beat.wait_for(lambda: beat.pulse().count >= 2, "publishes")
        rabbit.freeze()
        count = beat.pulse().count
        beat.wait_for(lambda: beat.pulse().count > count + 3, "messages into the socket's buffer")
        assert beat.logged("confirm_publish is off") == 1, beat.log


def test_what_is_stuck_outside_a_publish_does_not_turn(make_beat, redis):
    with make_beat("plain", OFTEN) as beat:
        beat.wait_for(lambda: redis.count() >= 2, "messages")
        beat.signal(signal.SIGUSR2)  # sleeps in its handler
        beat.wait_for(lambda: silence_s(beat) > 1, "silence", 5)
        assert beat.pulse().wake_at


@pytest.mark.parametrize("kind", ["plain", "persistent", "database"])  # RedBeat ends when its own Redis is gone
def test_publishes_that_fail_are_owed_since_the_first_until_one_goes_out(kind, make_beat, fresh_redis):
    with make_beat(kind, OFTEN, broker=fresh_redis) as beat:
        beat.wait_for(lambda: fresh_redis.count() >= 2, "messages")
        fresh_redis.stop()
        beat.wait_for(lambda: beat.logged("Couldn't apply scheduled task") >= 2, "publishes that fail")
        since = beat.pulse().owing_since
        assert since
        failed = beat.logged("Couldn't apply scheduled task")
        beat.wait_for(lambda: beat.logged("Couldn't apply scheduled task") > failed, "one more")
        assert beat.pulse().owing_since == since
        fresh_redis.restart()
        beat.wait_for(fresh_redis.count, "a message")
        wait_until(lambda: not beat.pulse().owing_since, 5, "nothing is owed", beat.pulse)
