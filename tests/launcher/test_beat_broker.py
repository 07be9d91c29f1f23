"""What leaves a broker's silence unnoticed is named at the start, with the setting to add."""

from __future__ import annotations

import pytest

RARE = {"tick": {"schedule": 3600}}
OPTIONS = ["socket_timeout", "socket_connect_timeout", "read_timeout", "write_timeout", "confirm_publish"]


def missing(beat):
    """Return the options that are named, each as often as it is."""
    beat.wait_for(lambda: beat.pulse().at, "beat turns")
    return [name for name in OPTIONS for _ in range(beat.logged(f"broker_transport_options['{name}']"))]


@pytest.mark.parametrize("kind", ["plain", "redbeat"])
def test_a_redis_without_timeouts(kind, make_beat):
    with make_beat(kind, RARE) as beat:
        assert missing(beat) == ["socket_timeout", "socket_connect_timeout"], beat.log


def test_a_redis_with_timeouts(make_beat):
    options = {"socket_timeout": 5, "socket_connect_timeout": 5}
    with make_beat("plain", RARE, conf={"broker_transport_options": options}) as beat:
        assert missing(beat) == [], beat.log


def test_a_rabbitmq_without_timeouts(make_beat, rabbit):
    with make_beat("plain", RARE, broker=rabbit) as beat:
        assert missing(beat) == ["read_timeout", "write_timeout"], beat.log
        assert "guest:guest" not in beat.log


def test_a_rabbitmq_with_timeouts_and_without_confirms(make_beat, rabbit):
    options = {"read_timeout": 5, "write_timeout": 5, "confirm_publish": False}
    with make_beat("plain", RARE, broker=rabbit, conf={"broker_transport_options": options}) as beat:
        assert missing(beat) == ["confirm_publish"], beat.log


def test_redbeats_own_lock_is_left_to_zkbeat(make_beat, redis):
    with make_beat("redbeat", RARE) as beat:
        beat.wait_for(lambda: beat.pulse().at, "beat turns")
        assert not redis.client.exists("redbeat::lock")
        assert beat.logged("RedBeat's own lock is off") == 1, beat.log


def test_redbeats_own_lock_is_kept_for_who_asks_for_it_by_name(make_beat, redis):
    with make_beat("redbeat", RARE, conf={"redbeat_lock_key": "redbeat:mine"}) as beat:
        beat.wait_for(lambda: beat.pulse().at, "beat turns")
        assert redis.client.exists("redbeat:mine")
        assert beat.logged("redbeat_lock_key is set") == 1, beat.log
        assert beat.stop() == 0, beat.log
