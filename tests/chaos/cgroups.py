"""Control groups that a test makes for some processes and removes again; version 1 or 2, whichever is mounted."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self

_MOUNT = Path("/sys/fs/cgroup")
_ONLY_V2 = (_MOUNT / "cgroup.controllers").exists()
_V2 = _MOUNT if _ONLY_V2 else _MOUNT / "unified"
"""Where version 2 is mounted; beside version 1 it has no controllers, but the freezer is not one."""

_serials = itertools.count()

CPU_PERIOD_US = 100_000

# Takes memory until it is killed, or has far more than the group may have.
_HOG = "held = [bytearray(1 << 20) for _ in range(256)]"


def why_not(controller: str) -> str | None:
    """Say what keeps this machine from limiting that, if anything does."""
    where = _root(controller)
    if os.geteuid() != 0 or not os.access(where / "cgroup.procs", os.W_OK):
        return f"no control group for {controller} may be made"
    if where == _V2 and controller not in {"freeze", *(_V2 / "cgroup.subtree_control").read_text().split()}:
        return f"{controller} is not delegated in {_V2}"
    return None


def _root(controller: str) -> Path:
    return _V2 if _ONLY_V2 or controller == "freeze" else _MOUNT / controller


class Cgroup:
    """One group of one controller; at the end its processes go back where they were.

    `cpu`, `memory`; `freezer` is version 1's, in which a process cannot even be killed, and `freeze` version 2's.
    """

    def __init__(self, controller: str) -> None:
        self._root = _root(controller)
        self._v2 = self._root == _V2
        self._controller = controller
        self._path = self._root / f"zkbeat-chaos-{os.getpid()}-{next(_serials)}"
        self._origin: dict[int, Path] = {}

    def __enter__(self) -> Self:
        self._path.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids():
            with contextlib.suppress(OSError):
                (self._origin.get(pid, self._root) / "cgroup.procs").write_text(str(pid))
        wait_until(self._remove, 10, f"{self._path} to be empty", self.pids)

    def pids(self) -> list[int]:
        return [int(word) for word in (self._path / "cgroup.procs").read_text().split()]

    def add(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended
                self._origin[pid] = self._where(pid)
                (self._path / "cgroup.procs").write_text(str(pid))

    def limit_cpu(self, share: float) -> None:
        """Let all of them together run for this share of one core, in turns of 0.1 s."""
        quota_us = max(int(share * CPU_PERIOD_US), 1000)
        if self._v2:
            (self._path / "cpu.max").write_text(f"{quota_us} {CPU_PERIOD_US}")
        else:
            (self._path / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
            (self._path / "cpu.cfs_quota_us").write_text(str(quota_us))

    def freeze(self) -> None:
        """Return when none of them can run."""
        self._set_frozen("1" if self._v2 else "FROZEN")

    def thaw(self) -> None:
        self._set_frozen("0" if self._v2 else "THAWED")

    def run_out_of_memory(self, pid: int, within_s: float = 10.0) -> None:
        """Have the kernel kill this process for want of memory: another one in its group takes all there may be."""
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        (self._path / ("memory.max" if self._v2 else "memory.limit_in_bytes")).write_text(str(16 << 20))
        self.add([pid])
        hog = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$0" && exec "$@"', self._path / "cgroup.procs", sys.executable, "-S", "-c", _HOG],
            stderr=subprocess.DEVNULL,
        )
        gone = os.pidfd_open(pid) if Path(f"/proc/{pid}").exists() else -1
        try:
            wait_until(lambda: _ended(gone), within_s, f"{pid} to be killed for want of memory")
        finally:
            hog.send_signal(signal.SIGKILL)
            hog.wait()
            if gone >= 0:
                os.close(gone)

    def _where(self, pid: int) -> Path:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if self._controller in controllers.split(",") or (self._v2 and not controllers):
                return self._root / path.lstrip("/")
        return self._root

    def _set_frozen(self, value: str) -> None:
        (self._path / ("cgroup.freeze" if self._v2 else "freezer.state")).write_text(value)
        state = self._path / ("cgroup.events" if self._v2 else "freezer.state")
        wanted = f"frozen {value}" if self._v2 else value
        wait_until(lambda: wanted in state.read_text().splitlines(), 10, f"{self._path} to be so", state.read_text)

    def _remove(self) -> bool:
        try:
            self._path.rmdir()
        except OSError:
            return False
        return True


def _ended(pidfd: int) -> bool:
    return pidfd < 0 or bool(select.select([pidfd], [], [], 0)[0])
