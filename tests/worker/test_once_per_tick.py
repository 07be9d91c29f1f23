"""One run for each tick: what is dropped, and what must not be."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from kazoo.client import KazooClient

    from tests.worker.workers import Field

TICK = "report@2026-01-01T06:00:00+00:00"


def test_the_second_message_of_a_tick_leaves_no_trace(field: Field):
    field.start()
    first = field.send("tick", tick=TICK)
    field.wait_runs(1, "tick")
    wait_until(lambda: field.result(first).state == "SUCCESS", 5, "the first result", field.report)
    second = field.send("tick", tick=TICK)
    same_id = field.send("tick", tick=TICK, task_id=first)
    field.wait_log("belongs to another message: dropped", 2)
    field.settle()
    assert field.ids("tick") == [first]
    assert field.result(first).state == "SUCCESS"
    assert field.result(first).result == "done"
    assert not field.store.exists(f"celery-task-meta-{second}")
    assert f"app.tick[{same_id}]: {TICK} belongs" in field.logs()
    assert field.idle()
    assert not field.store.hlen("unacked"), "acknowledged"


def test_the_same_message_runs_each_time_it_is_delivered(field: Field):
    field.start()
    for _ in range(2):
        field.send("tick", tick=TICK, nonce="n", task_id="one")
    assert field.wait_runs(2, "tick") == ["one", "one"]


def test_a_message_by_hand_runs_and_another_tick_too(field: Field):
    field.start()
    field.send("tick", tick=TICK)
    field.send("tick")
    field.send("tick", tick="report@2026-01-01T06:00:01+00:00")
    field.send("tick", tick="other@2026-01-01T06:00:00+00:00")
    field.send("tick", headers={"zkbeat-tick": "not a tick", "zkbeat-nonce": "n"})
    field.send("part", tick=TICK)  # another task: it was handed the headers on, or the entry's task was changed
    field.wait_runs(5, "tick")
    field.wait_runs(1, "part")


def test_retries_run_and_what_a_task_spawns_with_its_own_headers(field: Field):
    field.start()
    retrying = field.send("retrying", tick=TICK)
    field.send("retrying", tick=TICK)
    assert field.wait_runs(3, "retrying") == [retrying] * 3
    assert [run["retries"] for run in field.runs("retrying")] == [0, 1, 2]
    field.send("spawning", tick="spawning@2026-01-01T06:00:00+00:00", link=field.app.signature("app.plain"))
    field.wait_runs(5, "part")
    field.wait_runs(1, "plain")
    field.wait_log("belongs to another message: dropped", 1)


def test_two_workers_and_messages_of_the_first_protocol(make_field: Callable[..., Field], zk_server: Any):
    field = make_field(zk_server, protocol=1)
    field.start("solo", 1)
    field.start("solo", 1)
    ticks = [f"report@2026-01-01T06:00:{second:02}+00:00" for second in range(20)]
    sent = {tick: [field.send("tick", tick=tick) for _ in range(3)] for tick in ticks}
    field.wait_log("belongs to another message: dropped", 40)
    ran = field.wait_runs(20, "tick")
    assert sorted(ran) == sorted(next(id_ for id_ in ids if id_ in ran) for ids in sent.values())
    assert len({run["worker"] for run in field.runs("tick")}) == 2, "both had a share"


def test_one_session_for_each_worker_and_none_for_its_processes(
    make_field: Callable[..., Field], zk_client: KazooClient, zk_server: Any
):
    field = make_field(zk_server)
    before = _sessions(zk_client)
    workers = [field.start("prefork", 4, "--max-tasks-per-child", "1", wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    assert _sessions(zk_client) == before, "nobody has asked anything yet"
    for second in range(16):
        field.send("tick", tick=f"report@2026-01-01T06:00:{second:02}+00:00")
    field.wait_runs(16, "tick")
    assert len({run["pid"] for run in field.runs("tick")}) == 16, "processes that were forked next to the session"
    assert _sessions(zk_client) == before + 2
    for worker in workers:
        main, *pool = [worker.process.pid, *(child.pid for child in psutil.Process(worker.process.pid).children())]
        assert _connections(main, zk_server.port) == 1
        assert not any(_connections(pid, zk_server.port) for pid in pool), "the inherited socket is closed"
    field.go()
    assert [worker.stop() for worker in workers] == [0, 0]
    wait_until(lambda: _sessions(zk_client) == before, 2, "the sessions closed", field.report)


def test_old_claims_are_cleaned_up(make_field: Callable[..., Field], zk_client: KazooClient, zk_server: Any):
    field = make_field(zk_server, zkbeat_claims_kept=1.5)
    field.start("solo", 1)
    now = datetime.now(timezone.utc)
    for minutes in (-60, -30, 30):
        field.send("tick", tick=f"report@{(now + timedelta(minutes=minutes)).isoformat()}")
    field.wait_runs(3, "tick")
    claims = f"{field.base}/claims"
    slots = sorted(zk_client.get_children(claims))
    assert len(slots) == 3
    made_at = zk_client.exists(f"{claims}/{slots[1]}").ctime
    wait_until(lambda: _server_ms(zk_client) > made_at + 1600, 5, "the slots are old")
    field.send("tick", tick=f"report@{(now - timedelta(minutes=90)).isoformat()}")
    wait_until(lambda: slots[0] not in zk_client.get_children(claims), 10, "the old ones gone", field.report)
    wait_until(lambda: slots[1] not in zk_client.get_children(claims), 10, "the old ones gone", field.report)
    assert slots[2] in zk_client.get_children(claims), "its due time has not come"
    # and the slot that is gone can be made again
    field.send("tick", tick=f"report@{(now - timedelta(minutes=60)).isoformat()}")
    field.wait_runs(5, "tick")
    path = f"{claims}/{slots[0]}"
    data, stat = zk_client.get(f"{path}/{zk_client.get_children(path)[0]}")
    assert set(json.loads(data)) == {"nonce", "tick", "worker", "at"}
    assert not stat.ephemeralOwner


@pytest.mark.parametrize(
    ("conf", "line"),
    [
        ({"zkbeat_hosts": None}, "which ZooKeeper? Set zkbeat_hosts"),
        ({"zkbeat_name": None}, "which election? Set zkbeat_name"),
        ({"zkbeat_claims_kept": "x"}, "zkbeat_claims_kept must be a positive number of seconds, not 'x'"),
    ],
)
def test_a_worker_that_cannot_be_configured_says_so_in_a_line_and_ends(field: Field, conf: dict[str, Any], line: str):
    worker = field.start("solo", 1, wait=False, **conf)
    assert worker.wait() == 78, worker.log()
    assert line in worker.log()
    assert "Traceback" not in worker.log()


def _sessions(client: KazooClient) -> int:
    """Count the sessions of workers: those that this client's server has, but for the tests' own."""
    return client.command(b"cons").count("sid=")


def _connections(pid: int, port: int) -> int:
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return 0
    return sum(bool(each.raddr) and each.raddr.port == port for each in found)


def _server_ms(client: KazooClient) -> int:
    path = client.create("/now-", sequence=True)
    made = client.exists(path)
    client.delete(path)
    return int(made.ctime)
