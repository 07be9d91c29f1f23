"""When an entry is due, and what is to be done about it: worked out anew, in the plainest way, from the documentation.

Nothing here is taken from zkbeat. Instants are microseconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import ephem
from celery import schedules
from celery.utils.time import remaining

if TYPE_CHECKING:
    from collections.abc import Iterator

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
US = timedelta(microseconds=1)
SECOND = 1_000_000
COUNTED = 100
SKIP_S = 2.0
GRID = 300 * SECOND


def instant(at: datetime) -> int:
    return (at - EPOCH) // US


def moment(us: int, zone: str = "UTC") -> datetime:
    return (EPOCH + timedelta(microseconds=us)).astimezone(ZoneInfo(zone))


@dataclass(frozen=True)
class Interval:
    every: int

    def make(self) -> Any:
        return schedules.schedule(timedelta(microseconds=self.every))

    def after(self, last: int, _zone: str) -> int:
        return last + self.every


@dataclass(frozen=True)
class Relative:
    every: int

    def make(self) -> Any:
        return schedules.schedule(timedelta(microseconds=self.every), relative=True)

    def after(self, last: int, zone: str) -> int:
        start = moment(last, zone)
        return last + remaining(start, timedelta(microseconds=self.every), start, relative=True) // US


@dataclass(frozen=True)
class Cron:
    minute: str = "*"
    hour: str = "*"
    day_of_week: str = "*"
    day_of_month: str = "*"
    month_of_year: str = "*"

    def make(self) -> Any:
        return schedules.crontab(self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year)

    def after(self, last: int, zone: str) -> int:
        """Go on minute by minute on the clock on the wall, and take the first one that fits.

        That is what celery does at night, when the clock is changed: 02:30 is at 03:30 on the day that has none, and an
        hour that comes twice counts once.
        """
        local = moment(last, zone)
        wall = local.replace(tzinfo=None, second=0, microsecond=0, fold=0) + timedelta(minutes=1)
        while not self._fits_day(wall):
            wall = wall.replace(hour=0, minute=0) + timedelta(days=1)
        while not self._fits(wall):
            wall += timedelta(minutes=1)
            while not self._fits_day(wall):
                wall = wall.replace(hour=0, minute=0) + timedelta(days=1)
        fold = local.fold if wall.date() == local.date() else 0
        return instant(wall.replace(tzinfo=ZoneInfo(zone), fold=fold))

    def _fits_day(self, wall: datetime) -> bool:
        return (
            _fits(self.day_of_week, wall.isoweekday() % 7)
            and _fits(self.day_of_month, wall.day, first=1)
            and _fits(self.month_of_year, wall.month, first=1)
        )

    def _fits(self, wall: datetime) -> bool:
        return _fits(self.hour, wall.hour) and _fits(self.minute, wall.minute)


def _fits(field: str, value: int, first: int = 0) -> bool:
    """Say whether a crontab's field names this number; of what a field can be, what the tests make use of."""
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        bottom = first if low == "*" else int(low)
        top = 10**6 if low == "*" else int(high or low)
        if bottom <= value <= top and (value - bottom) % int(step or 1) == 0:
            return True
    return False


@dataclass(frozen=True)
class Solar:
    event: str
    lat: float
    lon: float

    def make(self) -> Any:
        return schedules.solar(self.event, self.lat, self.lon)

    def after(self, last: int, _zone: str) -> int:
        observer = ephem.Observer()
        observer.lat, observer.lon = str(self.lat), str(self.lon)
        observer.elev, observer.pressure = 0, 0
        observer.horizon = {"sunrise": "-0:34", "sunset": "-0:34", "solar_noon": "0"}[self.event]
        find = {
            "sunrise": observer.next_rising,
            "sunset": observer.next_setting,
            "solar_noon": observer.next_transit,
        }[self.event]

        def search(start: int) -> int:
            found = find(ephem.Sun(), start=ephem.Date(moment(start).replace(tzinfo=None)))
            return instant(found.datetime().replace(tzinfo=timezone.utc))

        following = search(last)
        return following if following > last + SECOND else search(last + 60 * SECOND)


class OnTheGrid(schedules.BaseSchedule):
    """Somebody's own schedule, with no more than celery asks for: due once in each five minutes."""

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        now = instant(self.now())
        left = (GRID - now % GRID) / SECOND
        return instant(last_run_at) // GRID < now // GRID, left

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnTheGrid)

    __hash__ = None

    def __repr__(self) -> str:
        return "<on the grid>"


@dataclass(frozen=True)
class Grid:
    def make(self) -> Any:
        return OnTheGrid()


Kind = Interval | Relative | Cron | Solar | Grid


def dues(kind: Kind, last: int, until: int, zone: str) -> Iterator[int]:
    """Go through the due times in (last, until]."""
    while True:
        following = kind.after(last, zone)
        assert following > last
        if following > until:
            return
        yield following
        last = following


def count(kind: Kind, last: int, until: int, zone: str) -> int:
    if isinstance(kind, Interval):
        return max((until - last) // kind.every, 0)
    return sum(1 for _ in dues(kind, last, until, zone))


def latest(kind: Kind, last: int, until: int, zone: str) -> int:
    """Return the last due time up to `until`, or `last`."""
    if isinstance(kind, Interval):
        return last + count(kind, last, until, zone) * kind.every
    return max(dues(kind, last, until, zone), default=last)


@dataclass(frozen=True)
class Decision:
    sent: int | None
    last: int
    missed: int

    def agrees(self, last: int, sent: int | None, missed: int, slack: int) -> bool:
        """Whether that is what was done. `slack`: how exactly two searches for one event agree."""
        if (self.sent is None) != (sent is None) or abs(self.last - last) > slack:
            return False
        return missed == self.missed or COUNTED - 1 <= missed <= self.missed


def decide(kind: Kind, last: int, now: int, zone: str, catch_up: str, within_s: float | None) -> Decision | None:
    """Return what the documentation promises for the due times since `last`."""
    if within_s is None and catch_up == "skip":
        within_s = SKIP_S
    oldest = None if within_s is None else now - int(within_s * SECOND)
    if catch_up == "all":
        done = last if oldest is None else max(latest(kind, last, oldest - 1, zone), last)
        missed = 0 if oldest is None else count(kind, last, oldest - 1, zone)
        first = next(dues(kind, done, now, zone), None)
        if first is None:
            return Decision(None, done, missed) if missed else None
        return Decision(first, first, missed)
    number = count(kind, last, now, zone)
    if not number:
        return None
    newest = latest(kind, last, now, zone)
    if oldest is not None and newest < oldest:
        return Decision(None, newest, number)
    return Decision(newest, newest, number - 1)
