"""The headers of each message that beat sends: of which epoch, for which due time, in which attempt.

An entry is never changed for that. celery's `apply_async` writes into the headers that it is given, and `next()` copies
the options on, so they would grow with each tick; and `copy.copy` raises for the entries of django-celery-beat.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from zkbeat.launcher.clocks import as_utc

EPOCH = "zkbeat-epoch"
"""The term's epoch (the fencing token), decimal."""
TICK = "zkbeat-tick"
"""NAME@DUE: the entry, and the instant for which it was due, in ISO 8601 and UTC."""
NONCE = "zkbeat-nonce"
"""Another one for each attempt of the scheduler to publish; one message keeps its own when it is delivered again."""


def headers(entry: Any, epoch: str, at: datetime) -> dict[str, str]:
    """Return the headers of this entry's message: of the entry as it was before it was reserved."""
    return of_tick(f"{entry.name}@{due(entry, at).isoformat()}", epoch)


def of_tick(tick: str, epoch: str) -> dict[str, str]:
    """Return the headers of one attempt to publish this tick."""
    return {EPOCH: epoch, TICK: tick, NONCE: uuid.uuid4().hex}


def is_stamped(entry: Any) -> bool:
    """Whether its scheduler has stamped it already, which then knows better for which due time it is."""
    return TICK in ((entry.options or {}).get("headers") or {})


def due(entry: Any, at: datetime) -> datetime:
    """Return since when the entry is due, in UTC: the first due time after its last run.

    `at`: now; what an entry that has never run, or whose schedule cannot tell, is due at.
    """
    now = as_utc(at)
    if entry.last_run_at is None:
        return now
    try:
        schedule = as_of(entry.schedule, now)
        left = schedule.remaining_estimate(as_utc(entry.last_run_at).astimezone(schedule.tz))
        return now if left is None else now + left
    except Exception:  # noqa: BLE001  # a schedule class of the user's: the message matters more than its name
        return now


def stamped(entry: Any, extra: dict[str, str]) -> Any:
    """Return an entry like this one whose message has these headers as well."""
    same = _clone(entry)
    options = entry.options or {}
    same.options = {**options, "headers": {**(options.get("headers") or {}), **extra}}
    return same


def as_of(schedule: Any, now: datetime) -> Any:
    """Return the schedule with its clock stopped: `remaining_estimate` reads it, and due times must be exact."""
    stopped = _clone(schedule)
    stopped.nowfun = lambda: now
    return stopped


def _clone(thing: Any) -> Any:
    """Return a shallow copy; `copy.copy` raises for some entries."""
    cls: Any = type(thing)
    made = cls.__new__(cls)
    made.__dict__.update(thing.__dict__)
    return made
