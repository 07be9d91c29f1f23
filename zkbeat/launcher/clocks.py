"""The clock guard: a wrong or jumping wall clock neither silences a schedule nor makes it run in a burst.

Beat reckons from each entry's last run, by the wall clock. A last run that lies in the future is silence until then: an
hour, if the clock of the last leader was an hour ahead. So what lies in the future is taken as now, when a schedule is
loaded, and the wall clock is held against CLOCK_BOOTTIME at each turn of beat's loop. When in doubt an entry runs
later rather than at once, and never twice. The first half of this file is pure; nothing in it knows more of a scheduler
than what its class is known to have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import schedules
from celery.utils.log import get_logger

from zkbeat import clock

FUTURE_S = 1.0
"""How far ahead a last run may lie: clocks of machines that are kept in step differ by less."""

JUMP_S = 1.5
"""From where on a difference between the wall clock and CLOCK_BOOTTIME, from one turn to the next, is a jump."""

NAMES_AT_MOST = 5
_READ_WITHIN_S = 0.1
_READ_TRIES = 5

_FAILED = "zkbeat: cannot hold the schedule against the clock"

_logger = get_logger(__name__)


def as_utc(at: datetime) -> datetime:
    """Return the instant in UTC; a naive one is UTC already (celery.utils.time.maybe_make_aware)."""
    return at.replace(tzinfo=timezone.utc) if at.utcoffset() is None else at.astimezone(timezone.utc)


def in_the_form_of(model: datetime, at: datetime) -> datetime:
    """Return the instant as `model` is: naive in UTC, or in its time zone. Databases refuse the other kind."""
    return as_utc(at).replace(tzinfo=None) if model.utcoffset() is None else at.astimezone(model.tzinfo)


class Watch:
    """Holds the wall clock against CLOCK_BOOTTIME. Both in seconds."""

    def __init__(self, wall: float, boot: float) -> None:
        self.began = wall
        """The wall clock when the watch began, in terms of what that clock says now."""
        self._wall, self._boot = wall, boot

    def jumped(self, wall: float, boot: float) -> float:
        """Return by how much the wall clock has jumped since the last look, in seconds; 0 if it has not."""
        by = (wall - self._wall) - (boot - self._boot)
        self._wall, self._boot = wall, boot
        if abs(by) < JUMP_S:  # a clock that is being slewed
            return 0.0
        self.began += by
        return by


@dataclass(frozen=True)
class Jump:
    """The wall clock jumped `by` seconds; `began` is when this process began, by the clock before the jump."""

    by: float
    began: datetime


def corrected(last: datetime, now: datetime, *, elapses: bool, jump: Jump | None = None) -> datetime | None:
    """Return the last run to go on with, in the form of `last`, or None if that can stay.

    `elapses`: the schedule is an interval, which counts what has passed since then, and not the time of day. Its last
    run moves along with the clock, so that its phase stays. The exception: the clock jumped back, and an earlier
    process wrote that last run, by a clock that may have been the right one; moved back, it would run too early.
    """
    found = at = as_utc(last)
    if jump is not None and elapses and (jump.by > 0 or found >= jump.began):
        at += timedelta(seconds=jump.by)
    if at > as_utc(now) + timedelta(seconds=FUTURE_S):
        at = as_utc(now)
    return None if at == found else in_the_form_of(last, at)


@dataclass(frozen=True)
class Moved:
    """An entry's last run was moved by so many seconds."""

    name: str
    by: float


def describe_names(names: list[str]) -> str:
    """Name them, the first few at least."""
    first = ", ".join(repr(name) for name in names[:NAMES_AT_MOST])
    return first if len(names) <= NAMES_AT_MOST else f"{first} and {len(names) - NAMES_AT_MOST} more"


def describe(moved: list[Moved]) -> str:
    """Name the entries that were moved, the first few at least."""
    return describe_names([one.name for one in moved])


# what follows knows schedulers


class ClockGuard:
    """Keeps the last runs of one scheduler's entries where its clock can reckon with them."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._now: Callable[[], datetime] = scheduler.app.now
        wall, boot = _read(self._now)
        self._watch = Watch(wall.timestamp(), boot)
        self._redbeat = is_redbeat(scheduler)
        self._loaded = not self._redbeat

    def turn(self) -> None:
        """Look at the clocks, before each tick. Never raises: what fails is logged, and the tick goes on."""
        try:
            wall, boot = _read(self._now)
            by = self._watch.jumped(wall.timestamp(), boot)
            if by:
                began = datetime.fromtimestamp(self._watch.began - by, timezone.utc)
                self._jumped(Jump(by, began))
            elif not self._loaded:
                self._clamp()
        except Exception:
            _logger.exception(_FAILED)

    def loaded(self) -> None:
        """Take what lies in the future as now: the schedule was read, or read anew. Never raises, as `turn`."""
        try:
            self._clamp()
        except Exception:
            _logger.exception(_FAILED)

    def _clamp(self) -> None:
        moved = list(self._correct(None))
        self._loaded = True
        if moved:
            _logger.warning(
                "zkbeat: the last run of %d entries lay in the future, by up to %.0f s: taken as now (%s); "
                "a clock is wrong, this node's or an earlier leader's, or a time zone",
                len(moved),
                -min(one.by for one in moved),
                describe(moved),
            )

    def _jumped(self, jump: Jump) -> None:
        self._loaded = not self._redbeat  # should this fail half way, the next turn looks again
        moved = list(self._correct(jump))
        self._loaded = True
        # It holds instants by the wall clock.
        self._scheduler._heap = None  # noqa: SLF001
        _logger.warning(
            "zkbeat: the wall clock jumped by %+.1f s; the last run of %d entries was moved along%s",
            jump.by,
            len(moved),
            f" ({describe(moved)})" if moved else "",
        )

    def _correct(self, jump: Jump | None) -> Iterator[Moved]:
        entries = _redbeat_entries(self._scheduler, self._now(), jump) if self._redbeat else _entries(self._scheduler)
        write = _write_to_redis if self._redbeat else _write
        committed = getattr(self._scheduler, "due_times_are_committed", False)
        for entry in entries:
            last: datetime | None = entry.last_run_at
            if last is None:
                continue
            if committed and not _elapses(entry.schedule):
                continue  # a due time that was sent, by whatever clock, is not sent again
            at = corrected(last, self._now(), elapses=_elapses(entry.schedule), jump=jump)
            if at is not None:
                write(self._scheduler, entry, at)
                yield Moved(str(entry.name), (as_utc(at) - as_utc(last)).total_seconds())


def is_redbeat(scheduler: Any) -> bool:
    """Return whether this is a RedBeatScheduler, or of a class that is derived from it."""
    module = sys.modules.get("redbeat.schedulers")  # if it is not imported, it is not that
    return module is not None and isinstance(scheduler, module.RedBeatScheduler)


def _read(wall: Callable[[], datetime]) -> tuple[datetime, float]:
    """Read both clocks as of one instant: a process stopped in between would see a jump."""
    for _ in range(_READ_TRIES):
        before = clock.now()
        at = wall()
        after = clock.now()
        if after - before < _READ_WITHIN_S:
            break
    return at, after


def _elapses(schedule: Any) -> bool:
    """Whether it counts what has passed since the last run; with `relative` it is rounded to the time of day."""
    return isinstance(schedule, schedules.schedule) and not schedule.relative


def _entries(scheduler: Any) -> Iterable[Any]:
    """Return the entries in memory."""
    entries = list(scheduler.schedule.values())
    for entry in entries:
        # django-celery-beat's `next()` changes the model and puts a new entry into the heap; the one in the schedule
        # keeps the old last run. Whoever rebuilds the heap from that runs everything once more.
        if _has_model(entry):
            entry.last_run_at = entry.model.last_run_at
    return entries


def _has_model(entry: Any) -> bool:
    return getattr(getattr(entry, "model", None), "last_run_at", None) is not None


def _write(scheduler: Any, entry: Any, at: datetime) -> None:
    """Change it in memory; the scheduler's own sync saves it."""
    if _has_model(entry):
        entry.model.last_run_at = at
        entry.model.no_changes = True  # as in ModelEntry.__next__: not a change that everybody has to reload for
        scheduler._dirty.add(entry.name)  # noqa: SLF001
    entry.last_run_at = at


def _redbeat_entries(scheduler: Any, now: datetime, jump: Jump | None) -> Iterator[Any]:
    """Yield the entries in Redis: all of them after a jump, else those whose last run lies in the future.

    RedBeat loads only what its sorted set has as due: an entry that was filed for next month is not seen until then.
    """
    client = sys.modules["redbeat.schedulers"].get_redis(scheduler.app)
    index = scheduler.app.redbeat_conf.schedule_key
    if jump is not None:
        keys = client.zrange(index, 0, -1)
    else:
        keys = _of_the_future(client, scheduler.Entry, now, client.zrangebyscore(index, f"({now.timestamp()}", "+inf"))
    for key in keys:
        try:
            yield scheduler.Entry.from_key(key, app=scheduler.app)
        except KeyError:  # deleted meanwhile
            continue


def _of_the_future(client: Any, entry_class: Any, now: datetime, keys: list[str]) -> list[str]:
    """Return those of them that ran last in the future; in one round trip, however many there are."""
    with client.pipeline() as pipe:
        for key in keys:
            pipe.hget(key, "meta")
        metas = [entry_class.decode_meta(meta) for meta in pipe.execute()]
    last = [meta.get("last_run_at") for meta in metas]
    return [key for key, at in zip(keys, last, strict=True) if at is not None and as_utc(at) > as_utc(now)]


def _write_to_redis(_scheduler: Any, entry: Any, at: datetime) -> None:
    """File it anew; `reschedule()` would do so too, but forget how often the entry has run."""
    entry._next_instance(last_run_at=at, only_update_last_run_at=True)  # noqa: SLF001
