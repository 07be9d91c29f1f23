"""The ways to freeze a node: signals to each of its processes, or the freezer of control groups, version 1 or 2."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tests.bench.node import send
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

_serials = itertools.count(1)

_MOUNT = Path("/sys/fs/cgroup")
_V1 = _MOUNT / "freezer"
_V2 = _MOUNT / "unified" if (_MOUNT / "unified").is_dir() else _MOUNT


class Freezer(Protocol):
    """Freezes some processes and thaws them again, in the order given where there is one."""

    def freeze(self, pids: Sequence[int]) -> None: ...

    def thaw(self) -> None: ...

    def close(self) -> None:
        """Leave nothing behind: neither frozen processes nor a control group."""


class Signals:
    """SIGSTOP and SIGCONT."""

    def __init__(self) -> None:
        self._pids: Sequence[int] = ()

    def freeze(self, pids: Sequence[int]) -> None:
        self._pids = pids
        for pid in pids:
            send(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._pids:
            send(pid, signal.SIGCONT)

    def close(self) -> None:
        self.thaw()


class Cgroup:
    """The freezer: everything is frozen, and thawed, at one instant."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._path: Path | None = None
        self._root = _V1 if version == 1 else _V2
        self._origin: dict[int, str] = {}

    def freeze(self, pids: Sequence[int]) -> None:
        path = self._path = self._root / f"zkbeat-bench-{os.getpid()}-{next(_serials)}"
        path.mkdir()
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended
                self._origin[pid] = self._where(pid)
                (path / "cgroup.procs").write_text(str(pid))
        if self._version == 1:
            state = path / "freezer.state"
            state.write_text("FROZEN")
            wait_until(
                lambda: state.read_text().strip() == "FROZEN", 5, "the freezer to have frozen all", every_s=0.001
            )
        else:
            (path / "cgroup.freeze").write_text("1")

    def thaw(self) -> None:
        file, word = ("freezer.state", "THAWED") if self._version == 1 else ("cgroup.freeze", "0")
        if self._path is not None:
            (self._path / file).write_text(word)

    def close(self) -> None:
        self.thaw()
        path = self._path
        if path is not None:
            wait_until(lambda: self._leave(path), 10, f"{path} to be empty")

    def _where(self, pid: int) -> str:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == ("freezer" if self._version == 1 else ""):
                return path
        return "/"

    def _leave(self, path: Path) -> bool:
        for word in (path / "cgroup.procs").read_text().split():
            # Who was born in the group goes where the others go.
            origin = self._origin.get(int(word), next(iter(self._origin.values())))
            with contextlib.suppress(OSError):
                (self._root / origin.lstrip("/") / "cgroup.procs").write_text(word)
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.exists()


def why_not(version: int) -> str | None:
    """Say what keeps one from freezing with the control groups of this version, if anything does."""
    root, sign = (_V1, "cgroup.procs") if version == 1 else (_V2, "cgroup.controllers")
    there = (root / sign).exists()
    if not there:
        return f"no control groups of version {version} with a freezer"
    return None if os.access(root / "cgroup.procs", os.W_OK) else "no control group may be made"
