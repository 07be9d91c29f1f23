"""What the container tests are made of: containers in a network, nodes of an election, and their names and times.

Its one job: start real containers and look at them from outside. What they must show is the tests' to say.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read at testcontainers' import. Its reaper is an image to be pulled, and the fixtures clean up themselves.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

import docker
from docker.errors import BuildError
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CHECKOUT = Path(__file__).resolve().parents[2]

ZOOKEEPER_IMAGE = os.environ.get("ZKBEAT_TEST_ZOOKEEPER_IMAGE", "zookeeper:3.9")
PYTHON_IMAGE = os.environ.get("ZKBEAT_TEST_PYTHON_IMAGE", "python:3.12-slim")
REDIS_IMAGE = os.environ.get("ZKBEAT_TEST_REDIS_IMAGE", "redis:7")

SESSION_TIMEOUT_S = 6.0
LEASE_S = SESSION_TIMEOUT_S * 2 / 3
STOP_TIMEOUT_S = 3.0
BUSY_S = 3.0
"""What a step may take longer than on an idle machine: a few containers share two cores here."""

SERVE_TIMEOUT_S = 60.0
LOG_LINES = 60
"""Of each container, when a test fails."""

SMALL_JVM = "-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"


def holds(predicate: Callable[[], bool], for_s: float, what: str) -> None:
    """Fail unless `predicate` is true at every look for that long."""
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        if not predicate():
            raise AssertionError(f"did not hold for {for_s:g} s: {what}")
        time.sleep(0.1)


LOGS: dict[str, Callable[[], str]] = {}
"""What to print of the containers that exist now, by their names, when a test fails."""


class Box:
    """One running container, under the name that it has in its network."""

    def __init__(self, name: str, container: DockerContainer) -> None:
        self.name = name
        self.testcontainer = container
        self.docker = container.get_wrapped_container()

    def __repr__(self) -> str:
        return self.name

    def log(self) -> str:
        return self.docker.logs(tail=LOG_LINES).decode(errors="replace")

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command in the container and return its exit code and its standard output."""
        code, (out, _err) = self.docker.exec_run(list(command), demux=True)
        return code, (out or b"").decode(errors="replace")

    def processes(self) -> list[tuple[int, str, str]]:
        """Return (pid seen from the host, state, command line) of the container's processes, but no zombies."""
        rows = self.docker.top(ps_args="-eo pid,stat,args")["Processes"] or []
        return [(int(pid), stat, args) for pid, stat, args in rows]

    def left_to_pid_1(self) -> list[tuple[str, str]]:
        """Return (name, state) of the children of PID 1 in the container, zombies too: Docker's own list lacks them."""
        _code, out = self.run("sh", "-c", "cat /proc/[0-9]*/stat")
        found = re.findall(r"^\d+ \((.*)\) (\S) 1 ", out, re.MULTILINE)
        return [(name, state) for name, state in found]

    def state(self) -> dict[str, Any]:
        self.docker.reload()
        return self.docker.attrs["State"]

    @property
    def running(self) -> bool:
        return self.state()["Status"] == "running"


class Lab:
    """Containers that share a network: another lab's, or one of their own that is gone with them."""

    def __init__(self, network: Network | None = None) -> None:
        self._stack = ExitStack()
        self.network = network or self._stack.enter_context(Network())

    def start(
        self,
        name: str,
        image: str,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        ports: Sequence[int] = (),
        **options: Any,
    ) -> Box:
        container = DockerContainer(image, network=self.network, network_aliases=[name], hostname=name, **options)
        container.with_envs(**(env or {})).with_exposed_ports(*ports)
        if command:
            container.with_command(list(command))
        box = Box(name, self._stack.enter_context(container))
        LOGS[name] = box.log
        self._stack.callback(LOGS.pop, name, None)
        return box

    def close(self) -> None:
        self._stack.close()


def build_image() -> str:
    """Build compose/Dockerfile from this checkout and return the image's name. Raises RuntimeError with the log."""
    tag = "zkbeat-test/zkbeat:under-test"
    client = docker.from_env()
    try:
        client.images.build(
            path=str(CHECKOUT),
            dockerfile="compose/Dockerfile",
            tag=tag,
            buildargs={"BASE": PYTHON_IMAGE},
            rm=True,
            forcerm=True,
        )
    except BuildError as error:
        tail = "".join(line.get("stream", line.get("error", "")) for line in error.build_log)
        hint = "where the build reaches no package index, compose/wheelhouse.sh must have run"
        raise RuntimeError(f"compose/Dockerfile does not build ({hint}):\n{tail[-4000:]}") from None
    finally:
        client.close()
    return tag


def serves(zookeeper: Box) -> bool:
    """Say whether a server answers and has a quorum, by its four letter word."""
    ask = "exec 3<>/dev/tcp/127.0.0.1/2181 && echo srvr >&3 && cat <&3"
    return "Mode: " in zookeeper.run("bash", "-c", ask)[1]


class Nodes:
    """The zkbeat containers of one election, and what can be seen of them from outside."""

    CHILD = ("sleep", "infinity")

    def __init__(self, network: Network, image: str) -> None:
        self._lab = Lab(network)
        self._image = image
        self.election = f"test-{uuid.uuid4().hex[:8]}"
        self.all: list[Box] = []

    def start(self, name: str, *command: str, **options: Any) -> Box:
        env = {
            "ZKBEAT_HOSTS": "zk1:2181,zk2:2181,zk3:2181",
            "ZKBEAT_NAME": self.election,
            "ZKBEAT_SESSION_TIMEOUT": f"{SESSION_TIMEOUT_S:g}",
            "ZKBEAT_STOP_TIMEOUT": f"{STOP_TIMEOUT_S:g}",
        }
        box = self._lab.start(name, self._image, command=("--", *(command or self.CHILD)), env=env, **options)
        self.all.append(box)
        return box

    def close(self) -> None:
        self._lab.close()

    def leaders(self) -> list[Box]:
        """Return the nodes that say themselves that they lead."""
        return [box for box in self.all if box.running and box.run("zkbeat", "health", "--leader")[0] == 0]

    def status(self) -> dict[str, Any]:
        """Return what ZooKeeper says of the election, asked from a node that runs; {} when that has no answer."""
        asked = next(box for box in self.all if box.running)
        _code, out = asked.run("zkbeat", "status", "--json")
        try:
            return json.loads(out)
        except ValueError:
            return {}

    def members(self) -> int:
        return len(self.status().get("members") or [])

    def children(self, box: Box) -> list[int]:
        """Return the host's pids of the living children in a node, the command line being exactly the child's."""
        wanted = " ".join(self.CHILD)
        return [pid for pid, stat, args in box.processes() if args == wanted and not stat.startswith("Z")]

    def where_it_runs(self) -> list[Box]:
        """Return a node for each living child, so one that has two twice."""
        return [box for box in self.all if box.state()["Running"] for _ in self.children(box)]

    def elected(self, timeout_s: float, *, but: Box | None = None) -> Box:
        """Wait for the one leader, another than `but`, and return it."""

        def one() -> Box | None:
            leaders = self.leaders()
            return leaders[0] if len(leaders) == 1 and leaders[0] is not but else None

        return wait_until(one, timeout_s, f"one leader (not {but})", self.leaders, every_s=0.1)

    def complete(self, count: int) -> None:
        """Wait until that many stand in line."""
        what = f"{count} members in line"
        wait_until(lambda: self.members() == count, SESSION_TIMEOUT_S * 2 + BUSY_S, what, self.status, every_s=0.3)
