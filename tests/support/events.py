"""What an edge has reported, for tests to wait for."""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from zkbeat.core import events

E = TypeVar("E")


class Posted:
    """The events that an edge has posted, in order; give the object itself as `post`."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[events.Event] = queue.Queue()
        self.all: list[events.Event] = []

    def __call__(self, event: events.Event) -> None:
        self._waiting.put(event)

    def next(self, kind: type[E], within_s: float = 10.0) -> E:
        """Return the next event of this kind; what comes before it stays in `all`."""
        give_up_at = time.monotonic() + within_s
        while True:
            try:
                event = self._waiting.get(timeout=max(give_up_at - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} within {within_s} s; there was {self.all}") from None
            self.all.append(event)
            if isinstance(event, kind):
                return event

    def none_of(self, kind: type[E], for_s: float) -> None:
        """Fail if an event of this kind comes within that time."""
        try:
            event = self.next(kind, for_s)
        except AssertionError:
            return
        raise AssertionError(f"unexpected {event}")
