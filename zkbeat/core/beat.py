"""What the sidecar knows of a command that the launcher starts: what is loaded in advance, and whether it ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from zkbeat.core.pulse import Pulse


class Parking(Enum):
    """The process that has loaded the app in advance: each guard has one at most, until it holds a child."""

    NONE = "none"
    LOADING = "loading"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True)
class Beat:
    """Everything about it; forgotten with the guard that holds it."""

    parking: Parking = Parking.NONE
    parked_pid: int | None = None
    parked_kib: int = 0
    pulse: Pulse | None = None
    """The last word of the child of this term, if there was one."""
    silent: bool = False
    """It was found silent, and this was said."""

    def silent_at(self, started_at: float | None, max_silence_s: float) -> float:
        """When it has owed a sign of life for too long; an hour without anything due is no silence."""
        if started_at is None:
            return math.inf
        return (self.pulse.due_since if self.pulse is not None else started_at) + max_silence_s

    def silence(self, started_at: float | None, now: float) -> str:
        """Say in words what is amiss."""
        pulse = self.pulse
        if pulse is None:
            return f"beat has not begun to tick, {now - (started_at or now):.0f} s after its start"
        for_s = now - pulse.due_since
        if pulse.owing_since:
            return f"beat could not send {pulse.name!r} for {for_s:.0f} s; {_last(pulse)}"
        return f"beat's loop has not turned for {for_s:.0f} s; {_last(pulse)}"

    def snapshot(self, max_silence_s: float, started_at: float | None, now: float) -> dict[str, Any]:
        """Return what `zkbeat health` is told of a running child."""
        pulse = self.pulse
        return {
            "ticking": now < self.silent_at(started_at, max_silence_s),
            "ticks": pulse.count if pulse is not None else 0,
            "last_tick": pulse.name if pulse is not None and pulse.count else None,
            "last_tick_ago_s": round(now - pulse.published_at, 3) if pulse is not None and pulse.count else None,
        }


def _last(pulse: Pulse) -> str:
    if not pulse.count:
        return "it has sent nothing yet"
    at = datetime.fromtimestamp(pulse.published_wall, timezone.utc)
    return f"its last tick was {at:%H:%M:%S} UTC ({pulse.count} in this term)"
