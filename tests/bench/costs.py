"""The costs: `zkbeat health`, a standby's memory and CPU, the renewals; and celery's own start, to compare with."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.bench.node import CELERY_BEAT, app_environment, cpu_s, resident_mb
from tests.support import nodes
from tests.support.waiting import wait_until
from zkbeat import clock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.bench.node import Node
    from tests.bench.stage import Scene, Services
    from zkbeat.dev import Server

INTERVAL_S = 1.0
"""Between two ticks."""

HEALTH_ROUNDS = 25
HEALTH_AT_MOST = 3.0
"""Times `python -c pass`."""

STANDBY_AT_MOST_MB = 45.0

IDLE_FOR_S = 60.0
CPU_AT_MOST = 0.005
"""What counts as not measurable, as a share of a core: what `top` shows as nothing, give or take one digit."""


def own_start(services: Services, rounds: int) -> dict[str, float]:
    """Return the median time from exec to the first message of a bare `celery beat`.

    `fresh_s`: in an empty directory, as on a node that has never led: beat waits an interval before the first tick.
    `due_s`: with the schedule file of an earlier run, so that the task is due at once.
    """
    fresh, due = [], []
    for number in range(rounds):
        directory = services.directory / f"bare{number}"
        directory.mkdir()
        fresh.append(_exec_to_first_message(services, directory))
        time.sleep(INTERVAL_S)
        due.append(_exec_to_first_message(services, directory))
        shutil.rmtree(directory)
    return {"rounds": rounds, "fresh_s": round(statistics.median(fresh), 3), "due_s": round(statistics.median(due), 3)}


def _exec_to_first_message(services: Services, directory: Path) -> float:
    broker = services.broker
    begun_at = clock.now()
    environment = nodes.environment(app_environment(broker.url))
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(CELERY_BEAT, cwd=directory, env=environment, stdout=log, stderr=log)
    try:
        first = wait_until(lambda: broker.of(process.pid), 20, "a first message of celery itself")
        return first[0].at - begun_at
    finally:
        process.terminate()
        process.wait()


def measure(services: Services) -> list[dict[str, Any]]:
    """Return a row for each cost."""
    with services.scene(3, {}) as scene:
        scene.start()
        scene.stop_watching()  # its requests would be counted
        return [_health(scene.nodes[-1]), *_idle(scene)]


def _health(node: Node) -> dict[str, Any]:
    ask = [*nodes.SCRIPT, "health", "--runtime-dir", str(node.runtime_dir)]
    asked, bare = [], []
    for _ in range(HEALTH_ROUNDS):
        asked.append(_duration(ask))
        bare.append(_duration([sys.executable, "-c", "pass"]))
    ratio = statistics.median(asked) / statistics.median(bare)
    return {
        "name": "health",
        "what": f"`zkbeat health`, median of {HEALTH_ROUNDS}, taken in turn with `python -c pass`",
        "must_show": f"<= {HEALTH_AT_MOST:g} x `python -c pass`",
        "measured": {
            "health_ms": round(statistics.median(asked) * 1000, 1),
            "python_ms": round(statistics.median(bare) * 1000, 1),
            "ratio": round(ratio, 2),
        },
        "ok": ratio <= HEALTH_AT_MOST,
    }


def _duration(argv: Sequence[str]) -> float:
    begun_at = clock.now()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    return clock.now() - begun_at


def _idle(scene: Scene) -> list[dict[str, Any]]:
    """Let a minute pass in which nothing happens, and look at what was used."""
    processes = {node.id: node.pids() for node in scene.nodes}
    server = scene.services.servers[0]
    cpu_before = {name: sum(map(cpu_s, pids)) for name, pids in processes.items()}
    requests_before, begun_at = _requests(server), clock.now()
    time.sleep(IDLE_FOR_S)
    lasted_s = clock.now() - begun_at
    requests = {kind: (count - requests_before[kind]) / lasted_s for kind, count in _requests(server).items()}
    used = {name: round(sum(map(cpu_s, pids)) - cpu_before[name], 2) for name, pids in processes.items()}
    in_line = sorted(scene.nodes[1:], key=lambda node: int(node.events("standby")[-1]["ahead"]))
    standbys = [node.id for node in in_line]
    resident = [sum(map(resident_mb, processes[name])) for name in standbys]
    return [
        {
            "name": "standby-memory",
            "what": "a standby's resident memory, over all of its processes, what they share counted in each",
            "must_show": f"<= {STANDBY_AT_MOST_MB:g} MB",
            "measured": {"largest_mb": round(max(resident), 1)},
            "ok": max(resident) <= STANDBY_AT_MOST_MB,
        },
        {
            "name": "standby-cpu",
            "what": f"CPU time in {IDLE_FOR_S:g} s idle: of the standby that watches the leader, and of the next one",
            "must_show": f"not measurable (taken as <= {CPU_AT_MOST:.1%} of a core, {CPU_AT_MOST * IDLE_FOR_S:g} s)",
            "measured": {"first_s": used[standbys[0]], "second_s": used[standbys[1]]},
            "ok": max(used[name] for name in standbys) <= CPU_AT_MOST * IDLE_FOR_S,
        },
        {
            "name": "renewals",
            "what": "requests at ZooKeeper a second: a leader and two standbys, in the same minute",
            "must_show": "say what was seen",
            "measured": {kind: round(count, 2) for kind, count in requests.items()},
            "ok": True,
        },
    ]


def _requests(server: Server) -> dict[str, float]:
    """Return how many requests a server has had: writes, reads, and all packets, pings included."""
    found = dict(re.findall(r"^(\w+)\t(\S+)$", server.ask("mntr"), re.MULTILINE))
    return {
        "writes": float(found["zk_cnt_updatelatency"]),
        "reads": float(found["zk_cnt_readlatency"]),
        "packets": float(found["zk_packets_received"]),
    }
