"""A Redis broker of our own, and the monitor that notes each message that is published to it."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis

from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.dev import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

QUEUE = "celery"

# celery.utils.nodenames.anon_nodename: who published a message says so in its `origin` header.
_ORIGIN = re.compile(r"gen(\d+)@")


@dataclass(frozen=True)
class Tick:
    """A message: when it arrived (CLOCK_BOOTTIME), and the pid of the process that published it."""

    at: float
    pid: int


class Broker:
    """A redis-server, with its monitor; `ticks` grows as messages arrive."""

    def __init__(self, directory: Path, ip: str = "127.0.0.1") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ticks: list[Tick] = []
        self._ip, self._port = ip, free_ports(1, ip)[0]
        self._over = threading.Event()
        options = {"bind": ip, "port": self._port, "protected-mode": "no", "save": "", "dir": directory}
        argv = ["redis-server", *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
        with (directory / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, start_new_session=True)
        self._monitor = threading.Thread(target=self._consume, name="monitor", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://{self._ip}:{self._port}/0"

    def first_of_another(self, than: int, since: float) -> Tick | None:
        """Return the first message since then that this process did not publish."""
        return next((tick for tick in self.ticks if tick.at >= since and tick.pid != than), None)

    def of(self, pid: int) -> list[Tick]:
        return [tick for tick in self.ticks if tick.pid == pid]

    def __enter__(self) -> Self:
        try:
            wait_until(self._serves, 10, "redis-server to serve")
        except BaseException:
            self._process.kill()
            raise
        self._monitor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._monitor.join()
        self._process.kill()
        self._process.wait()

    def _serves(self) -> bool:
        with redis.Redis(self._ip, self._port) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def _consume(self) -> None:
        with redis.Redis(self._ip, self._port) as client:
            while not self._over.is_set():
                popped = client.blpop([QUEUE], timeout=1)
                at = clock.now()
                if popped is not None:
                    origin = _ORIGIN.match(json.loads(popped[1])["headers"]["origin"])
                    self.ticks.append(Tick(at, int(origin[1]) if origin else 0))
