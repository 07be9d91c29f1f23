"""Ticks a second, the start, and what a commit costs: each scheduler in a process of its own, in turns, in one run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.launcher.servers import Redis
from tests.support.nodes import environment
from zkbeat.dev import Server

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("zookeeper", "zookeeper-supervised", "persistent-0", "persistent-1", "redbeat")
COUNTS = (100, 1000)
STARTED = 10_000
TOP = Path(__file__).resolve().parents[3]
WITHIN_S = 180


def measure(rounds: int, counts: tuple[int, ...] = COUNTS, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Return the medians: `ticks` by count and kind, and `start` with STARTED entries."""
    found: dict[str, Any] = {"rounds": rounds, "ticks": {}, "start": {}}
    with (
        tempfile.TemporaryDirectory() as directory,
        Redis(Path(directory, "redis")) as redis,
        Server(Path(directory, "zookeeper")) as server,
    ):
        for count in counts:
            each: dict[str, list[dict[str, Any]]] = {}
            for number in range(rounds):
                for kind in KINDS:
                    name = uuid.uuid4().hex
                    one = _drive(kind, count, redis, server, name=name, sends=True)
                    each.setdefault(kind, []).append(one)
                    say(f"{count} entries, {number + 1}/{rounds} {kind}: {one['ticks_a_second']:.0f} ticks/s")
            found["ticks"][str(count)] = {kind: _median(ones) for kind, ones in each.items()}
        for what in ("interval", "crontab"):
            name = uuid.uuid4().hex
            first = _drive("zookeeper", STARTED, redis, server, name=name, sends=False, crontab=what == "crontab")
            again = [
                _drive("zookeeper", STARTED, redis, server, name=name, sends=False, crontab=what == "crontab")
                for _ in range(rounds)
            ]
            found["start"][what] = {"first": first, "again": _median(again)}
            say(f"{STARTED} {what} entries: {found['start'][what]}")
    return found


def _drive(kind: str, count: int, redis: Redis, server: Server, **settings: Any) -> dict[str, Any]:
    redis.forget()
    given = {"broker": redis.url, "hosts": server.hosts, **settings}
    argv = [sys.executable, "-m", "tests.bench.schedule.drive", kind, str(count), json.dumps(given)]
    lease = Path(server.directory).parent / "lease"
    lease.write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x3f" * 2)  # holds for as long as anybody measures
    env = environment({"PYTHONPATH": str(TOP), "ZKBEAT_LEASE_FILE": str(lease)})
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{kind}: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _median(ones: list[dict[str, Any]]) -> dict[str, Any]:
    middle: dict[str, Any] = {}
    for name, value in ones[0].items():
        values = [one[name] for one in ones]
        middle[name] = (
            [statistics.median(column) for column in zip(*values, strict=True)]
            if isinstance(value, list)
            else statistics.median(values)
        )
    return middle
