"""What becomes of the beat when something fails: each fault is done to real processes, and what follows is measured.

    python -m tests.bench.faults [--only NAME ...] [--rounds N] [--json docs/measurements.json]

Three nodes round a stock `celery beat` with a task a second, a session timeout of 10 s, a ZooKeeper with a tick of 2 s.
A monitor on the broker notes each message and the process that published it. With --json the result is kept, and the
page that people read is written beside it (see `report`); with --only, what was measured before stays in both.
Needs root for the faults on a network, redis-server and a ZooKeeper distribution.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import acts, costs, report
from tests.bench.observe import TAKES_OVER_WITHIN_S, observe
from tests.bench.stage import On, Scene, Services
from zkbeat.core.lease import KILL_MARGIN_S, agree

if TYPE_CHECKING:
    from collections.abc import Sequence

LEASE_S = 20 / 3
RENEW_EVERY_S = agree(10.0, None).renew_every_s

OWN_START = "celery's own start + 1 s"
"""A limit that is measured in the same run."""

OWN_START_ROUNDS = 5


@dataclass(frozen=True)
class Fault:
    """One row: what is done, and what it must show. `limits` are the most that a figure of `observe` may be."""

    name: str
    what: str
    must_show: str
    act: Callable[[Scene], None]
    limits: Mapping[str, float | str] = field(default_factory=dict)
    on: On = On.ONE_SERVER
    options: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 3
    hands_over: bool = True
    leader_on_a_follower: bool = False
    under_a_shell: bool = False


NEVER_TWO = {"dup": 0, "overlap_s": 0.02}
"""The beginning of a process is known to 10 ms, and so is the end of another, on a busy machine."""

UNTOUCHED = {"dup": 0, "touched": 0}

FAULTS = (
    Fault(
        "sidecar-term",
        "SIGTERM to the sidecar",
        f"next leader elected <= 0.1 s after the child is dead; first tick within {OWN_START}",
        acts.terminate_sidecar,
        {**NEVER_TWO, "elected_after_death_s": 0.1, "first_tick_s": OWN_START},
    ),
    Fault(
        "child-kill",
        "child `kill -9`",
        "the same",
        acts.kill_child,
        {**NEVER_TWO, "elected_after_death_s": 0.1, "first_tick_s": OWN_START},
    ),
    Fault(
        "sidecar-kill",
        "sidecar `kill -9`",
        "dup 0; election znode gone <= 0.3 s after the child is dead; first tick <= 2.5 s",
        acts.kill_sidecar,
        {**NEVER_TWO, "znode_gone_after_death_s": 0.3, "first_tick_s": 2.5},
    ),
    Fault(
        "guard-kill",
        "guard `kill -9`",
        "the same",
        acts.kill_guard,
        {**NEVER_TWO, "znode_gone_after_death_s": 0.3, "first_tick_s": 2.5},
    ),
    Fault(
        "sidecar-guard-kill",
        "sidecar and guard `kill -9`",
        "dup 0; child dead at once; new leader <= 7.2 s (lease + 0.5 s)",
        acts.kill_sidecar_and_guard,
        {**NEVER_TWO, "child_dead_s": 0.1, "elected_s": LEASE_S + 0.5},
    ),
    Fault(
        "node-kill",
        "everything `kill -9` (a lost node)",
        "dup 0; new leader <= 7.2 s (lease + 0.5 s)",
        acts.kill_everything,
        {**NEVER_TWO, "elected_s": LEASE_S + 0.5},
    ),
    Fault(
        "node-kill-lease-3",
        "the same with `--lease 3`",
        "dup 0; new leader <= 3.5 s",
        acts.kill_everything,
        {**NEVER_TWO, "elected_s": 3.5},
        options={"lease": "3"},
    ),
    Fault(
        "node-kill-restart",
        "the same, alone, a supervisor restarts zkbeat in 1 s",
        "dup 0; first tick <= 4 s",
        acts.kill_everything_and_restart,
        {**NEVER_TWO, "first_tick_s": 4.0},
        nodes=1,
    ),
    Fault(
        "sidecar-stop",
        "sidecar SIGSTOPped",
        "child dead by the lease (6.7 s); dup 0; new leader <= 7.2 s (lease + 0.5 s)",
        acts.stop_sidecar,
        {**NEVER_TWO, "child_dead_s": LEASE_S, "elected_s": LEASE_S + 0.5},
    ),
    Fault(
        "node-freeze",
        "all SIGSTOPped 25 s, then SIGCONT",
        "child dead by the lease (6.7 s) and the kill margin; dup 0; new leader <= 7.2 s (lease + 0.5 s)",
        acts.freeze_and_thaw,
        {**NEVER_TWO, "child_dead_s": LEASE_S + KILL_MARGIN_S, "elected_s": LEASE_S + 0.5},
    ),
    Fault(
        "parent-kill",
        "the parent process of everything killed",
        "no process left",
        acts.kill_parent,
        {**NEVER_TWO, "left": 0},
        under_a_shell=True,
    ),
    Fault(
        "delete-all",
        "`deleteall` of the election's path, the line of contenders",
        "dup 0; a leader again by itself",
        acts.delete_line,
        {**NEVER_TWO, "first_tick_s": TAKES_OVER_WITHIN_S},
    ),
    Fault(
        "delete-everything",
        "`deleteall` of everything about the election",
        "the same",
        acts.delete_everything,
        {**NEVER_TWO, "first_tick_s": TAKES_OVER_WITHIN_S},
    ),
    Fault(
        "server-restart",
        "the only server killed, and started again as fast as it starts",
        "child not touched",
        acts.restart_server,
        UNTOUCHED,
        hands_over=False,
    ),
    Fault(
        "server-gone-60",
        "all servers gone for 60 s",
        "child dead by the lease (6.7 s); dup 0; leader again <= 3 s after they are back",
        acts.restart_server_after_a_minute,
        {**NEVER_TWO, "child_dead_s": LEASE_S, "elected_after_outage_s": 3.0},
    ),
    Fault(
        "quorum-leader-kill",
        "ZooKeeper's quorum leader killed",
        "child not touched",
        acts.kill_quorum_leader,
        UNTOUCHED,
        on=On.THREE_SERVERS,
        hands_over=False,
    ),
    Fault(
        "rolling-restart",
        "rolling restart of the ensemble",
        "child not touched",
        acts.restart_one_after_the_other,
        UNTOUCHED,
        on=On.THREE_SERVERS,
        hands_over=False,
    ),
    Fault(
        "servers-stop-2",
        "all three servers gone for 2 s (SIGSTOP)",
        "child not touched",
        acts.stop_all_servers,
        UNTOUCHED,
        on=On.THREE_SERVERS,
        hands_over=False,
    ),
    Fault(
        "node-cut-off",
        "node cut off from ZooKeeper (black hole), broker reachable",
        "child dead by the lease (6.7 s); dup 0; new leader <= 7.2 s (lease + 0.5 s)",
        acts.cut_off_node,
        {**NEVER_TWO, "child_dead_s": LEASE_S, "elected_s": LEASE_S + 0.5},
        on=On.LAN_ONE_SERVER,
    ),
    Fault(
        "follower-cut-off",
        "a ZooKeeper follower cut off together with the leader's client",
        "dup 0",
        acts.cut_off_follower,
        NEVER_TWO,
        on=On.LAN_THREE_SERVERS,
        leader_on_a_follower=True,
    ),
)


def measure(fault: Fault, services: Services, phase: float) -> dict[str, Any]:
    """Do a fault once, at this phase (0 to 1) of the interval between two renewals; return what was seen."""
    try:
        scene = services.scene(
            fault.nodes,
            fault.options,
            under_a_shell=fault.under_a_shell,
            leader_on_a_follower=fault.leader_on_a_follower,
        )
        with scene:
            scene.start()
            scene.pass_time(RENEW_EVERY_S * phase)
            fault.act(scene)
            figures: dict[str, Any] = observe(scene, hands_over=fault.hands_over)
            if not _within(figures, _known(fault.limits)):
                print(scene.logs(), file=sys.stderr)
            return figures
    # Whatever it is: a round that went wrong is a result, and the others are still wanted.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        services.heal()


def row(fault: Fault, own_start: Mapping[str, float] | None, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is kept of a fault."""
    limits = _known(fault.limits)
    if own_start is not None:
        limits |= {figure: own_start["fresh_s"] + 1.0 for figure, most in fault.limits.items() if most == OWN_START}
    return {
        "name": fault.name,
        "fault": fault.what,
        "must_show": fault.must_show,
        "limits": {figure: round(most, 3) for figure, most in limits.items()},
        "rounds": list(rounds),
        "ok": all(_within(figures, limits) for figures in rounds),
    }


def _within(figures: Mapping[str, Any], limits: Mapping[str, float]) -> bool:
    return "error" not in figures and all(figures.get(name, float("inf")) <= most for name, most in limits.items())


def _known(limits: Mapping[str, float | str]) -> dict[str, float]:
    return {figure: float(most) for figure, most in limits.items() if most != OWN_START}


def measure_all(faults: Sequence[Fault], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Do all faults, as often as asked; return what was seen of each, by name."""
    seen: dict[str, list[dict[str, Any]]] = {fault.name: [] for fault in faults}
    for on, group in groupby(sorted(faults, key=lambda fault: list(On).index(fault.on)), lambda fault: fault.on):
        together = list(group)
        with Services(on) as services:
            for number in range(rounds):
                for fault in together:
                    figures = measure(fault, services, (number + 0.5) / rounds)
                    seen[fault.name].append(figures)
                    print(f"{fault.name}: {json.dumps(figures)}", flush=True)
    return seen


def main() -> int:
    """Measure; return 0 if everything shows what it must."""
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.faults", description="Do faults, and measure.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*names, "costs"], help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=3, help="how often to do each fault (default: 3)")
    parser.add_argument("--json", type=Path, help="keep the result here, and write the page beside it")
    options = parser.parse_args()
    # As ^C: every `with` ends what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    chosen = [fault for fault in FAULTS if options.only is None or fault.name in options.only]
    own_start = None
    with Services(On.ONE_SERVER) as services:
        zookeeper = services.version
        if any(OWN_START in fault.limits.values() for fault in chosen):
            own_start = costs.own_start(services, OWN_START_ROUNDS)
            print(f"own start: {json.dumps(own_start)}", flush=True)
        found = costs.measure(services) if options.only is None or "costs" in options.only else []
        for cost in found:
            print(json.dumps(cost), flush=True)
    seen = measure_all(chosen, options.rounds)
    rows = [row(fault, own_start, seen[fault.name]) for fault in chosen]
    if options.json is not None:
        result = report.merged(options.json, zookeeper, own_start, rows, found, order=names)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        report.write(options.json)
    for fault in rows:
        print(f"{'ok  ' if fault['ok'] else 'FAIL'} {fault['name']}: {report.summary(fault)}")
    return 0 if all(fault["ok"] for fault in rows) and all(cost["ok"] for cost in found) else 1


if __name__ == "__main__":
    sys.exit(main())
