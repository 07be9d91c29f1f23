"""Nodes round an ensemble, with a broker and a witness: what faults are done to. Here each is a host of a small LAN."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kazoo.client import KazooClient

from tests.chaos.node import PUBLISHER, LocalNode
from tests.chaos.recorder import STREAM, Broker, Child, Recorder
from tests.support import nodes
from tests.support.net import Lan
from tests.support.waiting import wait_until
from tests.support.zookeeper import Ensemble, delete_all
from zkbeat import clock
from zkbeat.core.lease import agree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

    from tests.chaos.history import History

ELECTION = "chaos"
ROOT = "/zkbeat"
BASE = f"{ROOT}/{ELECTION}"
SESSION_TIMEOUT_S = 4.0
TICK_MS = 1000
LEASE = agree(SESSION_TIMEOUT_S, None)
STOP_TIMEOUT_S = 3.0
SETTLES_WITHIN_S = 60.0
ANSWERS_WITHIN_S = 3.0
"""How long an operator tries to reach ZooKeeper, which another fault may have stopped."""

CLOCK_AHEAD_S = 1_000_000
"""How far ahead the last node's monotonic clocks are: no instant of one node may mean anything to another."""


def options() -> list[str]:
    timing = ["--session-timeout", f"{SESSION_TIMEOUT_S:g}", "--stop-timeout", f"{STOP_TIMEOUT_S:g}"]
    return ["--root", ROOT, *timing, "--log-format", "json"]


class Cluster:
    """What every cluster has, wherever its parts run; a subclass makes these parts.

    `package`: a directory that holds the `zkbeat` to run, in place of the one that is installed.
    """

    where: str
    ensemble: Ensemble
    nodes: Sequence[Any]
    broker: Broker

    def __init__(self, name: str, history: History, package: Path | None = None) -> None:
        self.name = name
        self.package = package
        self.wall_clock: Path | None = None
        self._stack = contextlib.ExitStack()
        self._operators: set[int] = set()
        self._paused = False
        # Short: the path of a Unix socket in it may have 100 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="zkc-"))
        self.directory.chmod(0o755)
        self.recorder = Recorder(name, self.directory / "seen", history)
        self._stack.callback(self.recorder.close)

    def command(self) -> list[str]:
        """What the nodes run, and that to the letter on each: they compare it."""
        where = [str(self.recorder.directory), self.broker.host, str(self.broker.port), STREAM]
        return ["python3" if self.where == "containers" else sys.executable, str(PUBLISHER), *where]

    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.package)} if self.package is not None else {}

    # what is so now

    def child(self) -> Child | None:
        """Return the only child that lives, if it is one."""
        children = list(self.recorder.children.values())
        return children[0] if len(children) == 1 else None

    def leader(self) -> Any:
        """Return the node that has the only child; None if there is no such node."""
        child = self.child()
        return None if child is None else self.node(child.node)

    def node(self, name: str) -> Any:
        return next(node for node in self.nodes if node.id == name)

    def zookeeper_addresses(self) -> list[str]:
        """Return the servers' addresses, as a node's network has them."""
        return [server.hosts.partition(":")[0] for server in self.ensemble.servers]

    # keeping it going

    def settle(self, older_than_s: float = 0.0) -> Child:
        """Wait until every server serves, one child lives, for so long already, and all nodes are ready; return it."""
        self.ensemble.wait_quorum(SETTLES_WITHIN_S, members=len(self.ensemble.servers))
        for node in self.nodes:
            if node.says("state") == "backing off":
                node.renew()

        def settled() -> Child | None:
            for node in self.nodes:
                node.mend()
            child = self.child()
            old_enough = child is not None and clock.now() - child.began >= older_than_s
            return child if old_enough and all(node.says("ready") for node in self.nodes) else None

        return wait_until(settled, SETTLES_WITHIN_S, f"{self.name} to settle", self.report, every_s=0.2)

    def mend(self) -> None:
        """Start what does not run: servers, and zkbeat on each node. What a fault has done otherwise, it undoes."""
        for server in self.ensemble.servers:
            server.resume()
            if not server.running:
                server.start()
        for node in self.nodes:
            node.mend()
        if self._paused:
            wait_until(self.resume, SETTLES_WITHIN_S, "the election to be resumed", self.report, every_s=0.5)

    def collect(self) -> None:
        """Have the recorder read what broker and servers have kept."""
        self.recorder.messages(self.broker.host, self.broker.port)
        self.recorder.znodes(self.server_data(), BASE, self._operators.__contains__)

    def server_data(self) -> list[Path]:
        raise NotImplementedError

    # what operators do

    def zkbeat(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of zkbeat's commands against the ensemble."""
        argv = [*nodes.MODULE, *words, "--hosts", self.ensemble.hosts, "--name", ELECTION, "--root", ROOT]
        return subprocess.run(
            argv, env=nodes.environment(self.env()), capture_output=True, text=True, timeout=30, check=False
        )

    def pause(self) -> None:
        self._paused = True
        self.zkbeat("pause", "--reason", "chaos")

    def resume(self) -> bool:
        """Resume, if ZooKeeper can be reached; return whether that is so. `mend` tries again."""
        self._paused = self.zkbeat("resume").returncode != 0
        return not self._paused

    @contextlib.contextmanager
    def zookeeper(self) -> Iterator[KazooClient]:
        """Give a client of the ensemble; what it deletes, the fault has deleted. Raises KazooTimeoutError."""
        client = KazooClient(hosts=self.ensemble.hosts)
        try:
            client.start(timeout=ANSWERS_WITHIN_S)
            self._operators.add(client.client_id[0])
            yield client
        finally:
            client.stop()
            client.close()

    def delete_all(self, path: str) -> None:
        with self.zookeeper() as client:
            delete_all(client, path)

    # its end

    def report(self) -> str:
        """Return the end of every log."""
        state = f"children {list(self.recorder.children.values())}, modes {self.ensemble.modes()}"
        says = [f"{node.id}: {node.says('state')}, {node.parts()}" for node in self.nodes]
        return "\n".join([state, *says, *(node.logs()[-6000:] for node in self.nodes)])

    def close(self, *, keep: bool = False) -> None:
        """End everything; with `keep`, leave the logs where they are."""
        self._stack.close()
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self.report())
        self.close(keep=kind is not None)


class LocalCluster(Cluster):
    """Nodes and servers as processes, each on a host of its own."""

    where = "local"

    def __init__(self, name: str, history: History, package: Path | None = None, size: int = 3) -> None:
        super().__init__(name, history, package)
        try:
            self.lan = self._stack.enter_context(Lan())
            self.broker = self._stack.enter_context(Broker(self.directory / "redis", self.lan.ip))
            self.ensemble = Ensemble(self.directory / "zk", lan=self.lan, tick_ms=TICK_MS)
            self._stack.callback(self.ensemble.close)
            self.ensemble.start()
            self.wall_clock = _wall_clock_library(self.directory)
            self.nodes = [self._node(f"n{number + 1}", last=number + 1 == size) for number in range(size)]
            self.ensemble.wait_quorum()
            for node in self.nodes:
                node.start()
        except BaseException:
            self._stack.close()
            raise

    def _node(self, name: str, *, last: bool) -> LocalNode:
        node = LocalNode(
            self.directory / name,
            self.lan.host(name),
            hosts=self.ensemble.hosts,
            name=ELECTION,
            command=self.command(),
            options=options(),
            env=self.env(),
            clock_ahead_s=CLOCK_AHEAD_S if last else 0,
            wall_clock=self.wall_clock,
        )
        self._stack.callback(node.close)
        node.register(self.recorder)
        return node

    def server_data(self) -> list[Path]:
        return [server.directory / "data" for server in self.ensemble.servers]


def _wall_clock_library(directory: Path) -> Path | None:
    """Compile the library that moves one node's wall clock; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "wallclock.so"
    source = Path(__file__).with_name("wallclock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library


def versions(cluster: Cluster) -> Mapping[str, str]:
    """Return what it ran on."""
    answer = cluster.ensemble.servers[0].ask("srvr").splitlines()[0]
    return {"ZooKeeper": answer.partition("version: ")[2].partition("-")[0], "where": cluster.where}
