"""Those who take part: how each is started on a node, and with which settings, its own and those that match.

Nothing is bent: `default` is what one gets without a word of configuration, `matched` is what somebody sets who has
read the documents and wants a dead leader noticed after 10 s, with the intervals that go with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from tests.bench import node as bench_node
from tests.bench.node import CELERY_BEAT, app_environment
from tests.support import nodes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).parent
SCRIPTS = Path(sysconfig.get_path("scripts"))

DEFAULT, MATCHED = "default", "matched"
SETTINGS = (DEFAULT, MATCHED)

PATIENCE_S = 40.0
"""How long to wait for another publisher where everybody has a timeout of 10 s."""

LONGEST_LOG = 4000


@dataclass(frozen=True)
class Place:
    """Where a node is to run, and what it shares with the others: store, broker, a name, a directory."""

    directory: Path
    shared: Path
    name: str
    store: str
    broker_url: str
    prefix: Sequence[str]


class Node(Protocol):
    """A node that was started; everything on it is found again, whatever becomes of it."""

    @property
    def sidecar(self) -> int:
        """The pid of the process that a supervisor would watch."""

    def start(self) -> None: ...

    def pids(self) -> list[int]: ...

    def logs(self) -> str: ...

    def kill_everything(self) -> None: ...


class PeerNode(nodes.Family):
    """A node of a peer: one command, and what it starts."""

    def __init__(self, place: Place, argv: Sequence[str], env: Mapping[str, str]) -> None:
        super().__init__({**app_environment(place.broker_url), **env})
        self._directory = place.directory
        self._argv = [*place.prefix, *argv]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def sidecar(self) -> int:
        if self._process is None:
            raise RuntimeError("the node was not started")
        return self._process.pid

    def logs(self) -> str:
        said = self._log.read_text(errors="backslashreplace") if self._log.exists() else "not started"
        return f"--- {self._directory.name}\n{said[-LONGEST_LOG:]}"

    def kill_everything(self) -> None:
        super().kill_everything()
        if self._process is not None:
            self._process.wait()

    @property
    def _log(self) -> Path:
        return self._directory / "log"


class Contestant(ABC):
    """One who takes part. `settings` says in words what is set in each of the two ways."""

    name: str
    label: str
    store: str
    in_process: bool = False
    settings: Mapping[str, str]

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def node(self, place: Place, setting: str) -> Node: ...

    def prepare(self, shared: Path) -> None:  # noqa: B027 - most share nothing
        """Make what all nodes of one election share, if there is anything."""

    def patience_s(self, setting: str, *, orderly: bool) -> float:  # noqa: ARG002 - most are equally quick
        """Return how long to wait for another publisher, after an orderly end or after another one."""
        return PATIENCE_S

    @property
    def has_matching_defaults(self) -> bool:
        return self.settings[DEFAULT] == self.settings[MATCHED]


class Zkbeat(Contestant):
    """zkbeat itself, as it comes."""

    name = "zkbeat"
    label = "zkbeat"
    store = "zookeeper"
    settings = dict.fromkeys(SETTINGS, "session timeout 10 s, lease 6.7 s, as it comes")
    options: Mapping[str, str] = MappingProxyType({})

    def version(self) -> str:
        return version("zkbeat")

    def node(self, place: Place, setting: str) -> Node:  # noqa: ARG002
        options = {"root": f"/{place.name}", **self.options}
        return bench_node.Node(place.directory, place.store, place.broker_url, options, place.prefix)


class ZkbeatPreload(Zkbeat):
    """The same with the app imported on the standby."""

    name = "zkbeat-preload"
    label = "zkbeat `--preload`"
    settings = dict.fromkeys(SETTINGS, "the same, with `--preload`")
    options = MappingProxyType({"preload": ""})


class SingleBeat(Contestant):
    """single-beat: a key in Redis, renewed every second by a sidecar."""

    name = "single-beat"
    label = "single-beat"
    store = "redis"
    settings = MappingProxyType(
        {
            DEFAULT: "lock 5 s (the first one 10 s), heartbeat 1 s",
            MATCHED: "`SINGLE_BEAT_LOCK_TIME=10` (the first one 20 s), heartbeat 1 s",
        }
    )

    def version(self) -> str:
        return version("single-beat")

    def node(self, place: Place, setting: str) -> Node:
        env = {"SINGLE_BEAT_REDIS_SERVER": f"redis://{place.store}/0", "SINGLE_BEAT_IDENTIFIER": place.name}
        if setting == MATCHED:
            env["SINGLE_BEAT_LOCK_TIME"] = "10"
        return PeerNode(place, [str(SCRIPTS / "single-beat"), *CELERY_BEAT], env)


class RedBeat(Contestant):
    """redbeat: a scheduler of celery's that keeps schedule and lock in Redis."""

    name = "redbeat"
    label = "redbeat"
    store = "redis"
    in_process = True
    settings = MappingProxyType(
        {
            DEFAULT: "lock 1500 s, which a standby looks at every 300 s",
            MATCHED: "`redbeat_lock_timeout=10`, `beat_max_loop_interval=1`: a standby looks every second",
        }
    )

    def version(self) -> str:
        return version("celery-redbeat")

    def node(self, place: Place, setting: str) -> Node:
        settings: dict[str, object] = {
            "redbeat_redis_url": f"redis://{place.store}/0",
            "redbeat_key_prefix": f"{place.name}:",
        }
        if setting == MATCHED:
            settings |= {"redbeat_lock_timeout": 10, "beat_max_loop_interval": 1}
        env = {"BENCH_SETTINGS": json.dumps(settings)}
        return PeerNode(place, [*CELERY_BEAT, "-S", "redbeat.RedBeatScheduler"], env)

    def patience_s(self, setting: str, *, orderly: bool) -> float:
        """A lock that was given up is seen within 300 s; one that has to expire takes too long to wait for."""
        if setting == MATCHED:
            return PATIENCE_S
        return 310.0 if orderly else 130.0


class MultiBeat(Contestant):
    """celery-multibeat-scheduler: a lock in Redis, the schedule in Django's database, as in its quick start."""

    name = "multibeat"
    label = "celery-multibeat-scheduler"
    store = "redis"
    in_process = True
    settings = MappingProxyType(
        {
            DEFAULT: "lock 60 s, renewed every 45 s, which a standby looks at every 30 s",
            MATCHED: "`multibeat_lock_timeout=10`, renewed every 7.5 s (its ratio), a standby looks every second"
            " (`multibeat_standby_ratio=0.1`, both minimums at 1 s)",
        }
    )

    def version(self) -> str:
        return version("celery-multibeat-scheduler")

    def prepare(self, shared: Path) -> None:
        """Make the database, as `manage.py migrate` does."""
        argv = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
        subprocess.run(argv, env={**os.environ, **_django(shared)}, check=True, timeout=60)

    def node(self, place: Place, setting: str) -> Node:
        settings: dict[str, object] = {
            "multibeat_url": f"redis://{place.store}/0",
            "multibeat_lock_key": f"{place.name}:lock",
        }
        if setting == MATCHED:
            settings |= {
                "multibeat_lock_timeout": 10,
                "multibeat_standby_ratio": 0.1,
                "multibeat_min_refresh_seconds": 1,
                "multibeat_min_standby_seconds": 1,
            }
        django = _django(place.shared)
        paths = f"{app_environment(place.broker_url)['PYTHONPATH']}{os.pathsep}{django['PYTHONPATH']}"
        env = {**django, "PYTHONPATH": paths, "BENCH_SETTINGS": json.dumps(settings)}
        return PeerNode(place, [*CELERY_BEAT, "-S", "multibeat.django:MultiBeatDatabaseScheduler"], env)

    def patience_s(self, setting: str, *, orderly: bool) -> float:  # noqa: ARG002
        """By default, a lock of 60 s, another 30 s until a standby looks, and 30 s until its beat wakes up."""
        return PATIENCE_S if setting == MATCHED else 130.0


def _django(shared: Path) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "django_settings",
        "BENCH_DATABASE": str(shared / "schedule.sqlite3"),
        "PYTHONPATH": str(HERE / "project"),
    }


class EtcdctlLock(Contestant):
    """`etcdctl lock`: a lock of etcd's, held while a command runs."""

    name = "etcdctl"
    label = "`etcdctl lock`"
    store = "etcd"
    settings = dict.fromkeys(SETTINGS, "`--ttl=10`, its default")

    def version(self) -> str:
        said = subprocess.run(["etcdctl", "version"], capture_output=True, text=True, check=True, timeout=10).stdout
        return said.splitlines()[0].rpartition(" ")[2]

    def node(self, place: Place, setting: str) -> Node:  # noqa: ARG002
        # Without the dashes it takes celery's options for its own.
        argv = ["etcdctl", f"--endpoints={place.store}", "lock", "--", place.name, *CELERY_BEAT]
        return PeerNode(place, argv, {"ETCDCTL_API": "3"})


class ByHand(Contestant):
    """kazoo's `Election`, by hand: see `by_hand`."""

    name = "by-hand"
    label = "kazoo's `Election`, by hand"
    store = "zookeeper"
    settings = dict.fromkeys(SETTINGS, "session timeout 10 s, kazoo's default")

    def version(self) -> str:
        return version("kazoo")

    def node(self, place: Place, setting: str) -> Node:  # noqa: ARG002
        argv = [sys.executable, str(HERE.parent / "by_hand.py"), place.store, f"/{place.name}", "10", *CELERY_BEAT]
        return PeerNode(place, argv, {})


def contestants() -> list[Contestant]:
    """Return all, zkbeat first; with `--preload` too where this zkbeat has it."""
    preload = [ZkbeatPreload()] if _has_preload() else []
    return [Zkbeat(), *preload, SingleBeat(), RedBeat(), MultiBeat(), EtcdctlLock(), ByHand()]


def _has_preload() -> bool:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([*nodes.SCRIPT, "--help"], capture_output=True, text=True, check=True, timeout=30)
        return "--preload" in said.stdout
    return False
