"""Runs rounds of faults on a cluster, measures what follows, and has the shared checkers read what was recorded."""

from __future__ import annotations

import contextlib
import heapq
import os
import time
import traceback
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tests.chaos import facts
from tests.chaos.cluster import LEASE, SESSION_TIMEOUT_S, TICK_MS
from tests.chaos.faults import FAULTS
from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.core.lease import evict_after_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.chaos.cluster import Cluster
    from tests.chaos.history import Record
    from tests.chaos.plan import Round, Strike
    from tests.chaos.recorder import Child

BUSY_S = 5.0
"""What a machine with more to do than it has cores may take longer."""

LEADS_AGAIN_WITHIN_S = (
    # Those that are in the way in the line and dead, the last leader's lease, and a child's own back-off.
    SESSION_TIMEOUT_S + TICK_MS / 1000 + evict_after_s(LEASE.length_s) + LEASE.length_s + 1.0 + BUSY_S
)
"""The bound of L1: from when nothing is wrong any more to a child that publishes."""

GIVE_UP_AFTER_S = 60.0
WATCH_ON_FOR_S = 1.2
"""How long to look out for what comes late: a message of the old one's, the notice that a znode was deleted."""


@dataclass
class _Doing:
    """A fault that has begun."""

    strike: Strike
    node: Any
    steps: Iterator[None]


class Failed(Exception):  # noqa: N818  # a result, not an error of the program
    """A round that broke an invariant, or did not come to its end."""


def run(cluster: Cluster, rounds: Sequence[Round], say: Callable[[str], None] = print) -> list[Record]:
    """Run all of them; return what was measured. Raises Failed after a round that must not be followed by another."""
    return [run_round(cluster, one, say) for one in rounds]


def run_round(cluster: Cluster, one: Round, say: Callable[[str], None] = print) -> Record:
    """Run one round and check all that was recorded so far."""
    begun_at = clock.now()
    try:
        measured = _strike_and_watch(cluster, one)
        facts.check(cluster.recorder.records)
    except (facts.Violation, AssertionError) as error:
        name = error.name if isinstance(error, facts.Violation) else "did not go on"
        cluster.recorder.note("violation", round=one.number, of=one.name, name=name, message=str(error)[:4000])
        say(f"{cluster.name}: {one}: {name}: {str(error)[:1500]}")
        raise Failed(f"{one}: {name}: {error}") from error
    except Exception as error:
        cluster.recorder.note("violation", round=one.number, of=one.name, name="broken", message=traceback.format_exc())
        raise Failed(f"{one}: {traceback.format_exc()}") from error
    say(f"{cluster.name}: {one}: {_said(measured)} ({clock.now() - begun_at:.1f} s)")
    return measured


def _strike_and_watch(cluster: Cluster, one: Round) -> Record:
    # The first leases of a term are shorter (docs/adr/0005): what must touch no child is done to one that has had some.
    child = cluster.settle(SESSION_TIMEOUT_S / 2 if _expected(one) is False else 0.0)
    begun_at = clock.now()
    _carry_out(cluster, one, child)
    cluster.mend()
    cluster.ensemble.wait_quorum(GIVE_UP_AFTER_S, members=len(cluster.ensemble.servers))
    healed_at = clock.now()
    cluster.recorder.note("calm", healed_at)
    after = wait_until(
        lambda: _publishing(cluster, healed_at + WATCH_ON_FOR_S),
        GIVE_UP_AFTER_S,
        f"a child that publishes after {one}",
        cluster.report,
        every_s=0.1,
    )
    cluster.collect()
    last = max(record["at"] for record in cluster.recorder.records if record["is"] == "message")
    cluster.recorder.note("quiet", min(last, healed_at + LEADS_AGAIN_WITHIN_S), bound_s=LEADS_AGAIN_WITHIN_S)
    return _measure(cluster, one, child, begun_at, healed_at, after)


def _publishing(cluster: Cluster, since: float) -> Child | None:
    """Return the only child, if it has published since an instant; and meanwhile be the supervisor on each node."""
    cluster.mend()
    if clock.now() < since:
        return None
    cluster.recorder.messages(cluster.broker.host, cluster.broker.port)
    child = cluster.child()
    own = [record for record in cluster.recorder.records if record["is"] == "message" and record["at"] > since]
    published = child is not None and any(
        record["node"] == child.node and record["epoch"] == child.epoch for record in own
    )
    return child if published else None


# the faults


def _carry_out(cluster: Cluster, one: Round, child: Child) -> None:
    """Begin and end each fault when it is due; one after the other where two are due at once."""
    standbys = [node for node in cluster.nodes if node.id != child.node]
    began = clock.now()
    due: list[tuple[float, int, Strike]] = [(strike.after_s, n, strike) for n, strike in enumerate(one.strikes)]
    doing: dict[int, _Doing] = {}
    heapq.heapify(due)
    with contextlib.ExitStack() as undone:
        while due:
            at_s, number, strike = heapq.heappop(due)
            time.sleep(max(began + at_s - clock.now(), 0.0))
            if number in doing:
                _end(cluster, doing.pop(number))
                continue
            node = cluster.node(child.node) if strike.on == "leader" else standbys[int(strike.on) % len(standbys)]
            doing[number] = _begin(cluster, strike, node)
            undone.callback(doing[number].steps.close)
            heapq.heappush(due, (clock.now() - began + strike.lasts_s, number, strike))


def _begin(cluster: Cluster, strike: Strike, node: Any) -> _Doing:
    fault = FAULTS[strike.fault]
    cluster.recorder.note("fault", what=strike.fault, node=node.id, on=strike.on, about=fault.about)
    steps = fault.act(cluster, node)
    next(steps)
    if fault.freezes:
        cluster.recorder.note("frozen", node=node.id)
    return _Doing(strike, node, steps)


def _end(cluster: Cluster, done: _Doing) -> None:
    fault = FAULTS[done.strike.fault]
    if fault.freezes:
        cluster.recorder.note("thawed", node=done.node.id)
    next(done.steps, None)
    cluster.recorder.note("healed", what=done.strike.fault, node=done.node.id)


# the figures


def _measure(cluster: Cluster, one: Round, old: Child, begun_at: float, healed_at: float, new: Child) -> Record:
    records = cluster.recorder.records
    began = min(record["at"] for record in records if record["is"] == "fault" and record["at"] >= begun_at)
    after = [record["at"] for record in records if record["is"] == "message" and record["at"] >= began]
    figures: dict[str, Any] = {
        "touched": new.name != old.name,
        "hand_over_s": _rounded(facts.hand_over_s(records, began)),
        "gap_s": _rounded(max((later - earlier for earlier, later in pairwise([began, *after])), default=None)),
        "recovered_s": _rounded(next((at - healed_at for at in after if at >= healed_at), None)),
        "dead_after_lease_s": _rounded(facts.dead_after_lease_s(records, begun_at)),
        "expected": _expected(one),
        "load": round(os.getloadavg()[0], 2),
        **{what: sum(at >= began for at in times) for what, times in facts.amiss(records).items()},
    }
    strikes = [asdict(strike) for strike in one.strikes]
    return cluster.recorder.note("round", began, number=one.number, of=one.name, strikes=strikes, **figures)


def _expected(one: Round) -> bool | None:
    """Say whether the leader's child has to be stopped (None: it may be)."""
    if len(one.strikes) > 1:
        return None
    strike = one.strikes[0]
    return FAULTS[strike.fault].touches if strike.on == "leader" else False


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _said(measured: Record) -> str:
    taken = f"handed over in {measured['hand_over_s']} s" if measured["touched"] else "not touched"
    bad = [f"{measured[what]} {what}" for what in ("late_messages", "overlaps", "leaks", "in_flight") if measured[what]]
    if measured["expected"] is not None and measured["expected"] is not measured["touched"]:
        bad.append("NOT EXPECTED")
    return ", ".join([taken, f"gap {measured['gap_s']} s", *bad])
