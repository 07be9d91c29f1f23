"""The mixed schedule of the hand-overs, and when each of its entries is due: reckoned here, not by the product.

Pure. Instants are microseconds since 1970, in UTC.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

SECOND = 1_000_000
MINUTE = 60 * SECOND

INTERVALS_S = (5, 7.5, 10, 13, 20, 30, 45, 60)
MINUTES = ("*", "*/2", "*/3", "1-59/2")
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
    """`kind`: interval, crontab, sevens (a schedule class of the app's own) or solar; `when`: what it is made with."""

    name: str
    kind: str
    when: Any
    policy: str

    def due(self, since: int, until: int) -> list[int]:
        """Return all due times in (since, until]. Raises ValueError for a solar entry, which only an almanac knows."""
        if self.kind == "interval":
            return list(_steps(since + int(self.when * SECOND), until, int(self.when * SECOND)))
        if self.kind == "sevens":
            step = SEVENS_S * SECOND
            return list(_steps((since // step + 1) * step, until, step))
        if self.kind == "crontab":
            minutes = _steps((since // MINUTE + 1) * MINUTE, until, MINUTE)
            return [at for at in minutes if _fits(self.when, _minute_of(at))]
        raise ValueError(self.kind)


def mixed(count: int) -> list[Entry]:
    """Return a mix of so many: of four, three send all that they have missed."""
    found = [Entry("dawn", "solar", "dawn_civil", "all")]
    others = [name for name in POLICIES if name != "all"]
    for number in range(count - 1):
        policy = "all" if number % 4 else others[number // 4 % len(others)]
        if number % 5 == 3:
            kind, when = "crontab", MINUTES[number // 5 % len(MINUTES)]
        elif number % 10 == 9:
            kind, when = "sevens", None
        else:
            kind, when = "interval", INTERVALS_S[number % len(INTERVALS_S)]
        found.append(Entry(f"{policy} {kind} {number}", kind, when, policy))
    return found


def minutes(count: int) -> list[Entry]:
    """Return so many that are due every minute: what celery itself has an exact idea of."""
    return [Entry(f"once crontab {number}", "crontab", "*", "once") for number in range(count)]


MIXES: dict[str, Callable[[int], list[Entry]]] = {"mixed": mixed, "minutes": minutes}


def _steps(first: int, until: int, step: int) -> Iterator[int]:
    return iter(range(first, until + 1, step))


def _minute_of(at: int) -> int:
    return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=at)).minute


def _fits(spec: str, minute: int) -> bool:
    """Whether a crontab's field of minutes, as far as MINUTES use it, has this one."""
    span, _, step = spec.partition("/")
    first, last = (0, 59) if span == "*" else (int(one) for one in span.split("-"))
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

    def add(self, other: Verdict) -> None:
        """Take in another one."""
        self.due += other.due
        self.ran += other.ran
        self.told += other.told
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


def by_entry(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the due times that were run, of each entry. A run has its `tick`, NAME@DUE."""
    found: dict[str, list[int]] = {}
    for run in runs:
        name, _, due = run["tick"].rpartition("@")
        at = datetime.fromisoformat(due)
        found.setdefault(name, []).append((at - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1))
    return found
