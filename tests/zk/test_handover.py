"""Three nodes round a real ZooKeeper: whatever is done to the leader's, another leads, and never two at a time."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.lives import Lives
from tests.support.nodes import Node, alive, wait_dead
from tests.support.waiting import wait_until
from tests.support.zookeeper import delete_all
from zkbeat.core.record import Term

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kazoo.client import KazooClient
    from typing_extensions import Self

    from tests.support.net import Lan
    from tests.support.zookeeper import Ensemble

LEASE_S = 1.5
"""Short, for the tests' sake; the session timeout stays the server's least, 4 s."""


class Cluster:
    """Three nodes, and what their children wrote about their lives."""

    def __init__(self, tmp_path, hosts: str, root: str, *options: str) -> None:
        self.lives = Lives(tmp_path / "lives")
        self.root = root
        common = ["--root", root, "--session-timeout", "4", "--lease", str(LEASE_S), *options]
        self.nodes = [
            Node(tmp_path / f"n{number}", hosts=hosts, name="e", command=self.lives.command, options=common)
            for number in (1, 2, 3)
        ]

    def __enter__(self) -> Self:
        for node in self.nodes:
            node.start()
        self.wait_leader()
        for node in self.nodes:
            wait_until(lambda node=node: (node.health() or {}).get("ready"), 15, f"{node.id} ready", self.logs)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print(self.logs())
        for node in self.nodes:
            node.kill_everything()
        self.lives.check_one_at_a_time()

    def wait_leader(self, but: Node | None = None, timeout_s: float = 15.0) -> Node:
        """Wait until a node leads, one that is not `but`; return it."""

        def leads() -> Node | None:
            leaders = [node for node in self.nodes if node is not but and (node.health() or {}).get("leader")]
            return leaders[0] if len(leaders) == 1 else None

        return wait_until(leads, timeout_s, "a leader" if but is None else f"a leader after {but.id}", self.logs)

    def logs(self) -> str:
        return "\n".join(node.logs() for node in self.nodes)


@pytest.fixture
def cluster(tmp_path, zk_hosts, zk_root) -> Iterator[Cluster]:
    with Cluster(tmp_path, zk_hosts, zk_root) as cluster:
        yield cluster


def _kill(number: int, *which: str) -> Callable[[Node], None]:
    def do(node: Node) -> None:
        for pid in [getattr(node, kind) for kind in which]:
            os.kill(pid, number)

    return do


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_kill(signal.SIGTERM, "sidecar"), id="sidecar told to stop"),
        pytest.param(_kill(signal.SIGUSR1, "sidecar"), id="sidecar told to step down"),
        pytest.param(_kill(signal.SIGKILL, "child"), id="child killed"),
        pytest.param(_kill(signal.SIGKILL, "sidecar"), id="sidecar killed"),
        pytest.param(_kill(signal.SIGKILL, "guard"), id="guard killed"),
        pytest.param(_kill(signal.SIGKILL, "guard", "sidecar"), id="guard and sidecar killed"),
        pytest.param(Node.kill_everything, id="the node lost"),
        pytest.param(_kill(signal.SIGSTOP, "sidecar"), id="sidecar stopped"),
        pytest.param(_kill(signal.SIGSTOP, "guard"), id="guard stopped"),
        pytest.param(_kill(signal.SIGSTOP, "guard", "sidecar"), id="guard and sidecar stopped"),
        pytest.param(_kill(signal.SIGSTOP, "child", "guard", "sidecar"), id="the node frozen"),
    ],
)
def test_another_node_takes_over(cluster, fault):
    leader = cluster.wait_leader()
    child = leader.child
    fault(leader)
    cluster.wait_leader(but=leader)
    assert not alive(child)


def test_a_killed_sidecars_znode_is_gone_long_before_its_session(cluster, zk_client: KazooClient):
    leader = cluster.wait_leader()
    child = leader.child  # found by way of its guard, which will not live long
    election = f"{cluster.root}/e/election"
    before = set(zk_client.get_children(election))
    os.kill(leader.sidecar, signal.SIGKILL)
    wait_dead([child], 3.0)
    dead_at = time.monotonic()
    wait_until(lambda: len(before - set(zk_client.get_children(election))) == 1, 2.0, "the znode to go", cluster.logs)
    assert time.monotonic() - dead_at < 2.0


def test_a_node_that_was_lost_and_restarted_deletes_its_own_stale_znode(tmp_path, zk_hosts, zk_root):
    """Its session would live on for 20 s; the host lock proves that nothing of its earlier life does."""
    lives = Lives(tmp_path / "lives")
    options = ["--root", zk_root, "--session-timeout", "20", "--lease", "2"]
    node = Node(tmp_path / "n1", hosts=zk_hosts, name="e", command=lives.command, options=options)
    with node:
        first = node.wait_state("leading")["epoch"]
        node.kill_everything()
        node.start()
        second = node.wait_state("leading", timeout_s=10.0)["epoch"]
    assert second > first
    lives.check_one_at_a_time()


def test_the_record_of_the_terms_says_who_led_and_why_it_ended(cluster, zk_client):
    first = cluster.wait_leader()
    os.kill(first.sidecar, signal.SIGUSR1)
    second = cluster.wait_leader(but=first)
    terms = f"{cluster.root}/e/terms"

    def written() -> list[Term]:
        found = [Term.decode(zk_client.get(f"{terms}/{name}")[0]) for name in sorted(zk_client.get_children(terms))]
        done = [term for term in found if term is not None]
        return done if len(done) == 2 and done[0].end is not None and done[1].gap is not None else []

    before, after = wait_until(written, 5.0, "both terms written down", cluster.logs)
    assert (before.id, before.why, after.id) == (first.id, "received SIGUSR1", second.id)
    assert 0 <= after.gap < 5


def test_a_deleted_election_path_costs_a_term_and_heals(cluster, zk_client):
    child = cluster.wait_leader().child
    delete_all(zk_client, f"{cluster.root}/e")
    wait_dead([child], LEASE_S + 1, "the old child dead by the lease")
    wait_until(cluster.lives.leader, 15, "another child", cluster.logs)


def test_a_standby_whose_place_was_deleted_is_replaced_in_line(cluster, zk_client):
    leader = cluster.wait_leader()
    election = f"{cluster.root}/e/election"
    last = max(zk_client.get_children(election), key=lambda name: name[-10:])
    zk_client.delete(f"{election}/{last}")
    os.kill(leader.sidecar, signal.SIGTERM)
    second = cluster.wait_leader(but=leader)
    os.kill(second.sidecar, signal.SIGTERM)
    # The third comes back with its next record at the latest; here the line's moving on wakes it.
    third = next(node for node in cluster.nodes if node not in (leader, second))
    third.wait_state("leading")


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe", b"{}", b'{"v":99,"id":"x"}', b"[" * 5000])
def test_garbage_in_the_leaders_record_neither_stops_nor_evicts_it(cluster, zk_client, garbage):
    child = cluster.wait_leader().child
    election = f"{cluster.root}/e/election"
    head = min(zk_client.get_children(election), key=lambda name: name[-10:])
    for _ in range(3):
        zk_client.set(f"{election}/{head}", garbage)
        time.sleep(LEASE_S / 4)
    assert alive(child)
    wait_until(lambda: zk_client.get(f"{election}/{head}")[0].startswith(b'{"v":1'), 3.0, "its own record again")
    assert [life.pid for life in cluster.lives.all()] == [child]


def test_foreign_znodes_in_the_line_do_not_matter(cluster, zk_client):
    for name in ("config", "x__lock__", "x__lock__12", "__lock__00000000001"):
        zk_client.create(f"{cluster.root}/e/election/{name}", b"\0")
    leader = cluster.wait_leader()
    os.kill(leader.sidecar, signal.SIGTERM)
    cluster.wait_leader(but=leader)


def test_a_short_outage_stops_nothing(tmp_path, fresh_server, zk_root):
    with Cluster(tmp_path, fresh_server.hosts, zk_root) as cluster:
        child = cluster.wait_leader().child
        fresh_server.suspend()
        time.sleep(LEASE_S / 3)
        fresh_server.resume()
        time.sleep(LEASE_S)
        assert alive(child)
        assert len(cluster.lives.all()) == 1


def test_a_long_outage_ends_the_child_by_the_lease_and_somebody_leads_again_after_it(tmp_path, fresh_server, zk_root):
    with Cluster(tmp_path, fresh_server.hosts, zk_root) as cluster:
        child = cluster.wait_leader().child
        fresh_server.kill()
        killed_at = time.monotonic()
        wait_dead([child], LEASE_S + 1.0, "the child dead by the lease")
        assert time.monotonic() - killed_at < LEASE_S + 0.5
        fresh_server.start()
        fresh_server.wait_ready()
        cluster.wait_leader(timeout_s=10.0)


@pytest.mark.parametrize("ensemble", [1000], indirect=True)
def test_neither_an_election_nor_a_rolling_restart_of_the_ensemble_touches_the_child(tmp_path, ensemble: Ensemble):
    with Cluster(tmp_path, ensemble.hosts, "/zkbeat", "--session-timeout", "10", "--lease", "6") as cluster:
        child = cluster.wait_leader().child
        ensemble.rolling_restart()
        killed = ensemble.leader()
        ensemble.kill(killed)
        ensemble.wait_quorum(20)
        ensemble.start_one(killed)
        ensemble.wait_quorum(20)
        assert alive(child), cluster.logs()
        assert len(cluster.lives.all()) == 1
        assert (cluster.wait_leader().health() or {})["leader"]


def test_a_leader_cut_off_from_zookeeper_stops_by_the_lease_and_another_leads(tmp_path, lan: Lan):
    """A black hole: no reset tells anybody."""
    from zkbeat.dev import Server

    zk = lan.host("zk")
    with Server(tmp_path / "zk", port=2181, bind=zk.ip, prefix=zk.exec_prefix) as server:
        lives = Lives(tmp_path / "lives")
        options = ["--session-timeout", "4", "--lease", str(LEASE_S)]
        hosts = [lan.host(f"n{number}") for number in (1, 2)]
        first, second = (
            Node(
                tmp_path / host.name,
                hosts=server.hosts,
                name="e",
                command=lives.command,
                options=options,
                prefix=host.exec_prefix,
            )
            for host in hosts
        )
        with first:
            first.wait_state("leading")
            with second:
                second.wait_state("standby")
                child = first.child
                hosts[0].cut_off([zk.ip])
                cut_at = time.monotonic()
                wait_dead([child], LEASE_S + 1.0)
                assert time.monotonic() - cut_at < LEASE_S + 0.4
                second.wait_state("leading", timeout_s=6.0)
                hosts[0].heal()
                first.wait_state("standby", timeout_s=20.0)
        lives.check_one_at_a_time()
