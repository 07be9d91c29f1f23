"""What a fault is done to: the services, and on them three nodes, one leading. Nothing of it outlives its `with`."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError, NotEmptyError

from tests.bench.broker import Broker
from tests.bench.node import NAME, Death, Node, send
from tests.support.net import Lan
from tests.support.waiting import wait_until
from tests.support.zookeeper import Ensemble
from zkbeat import clock
from zkbeat.client import stop_within
from zkbeat.core import record
from zkbeat.dev import Server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

TICKS_BEFORE = 3
"""How many ticks of the leader to see before anything is done to it."""

TICK_MS = 2000


class On(Enum):
    """The services that a fault needs. On a LAN, each server and each node is a host of its own."""

    ONE_SERVER = "one server"
    THREE_SERVERS = "three servers"
    LAN_ONE_SERVER = "one server on a LAN"
    LAN_THREE_SERVERS = "three servers on a LAN"


class Services:
    """ZooKeeper and a broker with its monitor, for one fault after another."""

    def __init__(self, on: On) -> None:
        self._on = on
        self._closing = contextlib.ExitStack()
        self._serials = itertools.count(1)
        self.ensemble: Ensemble | None = None
        self.lan: Lan | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # Short: the path of a Unix socket in it may have 100 bytes.
            self.directory = Path(tempfile.mkdtemp(prefix="zkb-"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            if self._on in {On.LAN_ONE_SERVER, On.LAN_THREE_SERVERS}:
                self.lan = stack.enter_context(Lan())
            if self._on in {On.THREE_SERVERS, On.LAN_THREE_SERVERS}:
                self.ensemble = stack.enter_context(Ensemble(self.directory / "zk", lan=self.lan, tick_ms=TICK_MS))
                self.servers = self.ensemble.servers
            else:
                self.servers = [stack.enter_context(self._server())]
            ip = self.lan.ip if self.lan else "127.0.0.1"
            self.broker = stack.enter_context(Broker(self.directory / "redis", ip))
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def _server(self) -> Server:
        if self.lan is None:
            return Server(self.directory / "zk", tick_ms=TICK_MS)
        host = self.lan.host("zk0")
        return Server(self.directory / "zk", tick_ms=TICK_MS, port=2181, bind=host.ip, prefix=host.exec_prefix)

    @property
    def hosts(self) -> str:
        return ",".join(server.hosts for server in self.servers)

    @property
    def version(self) -> str:
        """ZooKeeper's."""
        found = re.search(r"version: ([\d.]+)", self.servers[0].ask("srvr"))
        return found[1] if found else "unknown"

    def wait_serving(self) -> None:
        """Wait until requests are answered."""
        if self.ensemble is not None:
            self.ensemble.wait_quorum()
        else:
            wait_until(self._answers, 30, "the server to serve", self.servers[0].log_tail)

    def _answers(self) -> bool:
        # Impatient: a server that is about to serve may never answer a question that came too early.
        try:
            return self.servers[0].ask("srvr", 0.05).startswith("Zookeeper version:")
        except OSError:
            return False

    def heal(self) -> None:
        """Undo what a fault has done to them."""
        if self.lan is not None:
            self.lan.heal()
        for server in self.servers:
            server.resume()
            if not server.running:
                server.start()
        self.wait_serving()

    def scene(
        self,
        nodes: int,
        options: Mapping[str, str],
        *,
        under_a_shell: bool = False,
        leader_on_a_follower: bool = False,
    ) -> Scene:
        """Return a scene of its own: new nodes, a new election.

        With the leader on a follower, the first node knows that server only, and the others know the other ones.
        """
        name = f"n{next(self._serials)}"
        if not leader_on_a_follower or self.ensemble is None:
            return Scene(self, name, [self.hosts] * nodes, options, under_a_shell=under_a_shell)
        index = self.ensemble.followers()[0]
        lonely = self.servers[index]
        elsewhere = ",".join(server.hosts for server in self.servers if server is not lonely)
        scene = Scene(self, name, [lonely.hosts] + [elsewhere] * (nodes - 1), options)
        scene.follower = index
        return scene


class Scene:
    """Some nodes, the first of which leads, and what is seen of them. `hosts`: the servers of each."""

    def __init__(
        self,
        services: Services,
        name: str,
        hosts: Sequence[str],
        options: Mapping[str, str],
        *,
        under_a_shell: bool = False,
    ) -> None:
        self.services = services
        self.broker = services.broker
        self.follower = -1
        """The server that the leader is connected to, where that is one of its own."""
        self.fault_at = 0.0
        self.outage_ended_at: float | None = None
        """When ZooKeeper answered again, if the fault was that it did not."""
        self.thawed_at: float | None = None
        self.nothing_left_at: float | None = None
        """When nothing was left of the leader's node, if that is what the fault is about."""
        self.znode_gone_at: float | None = None
        self.base = f"/{name}/{NAME}"
        """Where everything about this election is."""
        self.election = f"{self.base}/election"
        # The last node's servers: they stay reachable, whatever is cut off.
        self._watcher = KazooClient(hosts=hosts[-1])
        self.nodes = [
            Node(
                services.directory / name / f"{i + 1}",
                servers,
                self.broker.url,
                {"root": f"/{name}", **options},
                services.lan.host(f"node{i + 1}").exec_prefix if services.lan else (),
                under_a_shell=under_a_shell,
            )
            for i, servers in enumerate(hosts)
        ]
        self.leader = self.nodes[0]
        self.child = 0
        self.epoch = 0
        self.death: Death

    def start(self) -> None:
        """Start the nodes, and wait until the first leads and ticks and all the others stand by."""
        self.leader.start()
        wait_until(lambda: self.leader.says("epoch"), 20, "the first node to be elected", self.logs)
        for node in self.nodes[1:]:
            node.start()
        self.settle()
        self._watcher.start(timeout=15)
        self._watch_leader()

    def settle(self) -> None:
        """Wait until the first node leads, with some ticks, and the others stand by."""
        wait_until(lambda: self.leader.says("leader"), 20, "the first node to lead", self.logs)
        self.child = self.leader.child
        self.death = Death(self.child)
        self.epoch = self.leader.says("epoch")
        wait_until(lambda: len(self.broker.of(self.child)) >= TICKS_BEFORE, 20, "ticks of the leader", self.logs)
        wait_until(self._all_ready, 20, "the others to stand by", self.logs)

    def _all_ready(self) -> bool:
        return all(node.says("ready") for node in self.nodes)

    def begin(self) -> None:
        """Note that the fault happens now."""
        self.fault_at = clock.now()

    def signal(self, pids: Sequence[int], number: int) -> None:
        """Do the fault: this signal to these processes, in this order."""
        self.begin()
        for pid in pids:
            send(pid, number)

    def pass_time(self, seconds: float) -> None:
        """Let time pass from now on: the fault lasts, or one goes on watching."""
        time.sleep(seconds)

    def leading(self) -> list[dict[str, Any]]:
        """Return what was logged by those that started a child after the fault; first things first."""
        said = [said for node in self.nodes for said in node.events("leading")]
        later = [one for one in said if one["epoch"] != self.epoch and one["at"] > self.fault_at]
        return sorted(later, key=lambda one: float(one["at"]))

    def delete_all(self, path: str) -> None:
        """`deleteall` of this path."""
        with contextlib.suppress(NotEmptyError):  # a contender was quick to be there again
            self._watcher.delete(path, recursive=True)

    def logs(self) -> str:
        """Return the end of every log."""
        return "\n".join(
            [
                *(node.logs() for node in self.nodes),
                *(f"--- {server.hosts}\n{server.log_tail(15)}" for server in self.services.servers),
            ]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill_everything()
        self.stop_watching()

    def stop_watching(self) -> None:
        """Close the session that notices when the leader's znode is gone."""
        stop_within(self._watcher, 2.0)

    def _watch_leader(self) -> None:
        first = record.line(self._watcher.get_children(self.election))[0]

        def look(_event: object = None) -> None:
            at = clock.now()
            try:
                there = first in self._watcher.get_children(self.election, look)
            except NoNodeError:
                there = False
            except KazooException:
                return
            if not there and self.znode_gone_at is None:
                self.znode_gone_at = at

        look()
