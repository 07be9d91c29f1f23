"""Real `celery worker` processes, and messages for them that look like beat's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery
from celery.result import AsyncResult

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

HERE = __file__.rpartition("/")[0]


class Field:
    """A broker, a store and an ensemble, with a queue of its own for each test; `start` adds workers."""

    def __init__(
        self, directory: Path, broker: str, store: str, zk_hosts: str, zk_root: str, *, protocol: int = 2, **conf: Any
    ) -> None:
        self.directory = directory
        self.base = f"{zk_root}/shop"
        queue = f"q-{uuid.uuid4().hex[:8]}"
        self.conf: dict[str, Any] = {
            "broker_url": broker,
            "result_backend": store,
            "task_default_queue": queue,
            "task_track_started": True,
            "task_protocol": protocol,
            "broker_connection_retry_on_startup": True,
            "zkbeat_hosts": zk_hosts,
            "zkbeat_root": zk_root,
            "zkbeat_name": "shop",
            "zkbeat_session_timeout": 4,
            **conf,
        }
        self.store_url = store
        self.store = redis.Redis.from_url(store, decode_responses=True)
        self.store.flushall()
        self.app = Celery("publisher", set_as_current=False)
        self.app.conf.update(self.conf)
        self.workers: list[Worker] = []

    def start(
        self, pool: str = "prefork", concurrency: int = 2, *options: str, wait: bool = True, **conf: Any
    ) -> Worker:
        settings = {"conf": {**self.conf, **conf}, "store": self.store_url}
        worker = Worker(self.directory, f"w{len(self.workers)}", settings, pool, concurrency, options)
        self.workers.append(worker)
        if wait:
            worker.wait_ready()
        return worker

    def send(self, task: str, *args: Any, tick: str | None = None, nonce: str | None = None, **options: Any) -> str:
        """Publish as beat does, or without a tick's headers; return the message's id."""
        headers = dict(options.pop("headers", {}))
        if tick is not None:
            headers |= {"zkbeat-tick": tick, "zkbeat-nonce": nonce or uuid.uuid4().hex, "zkbeat-epoch": "1"}
        return str(self.app.send_task(f"app.{task}", args, headers=headers, **options).id)

    def runs(self, task: str | None = None, what: str = "ran") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.store.lrange("runs", 0, -1)]
        return [run for run in found if task in {None, run["task"]} and run["what"] == what]

    def ids(self, task: str | None = None, what: str = "ran") -> list[str]:
        return [run["id"] for run in self.runs(task, what)]

    def wait_runs(self, count: int, task: str | None = None, what: str = "ran", timeout_s: float = 15) -> list[str]:
        """Wait for that many runs, and no more."""
        wait_until(lambda: len(self.runs(task, what)) >= count, timeout_s, f"{count} x {task} {what}", self.report)
        found = self.ids(task, what)
        assert len(found) == count, f"{Counter(found)}\n{self.report()}"
        return found

    def wait_log(self, text: str, times: int = 1, timeout_s: float = 15) -> None:
        wait_until(lambda: self.logs().count(text) >= times, timeout_s, f"{times} x {text!r} in the log", self.report)

    def go(self, task_id: str | None = None) -> None:
        """Let one run, or all, come to their ends."""
        self.store.set("go" if task_id is None else f"go:{task_id}", 1)

    def result(self, task_id: str) -> AsyncResult:
        return self.app.AsyncResult(task_id)

    def idle(self) -> bool:
        """Say whether no worker has anything in hand, nor anything scheduled."""
        running = sum(worker.process.poll() is None for worker in self.workers)
        asked = self.app.control.inspect(timeout=3, limit=running)
        books = [asked.reserved() or {}, asked.active() or {}, asked.scheduled() or {}]
        return all(books) and not any(held for book in books for held in book.values())

    def settle(self) -> None:
        """Have the workers run a plain message each can take only after what was sent before."""
        before = len(self.runs("plain"))
        self.send("plain")
        wait_until(lambda: len(self.runs("plain")) > before, 15, "a plain message", self.report)

    def logs(self) -> str:
        return "\n".join(worker.log() for worker in self.workers)

    def report(self) -> str:
        notes = "\n".join(self.store.lrange("runs", 0, -1))
        return f"--- runs\n{notes}\n" + "\n".join(f"--- {each.name}\n{each.log()}" for each in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.app.close()
        self.store.close()


class Worker:
    def __init__(
        self,
        directory: Path,
        name: str,
        settings: dict[str, Any],
        pool: str,
        concurrency: int,
        options: tuple[str, ...],
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        # Without these a worker is up in half the time, and says nothing to others.
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        argv = [sys.executable, "-m", "celery", "-A", "app", "worker", "-n", f"{name}@%h", "-l", "info", *quiet]
        argv += ["-P", pool, "-c", str(concurrency), *options]
        env = {**os.environ, "WORKER_TEST": json.dumps(settings), "PYTHONPATH": f"{HERE}:{os.getcwd()}"}  # noqa: PTH109
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            return " ready." in self.log()

        wait_until(ready, 30, f"{self.name} is ready", self.log, every_s=0.1)

    def stop(self, timeout_s: float = 20) -> int:
        """Stop it warmly, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 20) -> int:
        wait_until(lambda: self.process.poll() is not None, timeout_s, f"{self.name} ended", self.log)
        return int(self.process.returncode)

    def kill(self) -> None:
        """Kill it with all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="backslashreplace")
