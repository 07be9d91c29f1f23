"""`zkbeat demo`: a real ZooKeeper, a real broker and a worker, and zkbeat nodes round a real `celery beat`.

It kills the leader's sidecar, tells with times what follows, and judges it: the exit code is 0 only if another node
took over and the old beat sent nothing once the new one had begun. Everything runs on this machine, in a directory that
is removed, and ends with the demo, also after ^C.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from zkbeat import clock, dev, operate
from zkbeat.access import Access

NAME = "demo"
APP = "zkbeat.demo_app"

STEP_TAKES_AT_MOST_S = 15.0
"""For each thing that is waited for; all of them together take some twenty seconds."""

TICKS_BEFORE = 3
"""How many ticks to see before the leader is killed."""

WATCHED_FOR_S = 5.0
"""How long to look out for a tick of the old beat once the new one has begun."""

NOTICED_WITHIN_S = 0.25
"""How late the demo may be to notice that a process has ended."""

STOP_WITHIN_S = 8.0

EXIT_UNAVAILABLE = 69
EXIT_INTERRUPTED = 130

T = TypeVar("T")


class _InterruptedError(Exception):
    pass


class _DemoError(Exception):
    """The demo cannot go on, or has not shown what it should; the message is one line."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Line:
    """What one of the processes has written: a JSON object, of the worker or of a sidecar."""

    source: str
    said: Mapping[str, Any]
    at: float


@dataclass(frozen=True)
class _Leader:
    """A node whose child runs. Times of day."""

    node: str
    epoch: int
    child: int
    elected_at: float
    started_at: float


@dataclass(frozen=True)
class _Tick:
    """A task that the worker ran."""

    node: str
    epoch: int
    at: float


@dataclass(frozen=True)
class _HandOver:
    """What was shown, to be judged."""

    old: _Leader
    killed_at: float
    dead_at: float
    new: _Leader
    first: _Tick
    late: int
    """How many ticks of the old beat came after the first of the new one."""


@dataclass
class _Seen:
    """Everything that has happened, as far as the demo is interested."""

    leaders: list[_Leader] = field(default_factory=list)
    ticks: list[_Tick] = field(default_factory=list)
    standing_by: set[str] = field(default_factory=set)

    def ticks_of(self, epoch: int) -> list[_Tick]:
        return [tick for tick in self.ticks if tick.epoch == epoch]


class _Stage:
    """The processes, and what they say. Must be closed; then none of them is left."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.zookeeper = dev.Server(directory / "zookeeper")
        self._broker = directory / "redis.sock"
        self._redis: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.lines: queue.Queue[_Line] = queue.Queue()

    def start_services(self) -> None:
        """Start ZooKeeper, the broker and a worker; returns before they serve."""
        self.zookeeper.start()
        # A socket in our own directory: no port to be taken, and nobody else can reach it.
        options = {"port": "0", "unixsocket": str(self._broker), "save": "", "dir": str(self._directory)}
        redis = ["redis-server", *(word for key, value in options.items() for word in (f"--{key}", value))]
        with (self._directory / "redis.log").open("wb") as log:
            self._redis = subprocess.Popen(redis, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        lonely = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        worker = [*_celery(), "worker", "--pool", "solo", "--loglevel", "warning", *lonely]
        self._worker = self._spawn("worker", worker, listen_to="stdout")

    def broker_serves(self) -> bool:
        """Say whether the broker's socket is there."""
        if self._redis is not None and self._redis.poll() is not None:
            raise _DemoError(f"redis-server ended at once: {self.tail('redis')}")
        return self._broker.exists()

    def start_node(self, node: str) -> None:
        """Start zkbeat as one node."""
        home = self._directory / node
        home.mkdir(exist_ok=True)
        options = {"hosts": self.zookeeper.hosts, "name": NAME, "id": node, "log-format": "json"}
        options |= {"runtime-dir": str(home / "run"), "stop-timeout": "5"}
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        command = [sys.executable, "-m", "zkbeat", *words, "--", *_celery(), "beat", "--loglevel", "warning"]
        self._nodes[node] = self._spawn(node, command, listen_to="stderr")

    def sidecar(self, node: str) -> int:
        """Return the pid of a node's sidecar."""
        return self._nodes[node].pid

    def kill_sidecar(self, node: str) -> None:
        """`kill -9`, and nothing else."""
        self._nodes[node].kill()
        self._nodes[node].wait()

    def tail(self, source: str, lines: int = 15) -> str:
        """Return the last lines that a process has written."""
        with contextlib.suppress(OSError):
            return "\n".join((self._directory / f"{source}.log").read_text(errors="replace").splitlines()[-lines:])
        return ""

    def logs(self) -> str:
        """Return the end of every log."""
        sources = sorted(path.stem for path in self._directory.glob("*.log"))
        parts = [f"--- {source}\n{self.tail(source)}" for source in sources]
        return "\n".join([*parts, f"--- zookeeper\n{self.zookeeper.log_tail(15)}"])

    def close(self) -> None:
        """End everything: the nodes while there is a ZooKeeper to hand their leadership over with, then the rest."""
        for process in self._nodes.values():
            process.terminate()
        give_up_at = clock.now() + STOP_WITHIN_S
        for process in self._nodes.values():
            _end(process, give_up_at)
        left = [node for node in self._nodes if not self._is_dead(node, give_up_at)]
        services = [process for process in (self._worker, self._redis) if process is not None]
        for process in services:
            process.terminate()
        for process in services:
            _end(process, give_up_at)
        with contextlib.suppress(dev.ServerError):
            self.zookeeper.stop()
        if left:
            raise _DemoError(f"something of {', '.join(left)} is still alive")

    def _is_dead(self, node: str, give_up_at: float) -> bool:
        """Wait for a node's host lock, which is free only when sidecar, guard and child are dead."""
        path = self._directory / node / "run" / "lock"
        if not path.exists():
            return True
        with path.open("rb") as lock:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                if clock.now() >= give_up_at:
                    return False
                threading.Event().wait(0.05)

    def _spawn(self, source: str, command: Sequence[str], *, listen_to: str) -> subprocess.Popen[bytes]:
        """Start a process; what it writes goes into its log, and JSON of the one stream also into `lines`."""
        # No ZKBEAT_* of the user's may have a say. In our own process group, so that the sidecars end with us.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("ZKBEAT_", "CELERY_"))}
        environment["ZKBEAT_DEMO_BROKER"] = f"redis+socket://{self._broker}"
        home = self._directory / source
        home.mkdir(exist_ok=True)
        log = (self._directory / f"{source}.log").open("ab")
        streams: dict[str, Any] = {"stdout": log, "stderr": log} | {listen_to: subprocess.PIPE}
        process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, cwd=home, env=environment, **streams)
        threading.Thread(
            target=self._listen, args=(source, getattr(process, listen_to), log), name=source, daemon=True
        ).start()
        return process

    def _listen(self, source: str, stream: Any, log: Any) -> None:
        with stream, log:
            for line in stream:
                at = clock.wall()
                log.write(line)
                log.flush()
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if isinstance(said, dict):
                        self.lines.put(_Line(source, said, at))


def _celery() -> list[str]:
    return [sys.executable, "-m", "celery", "-A", APP]


def _end(process: subprocess.Popen[bytes], give_up_at: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(give_up_at - clock.now(), 0.1))
    if process.poll() is None:
        process.kill()
        process.wait()


class _Show:
    """What is done, in order, and what is said about it."""

    def __init__(self, stage: _Stage, nodes: Sequence[str], console: Console, interrupted: threading.Event) -> None:
        self._stage = stage
        self._nodes = nodes
        self._console = console
        self._interrupted = interrupted
        self._began = clock.wall()
        self._seen = _Seen()

    def run(self) -> None:
        """Show everything. Raises _DemoError if the hand-over did not work."""
        self._set_up()
        old = self._first_leader()
        hand_over = self._kill(old)
        self._restart(old)
        self._judge(hand_over)

    # the acts

    def _set_up(self) -> None:
        self._tell("starting a ZooKeeper server, a Redis broker and a Celery worker")
        self._stage.start_services()
        self._stage.zookeeper.wait_ready()
        self._await(self._stage.broker_serves, "Redis to serve")
        self._tell(f"ZooKeeper serves on {self._stage.zookeeper.hosts}")
        names = ", ".join(self._nodes)
        self._tell(f"starting {names}, each of them: zkbeat -- celery -A {APP} beat")
        for node in self._nodes:
            self._stage.start_node(node)

    def _first_leader(self) -> _Leader:
        seen = self._seen
        leader = self._await(lambda: seen.leaders[0] if seen.leaders else None, "a leader")
        self._await(lambda: len(seen.ticks_of(leader.epoch)) >= TICKS_BEFORE, "ticks")
        others = len(self._nodes) - 1
        self._await(lambda: len(seen.standing_by - {leader.node}) >= others, "everyone to be in line")
        self._status()
        return leader

    def _kill(self, old: _Leader) -> _HandOver:
        seen, pid = self._seen, self._stage.sidecar(old.node)
        death = _Death(old.child)
        self._tell(f"kill -9 {pid}: the sidecar of {old.node}, the leader", "bold red")
        killed_at = clock.wall()
        self._stage.kill_sidecar(old.node)
        dead_at = self._await(lambda: death.at, "the old beat to be dead")
        self._tell(f"the celery beat of {old.node} (pid {old.child}) is dead: its guard has stopped it", at=dead_at)
        new = self._await(lambda: seen.leaders[-1] if seen.leaders[-1] is not old else None, "another leader")
        first = self._await(lambda: next(iter(seen.ticks_of(new.epoch)), None), f"a tick from {new.node}")
        until = first.at + WATCHED_FOR_S
        self._await(lambda: clock.wall() >= until, f"{WATCHED_FOR_S:g} s to pass")
        # The worker takes them from the broker in the order in which they were published.
        late = sum(1 for tick in seen.ticks_of(old.epoch) if tick.at > first.at)
        return _HandOver(old, killed_at, dead_at, new, first, late)

    def _restart(self, old: _Leader) -> None:
        self._seen.standing_by.discard(old.node)
        self._tell(f"starting {old.node} again, as its supervisor would")
        self._stage.start_node(old.node)
        self._await(lambda: old.node in self._seen.standing_by, f"{old.node} to be in line again")
        self._status()

    def _judge(self, it: _HandOver) -> None:
        gap_s = it.first.at - max(tick.at for tick in self._seen.ticks_of(it.old.epoch) if tick.at <= it.first.at)
        for figure, what in (
            (f"{it.dead_at - it.killed_at:.2f} s", "from the kill -9 until the old beat was dead"),
            (f"{max(it.new.elected_at - it.dead_at, 0.0):.2f} s", f"from then until {it.new.node} was elected"),
            (
                f"{it.first.at - it.new.elected_at:.2f} s",
                "from then to its first tick: celery's start, and the interval",
            ),
            (f"{gap_s:.2f} s", "between the last tick of the old beat and the first of the new one"),
            (f"{it.late}  ", f"ticks of the old beat in the {WATCHED_FOR_S:g} s after the first of the new one"),
        ):
            self._console.print(Text.assemble((f"{figure:>8}", "bold"), f"  {what}"), soft_wrap=True)
        if it.late:
            raise _DemoError(f"two beats: {it.old.node} sent {it.late} ticks after the first one of {it.new.node}")
        if it.new.started_at + NOTICED_WITHIN_S < it.dead_at:
            raise _DemoError(f"two beats: the one of {it.new.node} was started before that of {it.old.node} was dead")

    # what happens, and what is told

    def _await(self, happened: Callable[[], T | None], what: str) -> T:
        """Tell what happens until it is what is waited for, and return that."""
        give_up_at = clock.now() + STEP_TAKES_AT_MOST_S
        while not (value := happened()):
            if self._interrupted.is_set():
                raise _InterruptedError
            if clock.now() >= give_up_at:
                raise _DemoError(
                    f"waited {STEP_TAKES_AT_MOST_S:g} s for {what}; this is how it went:\n{self._stage.logs()}"
                )
            with contextlib.suppress(queue.Empty):
                self._take(self._stage.lines.get(timeout=0.02))
        return value

    def _take(self, line: _Line) -> None:
        said, seen = line.said, self._seen
        if "tick" in said:
            tick = _Tick(str(said["tick"]), int(said["epoch"]), line.at)
            seen.ticks.append(tick)
            self._tell(f"tick {len(seen.ticks)}, sent by {tick.node} (epoch {tick.epoch})", "cyan", at=line.at)
        elif said.get("event") == "leading":
            started_at = datetime.fromisoformat(said["time"].replace("Z", "+00:00")).timestamp()
            elected_at = started_at - said["elected_to_started_s"]
            leader = _Leader(line.source, said["epoch"], said["child"], elected_at, started_at)
            seen.leaders.append(leader)
            what = f"{leader.node} leads, epoch {leader.epoch}: it starts its celery beat, pid {leader.child}"
            self._tell(what, "bold green", at=line.at)
        elif said.get("event") == "waiting":
            self._tell(f"{line.source} is {said['message']}", at=line.at)
        elif said.get("event") == "standby":
            seen.standing_by.add(line.source)
            self._tell(f"{line.source} is {said['message']}", at=line.at)
        elif said.get("level") == "error":
            self._tell(f"{line.source}: {said.get('message')}", "red", at=line.at)

    def _tell(self, text: str, style: str = "", at: float | None = None) -> None:
        since = (at if at is not None else clock.wall()) - self._began
        self._console.print(Text.assemble((f"{since:6.2f} s  ", "dim"), (text, style)), soft_wrap=True)

    def _status(self) -> None:
        self._console.print()
        self._console.print(Text("$ zkbeat status", style="bold"))
        operate.status(Access(self._stage.zookeeper.hosts), "/zkbeat", NAME, as_json=False, watch=False)
        self._console.print()


class _Death:
    """Notes when a process, that very one whatever becomes of its pid, has ended."""

    def __init__(self, pid: int) -> None:
        self.at: float | None = None
        fd: int | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
        threading.Thread(target=self._await, args=(pid, fd), name="death", daemon=True).start()

    def _await(self, pid: int, fd: int | None) -> None:
        if fd is not None:
            select.select([fd], [], [])
            os.close(fd)
        else:
            while _exists(pid):
                threading.Event().wait(0.01)
        self.at = clock.wall()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _check_needs() -> None:
    if shutil.which("redis-server") is None:
        hint = "install it (Debian, Ubuntu: apt install redis-server; macOS: brew install redis)"
        raise _DemoError(f"the demo needs a Redis broker and there is no redis-server: {hint}", EXIT_UNAVAILABLE)
    if importlib.util.find_spec("redis") is None:
        hint = "pip install 'zkbeat[demo]'"
        raise _DemoError(f"the demo needs Celery's Redis transport: {hint}", EXIT_UNAVAILABLE)
    try:
        dev.find_distribution()
    except dev.NoZooKeeperError as error:
        raise _DemoError(str(error), EXIT_UNAVAILABLE) from None


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Give an event that is set by ^C, TERM and HUP, so that none of them comes between a process and its end."""
    interrupted = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: interrupted.set())
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(nodes: int) -> int:
    """Run the demo; return 0 if the hand-over worked, 1 if not, 69 if something is not installed, 130 after ^C."""
    console = Console(highlight=False)
    try:
        _check_needs()
        with tempfile.TemporaryDirectory(prefix="zkbeat-demo-") as directory, _interruptible() as interrupted:
            _perform(Path(directory), nodes, console, interrupted)
    except _DemoError as error:
        print(f"zkbeat demo: {error}", file=sys.stderr)
        return error.exit_code
    except dev.ServerError as error:
        print(f"zkbeat demo: {error}", file=sys.stderr)
        return 1
    except _InterruptedError:
        return EXIT_INTERRUPTED
    console.print(Text("the hand-over worked, and nothing is left running", style="bold green"))
    return 0


def _perform(directory: Path, nodes: int, console: Console, interrupted: threading.Event) -> None:
    stage = _Stage(directory)
    names = [f"node{number}" for number in range(1, nodes + 1)]
    console.print(Text(f"zkbeat demo: {nodes} nodes, one celery beat", style="bold"))
    console.print()
    try:
        _Show(stage, names, console, interrupted).run()
    finally:
        console.print()
        console.print(Text("stopping everything", style="dim"))
        stage.close()
