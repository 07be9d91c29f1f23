"""What is done to a scene: one function a fault. Each notes when it begins, and what else its figures count from."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, TypeVar

from tests.support.waiting import wait_until
from zkbeat import clock

if TYPE_CHECKING:
    from tests.bench.stage import Scene

T = TypeVar("T")

FROZEN_FOR_S = 25.0
LONG_OUTAGE_S = 60.0
SHORT_OUTAGE_S = 2.0
SUPERVISOR_WAITS_S = 1.0
ALL_GONE_WITHIN_S = 30.0


def terminate_sidecar(scene: Scene) -> None:
    scene.signal([scene.leader.sidecar], signal.SIGTERM)


def kill_child(scene: Scene) -> None:
    scene.signal([scene.child], signal.SIGKILL)


def kill_sidecar(scene: Scene) -> None:
    scene.signal([scene.leader.sidecar], signal.SIGKILL)


def kill_guard(scene: Scene) -> None:
    scene.signal([scene.leader.guard], signal.SIGKILL)


def kill_sidecar_and_guard(scene: Scene) -> None:
    scene.signal([scene.leader.sidecar, scene.leader.guard], signal.SIGKILL)


def kill_everything(scene: Scene) -> None:
    scene.signal([scene.leader.sidecar, scene.leader.guard, scene.child], signal.SIGKILL)


def kill_everything_and_restart(scene: Scene) -> None:
    kill_everything(scene)
    scene.leader.wait()
    scene.pass_time(SUPERVISOR_WAITS_S)
    scene.leader.start()


def stop_sidecar(scene: Scene) -> None:
    scene.signal([scene.leader.sidecar], signal.SIGSTOP)


def freeze_and_thaw(scene: Scene) -> None:
    pids = [scene.child, scene.leader.guard, scene.leader.sidecar]
    scene.signal(pids, signal.SIGSTOP)
    scene.pass_time(FROZEN_FOR_S)
    scene.thawed_at = clock.now()
    for pid in pids:  # the child first, were it still there: the worst order
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def cut_off_node(scene: Scene) -> None:
    lan = _needed(scene.services.lan)
    scene.begin()
    lan.host("node1").cut_off([lan.host("zk0").ip])


def cut_off_follower(scene: Scene) -> None:
    lan, ensemble = _needed(scene.services.lan), _needed(scene.services.ensemble)
    follower = lan.host(f"zk{scene.follower}")
    others = [lan.host(f"zk{i}") for i in range(len(ensemble.servers)) if i != scene.follower]
    scene.begin()
    follower.cut_off([host.ip for host in others])


def kill_quorum_leader(scene: Scene) -> None:
    ensemble = _needed(scene.services.ensemble)
    leader = _needed(ensemble.leader())
    scene.begin()
    ensemble.kill(leader)
    ensemble.wait_quorum()
    scene.outage_ended_at = clock.now()


def restart_one_after_the_other(scene: Scene) -> None:
    scene.begin()
    _needed(scene.services.ensemble).rolling_restart()


def stop_all_servers(scene: Scene) -> None:
    ensemble = _needed(scene.services.ensemble)
    scene.begin()
    ensemble.suspend_all()
    scene.pass_time(SHORT_OUTAGE_S)
    ensemble.resume_all()
    scene.outage_ended_at = clock.now()


def restart_server(scene: Scene) -> None:
    scene.begin()
    _kill_servers(scene)
    _start_servers(scene)


def restart_server_after_a_minute(scene: Scene) -> None:
    scene.begin()
    _kill_servers(scene)
    scene.pass_time(LONG_OUTAGE_S)
    _start_servers(scene)


def delete_line(scene: Scene) -> None:
    scene.begin()
    scene.delete_all(scene.election)


def delete_everything(scene: Scene) -> None:
    scene.begin()
    scene.delete_all(scene.base)


def kill_parent(scene: Scene) -> None:
    scene.signal([_needed(scene.leader.process).pid], signal.SIGKILL)
    wait_until(lambda: not scene.leader.pids(), ALL_GONE_WITHIN_S, "nothing to be left", scene.logs)
    scene.nothing_left_at = clock.now()


def _kill_servers(scene: Scene) -> None:
    for server in scene.services.servers:
        server.kill()


def _start_servers(scene: Scene) -> None:
    for server in scene.services.servers:
        server.start()
    scene.services.wait_serving()
    scene.outage_ended_at = clock.now()


def _needed(value: T | None) -> T:
    if value is None:
        raise RuntimeError("the fault needs other services than it is done on")
    return value
