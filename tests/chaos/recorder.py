"""The witness of one cluster: writes down the children's lives, the leases, the messages and what ZooKeeper logged.

It has nothing to do with zkbeat's own idea of what happens. Lives and leases are seen by a process that does nothing
else (`witness.py`); messages, and what ZooKeeper did, are kept by others and read later.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from tests.chaos import txnlog
from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.dev import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

    from tests.chaos.history import History, Record

WITNESS = Path(__file__).with_name("witness.py")
WITNESS_STARTS_WITHIN_S = 10.0
STREAM = "chaos"
MESSAGES_AT_ONCE = 10_000


@dataclass(frozen=True)
class Child:
    """A child that the recorder knows; `pid` as the recorder's own namespace has it."""

    node: str
    epoch: int
    pid: int
    began: float

    @property
    def name(self) -> str:
        return f"{self.node}/{self.pid}"


class Broker:
    """A redis-server of a cluster's own; its streams keep the order and the time of all messages."""

    def __init__(self, directory: Path, ip: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.host, self.port = ip, free_ports(1, ip)[0]
        options = {"bind": ip, "port": self.port, "protected-mode": "no", "save": "", "dir": directory}
        argv = ["redis-server", *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
        with (directory / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, start_new_session=True)

    def __enter__(self) -> Self:
        client = redis.Redis(self.host, self.port)
        wait_until(lambda: _answers(client), 10, "redis-server to serve")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


class Recorder:
    """See above. `children` are those that live now, by name."""

    def __init__(self, cluster: str, directory: Path, history: History) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o777)  # in a container the child is another user
        self.directory = directory
        self.cluster = cluster
        self.records: list[Record] = []
        self.children: dict[str, Child] = {}
        self._history = history
        self._clock_ahead_s: dict[str, float] = {}
        self._last_message = "0"
        self._last_zxid = 0
        self._znodes: dict[str, tuple[int, int]] = {}
        self._led = ""
        self._over = threading.Event()
        (directory / "alone").touch()
        (directory / "alone").chmod(0o666)  # in a container the child is another user
        self._lines = b""
        self._witness = subprocess.Popen(
            [sys.executable, "-S", WITNESS, directory / "lives"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if not self._read_witness(WITNESS_STARTS_WITHIN_S):
            raise RuntimeError("the witness does not start")
        self._thread = threading.Thread(target=self._watch, name=f"recorder of {cluster}", daemon=True)
        self._thread.start()

    def node(self, name: str, lease: Path, clock_ahead_s: float = 0.0) -> None:
        """Name a node: where its lease file is, and how far its CLOCK_BOOTTIME is ahead of ours."""
        self._clock_ahead_s[name] = clock_ahead_s
        if self._witness.stdin is not None:
            self._witness.stdin.write(f"{name} {lease}\n".encode())
            self._witness.stdin.flush()

    def note(self, kind: str, at: float | None = None, **fields: Any) -> Record:
        """Write something down that happened now, or at that instant."""
        record = {"cluster": self.cluster, "is": kind, "at": round(clock.now() if at is None else at, 6), **fields}
        self.records.append(record)
        self._history.add(record)
        return record

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)
        self._witness.kill()
        self._witness.wait()
        for pipe in (self._witness.stdin, self._witness.stdout):
            if pipe is not None:
                pipe.close()

    # what is seen at once

    def _watch(self) -> None:
        while not self._over.is_set():
            self._read_witness(0.1)

    def _read_witness(self, within_s: float) -> bool:
        """Take what the witness has said; return whether that was anything."""
        pipe = self._witness.stdout
        if pipe is None or not select.select([pipe], [], [], within_s)[0]:
            return False
        *lines, self._lines = (self._lines + os.read(pipe.fileno(), 65536)).split(b"\n")
        for line in lines:
            seen = json.loads(line)
            if "born" in seen:
                self._born(seen["said"], seen["born"])
            elif "dead" in seen:
                self._dead(seen["dead"], seen["at"])
            elif "lease" in seen:
                self._leased(seen["lease"], seen["at"], seen["hard"])
        return bool(lines)

    def _born(self, said: Mapping[str, Any], pid: int) -> None:
        node, ahead = said["node"], self._clock_ahead_s.get(said["node"], 0.0)
        child = Child(node, said["epoch"], pid, said["at"] - ahead)
        if said["hard"]:
            self.note("lease", child.began, node=node, epoch=child.epoch, hard=round(said["hard"] - ahead, 6))
        self.note(
            "started", child.began, node=node, epoch=child.epoch, child=child.name, alone=said["alone"], own=said["pid"]
        )
        self.children[child.name] = child

    def _dead(self, pid: int, at: float) -> None:
        child = next((child for child in self.children.values() if child.pid == pid), None)
        if child is not None:
            self.note("died", at, node=child.node, epoch=child.epoch, child=child.name)
            del self.children[child.name]

    def _leased(self, node: str, at: float, hard: float) -> None:
        child = next((child for child in self.children.values() if child.node == node), None)
        if child is not None:  # else it says itself, when it starts, what it was started with
            self.note("lease", at, node=node, epoch=child.epoch, hard=round(hard - self._clock_ahead_s[node], 6))

    # what others keep

    def messages(self, host: str, port: int) -> list[Record]:
        """Read what was published since the last time."""
        ahead_s = clock.wall() - clock.now()
        found = []
        with redis.Redis(host, port, socket_timeout=10) as client:
            entries = client.xrange(STREAM, min=f"({self._last_message}", count=MESSAGES_AT_ONCE)
        for key, fields in entries:
            self._last_message = key.decode()
            said = json.loads(fields[b"m"])
            clock_ahead_s = self._clock_ahead_s.get(said["node"], 0.0)
            sent_at, hard = said["at"] - clock_ahead_s, said["hard"] - clock_ahead_s
            # The broker's clock is in whole milliseconds, rounded down; it had the message after it was sent.
            at = max(int(self._last_message.partition("-")[0]) / 1000 - ahead_s, sent_at)
            more = {"own": said["pid"], "sent_at": round(sent_at, 6), "hard": round(hard, 6)}
            found.append(self.note("message", at, node=said["node"], epoch=said["epoch"], tick=said["tick"], **more))
        return found

    def znodes(self, servers: Sequence[Path], base: str, operator: Callable[[int], bool]) -> None:
        """Read from the logs of these servers what happened below an election's path since the last time."""
        ahead_s = clock.wall() - clock.now()
        for txn in txnlog.committed(servers, self._last_zxid):
            self._last_zxid = txn.zxid
            at = txn.at - ahead_s
            if txn.kind in {txnlog.CREATE, txnlog.CREATE_2} and txn.path.startswith(f"{base}/election/"):
                self._made(txn, at)
            elif txn.kind == txnlog.DELETE and txn.path in self._znodes:
                self._gone(txn, at, operator)
            elif txn.kind == txnlog.CLOSE_SESSION:
                self._closed(txn, at)
            elif txn.kind in {txnlog.CREATE, txnlog.CREATE_2, txnlog.SET_DATA} and txn.path == f"{base}/ledger":
                self._entered(txn, at, base)

    def _made(self, txn: txnlog.Txn, at: float) -> None:
        self._znodes[txn.path] = (txn.zxid, txn.session)
        self.note("made", at, epoch=txn.zxid, node=_member(txn.data), znode=txn.path)

    def _gone(self, txn: txnlog.Txn, at: float, operator: Callable[[int], bool]) -> None:
        epoch, session = self._znodes.pop(txn.path)
        contenders = {owner for _, owner in self._znodes.values()}
        if operator(txn.session):
            why = "deleted"
        elif txn.session == session:
            why = "left"
        else:
            # Who stands in line itself has evicted; the guard's remover, and a new start's, do not.
            why = "evicted" if txn.session in contenders else "removed"
        self.note("gone", at, epoch=epoch, why=why)

    def _closed(self, txn: txnlog.Txn, at: float) -> None:
        for path, (epoch, session) in list(self._znodes.items()):
            if session == txn.session:
                del self._znodes[path]
                # The servers close a session by themselves when it has expired: nobody asked them to.
                self.note("gone", at, epoch=epoch, why="closed" if txn.asked else "expired")

    def _entered(self, txn: txnlog.Txn, at: float, base: str) -> None:
        try:
            ledger = json.loads(txn.data)
        except ValueError:
            return
        led, left = ledger.get("led", ""), ledger.get("left", False)
        path = led if led.startswith("/") else f"{base}/election/{led}"
        if path in self._znodes and not left and path != self._led:
            self._led = path
            self.note("elected", at, epoch=self._znodes[path][0], znode=path)


def _member(data: bytes) -> str:
    try:
        return str(json.loads(data).get("id", ""))
    except ValueError:
        return ""
