"""A real `celery beat` under the launcher's mixin, and the lease that a guard would keep for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.waiting import wait_until
from zkbeat import clock, fence, pulse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

PROJECT = Path(__file__).with_name("project")
LAUNCHED = "from zkbeat.launcher.scheduler import install; install(); "
CELERY = "from celery.__main__ import main; main()"

CLASSES = {
    "plain": "celery.beat:Scheduler",
    "persistent": "celery.beat:PersistentScheduler",
    "database": "django_celery_beat.schedulers:DatabaseScheduler",
    "redbeat": "redbeat.schedulers:RedBeatScheduler",
    "zookeeper": "zookeeper",
}
EPOCH = "4294967311"


class Lease:
    """Renews a lease file as the guard does, until it is told not to."""

    def __init__(self, path: Path, lease_s: float = 1.5) -> None:
        self.path = path
        self._lease_s = lease_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self.renew()

    def renew(self) -> None:
        self.hard = clock.now() + self._lease_s
        self._write(self.hard)

    def lapse(self) -> None:
        """Renew it no more, and wait until it has run out."""
        self.close()
        wait_until(lambda: clock.now() > self.hard, self._lease_s + 5, "the lease has run out")

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, hard: float) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(fd, fence.pack(hard - 0.5, hard), 0)
        os.close(fd)

    def _keep(self) -> None:
        while not self._over.wait(0.2):
            self.renew()


class Beat:
    """One process. `schedule`: as in `beat_schedule`; a number is an interval, a dict are crontab's arguments."""

    def __init__(
        self,
        directory: Path,
        kind: str,
        broker: str,
        schedule: Mapping[str, Any],
        *,
        store: str = "",
        launched: bool = True,
        conf: Mapping[str, Any] | None = None,
        program: str = CELERY,
        use_tz: bool = True,
        options: tuple[str, ...] = (),
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.schedule_file = directory / "beat-schedule"
        self._pulse = directory / "pulse"
        self._log = directory / "beat.log"
        self._shift = directory / "shift"
        if not self._shift.exists():
            self.shift(0)
        settings = {
            "broker": broker,
            "schedule": {name: {"task": name, **entry} for name, entry in schedule.items()},
            "conf": {"redbeat_redis_url": store, "redbeat_redis_options": {}, **(conf or {})},
            "django": kind == "database",
            "database": str(directory / "db.sqlite3"),
            "use_tz": use_tz,
            "shift": str(self._shift),
        }
        self.lease = Lease(directory / "lease")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ZKBEAT_")}
        given = {
            **inherited,
            "LAUNCHER_TEST": json.dumps(settings),
            "ZKBEAT_LEASE_FILE": str(self.lease.path),
            "ZKBEAT_PULSE_FILE": str(self._pulse),
            "ZKBEAT_EPOCH": EPOCH,
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(Path(fence.__file__).parents[1])]),
            **(env or {}),
        }
        self._env = {key: value for key, value in given.items() if value is not None}
        classes = {**CLASSES, "stubborn": "app:StubbornScheduler"}
        words = ["-A", "app", "beat", "-l", "info", "-S", classes[kind], "-s", str(self.schedule_file), *options]
        self._argv = [sys.executable, "-c", (LAUNCHED if launched else "") + program, *words]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def logged(self, text: str) -> int:
        """Return how many lines have this."""
        return sum(text in line for line in self.log.splitlines())

    def pulse(self) -> pulse.Pulse:
        return pulse.read(self._pulse) or pulse.Pulse()

    def shift(self, seconds: float) -> None:
        """Have its wall clock be off by so much, at once."""
        new = self._shift.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._shift)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_for(self, predicate: Callable[[], Any], what: str, within_s: float = 20.0) -> Any:
        """Wait until that holds while beat runs; its log is in what fails."""

        def holds() -> Any:
            assert self._process.poll() is None, f"beat ended with {self._process.returncode}\n{self.log}"
            return predicate()

        return wait_until(holds, within_s, what, lambda: self.log)

    def wait_logged(self, text: str, within_s: float = 20.0) -> None:
        self.wait_for(lambda: self.logged(text), f"{text!r} in the log", within_s)

    def ended(self, within_s: float = 20.0) -> int:
        """Return the exit code, once it has ended."""
        wait_until(lambda: self._process.poll() is not None, within_s, "beat ends", self._stacks)
        return int(self._process.returncode)

    def _stacks(self) -> str:
        """Return the log, with what each thread does at last."""
        before = len(self.log)
        self.signal(signal.SIGUSR1)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(self.log) > before, 2, "its stacks")
        return self.log

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.ended()

    def start(self) -> None:
        self.lease.__enter__()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, env=self._env, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self.lease.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
