"""What the children of several nodes wrote into their common file, and processes as the kernel sees them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.waiting import wait_until

ZKBEAT = Path(sys.executable).with_name("zkbeat")
BEAT = Path(__file__).with_name("beat.py")


@dataclass
class Life:
    """One child, from its first line to its last."""

    pid: int
    began: float
    last: float
    stopped: bool = False
    env: dict[str, str] = field(default_factory=dict)


class Lives:
    """The children's common file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.command = [sys.executable, str(BEAT), str(path)]

    def all(self) -> list[Life]:
        """Return every child's life, in the order in which they began."""
        lives: list[Life] = []
        current: dict[tuple[str, int], Life] = {}  # nodes may have PID namespaces of their own
        text = self.path.read_text() if self.path.exists() else ""
        for line in text.splitlines():
            seen = json.loads(line)
            who = seen["node"], seen["pid"]
            if seen["what"] == "start":
                current[who] = Life(seen["pid"], seen["at"], seen["at"], env=seen["env"])
                lives.append(current[who])
            current[who].last = seen["at"]
            current[who].stopped = seen["what"] == "stop"
        return sorted(lives, key=lambda life: life.began)

    def running(self) -> list[Life]:
        """Return those whose process runs, stopped ones included."""
        return [life for life in self.all() if is_alive(life.pid)]

    def check_one_at_a_time(self) -> None:
        """Fail if two children's lives overlap."""
        lives = self.all()
        for earlier, later in itertools.pairwise(lives):
            assert later.began > earlier.last, f"two at a time: {earlier} and {later}"

    def leader(self) -> Life | None:
        """Return the only child that runs and is ticking, if it is one."""
        running = self.running()
        return running[0] if len(running) == 1 else None

    def next(self, after: Life) -> Life | None:
        """Return the only child that runs, if it began after another one had ended."""
        now = self.leader()
        return now if now is not None and now.began > after.last and now.pid != after.pid else None


def hold_first_election(hosts: str, root: str, name: str, directory: Path, **settings: str) -> None:
    """Have a term begin and end in order.

    In an election that nobody knows anything about, a leader first waits for as long as a lease may last. With the
    shortest lease that is soon over, and the tests, with longer ones, need not wait for it.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ZKBEAT_")}
    environment = {
        **inherited,
        "ZKBEAT_HOSTS": hosts,
        "ZKBEAT_ROOT": root,
        "ZKBEAT_NAME": name,
        "ZKBEAT_RUNTIME_DIR": str(directory / "first-election"),
        "ZKBEAT_SESSION_TIMEOUT": "4",
        "ZKBEAT_LEASE": "1",
        **settings,
    }
    lives = Lives(directory / "first-lives")
    log = directory / "first-election.log"
    with log.open("wb") as out:
        first = subprocess.Popen([str(ZKBEAT), "--", *lives.command], env=environment, stdout=out, stderr=out)
    try:
        wait_until(lives.leader, 30, "a first leader", log.read_text)
        first.terminate()
        assert first.wait(20) == 0, log.read_text()
    finally:
        end(family(first.pid))
        first.wait()


def is_alive(pid: int) -> bool:
    """Say whether this process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all of its descendants, to be looked at or killed later: they know reused pids."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that still run."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def end(processes: list[psutil.Process]) -> None:
    """Kill what is left of them."""
    for one in left_of(processes):
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    # A zombie will do: whose it is to reap it, is none of the tests' business.
    wait_until(lambda: not left_of(processes), 10, "what was killed is dead", lambda: left_of(processes))
