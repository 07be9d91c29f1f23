"""A schedule's state: what is written down of each entry, and what is to be done about a due time. Pure.

One due time takes three steps. The **intent**: one transaction that moves the entry on and says that this tick is about
to be sent. The **publish**. The **confirm**: the tick is struck off. What was intended and not confirmed is sent again,
under the same id, by whoever leads next. Nothing is ever intended at or before the last due time of its entry (S4);
only that of an interval, which counts what has passed, moves along when the clock is set.

All instants are whole microseconds since 1970 in UTC: exact in JSON, and the same on each node.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from zkbeat.core.record import READABLE, VERSION

STATE = "schedule/state"
ABOUT = "schedule/about"
INTENT = "schedule/intent"
CONTROL = "schedule/control"
"""The znodes, below ROOT/NAME."""

BUCKET_BYTES = 4096
"""How large a bucket of entries may grow: each tick of one of them writes all of it."""

TRANSACTION_BYTES = 300_000
"""What the buckets of one transaction may hold; a ZooKeeper takes 1 MiB as it is delivered, everything included."""

GROUP_AT_MOST = 100
"""How many ticks one intent may hold. After a crash, those of them that were sent are sent again."""

KEY_CHARACTERS = 200
"""A longer name (celery makes names of whole signatures) is known by its beginning and a digest."""

TEXT_CHARACTERS = 200
"""How much is kept of what an entry's task and schedule are called."""

SKIP_AFTER_S = 2.0
"""With `skip`, a due time that is late by more was missed; a healthy hand-over takes less."""

COUNTED_AT_MOST = 100
"""How many missed due times of a calendar are counted, one by one; more are reported as so many at least."""

WALKED_AT_MOST = 10_000
"""How many due times of a schedule that must be gone through one by one are gone through in one turn."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_LAST = (datetime.max.replace(tzinfo=timezone.utc) - _EPOCH) // _MICROSECOND
_SECOND = 1_000_000


class GarbageError(Exception):
    """A znode does not hold what it should; the message names it."""


class NewerError(Exception):
    """A znode was written by a newer zkbeat, whose state an older one must not touch."""


# instants and names


def to_us(at: datetime) -> int:
    """Return an aware datetime as microseconds since 1970."""
    return (at - _EPOCH) // _MICROSECOND


def to_datetime(us: int) -> datetime:
    """Return the instant in UTC."""
    return _EPOCH + timedelta(microseconds=us)


def instant(us: int | None) -> int | None:
    """Return it, or None for what is later than any date: such a due time never comes."""
    return us if us is not None and us <= _LAST else None


def key_of(name: str) -> str:
    """Return what an entry is known by: its name, or of a long one its beginning and a digest."""
    if len(name) <= KEY_CHARACTERS:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{name[: KEY_CHARACTERS - 20]}...{digest}"


@dataclass(frozen=True)
class Tick:
    """One run of an entry that is to be sent once: for a due time, or because somebody asked for it."""

    key: str
    due: int
    request: str | None = None
    """The request's id, if it was asked for."""

    @property
    def name(self) -> str:
        """What the message's header says: NAME@DUE, in ISO 8601 and UTC."""
        at = to_datetime(self.due).isoformat()
        return f"{self.key}@{at}" if self.request is None else f"{self.key}@{at}#{self.request}"

    def task_id(self, base: str) -> str:
        """Return the id of the task that it becomes, the same whoever sends it. `base`: ROOT/NAME."""
        said = f"{base}\n{self.name}".encode("utf-8", "surrogatepass")
        return str(uuid.UUID(bytes=hashlib.sha256(said).digest()[:16], version=5))


# catching up


class CatchUp(Enum):
    """What becomes of due times that nobody was there to send."""

    ONCE = "once"
    """The latest of them is sent."""
    SKIP = "skip"
    """None is sent."""
    ALL = "all"
    """Each is sent, in order."""


@dataclass(frozen=True)
class Policy:
    """How one entry catches up. `within_s`: a due time that is later than that is not sent any more; None: any is."""

    catch_up: CatchUp = CatchUp.ONCE
    within_s: float | None = None

    @classmethod
    def parse(cls, said: object) -> Policy:
        """Return what a setting says: "all", or ("all", 3600). Raises ValueError, whose line says what can be said."""
        word, within_s = said if isinstance(said, (tuple, list)) and len(said) == 2 else (said, None)  # noqa: PLR2004
        if not isinstance(word, str) or word not in {one.value for one in CatchUp}:
            raise ValueError(f"{said!r} is not a way to catch up: say 'once', 'skip' or 'all', or ('all', SECONDS)")
        if within_s is not None and not (isinstance(within_s, (int, float)) and 0 <= within_s < math.inf):
            raise ValueError(f"{said!r}: within how many seconds must be a number, 0 or more")
        return cls(CatchUp(word), within_s)

    def oldest(self, now: int) -> int | None:
        """Return the earliest due time that is still to be sent now; None: there is no such bound."""
        within_s = SKIP_AFTER_S if self.catch_up is CatchUp.SKIP and self.within_s is None else self.within_s
        return None if within_s is None else now - int(within_s * _SECOND)


def policies(setting: Mapping[str, object]) -> Callable[[str], Policy | None]:
    """Return how to look up an entry's policy: by its name, else by the first pattern that it fits, as in a shell.

    Raises ValueError.
    """
    parsed = {pattern: Policy.parse(said) for pattern, said in setting.items()}

    def look_up(name: str) -> Policy | None:
        exact = parsed.get(name)
        if exact is not None:
            return exact
        return next((policy for pattern, policy in parsed.items() if fnmatchcase(name, pattern)), None)

    return look_up


@dataclass(frozen=True)
class Dues:
    """The due times of one entry, as its schedule has them."""

    after: Callable[[int], int | None]
    """The first due time after an instant; None: never again."""
    every: int | None = None
    """An interval, in microseconds: due times can be reckoned, and need not be gone through."""
    calendar: bool = False
    """They do not depend on when the entry last ran, so that any instant can be asked for what follows it."""


@dataclass(frozen=True)
class Due:
    """What to do about an entry now."""

    send: int | None
    """The due time to send, or None."""
    last: int
    """The entry is done with everything up to this."""
    missed: int = 0
    """How many due times are not sent, for nobody was there in time; at least, from COUNTED_AT_MOST on."""


def decide(last: int, now: int, dues: Dues, policy: Policy) -> Due | None:
    """Return what to do about the due times in (last, now], or None if there are none."""
    first = dues.after(last)
    if first is None or not last < first <= now:  # a class of the user's may answer with what has been
        return None
    oldest = policy.oldest(now)
    if policy.catch_up is CatchUp.ALL:
        skipped = _walk(last, oldest - 1, dues) if oldest is not None and first < oldest else None
        if skipped is None:
            return Due(send=first, last=first)
        latest, missed = skipped
        following = dues.after(latest)
        if following is None or following > now or (oldest is not None and following < oldest):
            return Due(send=None, last=latest, missed=missed)
        return Due(send=following, last=following, missed=missed)
    latest, count = _walk(last, now, dues) or (first, 1)
    following = dues.after(latest)
    half_way = following is not None and latest < following <= now  # so many that the next turn goes on from there
    if half_way or (oldest is not None and latest < oldest):
        return Due(send=None, last=latest, missed=count)
    return Due(send=latest, last=latest, missed=count - 1)


def _walk(last: int, until: int, dues: Dues) -> tuple[int, int] | None:
    """Return the last due time in (last, until], and how many there are; None if there is none."""
    if dues.every is not None:
        count = (until - last) // dues.every
        return (last + count * dues.every, count) if count > 0 else None
    found, count = last, 0
    while count < (COUNTED_AT_MOST if dues.calendar else WALKED_AT_MOST):
        following = dues.after(found)
        if following is None or following > until or following <= found:
            return (found, count) if count else None
        found, count = following, count + 1
    return _latest(found, until, dues) if dues.calendar else found, count


def _latest(found: int, until: int, dues: Dues) -> int:
    """Return the last due time up to `until`, of a calendar: look back from there, ever further."""
    back = _SECOND
    while until - back > found:
        following = dues.after(until - back)
        if following is not None and following <= until:
            found = following
            break
        back *= 2
    while (following := dues.after(found)) is not None and found < following <= until:
        found = following
    return found


# what stands in ZooKeeper


@dataclass(frozen=True)
class State:
    """What is written down of one entry."""

    last: int
    """The last due time that is done with; of a new entry, when it was first seen."""
    count: int = 0
    """How many ticks were intended."""
    missed: int = 0
    """How many due times were not sent, ever."""
    fingerprint: str | None = None
    """Of its schedule. None: the state was imported. "": no app has had the entry since."""
    following: int | None = None
    """The next due time; for whoever looks, nothing depends on it."""

    def to_json(self) -> list[Any]:
        """Return it in the order of its fields: there are thousands of them."""
        return [self.last, self.count, self.missed, self.fingerprint, self.following]

    @classmethod
    def from_json(cls, raw: object) -> State:
        """Return the state that `to_json` was called on. Raises ValueError."""
        if not isinstance(raw, list) or len(raw) < 5:  # noqa: PLR2004
            raise ValueError("not a state")
        last, count, missed, fingerprint, following = raw[:5]
        numbers = (last, count, missed, *(() if following is None else (following,)))
        if any(isinstance(one, bool) or not isinstance(one, int) or abs(one) >= 2**62 for one in numbers):
            raise ValueError("not a state")
        if fingerprint is not None and not isinstance(fingerprint, str):
            raise ValueError("not a state")
        for one in (last, following or 0):
            to_datetime(one)  # raises OverflowError for what is no instant
        return cls(last, count, missed, fingerprint, following)


@dataclass(frozen=True)
class Hold:
    """An entry that is held back."""

    by: str = ""
    since: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Request:
    """Somebody wants an entry to run once, now. `at`: microseconds since 1970."""

    id: str
    key: str
    by: str = ""
    at: int = 0


@dataclass(frozen=True)
class Control:
    """What operators ask for. They write it, and the leader takes the requests out."""

    held: Mapping[str, Hold] = field(default_factory=dict)
    requests: tuple[Request, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes for the znode."""
        held = {key: [one.by, one.since, one.reason] for key, one in self.held.items()}
        return _dump({"held": held, "requests": [[one.id, one.key, one.by, one.at] for one in self.requests]})

    @classmethod
    def decode(cls, data: bytes) -> Control:
        """Return what the znode says. Raises GarbageError, NewerError."""
        raw = _load(data, CONTROL)
        try:
            held = {str(key): Hold(*one) for key, one in raw.get("held", {}).items()}
            requests = tuple(Request(*one) for one in raw.get("requests", ()))
            for one in requests:
                _check(one.id, one.key, one.by, at=one.at)
            return cls(held, requests)
        except (TypeError, AttributeError, ValueError, OverflowError):
            raise GarbageError(CONTROL) from None


@dataclass(frozen=True)
class Intent:
    """What is about to be sent. Each transaction of the schedule writes it, so its id tells which one went through."""

    id: str = ""
    ticks: tuple[Tick, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes for the znode."""
        ticks = [[one.key, one.due] if one.request is None else [one.key, one.due, one.request] for one in self.ticks]
        return _dump({"id": self.id, "ticks": ticks})

    @classmethod
    def decode(cls, data: bytes) -> Intent:
        """Return what the znode says. Raises GarbageError, NewerError."""
        raw = _load(data, INTENT)
        try:
            ticks = tuple(Tick(*one) for one in raw["ticks"])
            for one in ticks:
                _check(one.key, "" if one.request is None else one.request, at=one.due)
            return cls(str(raw["id"]), ticks)
        except (TypeError, KeyError, ValueError, OverflowError):
            raise GarbageError(INTENT) from None


def encode_about(about: Mapping[str, Sequence[str]]) -> bytes:
    """Return the bytes of one bucket's texts: for each entry its task, and its schedule in words."""
    return _dump({"entries": {key: [text[:TEXT_CHARACTERS] for text in texts] for key, texts in about.items()}})


def decode_about(data: bytes) -> dict[str, tuple[str, ...]]:
    """Return what `encode_about` was called on; nothing of what cannot be read, for it is only looked at."""
    try:
        raw = _load(data, ABOUT)
        return {str(key): tuple(str(text) for text in texts) for key, texts in raw["entries"].items()}
    except (GarbageError, NewerError, TypeError, KeyError, AttributeError):
        return {}


@dataclass(frozen=True)
class Write:
    """One znode of a transaction. `version`: the one that is replaced, -1 for a znode that is made."""

    path: str
    data: bytes
    version: int


@dataclass
class _Bucket:
    version: int
    states: dict[str, State]
    size: int


class Book:
    """What stands in ZooKeeper, as far as its one writer knows: states in buckets, the intent, the operators' control.

    A change is made in two steps, `change` and, once it went through, `changed`; until then nothing here moves.
    """

    def __init__(self, writer: str) -> None:
        """`writer`: tells this writer's transactions from all others'."""
        self._writer = writer
        self._written = 0
        self._buckets: dict[int, _Bucket] = {}
        self._where: dict[str, int] = {}
        self._open: int | None = None
        self.intent = Intent()
        self.intent_version = -1
        self.control = Control()
        self.control_version = -1

    # reading

    def read_intent(self, data: bytes, version: int) -> None:
        """Take the intent as it was found. Raises GarbageError, NewerError."""
        self.intent, self.intent_version = Intent.decode(data), version

    def read_control(self, data: bytes, version: int) -> None:
        """Take the operators' control as it was found. Raises GarbageError, NewerError."""
        self.control, self.control_version = Control.decode(data), version

    def read_bucket(self, number: int, data: bytes, version: int) -> list[str]:
        """Take a bucket as it was found; return the keys of the entries whose state cannot be read.

        Raises GarbageError for a bucket that tells nothing at all, which is kept as an empty one; NewerError.
        """
        self._buckets[number] = _Bucket(version, {}, 0)
        entries = _load(data, f"{STATE}/{number}").get("entries")
        if not isinstance(entries, dict):
            raise GarbageError(f"{STATE}/{number}")
        garbage = []
        for key, raw in entries.items():
            try:
                state = State.from_json(raw)
            except (ValueError, OverflowError):
                garbage.append(key)
                continue
            self._put(number, key, state)
        return garbage

    @property
    def states(self) -> dict[str, State]:
        """Each entry's state."""
        return {key: state for bucket in self._buckets.values() for key, state in bucket.states.items()}

    def state(self, key: str) -> State | None:
        """Return one entry's state."""
        number = self._where.get(key)
        return None if number is None else self._buckets[number].states[key]

    def bucket_of(self, key: str) -> int:
        """Return in which bucket an entry stands; -1 for one that has no state yet."""
        return self._where.get(key, -1)

    @property
    def numbers(self) -> list[int]:
        """Return the buckets' numbers."""
        return list(self._buckets)

    def keys_in(self, number: int) -> list[str]:
        """Return which entries stand in a bucket."""
        bucket = self._buckets.get(number)
        return list(bucket.states) if bucket is not None else []

    # writing

    def change(
        self,
        states: Mapping[str, State | None] | None = None,
        ticks: Iterable[Tick] | None = None,
        control: Control | None = None,
    ) -> Change:
        """Return the transaction that does all of this. `states`: None for an entry that is to be forgotten."""
        self._written += 1
        intent = Intent(f"{self._writer}.{self._written}", self.intent.ticks if ticks is None else tuple(ticks))
        writes = [Write(INTENT, intent.encode(), self.intent_version)]
        placed = self._place(states or {})
        for number, changed in placed.items():
            bucket = self._buckets.get(number)
            merged = {**(bucket.states if bucket else {}), **changed}
            kept = {key: state for key, state in merged.items() if state is not None}
            version = bucket.version if bucket else -1
            writes.append(Write(bucket_path(number), _encode_bucket(kept), version))
        if control is not None:
            writes.append(Write(CONTROL, control.encode(), self.control_version))
        return Change(intent, tuple(writes), placed, control)

    def changed(self, change: Change) -> None:
        """Take over a change that went through."""
        self.intent, self.intent_version = change.intent, self.intent_version + 1
        for number, states in change.placed.items():
            bucket = self._buckets.setdefault(number, _Bucket(-1, {}, 0))
            bucket.version += 1
            for key, state in states.items():
                if state is not None:
                    self._put(number, key, state)
                elif key in bucket.states:
                    bucket.size -= _size(key, bucket.states.pop(key))
                    del self._where[key]
        if change.control is not None:
            self.control, self.control_version = change.control, self.control_version + 1

    def portions(self, states: Mapping[str, State | None]) -> Iterator[dict[str, State | None]]:
        """Cut many changes into such as one transaction can carry each, those of one bucket together."""
        portion: dict[str, State | None] = {}
        numbers: set[int] = set()
        new = 0
        for key in sorted(states, key=self.bucket_of):
            number = self.bucket_of(key)
            new += _size(key, states[key]) if number < 0 else 0
            if portion and (len(numbers | {number}) * BUCKET_BYTES + 2 * new) > TRANSACTION_BYTES:
                yield portion
                portion, numbers, new = {}, set(), 0
            portion[key] = states[key]
            numbers.add(number)
        if portion:
            yield portion

    def _place(self, states: Mapping[str, State | None]) -> dict[int, dict[str, State | None]]:
        """Return in which bucket each of them goes: where it stands, else where there is room, else a new one."""
        placed: dict[int, dict[str, State | None]] = {}
        anew = any(key not in self._where for key in states)
        room = {number: bucket.size for number, bucket in self._buckets.items()} if anew else {}
        filling = max(room, default=-1)
        for key, state in states.items():
            number = self._where.get(key)
            if number is None:
                if state is None:
                    continue
                size = _size(key, state)
                if filling < 0 or room[filling] + size > BUCKET_BYTES:
                    filling = next((one for one, used in room.items() if used + size <= BUCKET_BYTES // 2), -1)
                if filling < 0:
                    filling = max(room, default=-1) + 1
                    room[filling] = 0
                room[filling] += size
                number = filling
            placed.setdefault(number, {})[key] = state
        return placed

    def _put(self, number: int, key: str, state: State) -> None:
        bucket = self._buckets[number]
        before = bucket.states.get(key)
        bucket.size += _size(key, state) - (0 if before is None else _size(key, before))
        bucket.states[key] = state
        self._where[key] = number


@dataclass(frozen=True)
class Change:
    """One transaction, and what is true once it went through."""

    intent: Intent
    writes: tuple[Write, ...]
    placed: Mapping[int, Mapping[str, State | None]]
    control: Control | None = None


def bucket_path(number: int, of: str = STATE) -> str:
    """Return the path of a bucket."""
    return f"{of}/{number:06d}"


def bucket_numbers(children: Iterable[str]) -> list[int]:
    """Return the numbers of those znodes that are buckets, in order."""
    return sorted(int(child) for child in children if re.fullmatch("[0-9]{6}", child))


def forget(states: Mapping[str, State], before: int) -> dict[str, None]:
    """Return the entries that no app has had for so long that they are to be forgotten."""
    return {key: None for key, state in states.items() if state.fingerprint == "" and state.last < before}


def gone(state: State, now: int) -> State:
    """Return the state of an entry that the app has no more: what is due meanwhile was not asked for."""
    return replace(state, fingerprint="", last=max(state.last, now), following=None)


def _size(key: str, state: State | None) -> int:
    # Closely enough: the key with its escapes, four numbers and a fingerprint of 12.
    return 0 if state is None else len(json.dumps(key)) + 70


def _encode_bucket(states: Mapping[str, State]) -> bytes:
    return _dump({"entries": {key: state.to_json() for key, state in states.items()}})


def _check(*texts: object, at: object) -> None:
    """Raise ValueError, or OverflowError, unless these are texts, and an instant."""
    if not all(isinstance(text, str) for text in texts) or isinstance(at, bool) or not isinstance(at, int):
        raise ValueError("not what it should be")
    to_datetime(at)


def _dump(about: Mapping[str, Any]) -> bytes:
    # ASCII: a name may hold half of a surrogate pair, which UTF-8 has no bytes for.
    return json.dumps({"v": VERSION, **about}, separators=(",", ":")).encode()


def _load(data: bytes, path: str) -> dict[str, Any]:
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise GarbageError(path) from None
    if not isinstance(raw, dict):
        raise GarbageError(path)
    version = raw.get("v")
    if isinstance(version, int) and version > max(READABLE):
        raise NewerError(f"{path} was written by a newer zkbeat (format {version}): upgrade this one")
    if version not in READABLE:
        raise GarbageError(path)
    return raw
