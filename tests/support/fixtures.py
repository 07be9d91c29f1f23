"""Fixtures around a real ZooKeeper; a conftest loads them with `pytest_plugins`."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from kazoo.client import KazooClient

from tests.support import net
from tests.support.waiting import wait_until
from tests.support.zookeeper import Ensemble
from zkbeat.dev import NoZooKeeperError, Server, find_distribution

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_TIMEOUT_S = 15.0
DEFAULT_IMAGE = "zookeeper:3.9"


@dataclass(frozen=True)
class Elsewhere:
    """A ZooKeeper that is not a child of the tests: it has an address and cannot be killed."""

    hosts: str


@pytest.fixture(scope="session")
def zk_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | Elsewhere]:
    """One ZooKeeper for the whole session: ZKBEAT_TEST_HOSTS, else a local distribution, else a container."""
    hosts = os.environ.get("ZKBEAT_TEST_HOSTS")
    if hosts:
        yield Elsewhere(hosts)
        return
    try:
        find_distribution()
    except NoZooKeeperError:
        yield from _container()
        return
    with Server(tmp_path_factory.mktemp("zookeeper")) as server:
        yield server


@pytest.fixture(scope="session")
def zk_hosts(zk_server: Server | Elsewhere) -> str:
    return zk_server.hosts


@pytest.fixture
def zk_root(zk_server: Server | Elsewhere) -> Iterator[str]:
    """A path of the test's own, not yet created."""
    path = f"/test-{uuid.uuid4().hex[:12]}"
    yield path
    if isinstance(zk_server, Elsewhere):
        client = KazooClient(hosts=zk_server.hosts)
        client.start(timeout=CONNECT_TIMEOUT_S)
        client.delete(path, recursive=True)
        _end(client)


@pytest.fixture
def zk_client(zk_hosts: str) -> Iterator[KazooClient]:
    client = KazooClient(hosts=zk_hosts)
    client.start(timeout=CONNECT_TIMEOUT_S)
    yield client
    _end(client)


@pytest.fixture
def fresh_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the test's own, which it may kill; indirect parameter: its tick in ms."""
    _need_distribution()
    with Server(tmp_path_factory.mktemp("zookeeper"), tick_ms=getattr(request, "param", 2000)) as server:
        yield server


@pytest.fixture
def ensemble(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """Three servers of the test's own with a quorum; indirect parameter: their tick in ms."""
    _need_distribution()
    directory = tmp_path_factory.mktemp("ensemble")
    with Ensemble(directory, tick_ms=getattr(request, "param", 2000)) as ensemble:
        yield ensemble


@pytest.fixture
def lan() -> Iterator[net.Lan]:
    reason = net.why_not()
    if reason is not None:
        pytest.skip(reason)
    with net.Lan() as lan:
        yield lan


def _need_distribution() -> None:
    try:
        find_distribution()
    except NoZooKeeperError as error:
        pytest.skip(str(error))


def _container() -> Iterator[Elsewhere]:
    # Imported here: most runs have no use for it, and it takes a while.
    from testcontainers.core.container import DockerContainer

    image = os.environ.get("ZKBEAT_TEST_ZOOKEEPER_IMAGE", DEFAULT_IMAGE)
    with DockerContainer(image).with_exposed_ports(2181) as container:
        hosts = f"{container.get_container_host_ip()}:{container.get_exposed_port(2181)}"
        wait_until(lambda: _accepts(hosts), 60, f"a session with {image} at {hosts}", container.get_logs)
        yield Elsewhere(hosts)


def _accepts(hosts: str) -> bool:
    client = KazooClient(hosts=hosts)
    try:
        client.start(timeout=1)
    except client.handler.timeout_exception:
        return False
    finally:
        _end(client)
    return True


def _end(client: KazooClient) -> None:
    client.stop()
    client.close()
