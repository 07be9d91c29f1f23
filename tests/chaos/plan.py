"""Which faults, on whom, when and for how long: decided by a seed alone, before anything runs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.faults import FAULTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SEVERAL_AT_ONCE = 0.25
"""The share of rounds with two or three faults that overlap."""

ON_A_STANDBY = 0.2
"""The share of a node's faults that are a standby's: it must touch nothing, nor its znode be in the way."""

APART_AT_MOST_S = 2.5


@dataclass(frozen=True)
class Strike:
    """One fault of a round. `on`: `leader`, or the number of a standby."""

    fault: str
    on: str
    after_s: float
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.fault} on {self.on} at +{self.after_s:g} s for {self.lasts_s:g} s"


@dataclass(frozen=True)
class Round:
    """What is done between two calm moments."""

    number: int
    strikes: tuple[Strike, ...]

    @property
    def name(self) -> str:
        """The fault's, if it is one, on the leader's node."""
        if len(self.strikes) > 1:
            return "several at once"
        strike = self.strikes[0]
        return strike.fault if strike.on == "leader" else "on a standby"

    def __str__(self) -> str:
        return f"round {self.number}: " + "; ".join(map(str, self.strikes))


def plan(
    seed: int,
    rounds: int,
    kinds: Iterable[str],
    several: float = SEVERAL_AT_ONCE,
    standby: float = ON_A_STANDBY,
) -> list[Round]:
    """Return the rounds. Kinds are dealt like cards, so that each comes as often as the others."""
    dice = random.Random(seed)
    deck = _deal(dice, sorted(kinds))
    return [Round(number, tuple(_strikes(dice, deck, several, standby))) for number in range(1, rounds + 1)]


def one_each(seed: int, kinds: Sequence[str]) -> list[Round]:
    """Return a round for each kind, in this order, on the leader."""
    dice = random.Random(seed)
    return [Round(number, (_strike(dice, kind, 0.0, 0.0),)) for number, kind in enumerate(kinds, 1)]


def _deal(dice: random.Random, kinds: list[str]) -> Iterator[str]:
    while True:
        dice.shuffle(kinds)
        yield from kinds


def _strikes(dice: random.Random, deck: Iterator[str], several: float, standby: float) -> Iterator[Strike]:
    count = dice.choice((2, 2, 3)) if dice.random() < several else 1
    for number in range(count):
        yield _strike(dice, next(deck), dice.uniform(0, APART_AT_MOST_S) if number else 0.0, standby)


def _strike(dice: random.Random, kind: str, after_s: float, standby: float) -> Strike:
    fault = FAULTS[kind]
    on_standby = fault.about == "node" and dice.random() < standby
    on = str(dice.randrange(2)) if on_standby else "leader"
    return Strike(kind, on, round(after_s, 2), round(dice.uniform(*fault.lasts_s), 2))
