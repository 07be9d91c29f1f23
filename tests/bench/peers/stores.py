"""The stores that leadership is kept in, each on a host of its own, so that a node can be cut off from it alone."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Protocol

from tests.bench.broker import RedisServer
from tests.support.waiting import wait_until
from zkbeat.dev import Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

    from tests.support.net import Host

REDIS_PORT = 6379
ZOOKEEPER_PORT = 2181
ETCD_PORT = 2379

TICK_MS = 2000
"""ZooKeeper's default."""


class Store(Protocol):
    """A server that a contestant keeps its leadership in."""

    @property
    def hosts(self) -> str:
        """Its address, `host:port`."""

    def suspend(self) -> None:
        """Freeze it."""

    def resume(self) -> None:
        """Thaw it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Etcd:
    """One etcd server."""

    def __init__(self, directory: Path, host: Host) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.hosts = f"{host.ip}:{ETCD_PORT}"
        url = f"http://{self.hosts}"
        options = {
            "data-dir": directory / "data",
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": f"http://{host.ip}:2380",
            "initial-advertise-peer-urls": f"http://{host.ip}:2380",
            "initial-cluster": f"default=http://{host.ip}:2380",
        }
        argv = [*host.exec_prefix, "etcd", *(f"--{key}={value}" for key, value in options.items())]
        with (directory / "etcd.log").open("wb") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def suspend(self) -> None:
        """Freeze it."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw it."""
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            wait_until(self._serves, 20, "etcd to serve", every_s=0.2)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _serves(self) -> bool:
        ask = ["etcdctl", f"--endpoints={self.hosts}", "endpoint", "health"]
        return subprocess.run(ask, capture_output=True, check=False, timeout=10).returncode == 0


def _redis(directory: Path, host: Host) -> Store:
    return RedisServer(directory, host.ip, port=REDIS_PORT, prefix=host.exec_prefix)


def _zookeeper(directory: Path, host: Host) -> Store:
    return Server(directory, tick_ms=TICK_MS, port=ZOOKEEPER_PORT, bind=host.ip, prefix=host.exec_prefix)


STORES: dict[str, Callable[[Path, Host], Store]] = {"redis": _redis, "zookeeper": _zookeeper, "etcd": Etcd}
