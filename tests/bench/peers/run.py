"""The run: who is measured when, and what is kept.

Those that are measured at a time do each step together: first all nodes of all of them are started, then the faults are
done, a little apart. So no figure has the start of another one's nodes in it, and all take turns inside each fault.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.peers import pressure, report
from tests.bench.peers.contestants import DEFAULT, MATCHED, SETTINGS, Contestant
from tests.bench.peers.faults import FAULTS, Fault
from tests.bench.peers.trial import Lane, Trial
from zkbeat import clock

APART_S = 1.5
"""Between the faults of those that are measured at a time: what takes over at once does so alone."""

CALM = 0.5
CALM_WITHIN_S = 15.0
"""No fault is done while others keep the CPUs busier than this, unless that goes on for too long."""

PHASES_S = 5.0
"""The rounds are done at different moments of the intervals in which leaderships are renewed."""


@dataclass(frozen=True)
class Plan:
    """Who is measured, on which faults, how often with which settings, and how many at a time.

    With `more`, what was measured before stays, and this is added to it.
    """

    contestants: Sequence[Contestant]
    faults: Sequence[Fault]
    rounds: Mapping[str, int]
    beside: int
    more: bool = False


@dataclass(frozen=True)
class Batch:
    """Those that are measured at a time."""

    setting: str
    number: int
    phase: float
    fault: Fault
    contestants: Sequence[Contestant]


def batches(plan: Plan) -> Iterator[Batch]:
    """Return what is done at a time, one after the other: all the faults in turn, then the next round."""
    for number in range(max(plan.rounds.values())):
        for setting in (MATCHED, DEFAULT):
            if number < plan.rounds[setting]:
                yield from _round(plan, setting, number)


def _round(plan: Plan, setting: str, number: int) -> Iterator[Batch]:
    phase = (number + 0.5) / plan.rounds[setting]
    for fault in plan.faults:
        there = [one for one in plan.contestants if _takes_part(one, fault, setting)]
        for together in _even_parts(_turned(there, number), plan.beside):
            yield Batch(setting, number, phase, fault, together)


def _takes_part(contestant: Contestant, fault: Fault, setting: str) -> bool:
    if fault.of_a_sidecar and contestant.in_process:
        return False
    return setting == MATCHED or not contestant.has_matching_defaults


def _turned(those: Sequence[Contestant], by: int) -> list[Contestant]:
    """Let another one begin in each round, so that neighbours are not always the same."""
    return [*those[by % max(len(those), 1) :], *those[: by % max(len(those), 1)]]


def _even_parts(those: Sequence[Contestant], most: int) -> Iterator[Sequence[Contestant]]:
    count = -(-len(those) // most)
    for part in range(count):
        yield those[part::count]


def run(plan: Plan, path: Path | None) -> bool:
    """Measure as planned, and keep it there; return whether a trial could not be carried out."""
    result = _begin(plan, path)
    earlier = {setting: _rounds(result, setting) if plan.more else 0 for setting in SETTINGS}
    failed = False
    over = threading.Event()
    with ExitStack() as stack:
        lanes = [stack.enter_context(Lane(over)) for _ in range(plan.beside)]
        pool = stack.enter_context(ThreadPoolExecutor(plan.beside))
        # The first to be called in the end: no trial waits for anything when the lanes' services go.
        stack.callback(over.set)
        result["how"]["ZooKeeper"] = _zookeeper_version(lanes[0])
        for batch in batches(plan):
            records = [
                {**record, "round": earlier[batch.setting] + batch.number} for record in _measure(batch, lanes, pool)
            ]
            failed |= any("error" in record for record in records)
            result["trials"] += records
            result["how"]["rounds"] = {setting: _rounds(result, setting) for setting in SETTINGS}
            result["how"]["load at the end"] = round(os.getloadavg()[0], 2)
            for record in records:
                print(report.line(record), flush=True)
            _keep(result, path)
    return failed


def _measure(batch: Batch, lanes: Sequence[Lane], pool: ThreadPoolExecutor) -> list[dict[str, Any]]:
    """Do one batch; a trial that fails is a result too."""
    trials = [
        lane.trial(contestant, batch.setting, batch.fault)
        for lane, contestant in zip(lanes, batch.contestants, strict=False)
    ]
    try:
        errors = list(pool.map(_caught(Trial.start), trials))
        _await_calm(lanes[0].over)
        ready = [(index, trial) for index, trial in enumerate(trials) if errors[index] is None]

        def watch(indexed: tuple[int, Trial]) -> dict[str, Any]:
            index, trial = indexed
            trial.pass_time(PHASES_S * batch.phase + APART_S * index)
            return trial.watch()

        outcomes = dict(zip([index for index, _ in ready], pool.map(_caught(watch), ready), strict=True))
    except BaseException:
        lanes[0].over.set()
        raise
    finally:
        list(pool.map(_caught(Trial.close), trials))
    records = []
    for index, trial in enumerate(trials):
        outcome = outcomes.get(index) if errors[index] is None else errors[index]
        if not isinstance(outcome, dict):
            outcome = {
                "contestant": trial.contestant.name,
                "setting": trial.setting,
                "fault": trial.fault.name,
                "error": outcome,
            }
        records.append(outcome)
    return records


def _await_calm(over: threading.Event) -> None:
    """Wait for what else is going on on this machine to let up, for a while."""
    give_up_at = clock.now() + CALM_WITHIN_S
    while pressure.recent() > CALM and clock.now() < give_up_at:
        over.wait(1.0)


def _caught(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a step that returns what went wrong, in a line."""

    def caught(trial: Any) -> Any:
        try:
            return step(trial)
        # Whatever it is: a trial that went wrong is a result, and the others are still wanted.
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            return f"{type(error).__name__}: {error}".splitlines()[0]

    return caught


def _begin(plan: Plan, path: Path | None) -> dict[str, Any]:
    """Return the result so far: what was measured before and is not to be measured anew."""
    before = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}
    anew = {
        (batch.setting, batch.fault.name, contestant.name)
        for batch in batches(plan)
        for contestant in batch.contestants
    }
    trials = [
        trial
        for trial in before.get("trials", [])
        if plan.more or (trial["setting"], trial["fault"], trial["contestant"]) not in anew
    ]
    described = {one["name"]: one for one in before.get("contestants", [])}
    described |= {one.name: _described(one) for one in plan.contestants}
    return {"how": _how(plan), "contestants": list(described.values()), "faults": _faults(), "trials": trials}


def _rounds(result: Mapping[str, Any], setting: str) -> int:
    return 1 + max((one.get("round", 0) for one in result["trials"] if one["setting"] == setting), default=-1)


def _described(contestant: Contestant) -> dict[str, Any]:
    return {
        "name": contestant.name,
        "label": contestant.label,
        "version": contestant.version(),
        "store": contestant.store,
        "in_process": contestant.in_process,
        "settings": {setting: contestant.settings[setting] for setting in SETTINGS},
    }


def _faults() -> list[dict[str, Any]]:
    return [
        {"name": one.name, "what": one.what, "of_a_sidecar": one.of_a_sidecar, "hands_over": one.hands_over}
        for one in FAULTS
    ]


def _how(plan: Plan) -> dict[str, Any]:
    return {
        "date": datetime.now(tz=timezone.utc).date().isoformat(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "beside": plan.beside,
        "load at the start": round(os.getloadavg()[0], 2),
        "Python": platform.python_version(),
        "celery": version("celery"),
        "kazoo": version("kazoo"),
        "redis": _said_version(["redis-server", "--version"]),
        "etcd": _said_version(["etcd", "--version"]),
    }


def _said_version(argv: Sequence[str]) -> str:
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found[0] if found else "unknown"


def _zookeeper_version(lane: Lane) -> str:
    found = re.search(r"version: ([\d.]+)", lane.stores["zookeeper"].ask("srvr"))
    return found[1] if found else "unknown"


def _keep(result: Mapping[str, Any], path: Path | None) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.dumped(result), encoding="utf-8")
    try:
        report.write(path)
    # What was measured is kept; the page can be made from it later.
    except Exception:  # noqa: BLE001
        traceback.print_exc(file=sys.stderr)
