"""The fence by itself: a beat whose lease a test keeps, without guard and kernel timer, frozen past it and thawed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.bench.launcher.cluster import Queue, Services, Setup, load
from tests.bench.launcher.figures import after
from tests.bench.node import CELERY_BEAT, Death
from tests.support import nodes
from tests.support.waiting import wait_until
from zkbeat import clock, command, fence, pulse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from typing_extensions import Self

LEASE_S = 1.0
RENEW_EVERY_S = 0.1
OVERDUE_S = 0.05
PHASE_S = 0.1
WATCH_FOR_S = 0.5
"""How long to count what a beat sends that nothing stops."""

TICKS_BEFORE = 5
STARTS_WITHIN_S = 40.0
ENDS_WITHIN_S = 10.0

BUSY = Setup(every_s=0.005, entries=2)
"""Due so often that beat publishes nearly all the time: the freeze is to hit where it matters."""

LANES = {"launcher": 3, "no-launcher": 1}


class Beat:
    """One beat, and its lease file, which is extended as a guard would, until the beat is frozen."""

    def __init__(self, directory: Path, url: str, *, launched: bool) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._lease, self._pulse = directory / "lease", directory / "pulse"
        told = {"LEASE_FILE": self._lease, "PULSE_FILE": self._pulse, "EPOCH": 1}
        self._env = nodes.environment(BUSY.environment(url, directory))
        self._env |= {f"ZKBEAT_{name}": str(value) for name, value in told.items()}
        self._argv = command.launch(CELERY_BEAT).argv if launched else list(CELERY_BEAT)
        self._frozen = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._hard = 0.0

    def __enter__(self) -> Self:
        self._extend()
        self._keeper.start()
        with (self._directory / "log").open("ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._process = subprocess.Popen(self._argv, cwd=self._directory, env=self._env, **streams)
        return self

    def __exit__(self, *_: object) -> None:
        self._frozen.set()
        self._keeper.join()
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def freeze_past_the_lease(self) -> bool | None:
        """Return when the lease has run out; whether the freeze hit within a publish, where that is known."""
        self._process.send_signal(signal.SIGSTOP)
        self._frozen.set()
        self._keeper.join()
        wait_until(lambda: clock.now() > self._hard + OVERDUE_S, LEASE_S + 5, "the lease to have run out")
        found = pulse.read(self._pulse)
        return found.owing_since > 0 if found is not None and found.at else None

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Return its exit code, once it has ended."""
        wait_until(lambda: self._process.poll() is not None, ENDS_WITHIN_S, "beat to end", self.log)
        return int(self._process.returncode)

    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-4000:]

    def _keep(self) -> None:
        while not self._frozen.wait(RENEW_EVERY_S):
            self._extend()

    def _extend(self) -> None:
        self._hard = clock.now() + LEASE_S
        fd = os.open(self._lease, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(fd, fence.pack(self._hard - LEASE_S / 4, self._hard), 0)
        os.close(fd)


def freeze_and_thaw(beat: Beat, queue: Queue, rng: random.Random, *, launched: bool) -> dict[str, Any]:
    """Do it once; return what was seen."""
    wait_until(lambda: after(queue.messages, beat.pid, 0.0) >= TICKS_BEFORE, STARTS_WITHIN_S, "messages", beat.log)
    time.sleep(rng.uniform(0, PHASE_S))
    death = Death(beat.pid)
    publishing = beat.freeze_past_the_lease()
    thawed_at = clock.now()
    beat.thaw()
    seen: dict[str, Any] = {"publishing": publishing}
    if launched:
        seen["code"] = beat.wait()
        wait_until(lambda: death.at is not None, 5, "its death to be noted")
        seen["dead_after_thaw_s"] = round((death.at or 0.0) - thawed_at, 4)
    time.sleep(WATCH_FOR_S)
    until = thawed_at + WATCH_FOR_S if not launched else clock.now()
    seen["after_thaw"] = after([one for one in queue.messages if one.at < until], beat.pid, thawed_at)
    return seen


def rounds_of(
    services: Services, database: int, variant: str, numbers: Sequence[int], keep: Callable[[dict[str, Any]], None]
) -> None:
    """Do these rounds, each with a beat of its own."""
    url, launched = f"redis://{services.redis.hosts}/{database}", variant == "launcher"
    with Queue(url) as queue:
        for number in numbers:
            if services.over.is_set():
                return
            record: dict[str, Any] = {"variant": variant, "round": number}
            rng = random.Random(f"alone {variant} {number}")
            try:
                with Beat(services.directory / f"alone-{variant}-{number}", url, launched=launched) as beat:
                    record |= freeze_and_thaw(beat, queue, rng, launched=launched)
            except Exception as error:  # noqa: BLE001  # a round that went wrong is a result
                record["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            keep({**record, "load": load()})


def measure(services: Services, rounds: int, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do all rounds, with and without the launcher, some side by side; return what they have in common."""
    jobs = [(variant, range(lane, rounds, lanes)) for variant, lanes in LANES.items() for lane in range(lanes)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [
            pool.submit(rounds_of, services, database, variant, numbers, keep)
            for database, (variant, numbers) in enumerate(jobs)
        ]
        for one in running:
            one.result()
    return {"every_s": BUSY.every_s, "entries": BUSY.entries, "lease_s": LEASE_S, "watched_s": WATCH_FOR_S}
