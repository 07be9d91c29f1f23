"""Hand-overs of every kind in a row, under a mixed schedule: is what workers ran what was due, no more and no less?

Three nodes, each on a host of a small LAN, round three ZooKeeper servers; a Redis, two workers, and another Redis, to
which nothing is done, where the tasks write down that they ran. What was due is reckoned by `entries`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kazoo.client import KazooClient

from tests.bench.schedule.entries import MIXES, SECOND, Verdict, by_entry, judge
from tests.launcher.servers import Redis
from tests.support import nodes
from tests.support.net import Lan
from tests.support.waiting import wait_until
from tests.support.zookeeper import Ensemble
from zkbeat import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

    from tests.support.net import Host

HERE = Path(__file__).parent
TOP = HERE.parents[2]
ROOT = "/zkbeat"
SESSION_TIMEOUT_S = 4.0
LEADS_WITHIN_S = 40.0
DRAINS_WITHIN_S = 60.0
SETTLES_WITHIN_S = 30.0
QUIET_FOR_S = 3.0
WORKERS = 2


class Node(nodes.Node):
    """A node on a host of the LAN."""

    def __init__(self, directory: Path, host: Host, **keywords: Any) -> None:
        super().__init__(directory, prefix=host.exec_prefix, **keywords)
        self.host = host

    def says(self, what: str) -> Any:
        return (self.health() or {}).get(what)


class Field:
    """What all teams have in common: a LAN, an ensemble, and a Redis for what ran."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        try:
            self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="zks-")))
            self.lan = self._stack.enter_context(Lan())
            self.record = self._stack.enter_context(Redis(self.directory / "record", self.lan.ip))
            self.ensemble = Ensemble(self.directory / "zk", lan=self.lan, tick_ms=1000)
            self._stack.callback(self.ensemble.close)
            self.ensemble.start()
            self.ensemble.wait_quorum()
        except BaseException:
            self._stack.close()
            raise
        self.since = time.time_ns() // 1000
        self.teams: list[Team] = []

    def team(
        self,
        name: str,
        mix: str,
        count: int,
        scheduler: str,
        *options: str,
        once: bool = True,
        kind: type[Team] | None = None,
    ) -> Team:
        """Start three nodes and two workers that share a schedule. `once`: its tasks run once a tick."""
        team = (kind or Team)(self, name, mix, count, scheduler, options, once=once)
        self._stack.enter_context(team)
        self.teams.append(team)
        return team

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for team in self.teams:
                print(team.report())
        self._stack.close()


class Team:
    """Three nodes and two workers round one schedule, and a broker of their own: one that others freeze is no fault."""

    step_down_signal = signal.SIGUSR1
    conf: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, field: Field, name: str, mix: str, count: int, scheduler: str, options: tuple[str, ...], *, once: bool
    ) -> None:
        self.field = field
        self.name = name
        self.mix = MIXES[mix](count)
        self.busy = mix == "mixed"
        self._stack = contextlib.ExitStack()
        number = len(field.teams)
        conf = {
            "zkbeat_hosts": field.ensemble.hosts,
            "zkbeat_name": name,
            "zkbeat_session_timeout": SESSION_TIMEOUT_S,
            "redbeat_redis_url": f"{field.record.url[:-1]}{number + 1}",
        }
        self._queue = f"celery-{name}"
        conf |= {"task_default_queue": self._queue, **self.conf}
        self.broker = self._stack.enter_context(Redis(field.directory / f"broker-{name}", field.lan.ip))
        self._stack.callback(self.broker.thaw)
        given = {"broker": self.broker.url, "record": field.record.url, "key": self._key, "mix": mix, "count": count}
        given |= {"since": field.since, "conf": conf, "once": once}
        path = os.pathsep.join([str(TOP), str(HERE / "project")])
        env = {"MIXED": json.dumps(given), "PYTHONPATH": path}
        self.worker_logs = [field.directory / f"{name}-w{number}.log" for number in range(WORKERS)]
        try:
            self.nodes = [self._node(f"{name}-{number}", scheduler, env, options) for number in range(3)]
            for log in self.worker_logs:
                self._stack.callback(_end, self._worker(log, env))
            for node in self.nodes:
                node.start()
        except BaseException:
            self._stack.close()
            raise

    @property
    def _key(self) -> str:
        return f"runs-{self.name}"

    def _node(self, name: str, scheduler: str, env: dict[str, str], options: tuple[str, ...]) -> Node:
        directory = self.field.directory / name
        node = Node(
            directory,
            self.field.lan.host(name),
            hosts=self.field.ensemble.hosts,
            name=self.name,
            command=self.beat(scheduler),
            options=["--root", ROOT, "--session-timeout", f"{SESSION_TIMEOUT_S:g}", *options],
            env=env,
            cwd=directory,  # where a stock beat keeps its file
        )
        directory.mkdir()
        self._stack.callback(node.kill_everything)
        return node

    @staticmethod
    def beat(scheduler: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "mixed", "beat", "-S", scheduler, "-l", "warning"]

    def store_ips(self) -> list[str]:
        """Return where what elects the leader is."""
        return [server.hosts.partition(":")[0] for server in self.field.ensemble.servers]

    def _worker(self, log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
        argv = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "mixed",
            "worker",
            "-n",
            f"{log.stem}@%h",
            "-l",
            "info",
            "-c",
            "2",
        ]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("ab") as out:
            return subprocess.Popen(
                [*argv, *quiet], env=nodes.environment(env), cwd=self.field.directory, stdout=out, stderr=out
            )

    # what is so now

    def leader(self) -> Node | None:
        return next((node for node in self.nodes if node.says("state") == "leading"), None)

    def wait_leader(self, after_epoch: int = 0) -> Node:
        """Wait for a leader of a later epoch, whose beat has sent something, if there is always something to send."""

        def found() -> Node | None:
            leader = self.leader()
            about = (leader.health() or {}) if leader is not None else {}
            return leader if (about.get("epoch") or 0) > after_epoch and (about.get("ticks") or not self.busy) else None

        return wait_until(found, LEADS_WITHIN_S, f"a leader after epoch {after_epoch}", self.report, every_s=0.05)

    def wait_ready(self) -> None:
        """Start what does not run, and wait until all lead or stand by."""
        for node in self.nodes:
            if node.process is None or node.process.poll() is not None:
                node.start()
        wait_until(
            lambda: all(node.says("ready") for node in self.nodes),
            LEADS_WITHIN_S,
            "all ready",
            self.report,
            every_s=0.1,
        )

    def runs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.field.record.client.lrange(self._key, 0, -1)]

    def states(self) -> dict[str, list[Any]]:
        """Return the state of each entry, as it stands in ZooKeeper, and see that nothing is owed."""
        owed, found = self._schedule()
        if owed:
            raise RuntimeError(f"{len(owed)} ticks are still owed: {owed[:3]}")
        return found

    def _schedule(self) -> tuple[list[Any], dict[str, list[Any]]]:
        client = KazooClient(hosts=self.field.ensemble.hosts)
        client.start(timeout=15)
        try:
            base = f"{ROOT}/{self.name}/schedule"
            owed = json.loads(client.get(f"{base}/intent")[0])["ticks"]
            found: dict[str, list[Any]] = {}
            for bucket in client.get_children(f"{base}/state"):
                found |= json.loads(client.get(f"{base}/state/{bucket}")[0])["entries"]
            return owed, found
        finally:
            client.stop()
            client.close()

    def settle(self) -> int:
        """Return the instant up to which all that was due must be done with: now. The leader has time to catch up."""
        at = time.time_ns() // 1000

        def done() -> bool:
            owed, found = self._schedule()
            return not owed and not any(
                due > found[entry.name][0] for entry in self.mix for due in entry.due(self.field.since, at)[-1:]
            )

        # What is not done with by then is missing: that is for the verdict to say, entry by entry.
        with contextlib.suppress(AssertionError):
            wait_until(done, SETTLES_WITHIN_S, "the leader has caught up", every_s=0.5)
        return at

    def drain(self) -> None:
        """End all beats, as one does, the leader last, and wait until the workers have run what was sent."""
        leader = self.wait_leader()
        for node in [*(one for one in self.nodes if one is not leader), leader]:
            node.stop()
        seen: list[tuple[int, float]] = [(-1, 0.0)]

        def quiet() -> bool:
            count = len(self.runs())
            if self.broker.client.llen(self._queue) or count != seen[0][0]:
                seen[0] = (count, time.monotonic())
            return time.monotonic() - seen[0][1] > QUIET_FOR_S

        wait_until(quiet, DRAINS_WITHIN_S, "the workers are done", self.report, every_s=0.1)

    def dropped(self) -> int:
        """Return how many second messages of a tick the workers did not run."""
        return sum(log.read_text(errors="replace").count(": dropped") for log in self.worker_logs)

    def report(self) -> str:
        said = [f"{node.id}: {node.says('state')}" for node in self.nodes]
        logs = [node.logs()[-4000:] for node in self.nodes] + [log.read_text()[-3000:] for log in self.worker_logs]
        return "\n".join([*said, *logs])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# the kinds: each ends when it has done what it does; what it has stopped is started again after the hand-over


def _term(_team: Team, leader: Node) -> None:
    leader.stop()


def _sidecar_killed(_team: Team, leader: Node) -> None:
    os.kill(leader.sidecar, signal.SIGKILL)


def _node_killed(_team: Team, leader: Node) -> None:
    leader.kill_everything()


def _stepped_down(team: Team, leader: Node) -> None:
    os.kill(leader.sidecar, team.step_down_signal)


@contextlib.contextmanager
def _frozen(leader: Node) -> Iterator[None]:
    leader.signal_everything(signal.SIGSTOP)
    try:
        yield
    finally:
        leader.signal_everything(signal.SIGCONT)


def _node_frozen(team: Team, leader: Node) -> None:
    epoch = leader.says("epoch")
    with _frozen(leader):
        team.wait_leader(epoch)


def _cut_off(team: Team, leader: Node) -> None:
    epoch = leader.says("epoch")
    leader.host.cut_off(team.store_ips())
    try:
        team.wait_leader(epoch)
    finally:
        leader.host.heal()


def _broker_frozen(team: Team, leader: Node) -> None:
    """The broker takes nothing, and in the middle of that the leader is killed."""
    team.broker.freeze()
    try:
        time.sleep(1.5)
        leader.kill_everything()
        wait_until(team.leader, LEADS_WITHIN_S, "another leads", team.report, every_s=0.05)
        time.sleep(1.0)
    finally:
        team.broker.thaw()


def _zookeeper_frozen(team: Team, leader: Node) -> None:
    """No server answers for longer than the lease: the leader has to stop, and somebody leads when they are back."""
    team.field.ensemble.suspend_all()
    try:
        wait_until(lambda: leader.says("state") != "leading", LEADS_WITHIN_S, "the lease has run out", team.report)
    finally:
        team.field.ensemble.resume_all()


KINDS: dict[str, Callable[[Team, Node], None]] = {
    "TERM": _term,
    "sidecar `kill -9`": _sidecar_killed,
    "node `kill -9`": _node_killed,
    "node stopped and continued": _node_frozen,
    "leader cut off from ZooKeeper": _cut_off,
    "broker frozen, node `kill -9`": _broker_frozen,
    "ZooKeeper frozen past the lease": _zookeeper_frozen,
    "stepped down": _stepped_down,
}


@dataclass
class Found:
    """What so many hand-overs have shown."""

    rounds: dict[str, int] = field(default_factory=dict)
    silent_s: dict[str, list[float]] = field(default_factory=dict)
    """From the last run of the old epoch's to the first of the next one's, of each kind."""
    verdict: Verdict = field(default_factory=Verdict)
    sends_all: Verdict = field(default_factory=Verdict)
    """Of those alone that send all that they have missed."""
    kinds: dict[str, Verdict] = field(default_factory=dict)
    """Of each kind of schedule."""
    dropped: int = 0
    """Second messages of a tick, which workers did not run."""
    seconds: float = 0.0
    clock_set_by_s: float = 0.0
    """By how much the machine's wall clock was set meanwhile: intervals go along, away from what was due (clocks)."""


def measure(rounds: int, count: int, seed: int, say: Callable[[str], None] = print) -> Found:
    """Carry out so many hand-overs, under so many entries; return what they have shown."""
    found = Found()
    changes: list[tuple[str, int, int]] = []
    wall_ahead = clock.wall() - clock.now()
    with Field() as stage:
        team = stage.team("mixed", "mixed", count, "zookeeper", "--preload")
        team.wait_leader()
        team.wait_ready()
        for number, kind in enumerate(order(list(KINDS), rounds, seed), 1):
            leader = team.wait_leader()
            epoch = leader.says("epoch")
            KINDS[kind](team, leader)
            changes.append((kind, epoch, team.wait_leader(epoch).says("epoch")))
            team.wait_ready()
            found.rounds[kind] = found.rounds.get(kind, 0) + 1
            say(f"{number}/{rounds} {kind}: {len(team.runs())} runs")
        ended = team.settle()
        team.drain()
        runs, states = team.runs(), team.states()
        found.clock_set_by_s = round(clock.wall() - clock.now() - wall_ahead, 3)
        found.seconds = round(time.time() - stage.since / SECOND, 1)
        found.dropped = team.dropped()
        ran = by_entry(runs)
        for entry in team.mix:
            last, intended, missed = states[entry.name][:3]
            verdict = judge(entry, ran.get(entry.name, {}), last, missed, stage.since, ended)
            if not verdict.clean:  # lost before it was intended, or after it was sent?
                say(f"{entry.name}: {intended} intended, {verdict.ran} ran, {missed} missed; {verdict}")
            found.verdict.add(verdict)
            found.kinds.setdefault(entry.kind, Verdict()).add(verdict)
            if entry.policy == "all":
                found.sends_all.add(verdict)
        if not found.verdict.clean:
            say(team.report())
    for kind, before, after in changes:
        found.silent_s.setdefault(kind, []).append(_silence(runs, before, after))
    return found


def order(kinds: list[str], rounds: int, seed: int) -> list[str]:
    """Return the kinds in turn, each turn in another order."""
    turns = random.Random(seed)
    found: list[str] = []
    while len(found) < rounds:
        found += turns.sample(kinds, len(kinds))
    return found[:rounds]


def _silence(runs: list[dict[str, Any]], before: int, after: int) -> float:
    old = [run["at"] for run in runs if run["epoch"] == str(before)]
    new = [run["at"] for run in runs if run["epoch"] == str(after)]
    return round(min(new) - max(old), 2) if old and new else float("nan")
