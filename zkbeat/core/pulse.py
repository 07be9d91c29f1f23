"""What is known of a launched beat: that it ticks, or since when it owes a tick. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Pulse:
    """What beat said last. Instants are CLOCK_BOOTTIME seconds, but where wall time is named; 0: never."""

    at: float = 0.0
    """When this was said."""
    wake_at: float = 0.0
    """When beat's loop is to turn again at the latest: its next word is due then."""
    owing_since: float = 0.0
    """When the first publish began of those that were due and did not go out; 0 once one has gone out again."""
    published_at: float = 0.0
    """When the last publish was finished."""
    published_wall: float = 0.0
    """The same, in seconds since the epoch."""
    count: int = 0
    """How many publishes were finished."""
    name: str = ""
    """The entry of the last publish that was begun."""

    @property
    def due_since(self) -> float:
        """Since when, or from when on, something is due and not heard of: a publish, or a turn of the loop."""
        return min(at for at in (self.owing_since, self.wake_at, math.inf) if at > 0.0)
