"""The fence, with all that belongs to it: a whole node frozen for longer than its session, and thawed."""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.bench.launcher import freezing
from tests.bench.launcher.cluster import Cluster, Node, Services, Setup, freeze_order, load
from tests.bench.launcher.figures import after, late
from tests.bench.node import Death
from tests.support.waiting import wait_until
from zkbeat import clock, pulse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

SESSION_TIMEOUT_S = 2.0
FROZEN_FOR_TIMES = (1.5, 2.0)
"""Times the session timeout; longer where the new leader's first message takes longer: it is always there first."""

NEW_ONE_FIRST_S = (0.05, 0.5)
"""How long before the thaw the new leader has sent its first message, at least."""

WATCH_FOR_S = 1.0
"""How long to look out for messages of the old leader once its beat is dead."""

DIES_WITHIN_S = 6.0
"""How long to wait after the thaw for the end of the old leader's beat."""

PHASE_S = 0.5
"""The freeze comes at a random instant of this time: many intervals of the schedule, one or two renewals."""

_ENTRIES = 2


class ChangedBeforeError(Exception):
    """On a busy machine a lease of so few seconds may run out by itself; such a round shows nothing."""


@dataclass(frozen=True)
class Variant:
    """One row: what runs, and how it is frozen. `beside`: how many clusters of it run side by side."""

    name: str
    what: str
    how: str
    setup: Setup
    rounds: int = 200
    beside: int = 2
    freezer: Callable[[], freezing.Freezer] = freezing.Signals
    why_not: str | None = None
    must_be_none: bool = True


def _setup(*, by_hand: bool = False, **options: str) -> Setup:
    return Setup(options=options, by_hand=by_hand, session_timeout_s=SESSION_TIMEOUT_S, entries=_ENTRIES)


WITH, WITHOUT, STOCK = _setup(), _setup(**{"no-launcher": ""}), _setup(by_hand=True)


def _v1() -> freezing.Freezer:
    return freezing.Cgroup(1)


def _v2() -> freezing.Freezer:
    return freezing.Cgroup(2)


def variants(rounds: int) -> list[Variant]:
    """Return all: `rounds` of each with signals, a tenth with each freezer."""
    few = max(rounds // 10, 1)
    signals, two, one = "SIGSTOP, SIGCONT", "cgroup freezer, version 2", "cgroup freezer, version 1"
    more = [
        Variant(f"{name}-v{v}", what, how, setup, few, 1, freezer, freezing.why_not(v), must_be_none=False)
        for v, how, freezer in ((2, two, _v2), (1, one, _v1))
        for name, what, setup in (
            ("launcher", "zkbeat", WITH),
            ("no-launcher", "zkbeat `--no-launcher`", WITHOUT),
            ("by-hand", "kazoo's `Election` by hand", STOCK),
        )
    ]
    return [
        Variant("launcher", "zkbeat", signals, WITH, rounds),
        Variant("no-launcher", "zkbeat `--no-launcher`", signals, WITHOUT, rounds),
        Variant("by-hand", "kazoo's `Election` by hand", signals, STOCK, rounds, 3, must_be_none=False),
        *more,
    ]


def freeze_and_thaw(cluster: Cluster, rng: random.Random, freezer: freezing.Freezer) -> dict[str, Any]:
    """Freeze the leader's node, wait for the next leader's first message, thaw; return what was seen."""
    leader, _, old = cluster.settle()
    pids = freeze_order(leader.pids(), old.pid)
    death = Death(old.pid)
    time.sleep(rng.uniform(0, PHASE_S))
    frozen_at = clock.now()
    with contextlib.closing(freezer):
        freezer.freeze(pids)
        before = cluster.messages[-1]
        if before.pid != old.pid or death.at is not None:
            raise ChangedBeforeError("another led before the freeze")
        publishing = _publishes(leader)
        new = cluster.first_of_another(old.pid, frozen_at)
        frozen_until = frozen_at + rng.uniform(*FROZEN_FOR_TIMES) * SESSION_TIMEOUT_S
        time.sleep(max(max(frozen_until, new.at + rng.uniform(*NEW_ONE_FIRST_S)) - clock.now(), 0.0))
        dead_before, thawed_at = death.at is not None, clock.now()
        freezer.thaw()
        with contextlib.suppress(AssertionError):  # some do not die of it
            wait_until(lambda: death.at is not None, DIES_WITHIN_S, "the old beat to be dead")
        time.sleep(WATCH_FOR_S)
    messages = cluster.messages
    return {
        "late": late(messages, before, frozen_at),
        "after_thaw": after(messages, old.pid, thawed_at),
        "publishing": publishing,
        "dead_before_thaw": dead_before,
        "dead_after_thaw_s": None if death.at is None else round(death.at - thawed_at, 3),
        "new_s": round(new.at - frozen_at, 3),
        "frozen_s": round(thawed_at - frozen_at, 3),
        "load": load(),
    }


def _publishes(node: Any) -> bool | None:
    """Say whether the freeze hit within a publish, by the pulse; None where there is none."""
    found = pulse.read(node.runtime_dir / "pulse") if isinstance(node, Node) else None
    return found.owing_since > 0 if found is not None and found.at else None


Record = dict[str, Any]


def rounds_of(
    variant: Variant, services: Services, database: int, numbers: Sequence[int], keep: Callable[[Record], None]
) -> None:
    """Do these rounds, one after the other, in one cluster; in a new one after a round that went wrong."""
    left = list(numbers)
    while left and not services.over.is_set():
        try:
            with services.cluster(variant.setup, database) as cluster:
                while left and not services.over.is_set():
                    seen = _round(variant, cluster, left[0])
                    if seen is not None:
                        keep({"variant": variant.name, "round": left.pop(0), **seen})
        # Whatever it is: a round that went wrong is a result, and the others are still wanted.
        except Exception as error:  # noqa: BLE001
            text = f"{type(error).__name__}: {error}"
            keep({"variant": variant.name, "round": left.pop(0), "error": text.splitlines()[0], "load": load()})
            print(f"{text}\n", end="", flush=True)


def _round(variant: Variant, cluster: Cluster, number: int) -> Record | None:
    rng = random.Random(f"{variant.name} {number}")
    try:
        return freeze_and_thaw(cluster, rng, variant.freezer())
    except ChangedBeforeError as error:
        print(f"fence {variant.name} {number}: {error}, again", flush=True)
        return None


def measure(
    services: Services, rounds: int, keep: Callable[[Record], None], only: Collection[str] | None = None
) -> dict[str, Any]:
    """Do all rounds of all variants, or of those named; return what they have in common.

    Several clusters run side by side.
    """
    chosen = variants(rounds)
    # Those with signals first, which take long; the freezers of control groups by themselves.
    for group in (chosen[:3], chosen[3:]):
        jobs = [
            (variant, range(lane, variant.rounds, variant.beside))
            for variant in group
            if variant.why_not is None and (only is None or variant.name in only)
            for lane in range(variant.beside)
        ]
        with ThreadPoolExecutor(len(jobs) or 1) as pool:
            running = [
                pool.submit(rounds_of, variant, services, database, numbers, keep)
                for database, (variant, numbers) in enumerate(jobs)
            ]
            for one in running:
                one.result()
    kept = ("name", "what", "how", "why_not", "must_be_none")
    return {
        "session_timeout_s": SESSION_TIMEOUT_S,
        "every_s": WITH.every_s,
        "entries": _ENTRIES,
        "variants": [{key: getattr(one, key) for key in kept} for one in chosen],
    }
