"""Two nodes of one election, one leading, and what comes out of them; many such clusters share the services."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError

from tests.bench import node as bench_node
from tests.bench.broker import RedisServer
from tests.bench.launcher.figures import Message, first_of_another
from tests.support import nodes
from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.client import stop_within
from zkbeat.core import record
from zkbeat.dev import Server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

HERE = Path(__file__).parent
PROJECT = HERE / "project"
TICK_MS = 500
"""The server's tickTime: half of the shortest session timeout is what it may be at most, here a quarter."""

DATABASES = 16
"""As many as a redis-server has: each cluster uses one of its own."""

SETTLES_WITHIN_S = 40.0
TAKES_OVER_WITHIN_S = 25.0

_ORIGIN = re.compile(r"gen(\d+)@")


@dataclass(frozen=True)
class Setup:
    """How the nodes of a cluster are set up. An option whose value is empty is a switch."""

    app: str = "trivial"
    options: Mapping[str, str] = field(default_factory=dict)
    by_hand: bool = False
    session_timeout_s: float = 10.0
    every_s: float = 0.05
    entries: int = 1
    due: bool = False
    """Whether each node begins with a schedule of which every entry is due; else without any."""

    @property
    def preload(self) -> bool:
        return "preload" in self.options

    def environment(self, broker_url: str, directory: Path) -> dict[str, str]:
        """Return what the app needs in its environment."""
        found = {
            "BENCH_BROKER": broker_url,
            "BENCH_EVERY_S": str(self.every_s),
            "BENCH_ENTRIES": str(self.entries),
            "PYTHONPATH": str(PROJECT),
        }
        if self.app == "django":
            found |= {"DJANGO_SETTINGS_MODULE": "django_settings", "BENCH_DATABASE": str(directory / "db.sqlite3")}
        return found


class Services:
    """A ZooKeeper and a Redis for all clusters of a run."""

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self._serials = itertools.count(1)
        self.over = threading.Event()
        """Set when one is to stop after the round that is being done; what was measured till then is kept."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # Short: the path of a Unix socket in it may have 100 bytes.
            self.directory = Path(tempfile.mkdtemp(prefix="zkl-"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.zookeeper = stack.enter_context(Server(self.directory / "zk", tick_ms=TICK_MS))
            self.redis = stack.enter_context(RedisServer(self.directory / "redis"))
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def version(self) -> str:
        """ZooKeeper's."""
        found = re.search(r"version: ([\d.]+)", self.zookeeper.ask("srvr"))
        return found[1] if found else "unknown"

    def cluster(self, setup: Setup, database: int) -> Cluster:
        """Return a cluster of its own, of new nodes; no other one that lives may have this database of Redis."""
        name = f"n{next(self._serials)}"
        return Cluster(self, setup, name, f"redis://{self.redis.hosts}/{database}")

    def due_at_once(self, setup: Setup) -> Path:
        """Return a directory with a schedule of which every entry is due."""
        directory = self.directory / f"due-{setup.app}-{setup.every_s:g}"
        if not directory.exists():
            directory.mkdir()
            env = nodes.environment(setup.environment("memory://", directory))
            argv = [sys.executable, str(PROJECT / "prepare.py")]
            subprocess.run(argv, cwd=directory, env=env, check=True, timeout=120)
        return directory


class Queue:
    """Takes each message as it comes, oldest first; `messages` grows."""

    def __init__(self, url: str) -> None:
        self.messages: list[Message] = []
        self._client = redis.Redis.from_url(url)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._consume, name="queue", daemon=True)

    def __enter__(self) -> Self:
        self._client.flushdb()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()

    def _consume(self) -> None:
        while not self._over.is_set():
            popped = self._client.brpop(["celery"], timeout=1)
            at = clock.now()
            if popped is None:
                continue
            headers = json.loads(popped[1])["headers"]
            origin = _ORIGIN.match(headers["origin"])
            epoch = headers.get("zkbeat-epoch")
            self.messages.append(Message(at, int(origin[1]) if origin else 0, int(epoch) if epoch else None))


class Node(bench_node.Node):
    """A node that runs zkbeat."""

    def __init__(self, directory: Path, hosts: str, broker_url: str, name: str, setup: Setup) -> None:
        options = {"root": f"/{name}", "session-timeout": f"{setup.session_timeout_s:g}", **setup.options}
        super().__init__(directory, hosts, broker_url, options)
        self.env |= setup.environment(broker_url, directory)
        self._preload = setup.preload

    def stands_by(self) -> bool:
        """Whether it could take over, with all that was asked for."""
        said = self.health() or {}
        parked = not self._preload or said.get("preloaded", {}).get("is") == "waiting"
        return bool(said.get("ready")) and said.get("state") == "standby" and parked


class ByHand(nodes.Family):
    """A node that runs kazoo's recipe."""

    def __init__(self, directory: Path, hosts: str, broker_url: str, name: str, setup: Setup) -> None:
        super().__init__(setup.environment(broker_url, directory))
        self.directory = directory
        script = [sys.executable, str(HERE.parent / "by_hand.py"), hosts, f"/{name}", f"{setup.session_timeout_s:g}"]
        self._argv = [*script, *bench_node.CELERY_BEAT]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._process = subprocess.Popen(self._argv, cwd=self.directory, env=self.env, **streams)

    def stands_by(self) -> bool:
        """It does not say: that it is in the line has to do."""
        return self._process is not None and self._process.poll() is None

    def kill_everything(self) -> None:
        super().kill_everything()
        if self._process is not None:
            self._process.wait()

    def logs(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-4000:]


class Cluster:
    """Two nodes; round by round, one leads and the other takes over from it."""

    def __init__(self, services: Services, setup: Setup, name: str, broker_url: str) -> None:
        self.setup = setup
        self._services = services
        self._directory = services.directory / name
        hosts = services.zookeeper.hosts
        kind: type[Node | ByHand] = ByHand if setup.by_hand else Node
        self.nodes = [kind(self._directory / f"{i + 1}", hosts, broker_url, name, setup) for i in range(2)]
        self.queue = Queue(broker_url)
        self.election = f"/{name}" if setup.by_hand else f"/{name}/{bench_node.NAME}/election"
        self.client = KazooClient(hosts=hosts)
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            stack.enter_context(self.queue)
            stack.callback(stop_within, self.client, 2.0)
            self.client.start(timeout=15)
            for node in self.nodes:
                stack.callback(node.kill_everything)
                if self.setup.due:
                    self.make_due(node)
                node.start()
                wait_until(self.line, SETTLES_WITHIN_S, "the first to be in the line", self.logs)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def messages(self) -> list[Message]:
        """What has come so far."""
        return list(self.queue.messages)

    def line(self) -> list[str]:
        """Return the znodes of those in the line, the leader's first."""
        with contextlib.suppress(NoNodeError):
            found = self.client.get_children(self.election)
            if self.setup.by_hand:  # kazoo's lock: a uuid, then `__lock__` and the number
                return sorted(found, key=lambda name: name.rpartition("__")[2])
            return record.line(found)
        return []

    def leading(self) -> Node | ByHand | None:
        """Return the node that leads with a beat, if there is one and the other is ready to take over."""
        if len(self.line()) != len(self.nodes):
            return None
        for node, other in itertools.permutations(self.nodes):
            if other.stands_by() and self._publishes(node):
                return node
        return None

    def _publishes(self, node: Node | ByHand) -> bool:
        if isinstance(node, Node):
            said = node.health() or {}
            pid = said.get("child") if said.get("leader") else None
        else:
            pid = self.messages[-1].pid if self.messages else None
            pid = pid if pid in node.pids() else None
        return pid is not None and any(message.pid == pid for message in self.messages[-200:])

    def settle(self) -> tuple[Any, Any, Message]:
        """Wait until one leads, has ticked, and the other stands by; return both, and the leader's last message."""
        leader = wait_until(self.leading, SETTLES_WITHIN_S, "one to lead, one to stand by", self.logs, every_s=0.1)
        standby = next(node for node in self.nodes if node is not leader)
        return leader, standby, self.messages[-1]

    def first_of_another(self, than: int, since: float) -> Message:
        """Wait for the first message that this process did not publish."""
        return wait_until(
            lambda: first_of_another(self.messages, than, since),
            TAKES_OVER_WITHIN_S,
            "a message of another",
            self.logs,
        )

    def make_due(self, node: Node | ByHand) -> None:
        """Give this node, whose beat does not run, a schedule of which every entry is due."""
        node.directory.mkdir(parents=True, exist_ok=True)
        for path in self._services.due_at_once(self.setup).iterdir():
            shutil.copy(path, node.directory / path.name)

    def watch_leaders_znode(self) -> Gone:
        """Note when it goes."""
        return Gone(self.client, f"{self.election}/{self.line()[0]}")

    def logs(self) -> str:
        return "\n".join([*(node.logs()[-6000:] for node in self.nodes), f"line: {self.line()}"])


class Gone:
    """Notes when a znode goes; `at` is None until then."""

    def __init__(self, client: KazooClient, path: str) -> None:
        self.at: float | None = None
        self.path = path
        self._client = client
        self._look()

    def _look(self, _event: object = None) -> None:
        at = clock.now()
        with contextlib.suppress(KazooException):
            if self._client.exists(self.path, self._look) is None and self.at is None:
                self.at = at


def last_child_start(node: Node, since: float) -> tuple[float, float] | None:
    """Return when the node was elected and when its child had started, the first time since then; by its log."""
    for said in node.events("leading"):
        if said["at"] > since:
            return said["at"] - said["elected_to_started_s"], said["at"]
    return None


def freeze_order(pids: Sequence[int], publisher: int) -> list[int]:
    """Return who is stopped and continued first: the publisher, then the youngest. At the thaw, the worst order."""
    return [publisher, *(pid for pid in sorted(pids, reverse=True) if pid != publisher)]


def load() -> float:
    """Return the machine's load average of the last minute."""
    return round(os.getloadavg()[0], 2)
