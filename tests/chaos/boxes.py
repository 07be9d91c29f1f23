"""The same cluster as containers: each node and each server has one, in a network of their own. Broker and witness
stay on the host, which is that network's gateway. Processes are found, signalled and recorded from the host."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docker.errors import APIError
from docker.types import EndpointConfig, IPAMConfig, IPAMPool
from docker.version import __version__ as docker_version
from testcontainers.core.network import Network

from tests.chaos.cluster import ELECTION, TICK_MS, Cluster, options
from tests.chaos.node import PUBLISHER, Processes
from tests.chaos.recorder import Broker
from tests.container.lab import SMALL_JVM, Lab
from tests.support.waiting import wait_until
from tests.support.zookeeper import Ensemble
from zkbeat.dev import _ask

if TYPE_CHECKING:
    from tests.chaos.history import History
    from tests.chaos.recorder import Recorder
    from tests.container.lab import Box

ZKBEAT_USER = 10001
SERVERS = 3
SERVES_WITHIN_S = 60.0
DOCKER_STOPS_WITHIN_S = 10


class _Container:
    """What can be done to a whole container, whatever is in it."""

    box: Box

    @property
    def running(self) -> bool:
        return bool(self.box.state()["Running"])

    @property
    def paused(self) -> bool:
        return bool(self.box.state()["Paused"])

    def start(self) -> None:
        self.box.docker.start()

    def kill(self) -> None:
        with contextlib.suppress(APIError):  # it is not running
            self.box.docker.kill()
        self._ended()

    def stop(self) -> None:
        self.box.docker.stop(timeout=DOCKER_STOPS_WITHIN_S)

    def restart(self) -> None:
        self.box.docker.restart(timeout=DOCKER_STOPS_WITHIN_S)

    def pause(self) -> None:
        with contextlib.suppress(APIError):  # another fault has killed it
            self.box.docker.pause()

    def unpause(self) -> None:
        with contextlib.suppress(APIError):
            self.box.docker.unpause()

    def _ended(self) -> None:
        wait_until(lambda: not self.running, 10, f"{self.box} to be dead", self.box.log)


class BoxServer(_Container):
    """A ZooKeeper server, with as much of `zkbeat.dev.Server` as an `Ensemble` uses."""

    def __init__(self, box: Box, ip: str) -> None:
        self.box = box
        self.hosts = f"{ip}:2181"

    def ask(self, word: str, timeout_s: float = 2.0) -> str:
        return _ask(self.hosts.partition(":")[0], 2181, word, timeout_s)

    def suspend(self) -> None:
        self.pause()

    def resume(self) -> None:
        if self.paused:
            self.unpause()

    def log_tail(self, lines: int = 40) -> str:
        return str(self.box.docker.logs(tail=lines).decode(errors="replace"))


class BoxEnsemble(Ensemble):
    """Three servers in containers, with addresses that they keep."""

    def __init__(self, servers: list[BoxServer]) -> None:
        self.servers = servers  # type: ignore[assignment]

    def close(self) -> None:
        """Nothing: the lab removes the containers."""


class BoxNode(Processes, _Container):
    """A zkbeat in a container, and its processes as the host sees them."""

    def __init__(self, directory: Path, cluster: BoxCluster) -> None:
        super().__init__(cluster.env())
        self.id = directory.name
        self.directory = directory
        self.runtime_dir = directory / "run"
        self.runtime_dir.mkdir(parents=True, mode=0o700)
        os.chown(self.runtime_dir, ZKBEAT_USER, ZKBEAT_USER)
        self._cluster = cluster
        inherited = {key: value for key, value in self.env.items() if os.environ.get(key) != value}
        package = [(str(cluster.package), str(cluster.package), "ro")] if cluster.package else []
        seen = str(cluster.recorder.directory)
        self.box = cluster.lab.start(
            f"{cluster.name}-{self.id}",
            cluster.image,
            command=(
                "--id",
                self.id,
                "--hosts",
                cluster.names,
                "--name",
                ELECTION,
                *options(),
                "--",
                *cluster.command(),
            ),
            env=inherited,
            volumes=[
                (seen, seen, "rw"),
                (str(PUBLISHER), str(PUBLISHER), "ro"),
                (str(self.runtime_dir), "/run/zkbeat", "rw"),
                *package,
            ],
            networking_config=cluster.address(None),
        )

    def register(self, recorder: Recorder) -> None:
        recorder.node(self.id, self.runtime_dir / "lease")

    def disconnect(self) -> None:
        self._cluster.lab.network._unwrap_network.disconnect(self.box.docker)

    def connect(self) -> None:
        with contextlib.suppress(APIError):  # it is connected
            self._cluster.lab.network.connect(self.box.docker.id)

    def mend(self) -> bool:
        if self.running:
            return False
        self.start()
        return True

    def renew(self) -> None:
        self.restart()

    def logs(self) -> str:
        return f"--- {self.id}\n{self.box.docker.logs(tail=80).decode(errors='replace')}"


class BoxCluster(Cluster):
    """Three nodes and three servers, all in containers; `zookeeper` and `image` name the images of these."""

    where = "containers"

    def __init__(self, name: str, history: History, zookeeper: str, image: str, package: Path | None = None) -> None:
        super().__init__(name, history, package)
        self.image = image
        try:
            self._subnet, network = _network()
            self._stack.callback(network.remove)
            self.lab = Lab(network)
            self._stack.callback(self.lab.close)
            self.broker = self._stack.enter_context(Broker(self.directory / "redis", f"{self._subnet}.1"))
            self.names = ",".join(f"zk{number}:2181" for number in range(1, SERVERS + 1))
            self.ensemble = BoxEnsemble([self._server(number, zookeeper) for number in range(1, SERVERS + 1)])
            self.ensemble.wait_quorum(SERVES_WITHIN_S, members=SERVERS)
            self.nodes = [BoxNode(self.directory / f"n{number}", self) for number in (1, 2, 3)]
            for node in self.nodes:
                node.register(self.recorder)
        except BaseException:
            self._stack.close()
            raise

    def address(self, ip: str | None, *names: str) -> dict[str, Any]:
        """Return how a container is attached to the network, under which address and names."""
        return {self.lab.network.name: EndpointConfig(docker_version, aliases=list(names), ipv4_address=ip)}

    def _server(self, number: int, image: str) -> BoxServer:
        data = self.directory / "zk" / f"zk{number}"
        data.mkdir(parents=True)
        ip = f"{self._subnet}.{10 + number}"
        box = self.lab.start(
            f"{self.name}-zk{number}",
            image,
            env={
                "ZOO_MY_ID": str(number),
                "ZOO_SERVERS": " ".join(f"server.{n}=zk{n}:2888:3888;2181" for n in range(1, SERVERS + 1)),
                "ZOO_TICK_TIME": str(TICK_MS),
                "ZOO_INIT_LIMIT": "10",
                "ZOO_SYNC_LIMIT": "5",
                "ZOO_4LW_COMMANDS_WHITELIST": "*",
                "SERVER_JVMFLAGS": SMALL_JVM,
            },
            volumes=[(str(data), "/datalog", "rw")],
            networking_config=self.address(ip, f"zk{number}"),
        )
        return BoxServer(box, ip)

    def server_data(self) -> list[Path]:
        return [self.directory / "zk" / f"zk{number}" for number in range(1, SERVERS + 1)]

    def close(self, *, keep: bool = False) -> None:
        if keep:  # the containers' logs go with them
            for part in (*self.nodes, *self.ensemble.servers):
                (self.directory / f"{part.box.name}.log").write_bytes(part.box.docker.logs())
        super().close(keep=keep)
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)


def _network() -> tuple[str, Network]:
    """Make a network whose addresses we may choose; return the first three numbers of these."""
    errors = []
    for number in range(256):
        subnet = f"10.202.{(os.getpid() + number) % 256}"
        pool = IPAMPool(subnet=f"{subnet}.0/24", gateway=f"{subnet}.1")
        try:
            return subnet, Network(docker_network_kw={"ipam": IPAMConfig(pool_configs=[pool])}).create()
        except APIError as error:
            errors.append(error)
    raise RuntimeError(f"no free network: {errors[-1]}")
