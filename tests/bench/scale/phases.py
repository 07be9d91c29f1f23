"""What is measured, one function a phase; each returns what is kept of it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.bench.scale import load, timeline
from tests.bench.scale.crew import Crew, Leader, Spec
from tests.bench.scale.servers import Probe, sample
from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.access import Access
from zkbeat.client import plain_client, stop_within
from zkbeat.core.lease import agree
from zkbeat.retire import LeftBehind, retire_within

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.zookeeper import Ensemble
    from zkbeat.dev import Server

SESSION_TIMEOUT_S = 10.0

SETTLES_WITHIN_S = 120.0

LEADING_WITHIN_S = 60.0
ALMOST_ALL = 0.995
"""Of many elections: measure then, whether or not the machine can have all of them lead."""

SILENT_FOR_S = 20.0
"""Longer than a session timeout and a tick: every session of what is frozen for so long is over."""

LONG_OUTAGE_S = 25.0

TOO_SLOW_MS = 3000.0
"""No use in trying a higher rate after that."""

RATES = (250.0, 500.0, 1000.0, 1500.0, 2000.0, 3000.0, 4000.0)


def step_down(crew: Crew, leader: Leader, _hosts: str) -> float | None:
    """Hand over in order; it counts from when the old leader's child was dead."""
    crew.order(leader, "step_down")
    return None


def remove(crew: Crew, leader: Leader, hosts: str) -> float:
    """Kill the leader's sidecar; what its guard's remover does once the child is dead is done here, by its own code."""
    crew.order(leader, "fall_silent")
    client = plain_client(Access(hosts, session_timeout_s=SESSION_TIMEOUT_S))
    live = client.start_async()
    live.wait(SESSION_TIMEOUT_S)
    dead_at = clock.now()
    error = retire_within(client, live, LeftBehind(leader.znode, led=True), 3.0)
    stop_within(client, 2.0)
    if error is not None:
        raise RuntimeError(f"the znode could not be removed: {error}")
    return dead_at


def lose(crew: Crew, leader: Leader, _hosts: str) -> float:
    """Lose the leader's node; the first in line evicts it when its lease has run out, counted from the last renewal."""
    return float(crew.order(leader, "fall_silent"))


KINDS: dict[str, tuple[Callable[[Crew, Leader, str], float | None], bool]] = {
    "step-down": (step_down, False),
    "removed": (remove, True),
    "evicted": (lose, True),
}
"""How a leader goes; and whether it has to be started again."""


def hand_over(crew: Crew, kind: str) -> dict[str, Any]:
    """Do one hand-over, and wait until all have settled again."""
    act, replace = KINDS[kind]
    leader = crew.leader()
    crew.take_records()
    began_at = act(crew, leader, crew.spec.hosts)
    crew.leader(other_than=leader.number)
    time.sleep(crew.spec.session_timeout_s / 5)  # the third renewal of the new term has been sent by then
    records = crew.take_records()
    if began_at is None:
        began_at = next(one.at for one in records if one.kind == "leave" and one.number == leader.number)
    if replace:
        crew.order(leader, "replace")
    figures = timeline.hand_over(records, leader.number, began_at)
    crew.wait_settled(SETTLES_WITHIN_S)
    return figures


def hand_overs(crews: Sequence[Crew], rounds: dict[str, int]) -> list[dict[str, Any]]:
    """Do hand-overs of each kind in each crew, in turn."""
    found = []
    for kind, count in rounds.items():
        for _ in range(count):
            for crew in crews:
                figures = {"kind": kind, "contenders": crew.count, **hand_over(crew, kind)}
                print(f"{kind}, {crew.count}: {figures['elected_s'] * 1000:.1f} ms to the election", flush=True)
                found.append(figures)
    return found


def idle(crew: Crew, servers: Sequence[Server], for_s: float) -> dict[str, Any]:
    """Let time pass in which nothing happens but renewals."""
    crew.take_records()
    leader = crew.leader()
    before, began_at = sample(servers, crew.pids), clock.now()
    time.sleep(for_s)
    records, lasted_s = crew.take_records(), clock.now() - began_at
    after = sample(servers, crew.pids)
    return {
        "contenders": crew.count,
        **timeline.renewals(records, leader.number, lasted_s),
        "per_second": timeline.server_delta(before, after),
    }


def joined(crew: Crew, ensemble: Ensemble) -> dict[str, Any]:
    """Have all of them join, and say what that took."""
    before = sample(ensemble.servers, crew.pids)
    took_s = crew.join(SETTLES_WITHIN_S + crew.count / 5)
    after = sample(ensemble.servers, crew.pids)
    return {
        "contenders": crew.count,
        "took_s": round(took_s, 1),
        "requests": timeline.requests(crew.take_records()),
        "per_second": timeline.server_delta(before, after),
    }


def outage(crew: Crew, ensemble: Ensemble, lasting_s: float) -> dict[str, Any]:
    """Kill all servers, start them again, and see how the contenders come back."""
    sessions = crew.sessions()
    crew.take_records()
    with crew.stepping_back():
        began_at = clock.now()
        for server in ensemble.servers:
            server.kill()
        time.sleep(lasting_s)
        started_at = clock.now()
        ensemble.start()
        for server in ensemble.servers:
            server.wait_ready(SETTLES_WITHIN_S)
        return _came_back(crew, ensemble, began_at, started_at, sessions)


def expiry(crew: Crew, ensemble: Ensemble) -> dict[str, Any]:
    """Freeze the contenders until every session of theirs has expired, and see how they come back."""
    sessions = crew.sessions()
    crew.take_records()
    with crew.stepping_back():
        began_at = clock.now()
        crew.freeze()
        try:
            time.sleep(SILENT_FOR_S)
        finally:
            crew.thaw()
        return _came_back(crew, ensemble, began_at, clock.now(), sessions)


def _came_back(
    crew: Crew, ensemble: Ensemble, began_at: float, since: float, sessions: dict[int, int]
) -> dict[str, Any]:
    before = sample(ensemble.servers, crew.pids)
    time.sleep(5.0)  # a contender that does not know yet that anything has happened looks settled
    crew.wait_settled(SETTLES_WITHIN_S)
    after = sample(ensemble.servers, crew.pids)
    return {
        "contenders": crew.count,
        **timeline.reconnects(crew.take_records(), began_at, since, sessions, crew.count),
        "per_second": timeline.server_delta(before, after),
        "over_s": round(after["at"] - before["at"], 1),
    }


def elections(ensemble: Ensemble, count: int, session_timeout_s: float, processes: int, for_s: float) -> dict[str, Any]:
    """Run that many elections, each with one contender that leads all the time."""
    spec = Spec(ensemble.hosts, f"/{count}-elections-{session_timeout_s:g}", session_timeout_s, elections=True)
    with Crew(spec, count, processes) as crew:
        crew.join_without_waiting()
        crew.wait_leading(int(count * ALMOST_ALL), LEADING_WITHIN_S + 2 * session_timeout_s)
        crew.take_records()
        began_at, before = clock.now(), sample(ensemble.servers, crew.pids)
        with Probe(ensemble) as probe:
            time.sleep(for_s)
        after = sample(ensemble.servers, crew.pids)
        records, lasted_s, leading = crew.take_records(), clock.now() - began_at, crew.leading()
    answered = [float(one.what) for one in records if one.kind == "renewed"]
    return {
        "elections": count,
        "session_timeout_s": session_timeout_s,
        "renew_every_s": round(agree(session_timeout_s, None).renew_every_s, 3),
        "leading": leading,
        "renewals_per_s": round(len(answered) / lasted_s, 1),
        "renewal": timeline.spread(answered),
        "probe": timeline.spread(probe.took_s),
        "terms_lost": sum(one.kind == "stopped" for one in records),
        "said": dict(Counter(str(one.what) for one in records if one.kind == "said")),
        "lost_for": dict(Counter(str(one.what) for one in records if one.kind == "stopped")),
        "per_second": timeline.server_delta(before, after),
    }


def ramp(ensemble: Ensemble, rates: Sequence[float], for_s: float, rounds: int) -> list[dict[str, Any]]:
    """Write at growing rates; of each the best round is kept, since other work on the machine only makes it worse."""
    found: dict[float, list[dict[str, Any]]] = {rate: [] for rate in rates}
    for _ in range(rounds):
        for rate in rates:
            found[rate].append(_writes(ensemble, rate, for_s))
            print(f"{rate:g} writes a second: {found[rate][-1]}", flush=True)
            if found[rate][-1]["p99_ms"] > TOO_SLOW_MS:
                break
    return [min(some, key=lambda row: row["p99_ms"]) for some in found.values() if some]


def _writes(ensemble: Ensemble, rate: float, for_s: float) -> dict[str, Any]:
    before = sample(ensemble.servers)
    took_s, sent = load.writes(ensemble.hosts, rate, for_s)
    after = sample(ensemble.servers)
    cpu_s, writes = (after[key] - before[key] for key in ("server_cores", "writes"))
    return {
        "asked_per_s": rate,
        "answered": round(len(took_s) / sent, 4),
        **timeline.spread(took_s),
        "server_ms_per_write": round(cpu_s / writes * 1000, 3),
    }


def others_cores(for_s: float) -> float:
    """Return how many cores are in use before anything of this has started."""
    before = sample([])
    time.sleep(for_s)
    return timeline.server_delta(before, sample([]))["machine_cores"]


def wait_gone(ensemble: Ensemble) -> None:
    """Wait until the sessions of a crew that was ended are over, so that their closing is not measured."""

    def gone() -> bool:
        answers = [server.ask("mntr", 5.0) for server in ensemble.servers]
        return all("zk_ephemerals_count\t0\n" in answer for answer in answers)

    wait_until(gone, 90.0, "all ephemeral znodes to be gone", every_s=0.5)
