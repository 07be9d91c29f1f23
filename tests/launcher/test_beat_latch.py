"""Once beat was told to stop, it sends nothing more.

celery 5.7.0 loses that word within a publish: its signal handler closes the connection under the feet of whoever reads
from it, and the error of that one takes the place of the handler's SystemExit.
"""

from __future__ import annotations

import signal

import celery
import psutil
import pytest

from tests.support.waiting import wait_until

OFTEN = {"tick": {"schedule": 0.3}}


def stick_in_a_publish(beat, broker):
    """Freeze the broker, and wait until beat waits for it in a publish; return how many messages it had till then."""
    beat.wait_for(lambda: broker.count() >= 2, "messages")
    broker.freeze()
    begun = beat.logged("Sending due task")
    beat.wait_for(lambda: beat.logged("Sending due task") > begun, "a publish that does not come through")
    process, seen = psutil.Process(beat.pid), []

    def idle():
        seen.append(process.cpu_times())
        return len(seen) > 10 and seen[-1] == seen[-10]

    beat.wait_for(idle, "beat waits")
    return begun


def test_a_term_within_a_publish_ends_it_though_the_broker_is_still_frozen(kind, make_beat, fresh_redis):
    with make_beat(kind, OFTEN, broker=fresh_redis) as beat:
        begun = stick_in_a_publish(beat, fresh_redis)
        beat.signal(signal.SIGTERM)
        assert beat.ended(within_s=3) == 0, beat.log
        fresh_redis.thaw()
        # What beat was in the middle of has left it before it was told to stop.
        assert fresh_redis.count() in {begun, begun + 1}, beat.log


@pytest.mark.skipif(celery.__version__ != "5.7.0", reason="the fault of celery 5.7.0")
def test_stock_celery_loses_the_term_and_goes_on(make_beat, fresh_redis):
    with make_beat("plain", OFTEN, broker=fresh_redis, launched=False) as beat:
        begun = stick_in_a_publish(beat, fresh_redis)
        beat.signal(signal.SIGTERM)
        beat.wait_logged("I/O operation on closed file")
        fresh_redis.thaw()
        wait_until(lambda: fresh_redis.count() >= begun + 5, 10, "further ticks", lambda: beat.log)


def test_a_healthy_one_ends_at_once_and_with_its_state_written(make_beat, redis):
    with make_beat("persistent", {"tick": {"schedule": 1}}) as beat:
        beat.wait_for(lambda: redis.count() == 1, "a message")
        assert beat.stop() == 0, beat.log
    with make_beat("persistent", {"tick": {"schedule": 1}}) as beat:
        beat.wait_for(lambda: redis.count() == 2, "the next one")
        first, second = (message.due for message in redis.messages())
        assert 1.0 <= (second - first).total_seconds() < 2.0  # reckoned from what the first one wrote down
