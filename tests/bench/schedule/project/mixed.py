"""The app of the hand-overs: its entries, and a task that writes down each run.

MIXED, a JSON object: `broker`, `record` (the Redis for the runs) and the `key` there, `mix` and `count` of the entries,
`since` (when all of them last ran, microseconds since 1970), `once` (each tick runs once) and `conf`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import redis
from celery import Celery, Task
from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar

from tests.bench.schedule.entries import MIXES, POLICIES, SEVENS_S, Entry, longitude
from zkbeat.worker import OncePerTick

CONF = json.loads(os.environ["MIXED"])


class Sevens(BaseSchedule):
    """A schedule class of an app's own: due whenever the clock shows a multiple of seven seconds."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        following = (int(last_run_at.timestamp()) // SEVENS_S + 1) * SEVENS_S
        return datetime.fromtimestamp(following, timezone.utc) - self.now()

    def is_due(self, last_run_at: datetime) -> Any:
        left_s = self.remaining_estimate(last_run_at).total_seconds()
        return schedstate(left_s <= 0, max(left_s, 0) or SEVENS_S)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sevens)

    __hash__ = None  # type: ignore[assignment]


def _schedule(entry: Entry) -> Any:
    match entry.kind:
        case "interval":
            return schedule(entry.when)
        case "crontab":
            return crontab(minute=entry.when)
        case "relative":
            return schedule(entry.when, relative=True)
        case "noon":
            return solar("solar_noon", 0, longitude(CONF["since"], entry.when))
        case _:
            return Sevens()


_TIMEOUTS = {"socket_timeout": 2, "socket_connect_timeout": 2}
app = Celery("mixed", broker=CONF["broker"])
app.conf.update(
    result_expires=None,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    # Beat alone. A worker that loses its connection to a frozen Redis may forget what it has taken and not begun, and
    # that comes again after the visibility timeout only: an hour.
    broker_transport_options=_TIMEOUTS if "beat" in sys.argv else {},
    worker_hijack_root_logger=True,
    zkbeat_catch_up={f"{policy} *": said for policy, said in POLICIES.items()},
    **CONF["conf"],
)
_mix = MIXES[CONF["mix"]](CONF["count"])
_since = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=CONF["since"])
app.conf.beat_schedule = {
    entry.name: {"task": "run", "schedule": _schedule(entry), "last_run_at": _since, "args": (entry.name,)}
    for entry in _mix
}
_record: list[redis.Redis] = []


@app.task(name="run", base=OncePerTick if CONF["once"] else Task, bind=True)
def run(self: Any, name: str) -> None:
    """Write down that this tick has run; of a beat that is not under zkbeat only the entry is known."""
    if not _record:
        _record.append(redis.Redis.from_url(CONF["record"]))
    given = self.request.headers or {}
    headers = {what: given.get(f"zkbeat-{what}") for what in ("tick", "nonce", "epoch")}
    headers["tick"] = headers["tick"] or f"{name}@"
    _record[0].rpush(CONF["key"], json.dumps({**headers, "id": self.request.id, "at": time.time()}))
