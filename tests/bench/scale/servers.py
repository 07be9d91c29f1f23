"""What the servers count and use, and what a write takes meanwhile."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

import psutil
from kazoo.client import KazooClient

from zkbeat import clock
from zkbeat.client import stop_within
from zkbeat.core.record import Member

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self

    from tests.support.zookeeper import Ensemble
    from zkbeat.dev import Server

PATIENCE_S = 20.0

RECORD = Member(
    id="contender-123", host="host-123", pid=12345, version="0.4.0", digest="0123456789ab", since=1e9, lease=6.667,
    state="leading", offset=0.001, child=12345, term_since=1e9, tick=1e9,
).encode()  # fmt: skip
"""What a leader writes with each renewal, in size."""


def sample(servers: Iterable[Server], clients: Iterable[int] = ()) -> dict[str, float]:
    """Return the sums over all servers, and the CPU time of servers and clients in seconds; `at` is the instant."""
    servers = list(servers)
    counted = [dict(re.findall(r"^(\w+)\t(\S+)$", server.ask("mntr", PATIENCE_S), re.MULTILINE)) for server in servers]

    def total(name: str) -> float:
        return sum(float(one.get(name, 0)) for one in counted)

    machine = psutil.cpu_times()
    return {
        "at": clock.now(),
        "writes": total("zk_cnt_updatelatency"),
        "reads_and_pings": total("zk_cnt_readlatency"),
        "watches": total("zk_sum_node_changed_watch_count") + total("zk_sum_node_deleted_watch_count"),
        "server_cores": sum(map(_cpu_s, (server.pid for server in servers))),
        "client_cores": sum(map(_cpu_s, clients)),
        "machine_cores": sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice,
    }


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


class Probe:
    """An independent client that writes a record every 50 ms, and notes how long each took."""

    EVERY_S = 0.05

    def __init__(self, ensemble: Ensemble) -> None:
        self.took_s: list[float] = []
        self._client = KazooClient(hosts=ensemble.hosts, timeout=30.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="probe", daemon=True)

    def __enter__(self) -> Self:
        self._client.start(timeout=30)
        self._client.ensure_path("/probe")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)
        stop_within(self._client, PATIENCE_S)

    def _write(self) -> None:
        while not self._over.wait(self.EVERY_S):
            sent_at = clock.now()
            self._client.set_async("/probe", RECORD).get(timeout=30)
            self.took_s.append(clock.now() - sent_at)
