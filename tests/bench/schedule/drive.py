"""One scheduler in a process of its own, timed: `python -m tests.bench.schedule.drive KIND N SETTINGS`, JSON out.

All N entries are due together once, since the app's clock is put an hour on; the loop is turned until that many
messages are in the broker. KIND with `-supervised` is under the launcher's mixin. SETTINGS, JSON: `broker`, `hosts`,
`name` (of the election), `sends` (false: it only starts), `crontab` (entries are such, and not intervals).
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.beat import PersistentScheduler
from celery.schedules import crontab

HOUR = timedelta(hours=1)


class Ahead(Celery):
    """An app whose clock can be put on."""

    ahead = timedelta(0)

    def now(self) -> Any:
        return super().now() + self.ahead


def _scheduler(kind: str, app: Ahead, directory: str) -> Any:
    cls: Any
    options: dict[str, Any] = {}
    if kind.startswith("persistent"):
        cls, options = PersistentScheduler, {"schedule_filename": str(Path(directory, "schedule"))}
        app.conf.beat_sync_every = int(kind.rpartition("-")[2])
    elif kind == "redbeat":
        from redbeat import RedBeatScheduler

        cls = RedBeatScheduler
        app.conf.redbeat_lock_key = None
    else:
        from zkbeat.schedule.scheduler import ZooKeeperScheduler

        cls = ZooKeeperScheduler
    if kind.endswith("-supervised"):
        from zkbeat.launcher.scheduler import supervised

        cls = supervised(cls)
    return cls(app, **options)


def _timed(of: Any, name: str, into: list[float]) -> None:
    """Have a method's calls timed, in milliseconds."""
    method = getattr(of, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            into.append((time.perf_counter() - began) * 1000)

    setattr(of, name, call)


def _steps() -> dict[str, list[float]]:
    """Have the steps of a start timed, in milliseconds: of the class, since the scheduler takes them as it is made."""
    from zkbeat.schedule.scheduler import ZooKeeperScheduler

    into: dict[str, list[float]] = {"define_s": [], "take_over_s": []}
    for step, name in (("define_s", "_define"), ("take_over_s", "_take_over")):
        _timed(ZooKeeperScheduler, name, into[step])
    return into


def main() -> None:
    """Measure once, and print it."""
    kind, count, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    logging.disable(logging.CRITICAL)
    app = Ahead("drive", broker=settings["broker"])
    when = crontab(minute="0", hour="4") if settings.get("crontab") else 3600.0
    app.conf.update(
        result_expires=None,
        redbeat_redis_url=settings["broker"],
        zkbeat_hosts=settings["hosts"],
        zkbeat_name=settings["name"],
        zkbeat_unfenced=True,
        beat_schedule={f"entry {n:05d}": {"task": "task", "schedule": when, "args": (n,)} for n in range(count)},
    )
    with tempfile.TemporaryDirectory() as directory:
        steps = _steps() if kind.startswith("zookeeper") and not settings["sends"] else {}
        began = time.perf_counter()
        scheduler = _scheduler(kind, app, directory)
        set_up_s = time.perf_counter() - began
        scheduler.tick()
        found: dict[str, Any] = {"set_up_s": set_up_s, "ready_s": time.perf_counter() - began}
        found |= {step: sum(times) / 1000 for step, times in steps.items()}
        if settings["sends"]:
            found |= _send(scheduler, app, count, settings["broker"])
        print(json.dumps(found))
        sys.stdout.flush()
        os._exit(0)  # a shelf that is closed without its classes has a traceback


def _send(scheduler: Any, app: Ahead, count: int, broker: str) -> dict[str, Any]:
    commits: list[float] = []
    publishes: list[float] = []
    if hasattr(getattr(scheduler, "_store", None), "commit"):
        _timed(scheduler._store, "commit", commits)
        _timed(scheduler, "apply_async", publishes)
    assert scheduler.producer is not None  # connected before the clock is put on
    client = redis.Redis.from_url(broker)
    client.delete("celery")
    app.ahead = HOUR + timedelta(seconds=1)
    scheduler._heap = None
    if hasattr(scheduler, "_zkbeat"):
        scheduler._zkbeat.guard = None  # it would see that the clock has jumped, and move the intervals along
    began = time.perf_counter()
    while client.llen("celery") < count:
        for _ in range(50):
            if scheduler.tick():
                break
    took_s = time.perf_counter() - began
    found: dict[str, Any] = {"ticks_a_second": count / took_s}
    for name, times in (("commit_ms", commits), ("publish_ms", publishes)):
        if times:
            ordered = sorted(times)
            found[name] = [len(times), statistics.median(ordered), ordered[int(len(ordered) * 0.99)]]
    return found


if __name__ == "__main__":
    main()
