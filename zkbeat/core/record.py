"""What zkbeat writes into ZooKeeper: versioned JSON, and how it reads what others wrote.

Anybody with the rights can write anything into a znode, and a newer zkbeat may write more than this one knows.
So reading never trusts: a field that is missing or of another type makes the whole record garbage, which is reported
as None and never raises.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from typing_extensions import Self

VERSION = 1
READABLE = (1,)
"""The versions this zkbeat reads: its own and the one before."""

_LARGEST = 2**63
"""No number in a record is as large as this: a czxid is 63 bits."""

_SEQUENCE = re.compile(r"__lock__(\d{10})$")
"""The names kazoo's Lock gives its contenders (kazoo/recipe/lock.py)."""

R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """The base of all records: JSON with a version."""

    required: ClassVar[tuple[str, ...]] = ()

    def encode(self) -> bytes:
        """Return the bytes that go into the znode, without what is not set: a record should be small."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps({"v": VERSION, **known}, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes | None) -> Self | None:
        """Return what a znode says, or None if that is not a record that this version can read."""
        try:
            raw: Any = json.loads(data or b"")
        except (ValueError, RecursionError):
            return None
        if not isinstance(raw, dict) or raw.get("v") not in READABLE or isinstance(raw.get("v"), bool):
            return None
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = raw.get(field.name)
            if value is None:
                if field.name in cls.required:
                    return None
                continue
            if not _fits(value, str(field.type)):
                return None
            values[field.name] = value
        return cls(**values)


def _fits(value: object, annotation: str) -> bool:
    if isinstance(value, bool):
        return "bool" in annotation
    if isinstance(value, int):
        return abs(value) < _LARGEST and ("int" in annotation or "float" in annotation)
    if isinstance(value, float):
        return math.isfinite(value) and "float" in annotation
    return isinstance(value, str) and "str" in annotation


@dataclass(frozen=True)
class Member(Record):
    """A contender, in its own election znode. Times are seconds since the epoch on the node's clock."""

    required: ClassVar[tuple[str, ...]] = ("id",)

    id: str = ""
    host: str = ""
    pid: int = 0
    version: str = ""
    digest: str = ""
    since: float = 0.0
    lease: float | None = None
    state: str = "standby"
    offset: float | None = None
    child: int | None = None
    term_since: float | None = None
    tick: float | None = None
    """When the child last finished a publish, where that is known."""
    parked: float | None = None
    """The megabytes that a preloaded app takes on this standby."""


@dataclass(frozen=True)
class Control(Record):
    """What operators asked for, in `control`."""

    paused: bool = False
    by: str | None = None
    reason: str | None = None
    since: float | None = None
    step_down: int | None = None
    """The epoch that is asked to end; any other is not meant."""


@dataclass(frozen=True)
class Ledger(Record):
    """Who led last, in `ledger`: what a new leader must know before it starts anything.

    A znode that is gone proves nothing about its owner's child: its session may have expired, which is late enough, but
    somebody may also have deleted it.
    """

    required: ClassVar[tuple[str, ...]] = ("led", "lease")

    led: str = ""
    """The election znode of the last leader that may have started a child."""
    lease: float = 0.0
    """That leader's lease, in seconds."""
    left: bool = False
    """Its child is certainly dead."""


@dataclass(frozen=True)
class Term(Record):
    """One term, in `terms/`. Times are on the quorum leader's clock, as far as the writer knew its offset."""

    required: ClassVar[tuple[str, ...]] = ("epoch", "id")

    epoch: int = 0
    id: str = ""
    start: float = 0.0
    end: float | None = None
    why: str | None = None
    gap: float | None = None
    """Seconds without a running child before this term, where that is known."""
    missed: int | None = None
    """How many due times the schedule in ZooKeeper did not send, for nobody was there in time."""


def digest(command: Sequence[str]) -> str:
    """Return a short digest of a command, the same on each node that runs the same thing."""
    return hashlib.sha256("\0".join(command).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def line(children: Sequence[str]) -> list[str]:
    """Return the contenders among the children of an election's path, the leader first."""
    numbered = [(match.group(1), child) for child in children if (match := _SEQUENCE.search(child))]
    return [child for _, child in sorted(numbered)]
