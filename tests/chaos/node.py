"""One zkbeat of a cluster, as what is done to it needs it: its processes by their part, found from outside."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support import nodes
from tests.support.nodes import Family
from tests.support.waiting import wait_until
from zkbeat import health

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.chaos.recorder import Recorder
    from tests.support.net import Host

ALL = ("sidecar", "guard", "child")
RUNTIME_DIRECTORY_BYTES = 256 * 1024
PUBLISHER = Path(__file__).with_name("publisher.py")


class Processes(Family):
    """The processes of a node, wherever it runs: a tag in their environment tells them from others."""

    id: str
    runtime_dir: Path

    def parts(self) -> dict[str, list[int]]:
        """Return the pids of sidecar, guard and child; what helps one of them for a moment counts as `other`."""
        found: dict[str, list[int]] = {"sidecar": [], "guard": [], "child": [], "other": []}
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                found[_part(psutil.Process(pid).cmdline())].append(pid)
        return found

    def signal(self, number: int, *parts: str) -> list[int]:
        """Send a signal to these parts, in this order; return who got it."""
        found = self.parts()
        pids = [pid for part in parts for pid in found[part]]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def says(self, what: str) -> object:
        """Return one item of what `zkbeat health` is told; None while nobody answers."""
        with contextlib.suppress(OSError, ValueError):
            return health.ask(self.runtime_dir / "health.sock").get(what)
        return None


def _part(words: Sequence[str]) -> str:
    if str(PUBLISHER) in words and not any(word.endswith("start.py") or word == "zkbeat" for word in words):
        return "child"
    for before, word in itertools.pairwise(words):
        if before.endswith("start.py") and word in {"sidecar", "guard"}:
            return word
    return "other"


class LocalNode(nodes.Node, Processes):
    """A node on a host of the cluster's LAN, with a small file system for its runtime directory.

    `clock_ahead_s`: its CLOCK_BOOTTIME and CLOCK_MONOTONIC are ahead of everybody else's (a time namespace).
    `wall_clock`: the library that lets its wall clock be moved, where there is one.
    """

    def __init__(
        self,
        directory: Path,
        host: Host,
        *,
        hosts: str,
        name: str,
        command: Sequence[str],
        options: Sequence[str],
        env: Mapping[str, str],
        clock_ahead_s: int = 0,
        wall_clock: Path | None = None,
    ) -> None:
        directory.mkdir(parents=True)
        self.host = host
        self.clock_ahead_s = clock_ahead_s
        self._wall_clock = directory / "wall"
        self._wall_clock.write_bytes(bytes(8))
        shifted = {"LD_PRELOAD": str(wall_clock), "CHAOS_WALL_CLOCK": str(self._wall_clock)} if wall_clock else {}
        in_time = ["unshare", "--time", "--boottime", str(clock_ahead_s), "--monotonic", str(clock_ahead_s)]
        super().__init__(
            directory,
            hosts=hosts,
            name=name,
            command=command,
            options=options,
            env={**env, **shifted},
            prefix=[*host.exec_prefix, *(in_time if clock_ahead_s else [])],
            cwd=directory,
            start_new_session=True,
        )
        self.runtime_dir.mkdir(mode=0o700)
        size = f"size={RUNTIME_DIRECTORY_BYTES},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "zkbeat-chaos", self.runtime_dir], check=True)

    def register(self, recorder: Recorder) -> None:
        recorder.node(self.id, self.runtime_dir / "lease", float(self.clock_ahead_s))

    def step_wall_clock(self, by_s: float) -> None:
        self._wall_clock.write_bytes(int(by_s * 1e9).to_bytes(8, "little", signed=True))

    def mend(self) -> bool:
        """Have everything run that should, as a supervisor does; return whether anything had to be done."""
        mended = False
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                    os.kill(pid, signal.SIGCONT)
                    mended = True
        if self.process is None or self.process.poll() is not None:
            self.start()
            return True
        return mended

    def renew(self) -> None:
        """Start it anew: what it remembers of earlier faults (its back-off) is not what the next one is about."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            wait_until(
                lambda: self.process is None or self.process.poll() is not None, 15, f"{self.id} ended", self.logs
            )
        self.start()

    def close(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.kill_everything()
        subprocess.run(["umount", "--lazy", self.runtime_dir], check=False)
