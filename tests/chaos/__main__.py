"""Chaos on the real thing, from the command line. Needs root, a ZooKeeper distribution (or Docker) and redis-server.

python -m tests.chaos run --rounds N --seed S [--where local|containers] [--zookeeper 3.8|3.9] --history FILE
python -m tests.chaos plan --rounds N --seed S      what such a run would do
python -m tests.chaos check FILE...                 read recorded histories again with the checkers of now
python -m tests.chaos report [FILE...]              docs/chaos.json from histories, then its page and picture
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos import facts, history, report
from tests.chaos.cluster import LocalCluster, versions
from tests.chaos.faults import FAULTS
from tests.chaos.plan import plan
from tests.chaos.runner import Failed, run_round
from zkbeat import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.cluster import Cluster
    from tests.chaos.plan import Round

CLUSTERS_AT_MOST = 8
STOPPING = threading.Event()


def main() -> int:
    arguments = _arguments()
    commands = {"run": run, "plan": show_plan, "check": check, "report": write_report}
    return commands[arguments.command](arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "plan"):
        command = commands.add_parser(name)
        command.add_argument("--rounds", type=int, default=20)
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--where", choices=("local", "containers"), default="local")
        command.add_argument(
            "--only", nargs="*", metavar="FAULT", choices=sorted(FAULTS), default=sorted(FAULTS), help="these faults"
        )
        command.add_argument("--clusters", type=int, default=1, help="as many side by side")
    running = commands.choices["run"]
    running.add_argument("--zookeeper", default="3.9", help="which image, with --where containers")
    running.add_argument("--history", type=Path, required=True, help="what was seen is added to this file")
    running.add_argument("--image", help="zkbeat's, with --where containers; by default it is built")
    running.add_argument(
        "--package", type=Path, help="a directory with the zkbeat to run, instead of the installed one"
    )
    commands.add_parser("check").add_argument("files", nargs="+", type=Path)
    reporting = commands.add_parser("report")
    reporting.add_argument("files", nargs="*", type=Path)
    reporting.add_argument("--json", type=Path, default=Path("docs/chaos.json"))
    return parser.parse_args()


def _plans(arguments: argparse.Namespace) -> list[list[Round]]:
    """Return the rounds of each cluster; each has a seed of its own that follows from the one given."""
    kinds = [name for name in arguments.only if arguments.where in FAULTS[name].where]
    count = min(arguments.clusters, CLUSTERS_AT_MOST)
    shares = [len(range(number, arguments.rounds, count)) for number in range(count)]
    return [plan(arguments.seed * CLUSTERS_AT_MOST + number, share, kinds) for number, share in enumerate(shares)]


def show_plan(arguments: argparse.Namespace) -> int:
    for number, rounds in enumerate(_plans(arguments), 1):
        print(f"cluster {number}", *rounds, sep="\n  ")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run every round, each cluster in a thread of its own; TERM or INT ends it after the rounds that are being run."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: STOPPING.set())
    seen = history.History(arguments.history)
    said = threading.Lock()

    def say(line: str) -> None:
        with said:
            print(line, flush=True)

    def one(number: int, rounds: Sequence[Round]) -> int:
        return _run_cluster(arguments, seen, number, rounds, say)

    plans = _plans(arguments)
    with ThreadPoolExecutor(len(plans)) as pool:
        broken = sum(pool.map(one, range(1, len(plans) + 1), plans))
    seen.close()
    print(f"{arguments.rounds} rounds, {broken} of them broke something; load {os.getloadavg()[0]:.1f}")
    return min(broken, 1)


def _run_cluster(
    arguments: argparse.Namespace,
    seen: history.History,
    number: int,
    rounds: Sequence[Round],
    say: Callable[[str], None],
) -> int:
    """Run a cluster's rounds; one that was broken is left as it is, and the next round has a new one."""
    left = list(rounds)
    broken = 0
    while left and not STOPPING.is_set():
        name = f"{arguments.where}-{arguments.seed}-{number}-{left[0].number}"
        try:
            cluster = _cluster(arguments, name, seen)
        except AssertionError as error:  # not within ...: the machine has too much to do
            broken += 1
            say(f"{name}: could not be set up, {left.pop(0)} is left out: {error}")
            continue
        try:
            _run_rounds(arguments, cluster, left, say)
            cluster.close()
        except Failed:
            broken += 1
            say(f"{name}: its logs are kept in {cluster.directory}")
            cluster.close(keep=True)
    return broken


def _run_rounds(arguments: argparse.Namespace, cluster: Cluster, left: list[Round], say: Callable[[str], None]) -> None:
    about = {"seed": arguments.seed, "package": report.package_version(arguments.package), **versions(cluster)}
    cluster.recorder.note("about", **about)
    while left and not STOPPING.is_set():
        one = left.pop(0)
        reasons = [why for strike in one.strikes if (why := FAULTS[strike.fault].why_not(cluster))]
        if reasons:
            cluster.recorder.note("skipped", round=one.number, of=one.name, why=reasons)
            say(f"{cluster.name}: {one}: not possible here: {', '.join(reasons)}")
        else:
            run_round(cluster, one, say)


def _cluster(arguments: argparse.Namespace, name: str, seen: history.History) -> Cluster:
    if arguments.where == "local":
        return LocalCluster(name, seen, arguments.package)
    from tests.chaos.boxes import BoxCluster
    from tests.container.lab import ZOOKEEPER_IMAGE, build_image

    zookeeper = f"{ZOOKEEPER_IMAGE.rpartition(':')[0]}:{arguments.zookeeper}"
    return BoxCluster(name, seen, zookeeper, arguments.image or build_image(), arguments.package)


def check(arguments: argparse.Namespace) -> int:
    broken = 0
    for path in arguments.files:
        for name, records in history.read(path).items():
            try:
                facts.check(records)
                print(f"{path}: {name}: {len(records)} records, no violation")
            except facts.Violation as violation:
                broken += 1
                print(f"{path}: {name}: {violation.name}: {violation}")
    return min(broken, 1)


def write_report(arguments: argparse.Namespace) -> int:
    if arguments.files:
        report.summarize(arguments.files, arguments.json)
    report.write(arguments.json)
    return 0


if __name__ == "__main__":
    began = clock.now()
    code = main()
    print(f"took {clock.now() - began:.0f} s", file=sys.stderr)
    sys.exit(code)
