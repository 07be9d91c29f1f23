"""The faults, one function each: what is done to the node that leads, or to the store."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.node import send
from zkbeat import clock

if TYPE_CHECKING:
    from tests.bench.peers.trial import Trial

FROZEN_FOR_S = 25.0
OUTAGE_S = 2.0


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    - `of_a_sidecar`: without a sidecar beside the beat there is nothing to do it to;
    - `hands_over`: somebody else is to take over;
    - `orderly`: the leader is asked to end, and may give up its leadership.
    """

    name: str
    what: str
    act: Callable[[Trial], None]
    of_a_sidecar: bool = False
    hands_over: bool = True
    orderly: bool = False


def terminate_sidecar(trial: Trial) -> None:
    trial.signal([trial.leader.sidecar], signal.SIGTERM)


def kill_child(trial: Trial) -> None:
    trial.signal([trial.publisher], signal.SIGKILL)


def kill_sidecar(trial: Trial) -> None:
    trial.signal([trial.leader.sidecar], signal.SIGKILL)


def kill_everything(trial: Trial) -> None:
    trial.signal(trial.leader.pids(), signal.SIGKILL)


def stop_sidecar(trial: Trial) -> None:
    trial.signal([trial.leader.sidecar], signal.SIGSTOP)


def freeze_and_thaw(trial: Trial) -> None:
    pids = sorted(trial.leader.pids(), key=lambda pid: pid != trial.publisher)
    trial.signal(pids, signal.SIGSTOP)
    trial.pass_time(FROZEN_FOR_S)
    trial.thawed_at = clock.now()
    for pid in pids:  # the one that publishes first: the worst order
        send(pid, signal.SIGCONT)


def cut_off_node(trial: Trial) -> None:
    trial.begin()
    trial.lane.cut_off(trial.contestant.store)


def stop_store(trial: Trial) -> None:
    store = trial.lane.stores[trial.contestant.store]
    trial.begin()
    store.suspend()
    trial.pass_time(OUTAGE_S)
    store.resume()


FAULTS = (
    Fault("sidecar-term", "SIGTERM to the leader", terminate_sidecar, orderly=True),
    Fault("child-kill", "child `kill -9`", kill_child, of_a_sidecar=True),
    Fault("sidecar-kill", "sidecar `kill -9`", kill_sidecar, of_a_sidecar=True),
    Fault("node-kill", "all of the node's processes `kill -9`", kill_everything),
    Fault("sidecar-stop", "sidecar SIGSTOPped", stop_sidecar, of_a_sidecar=True),
    Fault("node-freeze", f"all SIGSTOPped {FROZEN_FOR_S:g} s, then SIGCONT", freeze_and_thaw),
    Fault("node-cut-off", "node cut off from the store, not from the broker", cut_off_node),
    Fault("store-stop", f"store gone for {OUTAGE_S:g} s", stop_store, hands_over=False),
)
