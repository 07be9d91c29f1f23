"""The page of the measurements, written from what `faults` has kept.

    python -m tests.bench.report docs/measurements.json

It says nothing that is not in the JSON, but for how it was measured and what a figure means.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHOWN = {
    "touched": "touched",
    "child_dead_s": "child dead",
    "znode_gone_after_death_s": "znode gone after that",
    "elected_after_death_s": "elected after that",
    "elected_s": "new leader",
    "outage_s": "outage",
    "elected_after_outage_s": "leader after it",
    "first_tick_s": "first tick",
    "gap_s": "gap",
    "nothing_left_s": "nothing left after",
    "left": "processes left",
    "ticks_after_thaw": "ticks of the old one after the thaw",
}
"""What the table shows, in this order, and under which name; `dup` and `overlap_s` go first."""

ONLY_IF_LIMITED = {"overlap_s", "znode_gone_after_death_s", "elected_after_death_s", "elected_after_outage_s"}
"""Shown only where something is said about them: elsewhere they may mean nothing, or be negative."""

PAGE = """\
# Measurements

Written by `python -m tests.bench.faults --json docs/measurements.json`; do not edit it, run that again.
Each fault was done {rounds}, at different moments between two renewals of the lease.
A cell shows the median, and the worst in brackets where it differs.

{faults}

What the words mean, all times in seconds:

- **dup**: messages that came from the old publisher after the first one of the new publisher.
- **overlap**: how long both of their processes existed, whether or not they sent anything; shown where there was any.
- **child dead**, **new leader**, **first tick**, **nothing left**: from the fault.
  *New leader* is the moment of the election, *first tick* the first message of another process at the broker.
- **znode gone**, **elected**: from the moment when the child was dead.
- **gap**: the longest time without a message, from the last one before the fault on.
- **outage**: how long ZooKeeper did not answer; **leader after it**: from its end.

celery's own start, from exec to the first message at the broker, was {fresh_s} s in an empty directory (as on a node
that has not led before: beat then waits a whole interval before its first tick) and {due_s} s when the task was due at
once, each the median of {own_start_rounds} in the same run.
So "celery's own start + 1 s" is {limit_s} s here.

## What it costs

{costs}

The writes are the leader's renewals.
Nearly all reads are those of the first standby, which alone looks at the leader's znode whenever that is renewed;
the rest are pings, which the server counts as reads.

## All of a node's processes frozen and thawed

{frozen}

## How it was measured

{how}

- Three nodes on one machine, each a real `zkbeat` round a stock `celery -A app beat` (PersistentScheduler, a schedule
  file of its own), a task a second; session timeout 10 s, lease 6.7 s, the server's tickTime 2 s.
- The broker is a real Redis.
  A monitor takes each message from its queue at once, and notes when it came and, from its `origin` header, the pid of
  the process that published it.
- A child's death is noted from a pidfd, the end of a znode from a watch by an independent client, the election from
  zkbeat's log.
  All instants are on, or brought to, CLOCK_BOOTTIME.
- The old publisher is watched for 3 s after the new one's first message if it is dead by then, else for 10 s; where the
  child is not to be touched, every publisher is watched for 10 s after the fault is over.
- Where links are cut, each node and each server is a network namespace, and the bridge between them loses the packets
  without a trace; every node reaches the broker throughout.
- A standby that takes over has an empty directory; a node whose supervisor restarts it finds its schedule file.
"""


def merged(
    path: Path,
    zookeeper: str,
    own_start: Mapping[str, float] | None,
    faults: Sequence[Mapping[str, Any]],
    costs: Sequence[Mapping[str, Any]],
    order: Sequence[str],
) -> dict[str, Any]:
    """Return what is to be kept: what was measured now, with that version of ZooKeeper, and what was kept before."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    rows = {row["name"]: row for row in [*kept.get("faults", []), *faults]}
    return {
        "how": _versions(zookeeper),
        "own_start": own_start or kept.get("own_start"),
        "faults": [rows[name] for name in order if name in rows],
        "costs": costs or kept.get("costs", []),
    }


def _versions(zookeeper: str) -> dict[str, str]:
    """Return what it was measured with; nothing that names the machine."""
    return {
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "ZooKeeper": zookeeper,
        "celery": version("celery"),
        "kazoo": version("kazoo"),
    }


def summary(fault: Mapping[str, Any]) -> str:
    """Return what was measured of a fault, each figure as median (worst)."""
    errors = [figures["error"] for figures in fault["rounds"] if "error" in figures]
    rounds = [figures for figures in fault["rounds"] if "error" not in figures]
    wanted = [name for name in ("dup", "overlap_s", *SHOWN) if name not in ONLY_IF_LIMITED or name in fault["limits"]]
    names = [name for name in wanted if any(name in figures for figures in rounds)]
    texts = [_figure(name, [figures[name] for figures in rounds if name in figures]) for name in names]
    return ", ".join([*(text for text in texts if text), *(f"failed: {error}" for error in errors)])


def _figure(name: str, values: Sequence[float]) -> str:
    worst = max(values)
    if name == "overlap_s":
        # Known to 10 ms: only what is more than that is worth telling.
        return f"overlap {worst:.2f}" if worst > 0.02 else ""
    if name == "touched":
        return "touched" if worst else "not touched"
    label = SHOWN.get(name, name)
    middle = statistics.median(values)
    median_text, worst_text = (f"{value:.2f}" if name.endswith("_s") else f"{value:g}" for value in (middle, worst))
    return f"{label} {median_text}" + (f" ({worst_text})" if worst_text != median_text else "")


def page(result: Mapping[str, Any]) -> str:
    """Return the page."""
    faults, own_start, how = result["faults"], result["own_start"], result["how"]
    counts = sorted({len(fault["rounds"]) for fault in faults})
    often = {1: "once", 2: "twice"}.get(counts[-1], f"{counts[-1]} times") if len(counts) == 1 else "several times"
    machine = ", ".join(f"{name} {how[name]}" for name in ("Python", "ZooKeeper", "celery", "kazoo"))
    return PAGE.format(
        rounds=often,
        faults=_table(
            ("fault on the leader's node", "must show", "measured", "ok"),
            [(fault["fault"], fault["must_show"], summary(fault), _verdict(fault)) for fault in faults],
        ),
        fresh_s=f"{own_start['fresh_s']:.2f}",
        due_s=f"{own_start['due_s']:.2f}",
        own_start_rounds=own_start["rounds"],
        limit_s=f"{own_start['fresh_s'] + 1:.2f}",
        costs=_table(
            ("what", "must show", "measured", "ok"),
            [(cost["what"], cost["must_show"], _cost(cost), _verdict(cost)) for cost in result["costs"]],
        ),
        frozen=_frozen(next((fault for fault in faults if fault["name"] == "node-freeze"), None)),
        how=f"One machine with {how['cores']} cores, {how['system']}; {machine}.",
    )


def _verdict(measured: Mapping[str, Any]) -> str:
    if measured["must_show"] == "say what was seen":
        return "-"
    return "yes" if measured["ok"] else "**no**"


def _cost(cost: Mapping[str, Any]) -> str:
    return ", ".join(_with_unit(*name.partition("_")[::2], value) for name, value in cost["measured"].items())


def _with_unit(name: str, unit: str, value: float) -> str:
    return f"{name} {value:g} {unit.replace('mb', 'MB')}".rstrip()


def _frozen(fault: Mapping[str, Any] | None) -> str:
    rounds = [figures for figures in fault["rounds"] if "error" not in figures] if fault else []
    if not rounds:
        return "Not measured."
    return FROZEN.format(
        rounds=len(rounds),
        dups=", ".join(f"{figures['dup']:g}" for figures in rounds),
        dead_s=max(figures["child_dead_s"] for figures in rounds),
    )


FROZEN = """\
Nothing of a node that is frozen as a whole can keep a deadline, so the kernel does: a timer kills the guard just after
the hard deadline, where it stands, and the leash its child ([ADR 0009](adr/0009-kernel-timer.md)).
In the {rounds} rounds here dup was {dups}, and the old beat was dead {dead_s:.2f} s after it had been frozen at the
latest, long before the thaw.
A virtual machine that is paused together with its clocks is worse off, and was not measured: there the kernel's timer
stands still too, and it is the next renewal, about a second after the thaw, that is refused and ends the beat."""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def write(path: Path) -> None:
    """Write the page beside the JSON."""
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


def main() -> None:
    """Write the page anew."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.report", description="Write the page anew.")
    parser.add_argument("json", type=Path, help="what `python -m tests.bench.faults --json` has kept")
    write(parser.parse_args().json)


if __name__ == "__main__":
    main()
