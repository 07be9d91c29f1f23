"""Messages that this worker holds, unacknowledged, until they may run.

As celery does with an ETA: each lets the broker send one message more, so that those that wait hold up nobody, and all
of them go back to the broker when the worker or its connection is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zkbeat import clock

LONGEST_WAIT_S = 900.0
"""Then the message is given back, before the broker does it: it would be delivered next to the one that is held here.
(RabbitMQ's consumer_timeout is half an hour, Redis' visibility timeout an hour by default.)"""
_FIRST_S = 0.5
_GROWS = 1.5
_LONGEST_STEP_S = 2.0


class Wait:
    """How one message waits, from try to try."""

    def __init__(self, consumer: Any) -> None:
        self._since = clock.now()
        self._step_s = _FIRST_S
        options = consumer.app.conf.broker_transport_options or {}
        visible_s = options.get("visibility_timeout")
        self._at_most_s = min(LONGEST_WAIT_S, visible_s / 2 if visible_s else LONGEST_WAIT_S)

    def too_long(self) -> bool:
        """Whether it should be given back to the broker."""
        return clock.now() - self._since > self._at_most_s

    def next_s(self) -> float:
        """Return how long to wait before the next try."""
        step_s, self._step_s = self._step_s, min(self._step_s * _GROWS, _LONGEST_STEP_S)
        return step_s


def later(consumer: Any, delay_s: float, step: Callable[..., Any], *args: Any) -> Any:
    """Do this by the worker's timer, unless the connection is lost before: then the broker sends the message again.

    Returns the timer's entry. A request among the arguments comes first, where `celery inspect scheduled` looks for it.
    """
    qos = consumer.qos  # another one for each connection

    def wake(*args: Any) -> None:
        if consumer.qos is not qos or consumer.connection is None:
            return
        try:
            step(*args)
        finally:
            qos.decrement_eventually()

    qos.increment_eventually()
    return consumer.timer.call_after(delay_s, wake, args)
