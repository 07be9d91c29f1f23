"""What is done to a cluster. One function a fault: up to its `yield` it begins, what follows is its end.

Each is given the cluster and the node that it is about. It undoes what it has done; what died of it, `Cluster.mend`
starts again, as a supervisor would. A fault that a machine cannot do says why in `why_not`.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError

from tests.chaos.cgroups import Cgroup, why_not
from tests.chaos.cluster import BASE, LEASE, SESSION_TIMEOUT_S
from tests.chaos.node import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.cluster import Cluster

LOCAL, CONTAINERS = "local", "containers"

_LEASE_S = LEASE.length_s
AT_ONCE = (0.0, 0.0)
SHORT = (0.1, 0.8 * _LEASE_S / 3)
"""Less than a third of the lease: may stop nothing."""

LONG = (1.2 * _LEASE_S, SESSION_TIMEOUT_S * 1.5)
"""Longer than the lease, and now and then than the session: stops whatever it hits."""

ANY = (0.1, SESSION_TIMEOUT_S * 1.5)


@dataclass(frozen=True)
class Fault:
    """`lasts_s`: between begin and end, at least and at most.

    `about`: `node`, or `ensemble` where it does not matter which node it is given.
    `touches`: whether the leader's child must (True), must not (False) or may (None) be stopped by it.
    """

    name: str
    what: str
    act: Callable[[Cluster, Any], Iterator[None]]
    lasts_s: tuple[float, float]
    about: str = "node"
    touches: bool | None = None
    where: frozenset[str] = frozenset({LOCAL, CONTAINERS})
    needs: str | None = None
    freezes: bool = False
    """Nothing of the node runs while it lasts, and perhaps not even dies."""

    @property
    def harmless_when_short(self) -> bool:
        """Whether it may stop nothing if it lasts less than a third of the lease (L2); what was killed is not back."""
        return self.lasts_s in {SHORT, ANY} and self.touches is not True and "kill" not in self.name

    def why_not(self, cluster: Cluster) -> str | None:
        """Say what keeps this cluster's machine from it, if anything does."""
        if self.needs == "wall clock":
            return None if cluster.wall_clock else "no C compiler to make the library with"
        return why_not(self.needs) if self.needs is not None else None


FAULTS: dict[str, Fault] = {}


def _fault(name: str, lasts_s: tuple[float, float], **more: Any) -> Callable[[Any], Any]:
    def register(act: Any) -> Any:
        what = " ".join(act.__doc__.split())
        starts_a_sentence = what[1].islower()  # and is no SIGTERM
        what = what[0].lower() + what[1:] if starts_a_sentence else what
        FAULTS[name] = Fault(name, what, act, lasts_s, **more)
        return act

    return register


def _signals(
    name: str, what: str, number: int, *parts: str, lasts_s: tuple[float, float] = AT_ONCE, **more: Any
) -> None:
    def act(_cluster: Cluster, node: Any) -> Iterator[None]:
        pids = node.signal(number, *parts)
        yield
        if number == signal.SIGSTOP:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    _continue(pid)

    act.__doc__ = what
    _fault(name, lasts_s, **more)(act)


def _continue(pid: int) -> None:
    """Continue a process that may be no more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).resume()


_KILL, _STOP = signal.SIGKILL, signal.SIGSTOP
_signals("sidecar-kill", "the sidecar `kill -9`", _KILL, "sidecar", touches=True)
_signals("guard-kill", "the guard `kill -9`", _KILL, "guard", touches=True)
_signals("child-kill", "the child `kill -9`", _KILL, "child", touches=True)
_signals("sidecar-guard-kill", "sidecar and guard `kill -9`", _KILL, "sidecar", "guard", touches=True)
_signals("guard-child-kill", "guard and child `kill -9`", _KILL, "guard", "child", touches=True)
_signals("node-kill", "all of the node `kill -9`, for a while", _KILL, *ALL, lasts_s=LONG, touches=True)
_signals("node-kill-restart", "all of the node `kill -9`, restarted at once", _KILL, *ALL, touches=True)
_signals("sidecar-term", "SIGTERM to the sidecar, restarted at once", signal.SIGTERM, "sidecar", touches=True)
_signals("step-down-signal", "SIGUSR1 to the sidecar: step down", signal.SIGUSR1, "sidecar", touches=True)
_signals("sidecar-stop", "the sidecar SIGSTOPped past the lease", _STOP, "sidecar", lasts_s=LONG, touches=True)
_signals("guard-stop", "the guard SIGSTOPped past the lease", _STOP, "guard", lasts_s=LONG, touches=True)
_signals("child-stop", "the child SIGSTOPped", _STOP, "child", lasts_s=ANY, touches=False)
_signals("sidecar-guard-stop", "sidecar and guard SIGSTOPped", _STOP, "sidecar", "guard", lasts_s=LONG, touches=True)
_signals("node-stop", "all of the node SIGSTOPped past the lease", _STOP, *ALL, lasts_s=LONG, touches=True)
_signals("sidecar-blip", "the sidecar SIGSTOPped, less than L/3", _STOP, "sidecar", lasts_s=SHORT, touches=False)
_signals("guard-blip", "the guard SIGSTOPped, less than L/3", _STOP, "guard", lasts_s=SHORT, touches=False)
_signals("node-blip", "all of the node SIGSTOPped, less than L/3", _STOP, *ALL, lasts_s=SHORT, touches=False)


# a node's machine


@_fault("node-freeze-v1", LONG, touches=True, where=frozenset({LOCAL}), needs="freezer", freezes=True)
def _freeze_v1(_cluster: Cluster, node: Any) -> Iterator[None]:
    """All of the node in the freezer of cgroup v1 past the lease: what is in there cannot even be killed"""
    yield from _freeze("freezer", node)


@_fault("node-freeze-v2", LONG, touches=True, where=frozenset({LOCAL}), needs="freeze")
def _freeze_v2(_cluster: Cluster, node: Any) -> Iterator[None]:
    """All of the node in the freezer of cgroup v2 past the lease"""
    yield from _freeze("freeze", node)


def _freeze(controller: str, node: Any) -> Iterator[None]:
    with Cgroup(controller) as group:
        group.add(node.pids())
        group.freeze()
        yield
        group.thaw()


@_fault("cpu-starved", ANY, where=frozenset({LOCAL}), needs="cpu")
def _starve(_cluster: Cluster, node: Any) -> Iterator[None]:
    """All of the node on 2 % of one core"""
    with Cgroup("cpu") as group:
        group.add(node.pids())
        group.limit_cpu(0.02)
        yield


@_fault("sidecar-oom", AT_ONCE, touches=True, where=frozenset({LOCAL}), needs="memory")
def _out_of_memory(_cluster: Cluster, node: Any) -> Iterator[None]:
    """The sidecar killed for want of memory"""
    with Cgroup("memory") as group:
        for pid in node.parts()["sidecar"]:
            group.run_out_of_memory(pid)
        yield


@_fault("disk-full", ANY, touches=False, where=frozenset({LOCAL}))
def _fill_disk(_cluster: Cluster, node: Any) -> Iterator[None]:
    """The runtime directory's file system full"""
    with _full(node):
        yield


@_fault("disk-full-kill", ANY, touches=True, where=frozenset({LOCAL}))
def _fill_disk_and_kill(_cluster: Cluster, node: Any) -> Iterator[None]:
    """The runtime directory's file system full, the sidecar `kill -9` and restarted meanwhile"""
    with _full(node):
        node.signal(signal.SIGKILL, "sidecar")
        yield


@contextlib.contextmanager
def _full(node: Any) -> Iterator[None]:
    ballast = node.runtime_dir / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    try:
        yield
    finally:
        ballast.unlink()


@_fault("wall-clock-step", ANY, touches=False, where=frozenset({LOCAL}), needs="wall clock")
def _step_clock(_cluster: Cluster, node: Any) -> Iterator[None]:
    """The node's wall clock two hours ahead, and back"""
    node.step_wall_clock(7200)
    yield
    node.step_wall_clock(0)


# a node's network


def _link(
    name: str, what: str, lasts_s: tuple[float, float], do: Callable[[Any, list[str]], None], **more: Any
) -> None:
    def act(cluster: Cluster, node: Any) -> Iterator[None]:
        do(node.host, cluster.zookeeper_addresses())
        yield
        node.host.heal()

    act.__doc__ = what
    _fault(name, lasts_s, where=frozenset({LOCAL}), **more)(act)


_link("link-cut", "the node's link to ZooKeeper black-holed", LONG, lambda host, zk: host.cut_off(zk), touches=True)
_link(
    "link-mute", "one way: nothing from the node gets to ZooKeeper", LONG, lambda host, zk: host.mute(zk), touches=True
)
_link(
    "link-deaf",
    "one way: nothing from ZooKeeper gets to the node",
    LONG,
    lambda host, zk: host.deafen(zk),
    touches=True,
)
_link("link-blip", "the link black-holed, less than L/3", SHORT, lambda host, zk: host.cut_off(zk), touches=False)
_link("link-lossy", "3 of 10 packets lost between node and ZooKeeper", ANY, lambda host, zk: host.disturb(zk))


@_fault("link-slow", ANY, where=frozenset({LOCAL}))
def _slow(_cluster: Cluster, node: Any) -> Iterator[None]:
    """The node's link at 8 kbit/s, up to 1.5 s of it queued"""
    tc = [*node.host.exec_prefix, "tc", "qdisc"]
    shaped = ["dev", "eth0", "root", "tbf", "rate", "8kbit", "burst", "1600", "latency", "1500ms"]
    subprocess.run([*tc, "replace", *shaped], check=True)
    yield
    subprocess.run([*tc, "del", "dev", "eth0", "root"], check=True)


@_fault("server-cut-off", LONG, about="ensemble", touches=True, where=frozenset({LOCAL}))
def _island(cluster: Cluster, node: Any) -> Iterator[None]:
    """The server that the node is connected to, mostly a follower, cut off from the others together with the node"""
    index = _server_of(cluster, node)
    addresses = cluster.zookeeper_addresses()
    others = [address for number, address in enumerate(addresses) if number != index]
    server = cluster.lan.host(f"zk{index}")  # type: ignore[attr-defined]
    server.cut_off(others)
    node.host.cut_off(others)
    yield
    server.heal()
    node.host.heal()


def _server_of(cluster: Cluster, node: Any) -> int:
    """Return the index of the server that a node is connected to; of any, where another fault keeps it from that."""
    addresses = cluster.zookeeper_addresses()
    remote = [ip for pid in node.parts()["sidecar"] for ip in _peers(pid)]
    return next((addresses.index(ip) for ip in remote if ip in addresses), 0)


def _peers(pid: int) -> list[str]:
    """Return who the network namespace of a process has connections with."""
    with contextlib.suppress(OSError):
        lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        # In hexadecimal, and in the machine's order of bytes; 01 is ESTABLISHED.
        remote = [bytes.fromhex(words[2].partition(":")[0]) for words in lines if words[3] == "01"]
        return [socket.inet_ntoa(address[::-1] if sys.byteorder == "little" else address) for address in remote]
    return []


# the ensemble


@_fault("quorum-leader-kill", ANY, about="ensemble")
def _kill_quorum_leader(cluster: Cluster, _node: Any) -> Iterator[None]:
    """The ensemble's leading server `kill -9`, later started again"""
    leader = cluster.ensemble.leader()
    if leader is not None:
        cluster.ensemble.kill(leader)
    yield


@_fault("server-kill", ANY, about="ensemble")
def _kill_server_of_node(cluster: Cluster, node: Any) -> Iterator[None]:
    """The server that the leader is connected to `kill -9`, later started again"""
    cluster.ensemble.kill(_server_of(cluster, node))
    yield


@_fault("quorum-lost", ANY, about="ensemble")
def _lose_quorum(cluster: Cluster, _node: Any) -> Iterator[None]:
    """Two of three servers SIGSTOPped"""
    servers = cluster.ensemble.servers[:2]
    for server in servers:
        server.suspend()
    yield
    for server in servers:
        server.resume()


@_fault("servers-stopped", ANY, about="ensemble")
def _stop_servers(cluster: Cluster, _node: Any) -> Iterator[None]:
    """All three servers SIGSTOPped"""
    cluster.ensemble.suspend_all()
    yield
    cluster.ensemble.resume_all()


@_fault("servers-killed", AT_ONCE, about="ensemble")
def _kill_servers(cluster: Cluster, _node: Any) -> Iterator[None]:
    """All three servers `kill -9`, started again at once"""
    for index in range(len(cluster.ensemble.servers)):
        cluster.ensemble.kill(index)
    yield


@_fault("rolling-restart", AT_ONCE, about="ensemble")
def _restart_servers(cluster: Cluster, _node: Any) -> Iterator[None]:
    """The servers restarted one after the other, the leading one last"""
    cluster.mend()  # another fault may have stopped some
    cluster.ensemble.wait_quorum()
    cluster.ensemble.rolling_restart()
    yield


# znodes, and who may write them


@_fault("znode-deleted", AT_ONCE, about="ensemble", touches=True)
def _delete_own(cluster: Cluster, _node: Any) -> Iterator[None]:
    """The leader's election znode deleted"""
    with contextlib.suppress(KazooException, KazooTimeoutError), cluster.zookeeper() as client:
        first = min(client.get_children(f"{BASE}/election"), key=lambda name: name[-10:])
        client.delete(f"{BASE}/election/{first}")
    yield


@_fault("election-deleted", AT_ONCE, about="ensemble", touches=True)
def _delete_election(cluster: Cluster, _node: Any) -> Iterator[None]:
    """`deleteall` of the line of contenders"""
    with contextlib.suppress(KazooException, KazooTimeoutError):
        cluster.delete_all(f"{BASE}/election")
    yield


@_fault("everything-deleted", AT_ONCE, about="ensemble", touches=True)
def _delete_everything(cluster: Cluster, _node: Any) -> Iterator[None]:
    """`deleteall` of everything about the election, the ledger too"""
    with contextlib.suppress(KazooException, KazooTimeoutError):
        cluster.delete_all(BASE)
    yield


@_fault("step-down", AT_ONCE, about="ensemble", touches=True)
def _step_down(cluster: Cluster, _node: Any) -> Iterator[None]:
    """`zkbeat step-down`"""
    cluster.zkbeat("step-down")
    yield


@_fault("pause", LONG, about="ensemble", touches=True)
def _pause(cluster: Cluster, _node: Any) -> Iterator[None]:
    """`zkbeat pause`, and `resume`"""
    cluster.pause()
    yield
    cluster.resume()


# whole containers


def _container(name: str, what: str, lasts_s: tuple[float, float], begin: str, end: str, **more: Any) -> None:
    def act(_cluster: Cluster, node: Any) -> Iterator[None]:
        getattr(node, begin)()
        yield
        getattr(node, end)()

    act.__doc__ = what
    _fault(name, lasts_s, where=frozenset({CONTAINERS}), touches=True, **more)(act)


_container("container-pause", "`docker pause` past the lease", LONG, "pause", "unpause", freezes=True)
_container("container-kill", "`docker kill`, started again later", LONG, "kill", "mend")
_container("container-restart", "`docker restart`", AT_ONCE, "restart", "mend")
_container("container-stop", "`docker stop`, started again later", ANY, "stop", "mend")
_container("network-disconnect", "`docker network disconnect`, the broker gone too", LONG, "disconnect", "connect")
