"""ZooKeeper is down, frozen, back: what runs meanwhile, and what becomes of the locks."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from kazoo.client import KazooClient

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.worker.workers import Field
    from zkbeat.dev import Server

TICK = "report@2026-01-01T06:00:00+00:00"
NO_WORD = "no word from ZooKeeper"

pytestmark = pytest.mark.parametrize("fresh_server", [500], indirect=True)


@pytest.fixture
def asker(fresh_server: Server) -> Iterator[KazooClient]:
    client = KazooClient(fresh_server.hosts, connection_retry={"max_tries": -1, "max_delay": 0.2})
    client.start()
    yield client
    client.stop()
    client.close()


def test_without_zookeeper_messages_run_and_one_line_warns(make_field: Callable[..., Field], fresh_server: Server):
    field = make_field(fresh_server, zkbeat_session_timeout=2)
    field.start(concurrency=2)
    field.send("tick", tick=TICK)
    field.wait_runs(1, "tick")
    fresh_server.stop()
    for second in range(20):
        field.send("tick", tick=f"report@2026-01-01T07:00:{second:02}+00:00")
        field.send("quick")
    field.wait_runs(21, "tick")
    field.wait_runs(20, "quick")
    assert field.logs().count(NO_WORD) == 1
    assert "Connection refused" in field.logs() or "not connected" in field.logs() or "lost" in field.logs()
    fresh_server.start()
    fresh_server.wait_ready()
    _send_until_asked(field)
    before = len(field.runs("tick"))
    field.send("tick", tick=TICK)
    field.settle()
    assert len(field.runs("tick")) == before
    assert field.logs().count(NO_WORD) == 1


def test_a_frozen_zookeeper_costs_one_wait(make_field: Callable[..., Field], fresh_server: Server):
    field = make_field(fresh_server, zkbeat_session_timeout=10)
    field.start(concurrency=2)
    field.send("tick", tick=TICK)
    field.wait_runs(1, "tick")
    fresh_server.suspend()
    began_at = time.monotonic()
    for second in range(20):
        field.send("tick", tick=f"report@2026-01-01T07:00:{second:02}+00:00")
    field.wait_runs(21, "tick")
    assert 0.9 < time.monotonic() - began_at < 3
    assert field.logs().count(NO_WORD) == 1
    fresh_server.resume()
    _send_until_asked(field)


def test_a_worker_that_starts_without_zookeeper_runs_after_a_moment(
    make_field: Callable[..., Field], fresh_server: Server
):
    fresh_server.stop()
    field = make_field(fresh_server)
    field.start(concurrency=2)
    began_at = time.monotonic()
    for second in range(5):
        field.send("tick", tick=f"report@2026-01-01T07:00:{second:02}+00:00")
    field.wait_runs(5, "tick")
    assert time.monotonic() - began_at < 5
    assert field.logs().count(NO_WORD) == 1


def test_fail_closed_holds_messages_until_zookeeper_is_back(make_field: Callable[..., Field], fresh_server: Server):
    field = make_field(fresh_server, zkbeat_session_timeout=2, zkbeat_fail_closed=True)
    field.start(concurrency=2)
    field.send("tick", tick=TICK)
    field.wait_runs(1, "tick")
    fresh_server.stop()
    ticks = [f"report@2026-01-01T07:00:{second:02}+00:00" for second in range(10)]
    for tick in ticks * 2:
        field.send("tick", tick=tick)
    held = field.send("patient")
    for _ in range(3):
        field.settle()  # other tasks go on
    assert len(field.ids("tick")) == 1
    assert not field.ids("patient", "began")
    assert field.store.hlen("unacked") == 21, "the broker has them still"
    assert field.logs().count(NO_WORD) == 1
    fresh_server.start()
    field.go()
    field.wait_runs(11, "tick")
    assert field.wait_runs(1, "patient") == [held]
    field.wait_log("belongs to another message: dropped", 10)
    wait_until(field.idle, 5, "nobody holds anything", field.report)
    assert not field.store.hlen("unacked"), "acknowledged"


def test_what_fail_closed_holds_is_run_by_another_worker_after_a_stop(
    make_field: Callable[..., Field], fresh_server: Server
):
    field = make_field(fresh_server, zkbeat_fail_closed=True)
    fresh_server.stop()
    first = field.start(concurrency=2)
    sent = field.send("tick", tick=TICK)
    field.wait_log("are held back")
    assert first.stop() == 0
    assert not field.ids("tick")
    fresh_server.start()
    field.start(concurrency=2)
    assert field.wait_runs(1, "tick") == [sent]


def test_a_lock_is_let_go_after_an_outage_that_the_session_survived(
    make_field: Callable[..., Field], fresh_server: Server, asker: KazooClient
):
    field = make_field(fresh_server, zkbeat_session_timeout=10)
    field.start(concurrency=2)
    sent = field.send("alone")
    field.wait_runs(1, "alone", "began")
    [session] = {asker.exists(f"{field.base}/runs/app.alone").ephemeralOwner}
    fresh_server.kill()
    field.go()
    field.wait_runs(1, "alone")
    wait_until(lambda: field.result(sent).state == "SUCCESS", 5, "ended", field.report)
    fresh_server.start()
    fresh_server.wait_ready()
    restarted_at = time.monotonic()
    wait_until(lambda: _lock(asker, field) is None, 8, "the lock is gone", field.report)
    assert time.monotonic() - restarted_at < 6, "by hand, not by the session's end"
    again = field.send("alone")
    assert field.wait_runs(2, "alone")[1] == again
    assert "goes on without its lock" not in field.logs()
    assert session


def test_a_run_that_outlives_its_session_warns_and_locks_the_rest(
    make_field: Callable[..., Field], fresh_server: Server, asker: KazooClient
):
    field = make_field(fresh_server, zkbeat_session_timeout=2)
    worker = field.start(concurrency=2)
    field.send("alone")
    field.wait_runs(1, "alone", "began")
    first = asker.exists(f"{field.base}/runs/app.alone")
    _freeze_main(worker.process.pid)
    wait_until(lambda: _lock(asker, field) is None, 10, "the session expired", field.report)
    _thaw_main(worker.process.pid)
    field.wait_log("goes on without its lock")
    field.wait_log("has its lock again")
    assert asker.exists(f"{field.base}/runs/app.alone").ephemeralOwner != first.ephemeralOwner
    field.send("alone")
    field.wait_log("would overlap with")
    field.go()
    field.wait_runs(1, "alone")
    wait_until(lambda: _lock(asker, field) is None, 5, "let go", field.report)
    assert field.logs().count("goes on without its lock") == 1


@pytest.mark.parametrize("ends", ["while cut off", "later"])
def test_the_lock_of_another_is_never_deleted(
    make_field: Callable[..., Field], fresh_server: Server, asker: KazooClient, ends: str
):
    field = make_field(fresh_server, zkbeat_session_timeout=2)
    first = field.start(concurrency=2)
    field.send("alone")
    field.wait_runs(1, "alone", "began")
    _freeze_main(first.process.pid)
    wait_until(lambda: _lock(asker, field) is None, 10, "the session expired", field.report)
    lock = f"{field.base}/runs/app.alone"
    asker.create(lock, b'{"token": "t", "id": "another", "worker": "elsewhere"}', ephemeral=True)
    mine = asker.exists(lock)
    if ends == "while cut off":
        field.go()
        field.wait_runs(1, "alone")
        _thaw_main(first.process.pid)
    else:
        _thaw_main(first.process.pid)
        field.wait_log("goes on without its lock")
        field.go()
        field.wait_runs(1, "alone")
    field.send("alone")
    field.wait_log("would overlap with [another] on elsewhere: dropped")
    assert asker.exists(lock).czxid == mine.czxid
    assert asker.get_children(f"{field.base}/run-tokens") == []
    assert "has its lock again" not in field.logs()


def _send_until_asked(field: Field) -> None:
    """Send messages of a tick that is claimed, which run until ZooKeeper is asked again."""

    def dropped() -> bool:
        field.send("tick", tick=TICK)
        field.settle()
        return "belongs to another message: dropped" in field.logs()

    wait_until(dropped, 10, "ZooKeeper is asked again", field.report, every_s=0.1)
    assert "answers again" in field.logs()


def _lock(client: KazooClient, field: Field) -> object | None:
    return client.exists(f"{field.base}/runs/app.alone")


def _freeze_main(pid: int) -> None:
    """Stop the worker's main process, and none of its pool."""
    os.kill(pid, signal.SIGSTOP)


def _thaw_main(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
