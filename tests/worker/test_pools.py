"""Each pool of celery's: the two basics, over Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from kazoo.client import KazooClient

    from tests.worker.workers import Field

POOLS = ["prefork", "threads", "gevent", "eventlet"]


@pytest.mark.parametrize("pool", [*POOLS, "solo"])
def test_a_tick_runs_once(field: Field, pool: str):
    worker = field.start(pool, 1 if pool == "solo" else 4)
    ticks = [f"report@2026-01-01T06:00:{second:02}+00:00" for second in range(10)]
    for tick in ticks * 2:
        field.send("tick", tick=tick)
    field.wait_log("belongs to another message: dropped", 10)
    field.wait_runs(10, "tick")
    assert worker.stop() == 0
    assert "Traceback" not in worker.log(), worker.log()


@pytest.mark.parametrize("pool", POOLS)
def test_runs_do_not_overlap(field: Field, pool: str, zk_client: KazooClient):
    worker = field.start(pool, 4)
    first = field.send("patient")
    field.wait_runs(1, "patient", "began")
    second = field.send("patient")
    field.wait_log("postponed")
    dropped = [field.send("alone") for _ in range(3)]
    field.wait_log(": dropped", 2)
    assert len(field.ids("patient", "began")) == 1
    field.go()
    assert field.wait_runs(2, "patient") == [first, second]
    assert field.wait_runs(1, "alone") == dropped[:1]
    wait_until(lambda: zk_client.get_children(f"{field.base}/runs") == [], 5, "no lock", field.report)
    assert worker.stop() == 0
    assert "Traceback" not in worker.log(), worker.log()


def test_runs_of_two_solo_workers_do_not_overlap(field: Field):
    field.start("solo", 1)
    field.start("solo", 1)
    field.send("alone")
    field.wait_runs(1, "alone", "began")
    field.send("alone")
    field.wait_log("would overlap with")
    field.go()
    field.wait_runs(1, "alone")


def test_a_time_limit_in_gevent_lets_go(field: Field):
    field.start("gevent", 4)
    field.send("stuck")
    field.wait_runs(1, "stuck", "began")
    field.send("stuck")
    field.wait_runs(2, "stuck", "began")
