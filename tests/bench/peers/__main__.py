"""zkbeat beside what else there is: the same app, broker, faults and timeouts, in one run.

    python -m tests.bench.peers [--only CONTESTANT ...] [--faults NAME ...] [--rounds N] [--json docs/peers.json]
    python -m tests.bench.peers report

With --json the result is kept after every batch, and the table and the plot of the page beside it are made from it;
`report` makes them again without measuring. With --only or --faults, what else was measured before stays;
with --more, all of it.
Needs root (network namespaces), ZooKeeper, redis-server, etcd and etcdctl, and the dependency group `bench`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.bench.peers import report
from tests.bench.peers.contestants import DEFAULT, MATCHED, SETTINGS, contestants
from tests.bench.peers.faults import FAULTS
from tests.bench.peers.run import Plan, run

KEPT = Path("docs/peers.json")


def _options(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description="Compare, or write the page anew.")
    faults = [fault.name for fault in FAULTS]
    parser.add_argument("what", nargs="?", choices=["measure", "report"], default="measure")
    parser.add_argument("--only", nargs="+", metavar="CONTESTANT", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--faults", nargs="+", metavar="NAME", choices=faults, default=faults, help=", ".join(faults))
    parser.add_argument("--rounds", type=int, default=3, help="with matched settings (default: 3)")
    parser.add_argument("--default-rounds", type=int, default=1, help="with their defaults (default: 1)")
    parser.add_argument("--setting", choices=[*SETTINGS, "both"], default="both")
    parser.add_argument("--beside", type=int, default=3, help="how many are measured at a time (default: 3)")
    parser.add_argument("--more", action="store_true", help="add to what was measured before, and replace none of it")
    parser.add_argument("--json", type=Path, help=f"keep the result here (`report`: default {KEPT})")
    return parser.parse_args()


def main() -> int:
    """Measure, or write the page anew; return 1 if a trial could not be carried out."""
    there = contestants()
    options = _options([one.name for one in there])
    if options.what == "report":
        report.write(options.json or KEPT)
        return 0
    # As ^C: every `with` ends what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    both = options.setting == "both"
    plan = Plan(
        contestants=[one for one in there if one.name in options.only],
        faults=[fault for fault in FAULTS if fault.name in options.faults],
        rounds={
            MATCHED: options.rounds if both or options.setting == MATCHED else 0,
            DEFAULT: options.default_rounds if both or options.setting == DEFAULT else 0,
        },
        beside=options.beside,
        more=options.more,
    )
    return 1 if run(plan, options.json) else 0


if __name__ == "__main__":
    sys.exit(main())
