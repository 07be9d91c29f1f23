"""What the launcher is for, measured: the fence, the start of a preloaded beat, a `kill -9`, and what it costs.

    python -m tests.bench.launcher [--rounds N] [--only fence|alone|preload|kill] [--more] [--json docs/launcher.json]
    python -m tests.bench.launcher report [--json docs/launcher.json]

With --json the result is kept, also when it was interrupted, and the tables of docs/launcher-measured.md are made from
it; `report` makes them again without measuring. With --only, what else was measured before stays. With --more, what is
measured now is added to the rounds of before. Needs redis-server and ZooKeeper; for the freezers, root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.launcher import alone, fence, report, starts
from tests.bench.launcher.cluster import Services

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("fence", "alone", "preload", "kill")
ROUNDS = {"fence": 200, "alone": 100, "preload": 10, "kill": 10}
KEPT = Path("docs/launcher.json")
PAGE = "launcher-measured.md"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.launcher", description="Measure the launcher.")
    parser.add_argument("what", nargs="?", choices=["measure", "report"], default="measure")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    names = [variant.name for variant in fence.variants(1)]
    parser.add_argument("--fences", nargs="+", choices=names, help="which variants of the fence (default: all)")
    parser.add_argument("--rounds", type=int, help=f"rounds of each (default: {ROUNDS})")
    parser.add_argument("--more", action="store_true", help="add to the rounds that were measured before")
    parser.add_argument("--json", type=Path, help=f"keep the result here (`report`: default {KEPT})")
    return parser.parse_args()


def _keeper(name: str, found: list[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    def keep(record: dict[str, Any]) -> None:
        found.append(record)
        # One write: several threads do this.
        print(f"{name}: {json.dumps(record)}\n", end="", flush=True)

    return keep


def _measure(part: str, services: Services, rounds: int, fences: list[str] | None) -> dict[str, dict[str, Any]]:
    """Do one part; return what is to be kept of it."""
    found: list[dict[str, Any]] = []
    keep = _keeper(part, found)
    if part == "preload":
        costs: list[dict[str, Any]] = []
        about = starts.measure_elections(services, rounds, keep, _keeper("memory", costs))
        return {part: {**about, "rounds": found}, "memory": {"rounds": costs}}
    if part == "fence":
        return {part: {**fence.measure(services, rounds, keep, fences), "rounds": found}}
    about = (alone.measure if part == "alone" else starts.measure_kills)(services, rounds, keep)
    return {part: {**about, "rounds": found}}


def _how(zookeeper: str) -> dict[str, str]:
    """Return what it was measured with; nothing that names the machine."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "ZooKeeper": zookeeper,
        **{name: version(name) for name in ("celery", "django", "django-celery-beat", "kazoo", "redis")},
    }


def main() -> int:
    """Measure, or write the page anew; return 1 if something does not show what it must."""
    options = _options()
    if options.what == "report":
        path = options.json or KEPT
        report.write(path, path.with_name(PAGE))
        return 0
    kept: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        kept = json.loads(options.json.read_text())
    with Services() as services:
        # What was measured till then is kept.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: services.over.set())
        kept["how"] = _how(services.version)
        for part in (part for part in PARTS if part in options.only):
            if services.over.is_set():
                break
            found = _measure(part, services, options.rounds or ROUNDS[part], options.fences)
            kept = report.merged(kept, found, more=options.more)
            if options.json is not None:
                options.json.write_text(report.dumped(kept))
                report.write(options.json, options.json.with_name(PAGE))
    print(report.tables(kept))
    return 0 if report.all_ok(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
