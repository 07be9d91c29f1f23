"""One fault, once, on one contestant: three nodes are started, the fault is done, and every message is recorded."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.broker import Broker
from tests.bench.figures import Tick
from tests.bench.node import cpu_s, resident_mb, send
from tests.bench.peers import pressure
from tests.bench.peers.contestants import Contestant, Place
from tests.bench.peers.stores import STORES
from tests.support.net import Lan
from tests.support.nodes import alive
from tests.support.waiting import wait_until
from zkbeat import clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from tests.bench.peers.faults import Fault

NODES = 3

STARTS_WITHIN_S = 40.0
SETTLES_IN_S = 4.0
"""How long after the last node has reached the store it is in the line, at least ..."""

QUIET_S = 1.0
QUIET_CPU_S = 0.1
"""... and until the nodes use no more than this in that time: a busy machine starts them slowly."""

OLD_ONE_GOES_ON_FOR_S = 30.0
"""If nobody else has begun after so long while the old publisher goes on, nobody will."""

WATCH_A_DEAD_ONE_FOR_S = 3.0
WATCH_FOR_S = 10.0
"""How long to go on watching once there is a new publisher: the old one being dead, or alive."""

LOOK_EVERY_S = 0.05

ESTABLISHED = "01"
"""In /proc/net/tcp, see proc(5)."""


class Lane:
    """The services for one trial after another: a network, a broker, and a store of each kind."""

    def __init__(self, over: threading.Event) -> None:
        self.over = over
        self._closing = contextlib.ExitStack()
        self._serials = itertools.count(1)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # Short: the path of a Unix socket in it may have 100 bytes.
            self.directory = Path(tempfile.mkdtemp(prefix="zkb-"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.lan = stack.enter_context(Lan())
            self.broker = stack.enter_context(Broker(self.directory / "broker", self.lan.ip))
            self.stores = {
                kind: stack.enter_context(make(self.directory / kind, self.lan.host(kind)))
                for kind, make in STORES.items()
            }
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def cut_off(self, store: str) -> None:
        """Lose whatever goes between the first node and this store."""
        self.lan.host("node1").cut_off([self.lan.host(store).ip])

    def heal(self) -> None:
        self.lan.heal()
        for store in self.stores.values():
            store.resume()

    def trial(self, contestant: Contestant, setting: str, fault: Fault) -> Trial:
        return Trial(self, contestant, setting, fault, f"t{next(self._serials)}")


class Trial:
    """Three nodes of a contestant, the first of which leads."""

    def __init__(self, lane: Lane, contestant: Contestant, setting: str, fault: Fault, name: str) -> None:
        self.lane, self.contestant, self.setting, self.fault = lane, contestant, setting, fault
        self._shared = lane.directory / name
        self._begun_at = clock.now()
        store = lane.stores[contestant.store]
        self.nodes = [
            contestant.node(
                Place(
                    directory=self._shared / f"{i + 1}",
                    shared=self._shared,
                    name=name,
                    store=store.hosts,
                    broker_url=lane.broker.url,
                    prefix=lane.lan.host(f"node{i + 1}").exec_prefix,
                ),
                setting,
            )
            for i in range(NODES)
        ]
        self.leader = self.nodes[0]
        self.publisher = 0
        self.fault_at = 0.0
        self.thawed_at: float | None = None
        self._load = 0.0
        self._standby_mb = 0.0
        self._stalled_s = 0.0
        self._pressure: float | None = None

    def start(self) -> None:
        """Start the nodes, and wait until the first ticks and the others are in the line."""
        self._shared.mkdir(parents=True)
        self.contestant.prepare(self._shared)
        self.leader.start()
        wait_until(self._ticks, STARTS_WITHIN_S, "a first tick", self.logs)
        for node in self.nodes[1:]:
            node.start()
        wait_until(self._all_connected, STARTS_WITHIN_S, "all nodes to reach the store", self.logs, every_s=0.2)
        self.pass_time(SETTLES_IN_S)
        wait_until(self._quiet, STARTS_WITHIN_S, "the nodes to have started", self.logs)
        self.publisher = self._ticks()[-1].pid
        if {tick.pid for tick in self._ticks()} != {self.publisher} or self.publisher not in self.leader.pids():
            raise AssertionError(f"not only the first node has ticked: {self._ticks()}\n{self.logs()}")
        self._standby_mb = max(sum(map(resident_mb, node.pids())) for node in self.nodes[1:])

    def begin(self) -> None:
        """Note that the fault happens now."""
        self._load = os.getloadavg()[0]
        self._stalled_s = pressure.stalled_s()
        self.fault_at = clock.now()

    def signal(self, pids: Sequence[int], number: int) -> None:
        """Do the fault: this signal to these processes, in this order."""
        self.begin()
        for pid in pids:
            send(pid, number)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, unless everything is over."""
        if self.lane.over.wait(max(seconds, 0.0)):
            raise KeyboardInterrupt

    def watch(self) -> dict[str, Any]:
        """Do the fault, look on for as long as there is anything to see, and return the record of it."""
        self.fault.act(self)
        acted_at = clock.now()
        while clock.now() < self._watched_until(acted_at):
            self.pass_time(LOOK_EVERY_S)
            self._note_pressure()
        return self._record(clock.now())

    def _note_pressure(self) -> None:
        """Note how wanted the CPUs were until the first message of another publisher."""
        if self._pressure is None and self._new() is not None:
            self._pressure = (pressure.stalled_s() - self._stalled_s) / (clock.now() - self.fault_at)

    def _new(self) -> Tick | None:
        return self.lane.broker.first_of_another(self.publisher, self.fault_at)

    def _watched_until(self, acted_at: float) -> float:
        if not self.fault.hands_over:
            return acted_at + WATCH_FOR_S
        new = self._new()
        if new is not None:
            killed = not alive(self.publisher) and self.thawed_at is None
            return max(new.at, acted_at) + (WATCH_A_DEAD_ONE_FOR_S if killed else WATCH_FOR_S)
        old = self.lane.broker.of(self.publisher)[-1].at
        goes_on = old > acted_at and clock.now() - old < WATCH_A_DEAD_ONE_FOR_S
        patience_s = self.contestant.patience_s(self.setting, orderly=self.fault.orderly)
        return acted_at + (OLD_ONE_GOES_ON_FOR_S if goes_on else patience_s)

    def _record(self, until: float) -> dict[str, Any]:
        """Return what is kept: times in seconds from the fault, publishers numbered as they came up."""
        seen = [tick for tick in self._ticks() if tick.at <= until]
        numbers = {self.publisher: 0}
        for tick in seen:
            numbers.setdefault(tick.pid, len(numbers))
        last_before = max(tick.at for tick in seen if tick.at <= self.fault_at)
        ticks = [[round(tick.at - self.fault_at, 2), numbers[tick.pid]] for tick in seen if tick.at >= last_before]
        record: dict[str, Any] = {
            "contestant": self.contestant.name,
            "setting": self.setting,
            "fault": self.fault.name,
            "load": round(self._load, 2),
            "standby_mb": round(self._standby_mb, 1),
            "watched_s": round(until - self.fault_at, 2),
            "ticks": ticks,
        }
        if self._pressure is not None:
            record["pressure"] = round(self._pressure, 2)
        if self.thawed_at is not None:
            record["thawed_s"] = round(self.thawed_at - self.fault_at, 2)
        return record

    def logs(self) -> str:
        return "\n".join(node.logs() for node in self.nodes)

    def close(self) -> None:
        """Kill everything, and put right what the fault has done to the services."""
        for node in self.nodes:
            node.kill_everything()
        self.lane.heal()
        shutil.rmtree(self._shared, ignore_errors=True)

    def _ticks(self) -> list[Tick]:
        return [tick for tick in list(self.lane.broker.ticks) if tick.at >= self._begun_at]

    def _quiet(self) -> bool:
        before = self._cpu_s()
        self.pass_time(QUIET_S)
        return self._cpu_s() - before < QUIET_CPU_S

    def _cpu_s(self) -> float:
        used = 0.0
        for pid in (pid for node in self.nodes for pid in node.pids()):
            with contextlib.suppress(OSError):  # it has just ended
                used += cpu_s(pid)
        return used

    def _all_connected(self) -> bool:
        ip = self.lane.lan.host(self.contestant.store).ip
        return all(any(_is_connected(pid, ip) for pid in node.pids()) for node in self.nodes)


def _is_connected(pid: int, ip: str) -> bool:
    """Say whether the host that this process is on, a network namespace of its own, has a connection to there."""
    remote = socket.inet_aton(ip)[::-1].hex().upper()
    with contextlib.suppress(OSError):
        lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()]
        return any(words[2].startswith(f"{remote}:") and words[3] == ESTABLISHED for words in lines[1:])
    return False
