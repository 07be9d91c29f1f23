"""What the messages and instants of a round say: arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Message:
    """A message of beat's: when it was taken from the queue (CLOCK_BOOTTIME), who published it, under which epoch.

    `epoch`: the `zkbeat-epoch` header; None where there is no launcher to set it.
    """

    at: float
    pid: int
    epoch: int | None = None


def first_of_another(messages: Sequence[Message], than: int, since: float) -> Message | None:
    """Return the first message since then that this process did not publish."""
    return next((message for message in messages if message.at >= since and message.pid != than), None)


def late(messages: Sequence[Message], old: Message, since: float) -> int:
    """Count the messages of the old leader's term that came after the first one of its successor.

    A term is told by its epoch where the messages carry one, else by the process that published. The order is that of
    the queue.
    """
    seen, count = False, 0
    for message in messages:
        if message.at < since:
            continue
        of_old = message.pid == old.pid if old.epoch is None else message.epoch == old.epoch
        seen = seen or not of_old
        count += of_old and seen
    return count


def after(messages: Sequence[Message], pid: int, since: float) -> int:
    """Count what a process has published since then."""
    return sum(message.pid == pid and message.at >= since for message in messages)


STEPS = ("dead_s", "znode_gone_s", "elected_s", "started_s", "first_s")
"""The instants of a hand-over, in seconds from the fault, in the order in which they come."""


def stretches(record: Mapping[str, float]) -> dict[str, float]:
    """Return how long each step of a hand-over took, from the one before it.

    What happens in another process may be seen a few milliseconds too late, so after the step that follows from it.
    """
    instants = list(accumulate((record[step] for step in STEPS), max, initial=0.0))
    return {step: later - earlier for step, earlier, later in zip(STEPS, instants, instants[1:], strict=False)}
