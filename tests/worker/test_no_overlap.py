"""One run at a time: what is dropped, what waits, and when the lock goes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from kazoo.client import KazooClient

    from tests.worker.workers import Field
    from zkbeat.dev import Server


def test_the_run_that_would_overlap_is_dropped_without_a_result(field: Field, zk_client: KazooClient):
    field.start(concurrency=2)
    field.start(concurrency=2)
    first = field.send("alone")
    field.wait_runs(1, "alone", "began")
    others = [field.send("alone") for _ in range(6)]
    field.wait_log("would overlap with", 6)
    assert field.logs().count("dropped") == 6
    field.go()
    field.wait_runs(1, "alone")
    wait_until(lambda: _locks(zk_client, field) == [], 5, "no lock", field.report)
    wait_until(lambda: not zk_client.get_children(f"{field.base}/run-tokens"), 5, "no token", field.report)
    assert field.result(first).state == "SUCCESS"
    assert not any(field.store.exists(f"celery-task-meta-{other}") for other in others)
    wait_until(field.idle, 5, "nobody holds anything", field.report)
    assert not field.store.hlen("unacked"), "acknowledged"
    again = field.send("alone")
    assert field.wait_runs(2, "alone")[1] == again


def test_runs_that_do_not_overlap_all_run_on_one_worker(field: Field):
    field.start(concurrency=1)
    sent = {field.send("quick") for _ in range(30)}
    assert set(field.wait_runs(30, "quick", timeout_s=30)) == sent


def test_the_run_that_would_overlap_waits_and_holds_up_nobody(field: Field):
    worker = field.start("prefork", 2, "--prefetch-multiplier", "1")
    field.start("prefork", 2, "--prefetch-multiplier", "1")
    sent = {field.send("patient") for _ in range(6)}
    field.wait_runs(1, "patient", "began")
    field.wait_log("postponed", 5)
    for _ in range(3):
        field.settle()  # other tasks get through, though more messages wait than may be prefetched
    field.wait_runs(1, "patient", "began")
    asked = field.app.control.inspect(timeout=2, limit=2)
    books = [held["request"]["id"] for scheduled in asked.scheduled().values() for held in scheduled]
    assert len(books) == 5, books
    assert not any(asked.reserved().values())
    field.go()
    assert set(field.wait_runs(6, "patient", timeout_s=30)) == sent
    _never_two(field, "patient")
    wait_until(field.idle, 5, "nobody holds anything", field.report)
    assert worker.stop() == 0


def test_what_waits_goes_back_to_the_broker_when_the_worker_stops(field: Field):
    first = field.start(concurrency=2)
    running = field.send("patient")
    field.wait_runs(1, "patient", "began")
    waiting = field.send("patient")
    field.wait_log("postponed")
    field.go(running)
    field.wait_runs(1, "patient")
    assert first.stop() == 0
    field.start(concurrency=1)
    field.go()
    assert set(field.wait_runs(2, "patient")) == {running, waiting}


def test_a_retry_and_each_kind_of_end_lets_go_of_the_lock(field: Field, zk_client: KazooClient):
    field.start(concurrency=2)
    field.start(concurrency=2)
    retrying = field.send("alone_retrying")
    assert field.wait_runs(2, "alone_retrying") == [retrying] * 2
    for count in (1, 2):
        failed = field.send("failing")
        field.wait_runs(count, "failing")
        wait_until(lambda failed=failed: field.result(failed).state == "FAILURE", 5, "failed", field.report)
    revoked = field.send("alone")
    field.wait_runs(1, "alone", "began")
    field.app.control.revoke(revoked, terminate=True)
    wait_until(lambda: field.result(revoked).state == "REVOKED", 5, "revoked", field.report)
    wait_until(lambda: _locks(zk_client, field) == [], 5, "no lock", field.report)
    after = field.send("alone")
    assert field.wait_runs(2, "alone", "began")[1] == after


def test_a_run_that_is_killed_at_its_hard_time_limit_lets_go_once_it_is_dead(field: Field, zk_client: KazooClient):
    field.start(concurrency=2)
    field.send("stuck")
    [pid] = [run["pid"] for run in _wait_began(field, "stuck", 1)]
    field.send("stuck")
    field.wait_log("postponed")
    first, second = _wait_began(field, "stuck", 2)
    assert second["pid"] != pid
    assert second["at"] - first["at"] < 6, field.report()
    field.wait_log("Hard time limit", 2)
    wait_until(lambda: _locks(zk_client, field) == [], 5, "no lock", field.report)


def test_a_pool_process_that_is_killed_lets_go_and_its_message_comes_again(field: Field):
    field.start(concurrency=2)
    sent = field.send("lost")
    [first] = _wait_began(field, "lost", 1)
    os.kill(first["pid"], signal.SIGKILL)
    field.go()
    assert field.wait_runs(1, "lost") == [sent]
    assert field.ids("lost", "began") == [sent] * 2


def test_the_key_may_depend_on_the_arguments(field: Field, zk_client: KazooClient):
    field.start(concurrency=4)
    field.send("per_customer", "a/b")
    field.send("per_customer", "..")
    field.wait_runs(2, "per_customer", "began")
    field.send("per_customer", "a/b")
    field.wait_log("would overlap with")
    assert _locks(zk_client, field) == ["app.per_customer=..", "app.per_customer=a%2Fb"]
    field.go()
    field.wait_runs(2, "per_customer")


@pytest.mark.parametrize("task", ["both", "both_the_other_way"])
def test_both_together_in_either_order(field: Field, task: str):
    field.start(concurrency=3)
    first = field.send(task, tick="a@2026-01-01T06:00:00+00:00")
    field.wait_runs(1, task, "began")
    field.send(task, tick="a@2026-01-01T06:00:00+00:00")
    field.wait_log("belongs to another message: dropped")
    field.send(task, tick="a@2026-01-01T06:00:01+00:00")
    field.wait_log("would overlap with")
    field.go()
    assert field.wait_runs(1, task) == [first]
    # what was dropped has claimed its tick
    field.send(task, tick="a@2026-01-01T06:00:01+00:00")
    field.wait_log("belongs to another message: dropped", 2)
    next_one = field.send(task, tick="a@2026-01-01T06:00:02+00:00")
    assert field.wait_runs(2, task) == [first, next_one]


@pytest.mark.parametrize("fresh_server", [500], indirect=True)
def test_the_lock_of_a_worker_that_is_killed_goes_with_its_session(
    make_field: Callable[..., Field], fresh_server: Server
):
    field = make_field(fresh_server, zkbeat_session_timeout=2)
    victim = field.start(concurrency=1)
    field.send("alone")
    field.wait_runs(1, "alone", "began")
    field.start(concurrency=2)
    victim.kill()
    killed_at = time.monotonic()
    field.send("alone")
    field.wait_log("would overlap with")
    tries = 0

    def began() -> bool:
        nonlocal tries
        tries += 1
        field.send("alone")
        field.settle()
        return len(field.ids("alone", "began")) > 1

    wait_until(began, 10, "the task runs again", field.report, every_s=0.2)
    assert 1 < time.monotonic() - killed_at < 6
    assert tries > 1


def test_a_task_that_cannot_be_configured_ends_the_worker_with_a_line(field: Field):
    worker = field.start("solo", 1, wait=False, task_annotations={"app.alone": {"on_overlap": "maybe"}})
    assert worker.wait() == 78, worker.log()
    assert "app.alone: on_overlap must be 'drop' or 'postpone', not 'maybe'" in worker.log()


def _wait_began(field: Field, task: str, count: int) -> list[dict[str, Any]]:
    field.wait_runs(count, task, "began")
    return field.runs(task, "began")


def _never_two(field: Field, task: str) -> None:
    inside = 0
    for run in sorted(field.runs(task) + field.runs(task, "began"), key=lambda run: run["at"]):
        inside += 1 if run["what"] == "began" else -1
        assert inside in {0, 1}, field.report()


def _locks(client: KazooClient, field: Field) -> list[str]:
    return sorted(client.get_children(f"{field.base}/runs"))
