"""From celery's own scheduler, django-celery-beat or RedBeat to -S zookeeper: nothing is skipped, nothing repeated."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from celery import schedules

from tests.support.nodes import environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.launcher.beats import Beat
    from tests.launcher.servers import Message

SCHEDULE = {
    "tick": {"schedule": 1.0, "args": [1, "two"], "options": {"queue": "celery"}},
    "minutely": {"schedule": {"minute": "*"}},
}
ALL = {"zkbeat_catch_up": {"*": "all"}}
MINUTE_S = 60
ENDED_WELL = (0, 1, -signal.SIGTERM)
QUIET_S = 0.4
"""After a message: celery 5.7.0 loses a TERM that comes within a publish, and that publish with it."""


@pytest.fixture
def schedule_import(zk_hosts, zk_root) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `zkbeat schedule import` where that beat's app is."""

    def run(beat: Beat, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        where = ["--hosts", zk_hosts, "--root", zk_root, "--name", "e"]
        own = {key: value for key, value in beat._env.items() if not key.startswith("ZKBEAT_")}
        return subprocess.run(
            [sys.executable, "-m", "zkbeat", "schedule", "import", *where, *words],
            env=environment({**own, **env}),
            cwd=beat.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name.startswith("beat-schedule")}


def defined(text: str) -> dict[str, Any]:
    """Return what that Python defines."""
    names: dict[str, Any] = {}
    exec(text, names)
    return names["beat_schedule"]


@pytest.mark.parametrize(
    ("kind", "words", "keywords"),
    [
        pytest.param("persistent", ("shelve", "beat-schedule"), {}, id="shelve"),
        pytest.param("database", ("django",), {}, id="django"),
        pytest.param("database", ("django", "-A", "app"), {"use_tz": False}, id="django-naive"),
        pytest.param("redbeat", ("redbeat", "-A", "app"), {}, id="redbeat"),
    ],
)
def test_the_change_neither_skips_nor_repeats(make_beat, redis, schedule_import, kind, words, keywords):
    def sent(task: str) -> list[Message]:
        return [one for one in redis.messages() if one.task == task]

    # By the clock of both beats, which is a minute or two slow: the old one sends the crontab's `minute`, and the
    # next minute passes while neither runs.
    minute = time.time() // MINUTE_S * MINUTE_S - MINUTE_S
    old = make_beat(kind, SCHEDULE, launched=False, **keywords)
    old.shift(minute - 30 - time.time())
    with old:
        old.wait_for(lambda: sent("tick"), "the first of the interval")
        old.shift(minute - 0.2 - time.time())
        old.wait_for(lambda: sent("minutely") and len(sent("tick")) > 2, "one of each")
        time.sleep(QUIET_S)
        assert old.stop() in ENDED_WELL, old.log
    before = Counter(one.task for one in redis.messages())
    assert before["minutely"] == 1

    files = contents(old.directory)
    env = {"DJANGO_SETTINGS_MODULE": "settings"} if words == ("django",) else {}
    done = schedule_import(old, *words, "--json", **env)
    assert done.returncode == 0, done.stderr
    assert contents(old.directory) == files, "the original stays as it is"
    imported = {one["entry"]: one for one in json.loads(done.stdout)["entries"]}
    for task, count in before.items():
        assert (imported[task]["what"], imported[task]["count"]) == ("imported", count)
    last = datetime.fromisoformat(imported["tick"]["last"])

    new = make_beat("zookeeper", SCHEDULE, conf=ALL, use_tz=keywords.get("use_tz", True))
    new.shift(minute + MINUTE_S + 5 - time.time())
    with new:
        new.wait_for(lambda: len(sent("tick")) > before["tick"] + 40, "what was due meanwhile")
        new.wait_for(lambda: len(sent("minutely")) > 1, "the next minute")
        assert new.stop() in ENDED_WELL, new.log
    dues = [one.due for one in sent("tick")[before["tick"] :]]
    assert dues[0] == last + timedelta(seconds=1), "in phase with the last of the old one"
    assert {later - sooner for sooner, later in itertools.pairwise(dues)} == {timedelta(seconds=1)}
    assert [one.due.timestamp() for one in sent("minutely")[1:]] == [minute + MINUTE_S]

    again = json.loads(schedule_import(old, *words, "--json", **env).stdout)
    kept = {one["entry"]: (one["what"], one["count"]) for one in again["entries"]}
    assert kept["tick"][0] == "kept", "a second import moves nothing backwards"
    assert kept["tick"][1] - len(sent("tick")) in {0, 1}, "the stop may have come between an intent and its publish"


@pytest.mark.parametrize(("kind", "words"), [("database", ("django",)), ("redbeat", ("redbeat",))])
def test_definitions_in_a_store_can_be_had_as_python(make_beat, redis, schedule_import, kind, words):
    old = make_beat(kind, SCHEDULE, launched=False)
    with old:
        old.wait_for(redis.count, "the first message")
    done = schedule_import(old, *words, "-A", "app", "--definitions")
    assert done.returncode == 0, done.stderr
    found = defined(done.stdout)
    assert found.keys() >= SCHEDULE.keys()
    tick, minutely = found["tick"], found["minutely"]
    assert (tick["task"], tick["schedule"], list(tick["args"])) == ("tick", 1.0, [1, "two"])
    assert tick["options"]["queue"] == "celery"
    assert minutely["schedule"] == schedules.crontab()


_ROWS = """
import django; django.setup()
from datetime import datetime, timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask
at = datetime(2026, 1, 1, tzinfo=timezone.utc)
every = IntervalSchedule.objects.create(every=5, period="minutes")
berlin = CrontabSchedule.objects.create(minute="30", timezone="Europe/Berlin")
clocked = ClockedSchedule.objects.create(clocked_time=at)
made = PeriodicTask.objects.create
made(name="ran", task="t", interval=every, last_run_at=at, total_run_count=3, kwargs='{"a": [1]}', expire_seconds=60)
made(name="new", task="t", interval=every)
made(name="off", task="t", interval=every, enabled=False, last_run_at=at)
made(name="berlin", task="t", crontab=berlin, last_run_at=at)
made(name="clocked", task="t", clocked=clocked, one_off=True, last_run_at=at)
made(name="once", task="t", interval=every, one_off=True, last_run_at=at)
made(name="ends", task="t", interval=every, last_run_at=at, expires=datetime(2027, 1, 1, tzinfo=timezone.utc))
"""


def test_of_django_what_has_not_run_or_cannot_be_is_skipped_and_said(make_beat, schedule_import):
    beat = make_beat("database", {})
    env = {"DJANGO_SETTINGS_MODULE": "settings"}
    subprocess.run([sys.executable, "-c", _ROWS], env={**beat._env, **env}, check=True, timeout=60)
    done = schedule_import(beat, "django", "--json", **env)
    found = {one["entry"]: one for one in json.loads(done.stdout)["entries"]}
    assert {name for name, one in found.items() if one["what"] == "imported"} == {"ran", "berlin", "ends"}
    assert (found["ran"]["last"], found["ran"]["count"]) == ("2026-01-01T00:00:00+00:00", 3)
    for name, why in (("new", "has never run"), ("off", "is disabled"), ("clocked", "clocked"), ("once", "one-off")):
        assert why in found[name]["why"]
    done = schedule_import(beat, "django", "--definitions", **env)
    assert done.returncode == 0, done.stderr
    entries = defined(done.stdout)
    assert entries.keys() == {"ran", "new", "ends"}
    assert entries["ran"] == {"task": "t", "schedule": 300.0, "kwargs": {"a": [1]}, "options": {"expires": 60}}
    assert entries["ends"]["options"]["expires"] == datetime(2027, 1, 1, tzinfo=timezone.utc)
    for says in ("Europe/Berlin", "it is clocked", "it is one-off", "it is disabled", "# 'berlin': {"):
        assert says in done.stdout


def test_a_redis_that_does_not_answer_or_holds_something_else_is_one_line(make_beat, schedule_import, redis):
    beat = make_beat("redbeat", {}, conf={"redbeat_redis_url": "redis://127.0.0.1:1/0"})
    done = schedule_import(beat, "redbeat", "-A", "app")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1), done.stderr
    assert "Redis does not answer" in done.stderr
    beat = make_beat("redbeat", {})
    redis.client.hset("redbeat:x", "definition", "nonsense")
    redis.client.zadd("redbeat::schedule", {"redbeat:x": 1})
    done = schedule_import(beat, "redbeat", "-A", "app")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1), done.stderr


def test_a_database_that_is_none_is_one_line(make_beat, schedule_import):
    beat = make_beat("database", {})
    (beat.directory / "db.sqlite3").write_bytes(b"")
    done = schedule_import(beat, "django", DJANGO_SETTINGS_MODULE="settings")
    assert (done.returncode, done.stderr.count("\n")) == (69, 1), done.stderr
    assert "no such table" in done.stderr
    done = schedule_import(beat, "django", DJANGO_SETTINGS_MODULE="no_such_settings")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1), done.stderr
