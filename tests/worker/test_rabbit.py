"""The same over RabbitMQ, and what only it does: send again at once what a lost worker has not acknowledged."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.launcher.servers import Rabbit
    from tests.worker.workers import Field, Worker
    from zkbeat.dev import Server

TICK = "report@2026-01-01T06:00:00+00:00"


@pytest.fixture
def field(make_field: Callable[..., Field], rabbit: Rabbit, fresh_server: Server) -> Field:
    return make_field(fresh_server, rabbit.url, zkbeat_session_timeout=2, zkbeat_fail_closed=True)


@pytest.mark.parametrize("fresh_server", [500], indirect=True)
class TestRabbit:
    def test_a_second_message_is_dropped_and_a_redelivery_runs(self, field: Field):
        victim = field.start(concurrency=1)
        first = field.send("slow_tick", tick=TICK)
        field.wait_runs(1, "slow_tick", "began")
        victim.kill()
        field.go()
        field.start(concurrency=2)
        assert field.wait_runs(1, "slow_tick") == [first]
        assert field.ids("slow_tick", "began") == [first] * 2
        field.send("slow_tick", tick=TICK)
        field.wait_log("belongs to another message: dropped")
        field.settle()
        assert field.ids("slow_tick") == [first]
        wait_until(lambda: field.result(first).state == "SUCCESS", 5, "its result", field.report)

    def test_a_redelivery_waits_for_the_lock_of_the_worker_that_was_lost(self, field: Field):
        victim = field.start(concurrency=1)
        sent = field.send("lost")
        field.wait_runs(1, "lost", "began")
        field.start(concurrency=2)
        victim.kill()
        field.wait_log("its own lock is still held")
        field.go()
        assert field.wait_runs(1, "lost") == [sent]
        assert "dropped" not in field.logs()

    def test_overlapping_runs_wait_and_what_waits_survives_a_lost_connection(self, field: Field, rabbit: Rabbit):
        worker = field.start(concurrency=2)
        sent = {field.send("patient") for _ in range(5)}
        field.wait_runs(1, "patient", "began")
        field.wait_log("postponed", 4)
        field.settle()
        _drop_connections(worker, rabbit)
        field.wait_log("Connection to broker lost")
        field.wait_log("postponed", 8)
        field.go()
        assert set(field.wait_runs(5, "patient", timeout_s=30)) == sent
        wait_until(field.idle, 5, "nobody holds anything", field.report)

    def test_fail_closed_holds_until_zookeeper_is_back(self, field: Field, fresh_server: Server):
        field.start(concurrency=2)
        fresh_server.stop()
        first = field.send("tick", tick=TICK)
        second = field.send("tick", tick=TICK)
        field.wait_log("are held back")
        field.settle()
        assert not field.ids("tick")
        fresh_server.start()
        assert field.wait_runs(1, "tick")[0] in {first, second}
        field.wait_log("belongs to another message: dropped")


def _drop_connections(worker: Worker, broker: Rabbit) -> None:
    """Cut a worker's connections to RabbitMQ, as a firewall that resets them."""
    port = int(broker.url.rpartition(":")[2].strip("/"))
    found = [each for each in psutil.Process(worker.process.pid).net_connections("tcp") if each.raddr]
    own = [each.laddr.port for each in found if each.raddr.port == port]
    assert own
    for source in own:
        argv = ["ss", "-K", "sport", "=", f":{source}", "and", "dport", "=", f":{port}"]
        subprocess.run(argv, check=True, capture_output=True, timeout=10)
