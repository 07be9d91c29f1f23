"""Redis servers of our own; one is the broker, with a monitor that notes each message that is published to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import redis

from tests.bench.figures import Tick, first_of_another
from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.dev import free_ports

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typing_extensions import Self

QUEUE = "celery"

# celery.utils.nodenames.anon_nodename: who published a message says so in its `origin` header.
_ORIGIN = re.compile(r"gen(\d+)@")


class RedisServer:
    """A redis-server that keeps nothing on disk; on a host of a Lan with that host's `prefix` and a `port`."""

    def __init__(self, directory: Path, ip: str = "127.0.0.1", *, port: int = 0, prefix: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._ip, self._port = ip, port or free_ports(1, ip)[0]
        options = {"bind": ip, "port": self._port, "protected-mode": "no", "save": "", "dir": directory}
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        with (directory / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*prefix, "redis-server", *words], stdin=subprocess.DEVNULL, stdout=log, start_new_session=True
            )

    @property
    def hosts(self) -> str:
        """Its address, `host:port`."""
        return f"{self._ip}:{self._port}"

    @property
    def url(self) -> str:
        return f"redis://{self.hosts}/0"

    def suspend(self) -> None:
        """Freeze it."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw it."""
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            wait_until(self._serves, 10, "redis-server to serve")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _serves(self) -> bool:
        with redis.Redis(self._ip, self._port) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


class Broker(RedisServer):
    """The broker, with its monitor; `ticks` grows as messages arrive."""

    def __init__(self, directory: Path, ip: str = "127.0.0.1") -> None:
        super().__init__(directory, ip)
        self.ticks: list[Tick] = []
        self._over = threading.Event()
        self._monitor = threading.Thread(target=self._consume, name="monitor", daemon=True)

    def first_of_another(self, than: int, since: float) -> Tick | None:
        """Return the first message since then that this process did not publish."""
        return first_of_another(self.ticks, than, since)

    def of(self, pid: int) -> list[Tick]:
        return [tick for tick in self.ticks if tick.pid == pid]

    def __enter__(self) -> Self:
        super().__enter__()
        self._monitor.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._monitor.join()
        super().__exit__(*error)

    def _consume(self) -> None:
        with redis.Redis(self._ip, self._port) as client:
            while not self._over.is_set():
                popped = client.blpop([QUEUE], timeout=1)
                at = clock.now()
                if popped is not None:
                    origin = _ORIGIN.match(json.loads(popped[1])["headers"]["origin"])
                    self.ticks.append(Tick(at, int(origin[1]) if origin else 0))
