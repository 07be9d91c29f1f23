"""A node as it is measured, one zkbeat round a stock `celery beat`, and what the kernel knows about its processes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sysconfig
import threading
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import nodes
from zkbeat import clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAME = "app"
"""The election's."""

CELERY_BEAT = (str(Path(sysconfig.get_path("scripts"), "celery")), "-A", "app", "beat", "--loglevel", "warning")

_UNDER_A_SHELL = ("sh", "-c", '"$@"; true', "sh")
"""The last `true` keeps the shell from making room for zkbeat."""


def app_environment(broker_url: str) -> dict[str, str]:
    """Return what the measured app needs in its environment."""
    return {"BENCH_BROKER": broker_url, "PYTHONPATH": str(Path(__file__).parent / "project")}


class Node(nodes.Node):
    """One node; under a shell, zkbeat is neither the leader of a session nor a child of ours.

    An option whose value is empty is a switch.
    """

    def __init__(
        self,
        directory: Path,
        hosts: str,
        broker_url: str,
        options: Mapping[str, str],
        prefix: Sequence[str] = (),
        *,
        under_a_shell: bool = False,
    ) -> None:
        super().__init__(
            directory,
            hosts=hosts,
            name=NAME,
            command=CELERY_BEAT,
            options=[word for key, value in options.items() for word in (f"--{key}", value) if word],
            env={**app_environment(broker_url), "ZKBEAT_LOG_FORMAT": "json"},
            program=(*_UNDER_A_SHELL, *nodes.SCRIPT) if under_a_shell else nodes.SCRIPT,
            prefix=prefix,
            cwd=directory,
            start_new_session=True,
        )

    def says(self, what: str) -> Any:
        """Return one item of what `zkbeat health` is told; None while nobody answers."""
        return (self.health() or {}).get(what)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what the sidecar has logged under that name, each with `at`, its time on CLOCK_BOOTTIME."""
        booted_at = clock.wall() - clock.now()
        found = []
        for line in self.stderr.splitlines():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.get("event") == event:
                    at = datetime.fromisoformat(said["time"].replace("Z", "+00:00")).timestamp()
                    found.append({**said, "at": at - booted_at})
        return found


class Death:
    """Notes when a process, that very one whatever becomes of its pid, ends; `at` is None until then."""

    def __init__(self, pid: int) -> None:
        self.at: float | None = None
        self._fd = os.pidfd_open(pid)
        threading.Thread(target=self._wait, name="death", daemon=True).start()

    def _wait(self) -> None:
        select.select([self._fd], [], [])
        self.at = clock.now()
        os.close(self._fd)


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def started_at(pid: int) -> float:
    """Return when a process was started, on CLOCK_BOOTTIME, to 10 ms and rounded down."""
    return int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, in user and kernel mode."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, what it shares with others included."""
    pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _stat(pid: int) -> list[bytes]:
    """Return the fields of proc(5)'s stat from the third on: the name before them may contain anything."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
