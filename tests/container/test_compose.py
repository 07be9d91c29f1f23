"""zkbeat in containers: the images, an election between containers, and compose.yaml."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from kazoo.client import KazooClient

from tests.container import lab as tier
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.container

ZOOKEEPER_IMAGES = os.environ.get("ZKBEAT_TEST_ZOOKEEPER_IMAGES", tier.ZOOKEEPER_IMAGE).split(",")

# --- the images ----------------------------------------------------------------------


@pytest.mark.parametrize("image", ZOOKEEPER_IMAGES)
def test_a_zookeeper_image_serves_the_host(lab, image):
    box = lab.start("zk", image, ports=[2181], env={"SERVER_JVMFLAGS": tier.SMALL_JVM})
    wait_until(lambda: tier.serves(box), tier.SERVE_TIMEOUT_S, f"{image} serves", box.log, every_s=0.2)
    host, port = box.testcontainer.get_container_host_ip(), box.testcontainer.get_exposed_port(2181)
    client = KazooClient(hosts=f"{host}:{port}")
    try:
        client.start(timeout=tier.SERVE_TIMEOUT_S)
        client.create("/greeting", b"hello", ephemeral=True)
        data, stat = client.get("/greeting")
    finally:
        client.stop()
        client.close()
    assert data == b"hello"
    assert stat.ephemeralOwner != 0


def test_the_zkbeat_image_runs_it_unprivileged_as_its_entry_point(engine, zkbeat_image):
    config = engine.images.get(zkbeat_image).attrs["Config"]
    assert config["Entrypoint"] == ["zkbeat"]
    assert config["User"] == "zkbeat"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "zkbeat", "health"]
    look = ["-c", "id -u; stat -c '%a %U' /run/zkbeat; test -w /app; test -w /run/zkbeat; celery --version"]
    out = engine.containers.run(zkbeat_image, look, entrypoint=["sh", "-e"], remove=True).decode().splitlines()
    assert out[:2] == ["10001", "700 zkbeat"]


# --- an election between containers ----------------------------------------------------


def test_three_nodes_have_one_leader_and_one_child(trio):
    leader = trio.elected(tier.BUSY_S)
    status = trio.status()
    assert status["leader"]["id"].startswith(leader.name)
    assert status["leader"]["epoch"] > 0
    tier.holds(lambda: trio.where_it_runs() == [leader], 2, "the leader's child is the only one")


def test_when_the_leaders_container_is_killed_another_takes_over_and_it_may_come_back(trio):
    old = trio.elected(tier.BUSY_S)
    epoch = trio.status()["leader"]["epoch"]
    old.docker.kill()
    new = trio.elected(tier.LEASE_S + tier.BUSY_S, but=old)
    assert trio.status()["leader"]["epoch"] > epoch
    assert trio.where_it_runs() == [new]
    old.docker.start()
    trio.complete(3)
    assert trio.elected(tier.BUSY_S) is new
    tier.holds(lambda: trio.where_it_runs() == [new], 1, "the node that came back only stands by")


def test_a_leaders_container_paused_for_longer_than_its_lease_does_not_go_on_when_thawed(trio):
    old = trio.elected(tier.BUSY_S)
    stale = trio.children(old)
    old.docker.pause()
    try:
        new = trio.elected(tier.LEASE_S + tier.BUSY_S, but=old)
        assert trio.children(new)
    finally:
        old.docker.unpause()
    wait_until(lambda: not set(stale) & set(trio.children(old)), tier.BUSY_S, "the stale child is dead", old.log)
    trio.complete(3)
    assert trio.elected(tier.BUSY_S) is new
    tier.holds(lambda: trio.where_it_runs() == [new], 2, "one child after the thaw")


def test_as_pid_1_zkbeat_reaps_what_is_re_parented_to_it(nodes):
    box = nodes.start("beat1")
    nodes.elected(tier.SESSION_TIMEOUT_S * 2 + tier.BUSY_S)
    assert "zkbeat" in box.run("cat", "/proc/1/cmdline")[1]
    # The shell ends at once and leaves three processes to PID 1, which end a little later. (Without a hold on
    # its output: Docker's exec would wait for that.)
    code, _out = box.run("sh", "-c", "for n in 1 2 3; do sleep 0.7 >/dev/null 2>&1 & done; exit 0")
    assert code == 0

    def orphans() -> list[tuple[str, str]]:
        return [(name, state) for name, state in box.left_to_pid_1() if name == "sleep"]

    wait_until(orphans, tier.BUSY_S, "orphans are there to be reaped", box.processes)
    wait_until(lambda: not orphans(), tier.BUSY_S, "the orphans are reaped", orphans)
    assert nodes.leaders() == [box]


def test_docker_stop_ends_in_time_with_code_0_and_hands_over_at_once(trio):
    old = trio.elected(tier.BUSY_S)
    began = time.monotonic()
    old.docker.stop(timeout=20)
    assert time.monotonic() - began < tier.BUSY_S
    assert old.state()["ExitCode"] == 0
    trio.elected(tier.BUSY_S, but=old)  # less than the lease: it did not have to run out
    assert trio.members() == 2


def test_docker_stop_ends_in_time_though_the_child_ignores_the_signal(nodes):
    box = nodes.start("beat1", "sh", "-c", "trap '' TERM; while :; do sleep 0.2; done")
    nodes.elected(tier.SESSION_TIMEOUT_S * 2 + tier.BUSY_S)
    began = time.monotonic()
    box.docker.stop(timeout=20)
    assert time.monotonic() - began < tier.STOP_TIMEOUT_S + tier.BUSY_S
    assert box.state()["ExitCode"] == 0


# --- compose.yaml ----------------------------------------------------------------------

TICK_LIMIT_S = 40.0
"""Until three more ticks reached the broker: a lease of 6.7 s, celery's start, and connections made anew."""


class Stack:
    """compose.yaml, started with whichever compose this machine has."""

    FILE = tier.CHECKOUT / "compose" / "compose.yaml"
    NODES = ("beat1", "beat2", "beat3")

    def __init__(self, command: list[str]) -> None:
        self._project = f"zkbeat-test-{uuid.uuid4().hex[:8]}"
        self._command = [*command, "-f", str(self.FILE), "-p", self._project]
        self._env = {
            **os.environ,
            "ZOOKEEPER_IMAGE": tier.ZOOKEEPER_IMAGE,
            "REDIS_IMAGE": tier.REDIS_IMAGE,
            "PYTHON_IMAGE": tier.PYTHON_IMAGE,
            "ZKBEAT_IMAGE": "zkbeat-test/zkbeat:compose",
        }

    def compose(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run compose and return its standard output; fail with all that it said."""
        done = self.attempt(*arguments, timeout_s=timeout_s)
        if done.returncode != 0:
            said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            raise AssertionError(f"compose {' '.join(arguments)} ended with {done.returncode}:\n{said}")
        return done.stdout

    def attempt(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def container(self, engine, service: str):
        labels = [f"com.docker.compose.project={self._project}", f"com.docker.compose.service={service}"]
        (found,) = engine.containers.list(all=True, filters={"label": labels})
        return found

    def log(self, service: str) -> str:
        return self.attempt("logs", "--no-color", "--tail", str(tier.LOG_LINES), service).stdout


class Watch:
    """What can be seen of a running stack from outside."""

    def __init__(self, stack: Stack, engine) -> None:
        self.stack = stack
        self._engine = engine

    def run(self, service: str, *command: str) -> tuple[int, str]:
        """Run a command in a service's container; (-1, "") when that does not run."""
        container = self.stack.container(self._engine, service)
        if container.status != "running":
            return -1, ""
        code, (out, _err) = container.exec_run(list(command), demux=True)
        return code, (out or b"").decode(errors="replace")

    def ticks(self) -> int:
        """Return how many messages were put on a list of the broker since it started: celery sends by LPUSH."""
        for line in self.run("redis", "redis-cli", "info", "commandstats")[1].splitlines():
            if line.startswith("cmdstat_lpush:calls="):
                return int(line.partition("=")[2].partition(",")[0])
        return 0

    def waiting(self) -> int:
        """Return how many ticks no worker has taken yet; -1 when the broker does not say."""
        out = self.run("redis", "redis-cli", "llen", "celery")[1].strip()
        return int(out) if out.isdigit() else -1

    def leaders(self) -> list[str]:
        return [name for name in Stack.NODES if self.run(name, "zkbeat", "health", "--leader")[0] == 0]

    def serves(self, server: str) -> bool:
        ask = "exec 3<>/dev/tcp/127.0.0.1/2181 && echo srvr >&3 && cat <&3"
        return "Mode: " in self.run(server, "bash", "-c", ask)[1]

    def healthy(self, name: str) -> bool:
        return self.stack.container(self._engine, name).attrs["State"]["Health"]["Status"] == "healthy"

    def more_ticks(self, what: str) -> None:
        """Wait until three more than now have reached the broker."""
        before = self.ticks()
        wait_until(lambda: self.ticks() >= before + 3, TICK_LIMIT_S, f"three more ticks {what}", every_s=0.3)

    def one_leader(self) -> str:
        def only() -> str | None:
            leaders = self.leaders()
            return leaders[0] if len(leaders) == 1 else None

        return wait_until(only, TICK_LIMIT_S, "one leader", self.leaders, every_s=0.3)


@pytest.fixture(scope="module")
def stack(engine) -> Iterator[Watch]:
    """Bring compose.yaml up once, for all the tests below, and take it down with its volumes."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        command = ["docker", "compose"]
    elif shutil.which("docker-compose"):
        command = ["docker-compose"]
    elif os.environ.get("ZKBEAT_TEST_CONTAINERS") == "required":
        pytest.fail("neither `docker compose` nor docker-compose is installed (ZKBEAT_TEST_CONTAINERS=required)")
    else:
        pytest.skip("neither `docker compose` nor docker-compose is installed")
    stack = Stack(command)
    services = ("zk1", "zk2", "zk3", "redis", *Stack.NODES, "worker")
    for service in services:
        tier.LOGS[service] = lambda service=service: stack.log(service)
    try:
        stack.compose("up", "-d", "--build", timeout_s=280.0)
        yield Watch(stack, engine)
    finally:
        stack.attempt("down", "-v", "--remove-orphans", timeout_s=120.0)
        for service in services:
            tier.LOGS.pop(service, None)


def test_compose_starts_an_ensemble_a_leader_and_ticks_that_a_worker_does(stack):
    stack.one_leader()
    stack.more_ticks("after the start")
    wait_until(
        lambda: "tasks.tick" in stack.stack.log("worker") and "succeeded" in stack.stack.log("worker"),
        TICK_LIMIT_S,
        "the worker did a tick",
        lambda: stack.stack.log("worker"),
        every_s=1,
    )
    for name in Stack.NODES:
        wait_until(lambda name=name: stack.healthy(name), TICK_LIMIT_S, f"{name} is healthy", every_s=0.5)


@pytest.mark.parametrize("service", ["zk1", "zk2", "zk3", *Stack.NODES, "worker", "redis"])
def test_compose_survives_the_kill_of_any_one_container(stack, service):
    stack.one_leader()
    stack.stack.compose("kill", service)
    if service != "redis":
        stack.more_ticks(f"without {service}")
    stack.stack.compose("up", "-d", "--no-build")
    if service.startswith("zk"):
        wait_until(lambda: stack.serves(service), TICK_LIMIT_S, f"{service} serves again", every_s=0.3)
    if service in Stack.NODES:
        what = f"{service} stands in line again"
        wait_until(lambda: stack.run(service, "zkbeat", "health", "--ready")[0] == 0, TICK_LIMIT_S, what, every_s=0.3)
    stack.more_ticks(f"with {service} back")
    wait_until(lambda: 0 <= stack.waiting() <= 2, TICK_LIMIT_S, "the worker has caught up", stack.waiting, every_s=0.3)
    stack.one_leader()


def test_compose_restarts_a_node_that_crashed(stack, engine):
    """`docker kill` counts as an operator's decision; a crash is a SIGKILL that did not come from Docker."""
    leader = stack.one_leader()
    container = stack.stack.container(engine, leader)
    pid = container.attrs["State"]["Pid"]
    engine.containers.run(
        tier.PYTHON_IMAGE,
        ["python", "-c", f"import os, signal; os.kill({pid}, signal.SIGKILL)"],
        pid_mode="host",
        remove=True,
    )
    wait_until(
        lambda: stack.stack.container(engine, leader).attrs["RestartCount"] == 1, TICK_LIMIT_S, f"{leader} is restarted"
    )
    stack.more_ticks(f"after {leader} crashed")
    stack.one_leader()
