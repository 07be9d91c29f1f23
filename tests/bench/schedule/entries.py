"""The mixed schedule of the hand-overs, and when each of its entries is due: reckoned here, not by the product.

Pure. Instants are microseconds since 1970, in UTC. When the sun is highest is asked of ephem, and of nothing between.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 1440 * MINUTE

INTERVALS_S = (5, 7.5, 10, 13, 20, 30, 45, 60)
RELATIVE_S = (15, 40, 60, 90, 150)
"""celery rounds down when these are due: to the full second, from a minute on to the full minute."""
BESIDE_S = (30, 45)
MINUTES = ("*", "*/2", "*/3", "1-59/2", "0-20/4,21,22,25-58/3,59")
NOONS = 20
FIRST_NOON_S, NOON_EVERY_S = 30.0, 20.0
"""When the sun is highest, after the start, at so many places."""
SAME_EVENT = SECOND
"""An almanac finds an event by iteration, and from another instant by a little otherwise."""
SEVENS_S = 7
POLICIES: dict[str, Any] = {
    "all": "all",
    "all-within": ("all", 20),
    "once": "once",
    "once-within": ("once", 15),
    "skip": "skip",
}


@dataclass(frozen=True)
class Entry:
    """`kind`: interval, relative, crontab, sevens (a class of the app's own) or noon; `when`: what it is made with."""

    name: str
    kind: str
    when: Any
    policy: str

    def due(self, since: int, until: int) -> list[int]:
        """Return all due times in (since, until]; `since`: when it last ran, and all others of the mix."""
        if self.kind == "interval":
            return list(_steps(since + int(self.when * SECOND), until, int(self.when * SECOND)))
        if self.kind == "relative":
            return list(_relative(since, until, int(self.when * SECOND)))
        if self.kind == "sevens":
            step = SEVENS_S * SECOND
            return list(_steps((since // step + 1) * step, until, step))
        if self.kind == "crontab":
            minutes = _steps((since // MINUTE + 1) * MINUTE, until, MINUTE)
            return [at for at in minutes if _fits(self.when, _minute_of(at))]
        if self.kind == "noon":
            return list(_noons(since, until, longitude(since, self.when)))
        raise ValueError(self.kind)


def mixed(count: int) -> list[Entry]:
    """Return a mix of so many: of four, three send all that they have missed."""
    others = [name for name in POLICIES if name != "all"]
    kinds: dict[int, tuple[str, tuple[Any, ...]]] = {
        0: ("noon", tuple(FIRST_NOON_S + NOON_EVERY_S * number for number in range(NOONS))),
        3: ("crontab", MINUTES),
        6: ("relative", RELATIVE_S),
        8: ("crontab", MINUTES),
        9: ("sevens", (None,)),
    }
    found = []
    for number in range(count):
        policy = "all" if number % 4 else others[number // 4 % len(others)]
        kind, choices = kinds.get(number % 10, ("interval", INTERVALS_S))
        when = choices[number // 10 % len(choices)]
        found.append(Entry(f"{policy} {kind} {number}", kind, when, policy))
    return found


def minutes(count: int) -> list[Entry]:
    """Return so many that are due every minute: what celery itself has an exact idea of."""
    return [Entry(f"once crontab {number}", "crontab", "*", "once") for number in range(count)]


def beside(count: int) -> list[Entry]:
    """Return so many that are due every minute, and half as many intervals: what all schedulers have."""
    intervals = [
        Entry(f"once interval {number}", "interval", BESIDE_S[number % len(BESIDE_S)], "once")
        for number in range(count // 2)
    ]
    return minutes(count) + intervals


MIXES: dict[str, Callable[[int], list[Entry]]] = {"mixed": mixed, "beside": beside}


def _steps(first: int, until: int, step: int) -> Iterator[int]:
    return iter(range(first, until + 1, step))


def _relative(since: int, until: int, step: int) -> Iterator[int]:
    at, unit = since, SECOND if step < MINUTE else MINUTE
    while (at := (at + step) // unit * unit) <= until:
        yield at


def longitude(since: int, after_s: float) -> float:
    """Return where the sun is highest about so long after an instant, in degrees."""
    seconds = (next(_noons(since, since + 2 * DAY, 0.0)) - since) / SECOND - after_s
    return round((seconds / 240 + 180) % 360 - 180, 4)


def _noons(since: int, until: int, degrees: float) -> Iterator[int]:
    """Go through the instants at which the sun is highest at a place on the equator."""
    import ephem

    place = ephem.Observer()
    place.lat, place.lon, place.elevation, place.pressure = "0", str(degrees), 0, 0
    at = since
    while True:
        found = place.next_transit(ephem.Sun(), start=ephem.Date(_datetime(at))).datetime()
        at = (found.replace(tzinfo=timezone.utc) - _datetime(0)) // timedelta(microseconds=1)
        if at > until:
            return
        yield at
        at += MINUTE


def _datetime(at: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=at)


def _minute_of(at: int) -> int:
    return _datetime(at).minute


def _fits(spec: str, minute: int) -> bool:
    """Whether a crontab's field of minutes, as far as MINUTES use it, has this one."""
    if "," in spec:
        return any(_fits(one, minute) for one in spec.split(","))
    span, _, step = spec.partition("/")
    first, last = (0, 59) if span == "*" else (int(one) for one in (span.split("-") * 2)[:2])
    return first <= minute <= last and (minute - first) % int(step or 1) == 0


@dataclass
class Verdict:
    """What became of the due times of one or many entries."""

    due: int = 0
    ran: int = 0
    missing: list[str] = field(default_factory=list)
    """Due, not run, and not told of as missed."""
    twice: list[str] = field(default_factory=list)
    never_due: list[str] = field(default_factory=list)
    """Run, though it was not due."""
    told: int = 0
    """Missed by an entry's own policy, and counted by the schedule."""
    latest_s: float = 0.0
    """How long after its due time the latest run began."""

    def add(self, other: Verdict) -> None:
        """Take in another one."""
        self.due += other.due
        self.ran += other.ran
        self.told += other.told
        self.latest_s = max(self.latest_s, other.latest_s)
        self.missing += other.missing
        self.twice += other.twice
        self.never_due += other.never_due

    @property
    def clean(self) -> bool:
        return not (self.missing or self.twice or self.never_due)


def compare(entry: Entry, due: Iterable[int], ran: Iterable[int], missed: int) -> Verdict:
    """Hold what workers ran against what was due; `missed`: how many the schedule itself says that it has not sent.

    An entry that sends all that it has missed, with no deadline, may have missed nothing.
    """
    expected, counted = set(due), Counter(ran)
    absent = sorted(expected - counted.keys())
    forgiven = 0 if entry.policy == "all" else missed
    names = [f"{entry.name}@{at}" for at in absent]
    return Verdict(
        due=len(expected),
        ran=len(expected & counted.keys()),
        missing=names[: max(len(absent) - forgiven, 0)],
        twice=[f"{entry.name}@{at}" for at, times in sorted(counted.items()) if times > 1],
        never_due=[f"{entry.name}@{at}" for at in sorted(counted.keys() - expected)]
        + [f"{entry.name}: {missed} told of, {len(absent)} absent"] * (missed > len(absent)),
        told=min(forgiven, len(absent)),
    )


def judge(entry: Entry, runs: Mapping[int, Sequence[float]], last: int, missed: int, since: int, ended: int) -> Verdict:
    """Return what became of an entry. `runs`: by due time, when each began, in seconds since 1970.

    `last` and `missed` are what the schedule says of it. All that was due until `ended` must be accounted for, whatever
    it says: an entry that it has forgotten says that it is done.
    """
    due = entry.due(since, max(last, ended))
    same = {at: _same(at, due) if entry.kind == "noon" else at for at in runs}
    ran = [same[at] for at, begun in runs.items() for _ in begun]
    verdict = compare(entry, due, ran, missed)
    verdict.latest_s = round(max((max(begun) - at / SECOND for at, begun in runs.items()), default=0.0), 2)
    return verdict


def _same(at: int, due: Sequence[int]) -> int:
    return next((one for one in due if abs(one - at) < SAME_EVENT), at)


def by_entry(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, list[float]]]:
    """Return of each entry when its runs began, by due time. A run has its `tick`, NAME@DUE, and when it was (`at`)."""
    found: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        name, _, due = run["tick"].rpartition("@")
        at = (datetime.fromisoformat(due) - _datetime(0)) // timedelta(microseconds=1)
        found.setdefault(name, {}).setdefault(at, []).append(run["at"])
    return found
