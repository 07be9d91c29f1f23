"""Brokers of the tests' own, which may be frozen: a redis-server and a RabbitMQ."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp
import redis

from tests.support.waiting import wait_until
from zkbeat.dev import free_ports

if TYPE_CHECKING:
    from typing_extensions import Self

QUEUE = "celery"
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Not the one in the PATH, which changes to the user rabbitmq and the system's own node."""


@dataclass(frozen=True)
class Message:
    """What beat has sent."""

    headers: dict[str, Any]
    body: Any

    @property
    def task(self) -> str:
        return str(self.headers["task"])

    @property
    def due(self) -> datetime:
        """The due time in the tick's id."""
        name, _, due = self.headers["zkbeat-tick"].rpartition("@")
        assert name == self.task
        return datetime.fromisoformat(due)


class Redis:
    """A redis-server; messages stay in its list until `forget`."""

    driver = "redis"

    def __init__(self, directory: Path, bind: str = "127.0.0.1") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._bind = bind
        self._port = free_ports(1, bind)[0]
        self.url = f"redis://{bind}:{self._port}/0"
        self.client = redis.Redis(host=bind, port=self._port, decode_responses=True)
        self._start()

    def messages(self) -> list[Message]:
        """Return what was sent, in order."""
        found = [json.loads(text) for text in reversed(self.client.lrange(QUEUE, 0, -1))]
        return [Message(one["headers"], json.loads(base64.b64decode(one["body"]))) for one in found]

    def count(self) -> int:
        return int(self.client.llen(QUEUE))

    def forget(self) -> None:
        """Begin anew."""
        self.client.flushall()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.stop()

    def _start(self) -> None:
        options = {"bind": self._bind, "port": self._port, "save": "", "dir": self._directory, "protected-mode": "no"}
        argv = ["redis-server", *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, start_new_session=True)
        try:
            wait_until(self._serves, 10, "redis-server serves")
        except BaseException:
            self.stop()
            raise

    def _serves(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False


class Rabbit:
    """A RabbitMQ with an Erlang port mapper of its own, apart from any that runs on this machine."""

    driver = "amqp"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._port, mapper, distribution = free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        self._log = directory / "rabbitmq.log"
        (directory / "plugins").write_text("[].")
        environment = {
            **os.environ,
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_NODENAME": f"zkbeat-{os.getpid()}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        with self._log.open("wb") as log:
            quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": environment}
            self._mapper = subprocess.Popen(["epmd"], start_new_session=True, **quiet)
            self._process = subprocess.Popen([str(RABBITMQ)], start_new_session=True, **quiet)
        self._received: list[Message] = []
        try:
            wait_until(self._serves, 60, "RabbitMQ serves", self._log.read_text, every_s=0.2)
        except BaseException:
            self.__exit__()
            raise

    def messages(self) -> list[Message]:
        """Return what was sent, in order."""
        channel = self._connection.channel()
        channel.queue_declare(QUEUE, durable=True, auto_delete=False)
        while (got := channel.basic_get(QUEUE, no_ack=True)) is not None:
            headers = got.properties["application_headers"]
            self._received.append(Message(headers, json.loads(got.body)))
        channel.close()
        return self._received

    def count(self) -> int:
        return len(self.messages())

    def forget(self) -> None:
        """Begin anew."""
        self.messages()
        self._received = []

    def freeze(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._process, self._mapper):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _serves(self) -> bool:
        try:
            self._connection = amqp.Connection(f"127.0.0.1:{self._port}", heartbeat=0, connect_timeout=2)
            self._connection.connect()
        except (OSError, amqp.AMQPError):
            return False
        return True
