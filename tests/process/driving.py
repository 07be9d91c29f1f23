"""A guard and its child, with a sidecar that does what the test says; and what the kernel knows about a process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.support.nodes import Family
from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.fence import LEASE_FORMAT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

_PROGRAM = str(Path(__file__).with_name("driver.py"))


class FakeSidecar(Family):
    """`driver.py`: a sidecar that does what it is told, with a guard."""

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        super().__init__()
        self.runtime_dir = directory / "run"
        self.lease_file = self.runtime_dir / "lease"
        self._directory = directory
        self._events = directory / "events"
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        self.guard = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> bytes:
        return (self._directory / "out").read_bytes()

    def order(self, *words: Any) -> None:
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()

    def event(self, kind: str, within_s: float = 10.0) -> dict[str, Any]:
        """Wait for the first event of a kind."""
        return wait_until(lambda: self.events(kind), within_s, kind, self.report, every_s=0.005)[0]

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = self._events.read_text().splitlines(keepends=True) if self._events.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in found if event["event"] == kind]

    def begin(
        self, argv: Sequence[str], soft_in_s: float = 30.0, hard_in_s: float = 60.0, env: dict[str, str] | None = None
    ) -> float:
        """Have the child started; return the instant from which its deadlines count."""
        now = clock.now()
        self.order(
            "tell",
            {
                "do": "begin",
                "argv": list(argv),
                "env": self.env if env is None else env,
                "lease_file": str(self.lease_file),
                "soft": now + soft_in_s,
                "hard": now + hard_in_s,
            },
        )
        return now

    def child(self) -> int:
        return self.event("ChildStarted")["pid"]

    def published_lease(self) -> tuple[float, float]:
        """Return the deadlines as a child reads them."""
        soft, hard = struct.unpack(LEASE_FORMAT, self.lease_file.read_bytes())
        return soft / 1e9, hard / 1e9

    def lock_is_free(self) -> bool:
        lock = os.open(self.runtime_dir, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True

    def report(self) -> str:
        parts = [
            f"--- {path.name}\n{path.read_text(errors='backslashreplace')}"
            for path in (self._events, self._directory / "out", self._directory / "err")
            if path.exists()
        ]
        return "\n".join(parts)

    def __enter__(self) -> Self:
        argv = [*self._prefix, sys.executable, _PROGRAM, str(self.runtime_dir), str(self._events)]
        with (self._directory / "out").open("ab") as out, (self._directory / "err").open("ab") as err:
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=err, env=self.env)
        try:
            self.event("DriverReady")
            self.order("spawn")
            self.event("GuardReady")
        except BaseException:
            self.__exit__(AssertionError)
            raise
        self.guard = self.event("Spawned")["pid"]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self.report())
        self.kill_everything()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def status(pid: int, field: str) -> str:
    """Return one field of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{field}:"))


def signals_in(mask: str) -> set[signal.Signals]:
    """Return the signals of a mask of /proc/PID/status."""
    return {number for number in signal.Signals if int(mask, 16) >> (number - 1) & 1}


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has taken effect."""
    psutil.Process(pid).suspend()
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 5, f"{pid} is stopped")
