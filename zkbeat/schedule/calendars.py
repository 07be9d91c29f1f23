"""When celery's schedules are due: exact instants, in place of "in so many seconds from whenever you ask".

celery reckons from now, which it reads itself, and takes the moment of sending as the last run. Here a due time is an
instant that follows from the one before, so that two nodes, and one that comes late, find the same.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import schedules

from zkbeat.core.schedule import Dues, to_datetime
from zkbeat.launcher.stamp import as_of

_APART_US = 60_000_000
_SAME_US = 1_000_000
"""ephem finds an event by iteration: within so much it is the same one, and two of them are hours apart."""

_SOON_US = 10_000
"""When to ask a schedule again that is not due, but would be in no time."""


def dues_of(schedule: Any, now: int) -> Dues:
    """Return the due times of a schedule as of `now` (microseconds since 1970)."""
    # Exactly celery's own: a class that is derived from one of them may mean something else by it.
    kind = type(schedule)
    if elapses(schedule):
        every = max(schedule.run_every // timedelta(microseconds=1), 1)
        return Dues(after=lambda last: last + every, every=every)
    stopped = as_of(schedule, to_datetime(now))
    if kind is schedules.crontab:
        return Dues(after=lambda last: _estimate(stopped, last, now), calendar=True)
    if kind is schedules.solar:
        return Dues(after=lambda last: _next_event(stopped, last, now), calendar=True)
    if kind is schedules.schedule:
        return Dues(after=lambda last: _estimate(stopped, last, now))
    return Dues(after=lambda last: _ask(stopped, last, now))


def elapses(schedule: Any) -> bool:
    """Whether it counts what has passed since the last due time, and has no time of day."""
    return type(schedule) is schedules.schedule and not schedule.relative


def is_crontab(schedule: Any) -> bool:
    """Whether celery's `beat_cron_starting_deadline` is meant for it."""
    return isinstance(schedule, schedules.crontab)


def in_words(schedule: Any) -> str:
    """Return what to call a schedule; celery's own words are "<freq: now>" for any interval below a second."""
    if elapses(schedule):
        return f"every {schedule.run_every.total_seconds():g} s"
    return repr(schedule)


def fingerprint(schedule: Any) -> str:
    """Return what tells this schedule from a changed one, on any node and with any Python."""
    kind = type(schedule)
    about: tuple[Any, ...] = ()
    # A set of names has another order in each process, so not what the user wrote, but what it means. Of a class of the
    # user's nothing is known that could not change by itself.
    if kind is schedules.schedule:
        about = (schedule.run_every.total_seconds(), bool(schedule.relative))
    elif kind is schedules.crontab:
        fields = (
            schedule.minute,
            schedule.hour,
            schedule.day_of_week,
            schedule.day_of_month,
            schedule.month_of_year,
        )
        about = (*(sorted(field) for field in fields), str(schedule.tz))
    elif kind is schedules.solar:
        about = (schedule.event, float(schedule.lat), float(schedule.lon))
    said = f"{kind.__module__}.{kind.__qualname__} {about!r}"
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _estimate(schedule: Any, last: int, now: int) -> int | None:
    left = schedule.remaining_estimate(_local(schedule, last))
    return None if left is None else now + left // timedelta(microseconds=1)


def _next_event(schedule: Any, last: int, now: int) -> int | None:
    """Return the next event; from the very instant of one, ephem may find that one once more."""
    this = _estimate(schedule, last - _APART_US, now)
    is_event = this is not None and abs(this - last) <= _SAME_US
    return _estimate(schedule, last + _APART_US if is_event else last, now)


def _ask(schedule: Any, last: int, now: int) -> int:
    """Ask a class of the user's, which may have a mind of its own in `is_due`; the instant is its estimate, or now."""
    due, next_s = schedule.is_due(_local(schedule, last))
    if not due:
        return now + max(int(next_s * 1_000_000), _SOON_US)
    try:
        at = _estimate(schedule, last, now)
    except Exception:  # noqa: BLE001  # most have no estimate
        at = None
    return at if at is not None and last < at <= now else now


def _local(schedule: Any, at: int) -> datetime:
    return to_datetime(at).astimezone(getattr(schedule, "tz", timezone.utc))
