"""Past the lease's hard deadline beat sends nothing, writes nothing, and ends."""

from __future__ import annotations

import signal
import sqlite3

import pytest

from tests.launcher.beats import CLASSES

FENCED = 75
OFTEN = {"tick": {"schedule": 0.3}}
SYNC_EACH = {"beat_sync_every": 1}


def state(beat, redis):
    """Return all that a scheduler has written down."""
    files = {path.name: path.read_bytes() for path in beat.directory.glob("beat-schedule*")}
    rows = []
    if (beat.directory / "db.sqlite3").exists():
        with sqlite3.connect(beat.directory / "db.sqlite3") as database:
            rows = database.execute("select name, last_run_at, total_run_count from django_celery_beat_periodictask")
            rows = rows.fetchall()
    keys = {key: redis.client.dump(key) for key in redis.client.keys("redbeat*")}
    return files, rows, keys


def test_a_beat_that_was_frozen_past_its_lease_sends_nothing_more(kind, make_beat, redis):
    with make_beat(kind, OFTEN, conf=SYNC_EACH) as beat:
        beat.wait_for(lambda: redis.count() >= 3, "three messages")
        beat.signal(signal.SIGSTOP)
        beat.lease.lapse()
        sent, written = redis.count(), state(beat, redis)
        beat.signal(signal.SIGCONT)
        assert beat.ended() == FENCED, beat.log
        assert redis.count() == sent, beat.log
        assert state(beat, redis) == written
        assert beat.logged("the lease has run out") == 1, beat.log


def test_a_stock_beat_that_was_frozen_does_send_more(make_beat, redis):
    with make_beat("persistent", OFTEN, launched=False) as beat:
        beat.wait_for(lambda: redis.count() >= 3, "three messages")
        beat.signal(signal.SIGSTOP)
        beat.lease.lapse()
        sent = redis.count()
        beat.signal(signal.SIGCONT)
        beat.wait_for(lambda: redis.count() > sent, "what the fence is against")


def test_every_door_is_shut(kind, make_beat, redis):
    with make_beat(kind, {"tick": {"schedule": 3}}, program="import probe; probe.main()") as beat:
        beat.lease.close()
        assert beat.ended() == 0, beat.log
        doors = ["tick", "reserve", "apply_async", "publish", "sync", "_do_sync", "close"]
        said = [line for line in beat.log.splitlines() if line.partition(" ")[0] in doors]
        assert said == [f"{door} {FENCED}" for door in doors], beat.log
        assert redis.count() == 0


def test_a_lease_that_is_not_renewed_ends_a_beat_that_has_nothing_to_do(make_beat):
    with make_beat("plain", {"tick": {"schedule": 3600}}) as beat:
        beat.wait_for(lambda: beat.pulse().at, "a turn of the loop")
        beat.lease.close()
        assert beat.ended() == FENCED, beat.log  # the lease, and one sleep of the loop


@pytest.mark.parametrize("kind", CLASSES)
def test_without_a_lease_file_it_does_not_begin(kind, make_beat, redis, tmp_path):
    with make_beat(kind, OFTEN, env={"ZKBEAT_LEASE_FILE": str(tmp_path / "none")}) as beat:
        before = state(beat, redis)
        assert beat.ended() == FENCED, beat.log
        assert redis.count() == 0
        assert state(beat, redis) == before


def test_a_lease_that_ran_out_while_kombu_waited_for_the_broker(make_beat, fresh_redis):
    patient = {"task_publish_retry_policy": {"max_retries": 1000, "interval_start": 0.1, "interval_max": 0.1}}
    with make_beat("plain", OFTEN, broker=fresh_redis, conf=patient) as beat:
        beat.wait_for(lambda: fresh_redis.count() >= 2, "two messages")
        fresh_redis.stop()
        beat.wait_for(lambda: beat.pulse().owing_since, "a publish that does not come through")
        beat.lease.lapse()
        fresh_redis.restart()
        assert beat.ended() == FENCED, beat.log
        assert fresh_redis.count() == 0


def test_a_lease_that_ran_out_before_the_first_connection(make_beat, fresh_redis):
    fresh_redis.stop()
    with make_beat("persistent", OFTEN, broker=fresh_redis, conf={"beat_max_loop_interval": 1}) as beat:
        beat.wait_logged("Connection error")
        beat.lease.lapse()
        fresh_redis.restart()
        assert beat.ended() == FENCED, beat.log
        assert fresh_redis.count() == 0


def test_without_zkbeat_it_is_a_stock_beat_that_says_so(make_beat, redis):
    with make_beat("persistent", OFTEN, env={"ZKBEAT_LEASE_FILE": None}) as beat:
        beat.lease.close()
        beat.wait_for(lambda: redis.count() >= 2, "messages")
        assert beat.logged("ZKBEAT_LEASE_FILE is not set") == 1, beat.log
        assert "zkbeat-epoch" not in redis.messages()[0].headers
        assert beat.stop() == 0, beat.log


def test_a_class_that_cannot_be_derived_from_is_fenced_all_the_same(make_beat, redis):
    with make_beat("stubborn", OFTEN) as beat:
        beat.wait_for(lambda: redis.count() >= 2, "messages")
        assert beat.logged("one base is enough") == 1, beat.log
        beat.signal(signal.SIGSTOP)
        beat.lease.lapse()
        sent = redis.count()
        beat.signal(signal.SIGCONT)
        assert beat.ended() == FENCED, beat.log
        assert redis.count() == sent
