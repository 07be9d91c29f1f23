"""RedBeat by itself: three beats without zkbeat, of which the one that has RedBeat's lock sends.

Which one that is, and how often the lock has changed hands, is in their logs. Nothing is bent: the lock lasts as long
as zkbeat's session, and who waits for it looks every second.
"""

from __future__ import annotations

import re
import signal
import subprocess
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tests.bench.schedule.handovers import SESSION_TIMEOUT_S, Team
from tests.support import nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.support.net import Host

_SAID = re.compile(r"^\[([^\]]+): INFO/MainProcess\] beat: (Acquired lock|Starting\.\.\.)$", re.MULTILINE)
ENDS_WITHIN_S = 15.0


class Beat(nodes.Family):
    """One beat on a host of the LAN; answers as a node does whose zkbeat is asked."""

    def __init__(
        self,
        directory: Path,
        host: Host,
        command: Sequence[str],
        env: Mapping[str, str],
        others: Callable[[], Sequence[Beat]],
    ) -> None:
        super().__init__(env)
        self.id = directory.name
        self.host = host
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = directory
        self._argv = [*host.exec_prefix, *command]
        self._others = others
        self._starts = 0
        self._before = 0

    def start(self) -> None:
        """Start it, perhaps again."""
        self._starts += 1
        self._before = len(self.took())
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._argv, cwd=self._directory, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def sidecar(self) -> int:
        """The pid of the process that a supervisor would watch."""
        if self.process is None:
            raise RuntimeError(f"{self.id} was not started")
        return self.process.pid

    def stop(self) -> None:
        """Have it stop as a supervisor does, which kills what does not."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill_everything()

    def kill_everything(self) -> None:
        """Kill all of its processes."""
        super().kill_everything()
        if self.process is not None:
            self.process.wait()

    def health(self) -> dict[str, Any] | None:
        """Return what zkbeat would say; None if it does not run."""
        if self.process is None or self.process.poll() is not None:
            return None
        ours, all_took = self.took(), sorted(one for beat in self._others() for one in beat.took())
        leads = len(ours) > self._before and ours[-1] == all_took[-1]
        return {
            "state": "leading" if leads else "standby",
            "epoch": len(all_took),
            "ready": leads or self._said().count("Starting...") >= self._starts,
        }

    def says(self, what: str) -> Any:
        return (self.health() or {}).get(what)

    def took(self) -> list[datetime]:
        """Return when it took the lock, ever."""
        found = _SAID.findall(self.logs())
        return [datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f") for at, what in found if what == "Acquired lock"]  # noqa: DTZ007

    def _said(self) -> list[str]:
        return [what for _, what in _SAID.findall(self.logs())]

    def logs(self) -> str:
        return self._log.read_text(errors="backslashreplace") if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self._directory / "log"


class AloneTeam(Team):
    """Three such beats and two workers."""

    step_down_signal = signal.SIGTERM
    """A beat by itself cannot step down: it is restarted, as in a deploy."""

    conf = MappingProxyType({"redbeat_lock_timeout": int(SESSION_TIMEOUT_S), "beat_max_loop_interval": 1})

    def _node(self, name: str, scheduler: str, env: dict[str, str], options: tuple[str, ...]) -> Any:  # noqa: ARG002
        directory = self.field.directory / name
        directory.mkdir()
        command = [*self.beat(scheduler)[:-1], "info"]  # who takes the lock says so
        beat = Beat(directory, self.field.lan.host(name), command, env, lambda: self.nodes)
        self._stack.callback(beat.kill_everything)
        return beat

    def store_ips(self) -> list[str]:
        """Return where its lock is: the broker is on that machine too."""
        return [self.field.lan.ip]
