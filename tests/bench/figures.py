"""What a list of messages says of a fault: arithmetic only, over what was recorded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Tick:
    """A message: when it arrived (CLOCK_BOOTTIME), and the pid of the process that published it."""

    at: float
    pid: int


def first_of_another(ticks: Sequence[Tick], than: int, since: float) -> Tick | None:
    """Return the first message since then that this process did not publish."""
    return next((tick for tick in ticks if tick.at >= since and tick.pid != than), None)


def duplicates(ticks: Sequence[Tick], first: int, since: float) -> int:
    """Count the messages that came from a publisher after the first one of its successor."""
    publishers = [first]
    late = 0
    for tick in ticks:
        if tick.at < since:
            continue
        if tick.pid not in publishers:
            publishers.append(tick.pid)
        late += tick.pid != publishers[-1]
    return late


def longest_gap(ticks: Sequence[Tick], since: float, until: float) -> float:
    """Return the longest time without a message, from the last one before `since` on; it may last until the end."""
    before = [tick.at for tick in ticks if tick.at <= since][-1:]
    after = [tick.at for tick in ticks if since < tick.at <= until]
    return max(later - earlier for earlier, later in pairwise([*before, *after, until]))
