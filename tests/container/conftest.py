"""The container tier: real images on a Docker engine, by testcontainers.

Image names come from the environment, and the defaults are the official images; compose/base-images.sh makes
stand-ins for them where no registry can be reached:

    ZKBEAT_TEST_ZOOKEEPER_IMAGE    zookeeper:3.9
    ZKBEAT_TEST_ZOOKEEPER_IMAGES   the same; a comma-separated list to check one after the other
    ZKBEAT_TEST_PYTHON_IMAGE       python:3.12-slim
    ZKBEAT_TEST_REDIS_IMAGE        redis:7

Without an engine the tests are skipped, unless ZKBEAT_TEST_CONTAINERS=required.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import docker
import pytest
from docker.errors import DockerException

from tests.container.lab import (
    BUSY_S,
    LOGS,
    SERVE_TIMEOUT_S,
    SESSION_TIMEOUT_S,
    SMALL_JVM,
    ZOOKEEPER_IMAGE,
    Lab,
    Nodes,
    build_image,
    serves,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):  # noqa: ARG001 (the hook's signature)
    """Add the containers' logs to the report of a test that failed, also in its set-up."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for name, read in LOGS.items():
            try:
                text = read()
            except (DockerException, OSError) as error:
                text = f"no log: {error}"
            report.sections.append((f"log of {name}", text))


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """Return a client of the Docker engine, or skip (fail, where the environment requires containers)."""
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        reason = f"no Docker engine answers: {error}"
        if os.environ.get("ZKBEAT_TEST_CONTAINERS") == "required":
            pytest.fail(f"{reason} (ZKBEAT_TEST_CONTAINERS=required)")
        pytest.skip(reason)
    yield client
    client.close()


@pytest.fixture
def lab(engine) -> Iterator[Lab]:  # noqa: ARG001 (without an engine: skipped)
    """A network of the test's own."""
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def ensemble(engine) -> Iterator[Lab]:  # noqa: ARG001
    """Three ZooKeeper servers, zk1 to zk3, in a network that nodes can join."""
    lab = Lab()
    servers = " ".join(f"server.{n}=zk{n}:2888:3888;2181" for n in (1, 2, 3))
    try:
        boxes = [
            lab.start(
                f"zk{n}",
                ZOOKEEPER_IMAGE,
                env={
                    "ZOO_MY_ID": str(n),
                    "ZOO_SERVERS": servers,
                    "ZOO_4LW_COMMANDS_WHITELIST": "srvr",
                    "SERVER_JVMFLAGS": SMALL_JVM,
                },
            )
            for n in (1, 2, 3)
        ]
        for box in boxes:
            wait_until(lambda box=box: serves(box), SERVE_TIMEOUT_S, f"{box} serves", box.log, every_s=0.2)
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="session")
def zkbeat_image(engine) -> str:  # noqa: ARG001
    """Build compose/Dockerfile from this checkout and return the image's name."""
    try:
        return build_image()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def nodes(ensemble, zkbeat_image) -> Iterator[Nodes]:
    """An election of the test's own, with nobody in it yet."""
    nodes = Nodes(ensemble.network, zkbeat_image)
    yield nodes
    nodes.close()


@pytest.fixture
def trio(nodes) -> Nodes:
    """Three nodes in line, one of them leading."""
    for name in ("beat1", "beat2", "beat3"):
        nodes.start(name)
    nodes.elected(SESSION_TIMEOUT_S * 2 + BUSY_S)
    nodes.complete(3)
    return nodes
