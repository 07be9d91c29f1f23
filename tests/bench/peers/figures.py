"""The figures of a trial, from the messages that were recorded of it. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.bench.figures import Tick, duplicates, first_of_another, longest_gap

if TYPE_CHECKING:
    from collections.abc import Mapping

OLD = 0
"""The number that the record gives to the publisher at the time of the fault."""

STILL_TICKS_WITHIN_S = 2.5
"""Who has sent something so shortly before the end still sends, with a task a second."""


@dataclass(frozen=True)
class Figures:
    """What is said of one trial, in seconds from the fault.

    - `takeover_s`: the first message of another publisher, None if there was none in `watched_s`;
    - `gap_s`: the longest time without a message;
    - `dup`: messages of the old publisher after the first one of the new one;
    - `two_beats`: at the end of the watching both went on;
    - `goes_on`: at the end of the watching the old one went on, and nobody else had begun.
    """

    takeover_s: float | None
    gap_s: float
    dup: int
    two_beats: bool
    goes_on: bool
    watched_s: float


def figures(record: Mapping[str, Any]) -> Figures:
    """Return the figures of one record."""
    ticks = [Tick(at, publisher) for at, publisher in record["ticks"]]
    until = record["watched_s"]
    new = first_of_another(ticks, OLD, 0.0)
    at_the_end = {tick.pid for tick in ticks if tick.at > until - STILL_TICKS_WITHIN_S}
    return Figures(
        takeover_s=None if new is None else new.at,
        gap_s=longest_gap(ticks, 0.0, until),
        dup=duplicates(ticks, OLD, 0.0),
        two_beats=len(at_the_end) > 1,
        goes_on=new is None and OLD in at_the_end,
        watched_s=until,
    )
