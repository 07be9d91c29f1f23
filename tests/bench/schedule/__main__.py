"""The schedule in ZooKeeper, measured: a hundred hand-overs against what was due, beside the others, and its speed.

    python -m tests.bench.schedule [--only handovers|beside|speed] [--rounds N] [--json docs/schedule.json]
    python -m tests.bench.schedule report [--json docs/schedule.json]

With --json the result is kept, and the tables of docs/schedule-measured.md are made from it; `report` makes them again
without measuring. What is not measured now stays as it was. Needs root, redis-server and ZooKeeper; the hand-overs take
about ten minutes, so do those beside the others, the speed takes three.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.schedule import beside, handovers, report, speed

if TYPE_CHECKING:
    from collections.abc import Callable

ENTRIES = 200
ENTRIES_BESIDE = 20
SEED = 1
ROUNDS = {"handovers": 100, "beside": 7, "speed": 5}
KEPT = Path("docs/schedule.json")
PAGE = "schedule-measured.md"


def _handovers(rounds: int, options: argparse.Namespace) -> dict[str, Any]:
    entries = options.entries or ENTRIES
    return {"entries": entries, "seed": SEED, **asdict(handovers.measure(rounds, entries, SEED))}


def _speed(rounds: int, options: argparse.Namespace) -> dict[str, Any]:
    return speed.measure(rounds, tuple(options.counts or speed.COUNTS))


def _beside(rounds: int, _options: argparse.Namespace) -> dict[str, Any]:
    minutes, intervals = beside.measure(rounds, ENTRIES_BESIDE, SEED)
    kept = {name: asdict(one) for name, one in minutes.items()}
    return {"entries": ENTRIES_BESIDE, "rounds": rounds, "kept": kept, "intervals": intervals}


PARTS: dict[str, Callable[[int, argparse.Namespace], dict[str, Any]]] = {
    "handovers": _handovers,
    "beside": _beside,
    "speed": _speed,
}


def _how() -> dict[str, str]:
    """Return what it was measured with; nothing that names the machine."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **{name: version(name) for name in ("celery", "celery-redbeat", "kazoo", "redis")},
    }


def main() -> int:
    """Measure, or write the page anew; return 1 if something does not show what it must."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.schedule", description="Measure the schedule.")
    parser.add_argument("what", nargs="?", choices=["measure", "report"], default="measure")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--rounds", type=int, help=f"rounds of each (default: {ROUNDS})")
    parser.add_argument("--json", type=Path, help=f"keep the result here (`report`: default {KEPT})")
    parser.add_argument("--entries", type=int, help=f"of the hand-overs (default: {ENTRIES})")
    parser.add_argument("--counts", type=int, nargs="+", help=f"due together, for the speed (default: {speed.COUNTS})")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what it has started, as for Ctrl-C
    kept_at = options.json or (KEPT if options.what == "report" else None)
    kept: dict[str, Any] = json.loads(kept_at.read_text()) if kept_at is not None and kept_at.exists() else {}
    if options.what == "measure":
        for part in options.only:
            load = [round(os.getloadavg()[0], 1)]
            found = PARTS[part](options.rounds or ROUNDS[part], options)
            kept[part] = {**found, "how": _how(), "load": [*load, round(os.getloadavg()[0], 1)]}
            if kept_at is not None:
                kept_at.write_text(json.dumps(kept, indent=1) + "\n")
    if kept_at is not None:
        report.write(kept, kept_at.with_name(PAGE))
    print(report.tables(kept))
    return 0 if report.all_ok(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
