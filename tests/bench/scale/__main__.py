"""What an ensemble carries: a thousand contenders in one election, and a thousand elections.

    python -m tests.bench.scale [--contenders N] [--elections N] [--json docs/scale.json]
    python -m tests.bench.scale report docs/scale.json

Three real servers and all clients share this machine. With --json the result is kept, and page and plot are written
beside it. Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.scale import phases
from tests.bench.scale.crew import Crew, Spec
from tests.support.zookeeper import Ensemble

FEW = 3

ROUNDS = {"step-down": 10, "removed": 10, "evicted": 2}

IDLE_FOR_S = 45.0

ELECTIONS_FOR_S = 20.0

RAMP_FOR_S = 5.0

RAMP_ROUNDS = 3

JVM = "-Xmx768m -XX:TieredStopAtLevel=4"
"""The tests' servers are made to start quickly; these are to serve for long. Overrides the command line's options."""


def one_election(kept: dict[str, Any], ensemble: Ensemble, contenders: int, processes: int) -> None:
    """Measure an election with few contenders alone, then beside one with many, in turn."""
    few_spec, many_spec = (Spec(ensemble.hosts, f"/{size}", phases.SESSION_TIMEOUT_S) for size in ("few", "many"))
    with Crew(few_spec, FEW, 1) as few:
        few.join()
        kept["alone"] = phases.hand_overs([few], {"step-down": ROUNDS["step-down"]})
        kept["idle"] = [said("idle", phases.idle(few, ensemble.servers, IDLE_FOR_S))]
        with Crew(many_spec, contenders, processes) as many:
            kept["join"] = said("join", phases.joined(many, ensemble))
            kept["idle"].append(said("idle", phases.idle(many, ensemble.servers, IDLE_FOR_S)))
            kept["hand_overs"] = phases.hand_overs([few, many], ROUNDS)


def outages(kept: dict[str, Any], ensemble: Ensemble, contenders: int, processes: int) -> None:
    """Measure how many contenders come back after what happens to all of them at once."""
    spec = Spec(ensemble.hosts, f"/{contenders}", phases.SESSION_TIMEOUT_S)
    with Crew(spec, contenders, processes) as many:
        many.join()
        kept["restart"] = said("restart", phases.outage(many, ensemble, 0.0))
        kept["long_outage"] = said("long outage", phases.outage(many, ensemble, phases.LONG_OUTAGE_S))
        kept["expiry"] = said("expiry", phases.expiry(many, ensemble))


def said(what: str, figures: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in figures.items() if key != "came_back_at"}
    print(f"{what}: {json.dumps(shown)}", flush=True)
    return figures


def many_elections(ensemble: Ensemble, count: int, processes: int) -> list[dict[str, Any]]:
    """Measure many elections with one contender each, with the default session timeout and a longer one.

    Of the former some as well that two cores can serve together with all of their clients.
    """
    found = []
    for many, session_timeout_s in ((int(0.4 * count), 10.0), (count, 30.0), (count, 10.0)):
        phases.wait_gone(ensemble)
        figures = phases.elections(ensemble, many, session_timeout_s, processes, ELECTIONS_FOR_S)
        found.append(said("elections", figures))
    return found


def how(ensemble: Ensemble) -> dict[str, Any]:
    """Say what it was measured with; nothing that names the machine."""
    zookeeper = ensemble.servers[0].ask("srvr").partition("version: ")[2].partition("-")[0]
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "kazoo": version("kazoo"),
        "ZooKeeper": zookeeper,
        "others_cores": phases.others_cores(5.0),
    }


def measure(kept: dict[str, Any], options: argparse.Namespace) -> None:
    """Measure everything, and add it to what is kept; with a run that fails half-way, half of it is."""
    os.environ["_JAVA_OPTIONS"] = JVM
    with tempfile.TemporaryDirectory(prefix="zkbeat-scale-") as directory:
        with Ensemble(Path(directory, "one")) as ensemble:
            kept.setdefault("how", how(ensemble))
            if "one" in options.only:
                kept["one"] = {}
                one_election(kept["one"], ensemble, options.contenders, options.processes)
        with Ensemble(Path(directory, "outages")) as ensemble:
            if "outages" in options.only:
                kept["outages"] = []
                for count in (options.contenders // 10, options.contenders):
                    kept["outages"].append({})
                    outages(kept["outages"][-1], ensemble, count, options.processes)
        with Ensemble(Path(directory, "many")) as ensemble:
            if "ramp" in options.only:
                kept["ramp"] = phases.ramp(ensemble, phases.RATES, RAMP_FOR_S, RAMP_ROUNDS)
            if "elections" in options.only:
                kept["elections"] = many_elections(ensemble, options.elections, options.processes)


def main() -> int:
    """Measure, or write page and plot anew."""
    if sys.argv[1:2] == ["report"]:
        from tests.bench.scale import report

        report.write(Path(sys.argv[2] if len(sys.argv) > 2 else "docs/scale.json"))
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale", description="Measure what an ensemble carries."
    )
    parser.add_argument("--contenders", type=int, default=1000, help="in one election (default: 1000)")
    parser.add_argument("--elections", type=int, default=1000, help="with one contender each (default: 1000)")
    parser.add_argument("--processes", type=int, default=4, help="that the contenders are in (default: 4)")
    parts = ["one", "outages", "ramp", "elections"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="the rest is kept as it was")
    parser.add_argument("--json", type=Path, help="keep the result here, and write page and plot beside it")
    options = parser.parse_args()
    # As ^C: every `with` ends what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kept: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    try:
        measure(kept, options)
    finally:
        if options.json is not None:
            options.json.write_text(json.dumps(kept, indent=1) + "\n")
    if options.json is not None and kept.keys() >= set(parts):
        from tests.bench.scale import report

        report.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
