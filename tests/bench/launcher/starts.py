"""How long after its election a node sends its first message, and how long after a `kill -9` of the leader's sidecar.

And what a standby costs in memory, with and without a process that waits at the gate.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.launcher.cluster import TAKES_OVER_WITHIN_S, Cluster, Node, Services, Setup, last_child_start, load
from tests.bench.node import Death, send
from tests.support.waiting import wait_until
from zkbeat import clock

APPS = {"trivial": "a trivial app", "django": "Django, DatabaseScheduler"}
WAYS = {"no-launcher": {"no-launcher": ""}, "launcher": {}, "preload": {"preload": ""}}

ONCE_S = 3600.0
"""An interval that comes once in a round: the entries are due at once, and then never again."""

OFTEN_S = 0.05


@dataclass(frozen=True)
class Variant:
    """One row: which app, started how."""

    app: str
    way: str

    def setup(self, every_s: float) -> Setup:
        return Setup(app=self.app, options=WAYS[self.way], every_s=every_s, due=True)


def elect(cluster: Cluster) -> dict[str, Any]:
    """Have the leader stop, so that the standby is elected; return its figures, in seconds from its election.

    It is asked to (TERM), as in a deployment: a znode that is gone without a word would have the successor wait until
    the lease has run out.
    """
    leader, standby = _leader_and_standby(cluster)
    cluster.make_due(standby)
    waiting = standby.says("preloaded") or {}
    before = _scheduled(waiting["pid"]) if waiting else (0.0, 0.0)
    gone, begun_at, sent = cluster.watch_leaders_znode(), clock.now(), len(cluster.messages)
    send(leader.sidecar, signal.SIGTERM)
    # The old one has sent what it had to, and an hour's interval: whatever comes now is of the new one.
    first = wait_until(lambda: cluster.messages[sent:], TAKES_OVER_WITHIN_S, "a message", cluster.logs)[0]
    ran_s, waited_s = (now - then for now, then in zip(_scheduled(first.pid), before, strict=True))
    elected_at, started_at = _started(standby, begun_at)
    gone_at = wait_until(lambda: gone.at, 10, "the old leader's znode to be gone")
    leader.kill_everything()
    leader.start()
    return {
        "gone_to_elected_s": round(max(elected_at - gone_at, 0.0), 4),
        "elected_to_started_s": round(started_at - elected_at, 4),
        "elected_to_first_s": round(first.at - elected_at, 4),
        "beat_ran_s": round(ran_s, 4),
        "beat_waited_s": round(waited_s, 4),
        "load": load(),
    }


def _scheduled(pid: int) -> tuple[float, float]:
    """Return how long a process has run on a CPU, and how long it has waited for one, in seconds."""
    ran_ns, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9


def kill_sidecar(cluster: Cluster) -> dict[str, Any]:
    """`kill -9` the leader's sidecar; return the instants of what follows, in seconds from that."""
    leader, standby, old = cluster.settle()
    sidecar = leader.sidecar
    gone, death = cluster.watch_leaders_znode(), Death(old.pid)
    killed_at = clock.now()
    send(sidecar, signal.SIGKILL)
    first = cluster.first_of_another(old.pid, killed_at)
    elected_at, started_at = _started(standby, killed_at)
    wait_until(lambda: death.at is not None and gone.at is not None, 10, "the old beat and its znode to be gone")
    before = [one.at for one in cluster.messages if one.pid == old.pid][-1]
    leader.kill_everything()
    leader.start()
    instants = {
        "dead_s": death.at,
        "znode_gone_s": gone.at,
        "elected_s": elected_at,
        "started_s": started_at,
        "first_s": first.at,
        "last_before_s": before,
    }
    return {**{name: round((at or 0.0) - killed_at, 4) for name, at in instants.items()}, "load": load()}


def _leader_and_standby(cluster: Cluster) -> tuple[Node, Node]:
    """Wait until there are both; the leader need not have sent anything lately."""

    def both() -> tuple[Node, Node] | None:
        if len(cluster.line()) != len(cluster.nodes):
            return None
        for one, other in (cluster.nodes, reversed(cluster.nodes)):
            if isinstance(one, Node) and isinstance(other, Node) and one.says("child") and other.stands_by():
                return one, other
        return None

    return wait_until(both, 40, "one to lead, one to stand by", cluster.logs, every_s=0.1)


def _started(node: Node, since: float) -> tuple[float, float]:
    # The log's time is known to a millisecond, and the log is written by a thread of its own.
    return wait_until(lambda: last_child_start(node, since), 10, "the log to say when it was elected", node.logs)


def memory(cluster: Cluster) -> list[dict[str, Any]]:
    """Return what the standby's processes take, in MB."""
    _, standby = _leader_and_standby(cluster)
    found = []
    for pid in standby.pids():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        kind = next((word.decode() for word in words if word in {b"sidecar", b"guard"}), "waiting beat")
        found.append({"process": kind, **_smaps(pid)})
    return found


def _smaps(pid: int) -> dict[str, float]:
    """Return resident, proportional and private memory; what a process shares with others counts in part, or not."""
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    figures = {"rss_mb": kib["Rss"], "pss_mb": kib["Pss"], "private_mb": private}
    return {name: round(value * 1024 / 1e6, 1) for name, value in figures.items()}


Keep = Callable[[dict[str, Any]], None]


def _interleaved(
    services: Services,
    every_s: float,
    ways: Sequence[str],
    rounds: int,
    act: Callable[[Cluster], dict[str, Any]],
    keep: Keep,
) -> Iterator[tuple[Variant, Cluster]]:
    """Do a round of each, then the next round of each; the clusters live all the time, and only one is busy.

    Yields each cluster before its first round.
    """
    with contextlib.ExitStack() as stack:
        clusters = {}
        for database, variant in enumerate(Variant(app, way) for app in APPS for way in ways):
            clusters[variant] = stack.enter_context(services.cluster(variant.setup(every_s), database))
        for variant, cluster in clusters.items():
            _leader_and_standby(cluster)
            yield variant, cluster
        for number in range(rounds):
            for variant, cluster in clusters.items():
                if services.over.is_set():
                    return
                keep({"app": variant.app, "way": variant.way, "round": number, **_tried(act, cluster)})


def _tried(act: Callable[[Cluster], dict[str, Any]], cluster: Cluster) -> dict[str, Any]:
    """Return what was seen, once the machine is quiet again for the next one."""
    try:
        seen = act(cluster)
        _leader_and_standby(cluster)
    except Exception as error:  # noqa: BLE001  # a round that went wrong is a result
        seen = {"error": f"{type(error).__name__}: {error}".splitlines()[0], "load": load()}
        for node in cluster.nodes:
            if not node.pids():
                node.start()
    return seen


def measure_elections(services: Services, rounds: int, keep: Keep, keep_memory: Keep) -> dict[str, Any]:
    """Do the elections; look at each standby's memory before."""
    for variant, cluster in _interleaved(services, ONCE_S, list(WAYS), rounds, elect, keep):
        for one in memory(cluster):
            keep_memory({"app": variant.app, "way": variant.way, **one})
    return {"apps": APPS}


def measure_kills(services: Services, rounds: int, keep: Keep) -> dict[str, Any]:
    """Kill the leader's sidecar, again and again."""
    for _ in _interleaved(services, OFTEN_S, ["launcher", "preload"], rounds, kill_sidecar, keep):
        pass
    return {"apps": APPS, "every_s": OFTEN_S}
