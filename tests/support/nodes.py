"""One node: zkbeat run as a user runs it, for tests and benchmarks to kill, stop and look at.

    with Node(tmp_path, hosts=zk_hosts, command=["celery", "-A", "proj", "beat"]) as node:
        node.wait_state("leading")
        os.kill(node.guard, signal.SIGKILL)

Whatever becomes of its processes, nothing outlives the `with`: each carries a tag in its environment, which their
descendants inherit even when they leave for the background. Where the block fails, the logs are printed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from tests.support.waiting import wait_until
from zkbeat import health

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Self

MODULE = (sys.executable, "-m", "zkbeat")
SCRIPT = (str(Path(sysconfig.get_path("scripts"), "zkbeat")),)
"""The two ways in which users start it."""

_TAG = "NODE_OF_A_TEST"
_serials = itertools.count()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would configure zkbeat, and with `extra`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ZKBEAT_")}
    return {**inherited, **(extra or {})}


def alive(pid: int) -> bool:
    """Say whether a process runs: a zombie does not."""
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def wait_dead(pids: Iterable[int], timeout_s: float, what: str = "all of them dead") -> None:
    """Wait until none of these runs any more."""
    known = list(pids)

    def left() -> list[str]:
        return [" ".join(_command_line(pid)) or str(pid) for pid in known if alive(pid)]

    wait_until(lambda: not left(), timeout_s, what, left, every_s=0.005)


class Family:
    """A process and all that descends from it, found again by a tag in their environment."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._tag = f"{_TAG}={os.getpid()}-{next(_serials)}"
        self.env = environment({**(env or {}), _TAG: self._tag.partition("=")[2]})

    def pids(self) -> list[int]:
        """Return everyone alive, the oldest first."""
        tag = b"\0" + self._tag.encode() + b"\0"
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                if tag in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() and alive(pid):
                    found.append(pid)
        return found

    def signal_everything(self, number: int) -> None:
        """Send a signal to each of them."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_everything(self) -> None:
        """Kill each of them, and what it may have started meanwhile, as when the machine is lost."""

        def none_left() -> bool:
            self.signal_everything(signal.SIGKILL)
            return not self.pids()

        wait_until(none_left, 10, "every process of the node dead", self.pids)


class Node(Family):
    """One zkbeat; with a `directory` of its own, where its runtime directory, `stdout` and `stderr` are.

    - `options` go before the command, `env` on top of this process's environment;
    - `program` is MODULE, SCRIPT, or whatever else takes the same arguments;
    - `prefix` goes before everything, such as `ip netns exec X`, and should end in an exec;
    - `keywords` are Popen's, such as `user`, `cwd` or another `stderr`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        hosts: str = "127.0.0.1:2181",
        name: str = "test",
        node_id: str | None = None,
        command: Sequence[str] = ("sleep", "1000"),
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = MODULE,
        prefix: Sequence[str] = (),
        **keywords: Any,
    ) -> None:
        super().__init__(env)
        self.id = node_id or directory.name
        self.directory = directory
        self.runtime_dir = directory / "run"
        self.process: subprocess.Popen[bytes] | None = None
        own = ["--hosts", hosts, "--name", name, "--id", self.id, "--runtime-dir", str(self.runtime_dir)]
        self.argv = [*prefix, *program, *own, *options, "--", *command]
        self._keywords = keywords

    # starting and stopping

    def start(self) -> None:
        """Start it, perhaps again: the logs go on where they were."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "stdout").open("ab") as out, (self.directory / "stderr").open("ab") as err:
            streams: dict[str, IO[bytes] | int] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            self.process = subprocess.Popen(self.argv, **{"env": self.env, **streams, **self._keywords})

    def wait(self, timeout_s: float = 15.0) -> int:
        """Wait for the process that was started; return its exit code, negative for a signal."""
        process = self._started()
        wait_until(lambda: process.poll() is not None, timeout_s, f"{self.id} ended", self.logs)
        return process.returncode

    def stop(self, timeout_s: float = 15.0) -> int:
        """Have it stop as a supervisor does, and return its exit code."""
        self._started().terminate()
        return self.wait(timeout_s)

    def kill_everything(self) -> None:
        """Kill all of its processes."""
        super().kill_everything()
        if self.process is not None:
            self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self.logs())
        self.kill_everything()

    # its processes

    @property
    def sidecar(self) -> int:
        """The sidecar's pid."""
        return self._the("sidecar")

    @property
    def guard(self) -> int:
        """The guard's pid."""
        return self._the("guard")

    @property
    def child(self) -> int:
        """The child's pid, as this process sees it: the only one that the guard holds."""
        held = wait_until(self._held, 10, f"{self.id} has a child", self.logs)
        return held[0]

    def _held(self) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            held = psutil.Process(self.guard).children()
            return [each.pid for each in held if "remover" not in _command_line(each.pid)[4:5]]
        return []

    def _the(self, kind: str) -> int:
        def found() -> list[int]:
            return [pid for pid in self.pids() if _is_ours(_command_line(pid), kind)]

        return wait_until(found, 10, f"{self.id} has a {kind}", self.logs)[-1]

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise RuntimeError(f"{self.id} was not started")
        return self.process

    # what it says

    def health(self) -> dict[str, Any] | None:
        """Return the sidecar's own account, or None while nobody answers."""
        try:
            return health.ask(self.runtime_dir / "health.sock")
        except (OSError, ValueError):
            return None

    def state(self) -> str | None:
        """Return what it is doing, in a word."""
        return (self.health() or {}).get("state")

    def wait_state(self, state: str, timeout_s: float = 15.0) -> dict[str, Any]:
        """Wait until it is `leading`, `standby`, ...; return its whole account."""
        account = wait_until(
            lambda: (found := self.health()) and found["state"] == state and found,
            timeout_s,
            f"{self.id} is {state}",
            lambda: f"{self.health()}\n{self.logs()}",
        )
        return dict(account)

    @property
    def stdout(self) -> str:
        """What child and zkbeat wrote there."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        """The log, and what the child wrote there."""
        return self._text("stderr")

    def logs(self) -> str:
        """Return all output, for the message of a failure."""
        return f"--- {self.id}: stdout\n{self.stdout}\n--- {self.id}: stderr\n{self.stderr}"

    def _text(self, stream: str) -> str:
        path = self.directory / stream
        return path.read_text(errors="backslashreplace") if path.exists() else ""


def _command_line(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _is_ours(words: list[str], kind: str) -> bool:
    # python -I -S .../zkbeat/start.py guard; a stand-in for the sidecar has other options before its script.
    return any(word == kind and before.endswith(".py") for before, word in itertools.pairwise(words))
