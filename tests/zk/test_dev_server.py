"""The ZooKeeper that `--dev` starts, and the ensemble that the tests build of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from tests.support.waiting import wait_until
from zkbeat import dev

ROOT = Path(__file__).parents[2]

JOIN_OR_START = """
import json, pathlib, sys
from zkbeat.dev import join_or_start
sys.stdin.readline()  # go
server = join_or_start(pathlib.Path(sys.argv[1]), port=int(sys.argv[2]))
print(json.dumps(server and server.pid))
"""


@pytest.fixture
def server(tmp_path):
    server = dev.Server(tmp_path / "zk")
    yield server
    server.kill()


@pytest.fixture
def client_of():
    clients = []

    def connect(hosts):
        client = KazooClient(hosts=hosts, timeout=10)
        clients.append(client)
        client.start(timeout=15)
        return client

    yield connect
    for client in clients:
        client.stop()
        client.close()


def test_it_serves_and_keeps_its_data_over_a_restart(fresh_server, client_of):
    client_of(fresh_server.hosts).create("/kept", b"data")
    fresh_server.kill()
    assert not fresh_server.running
    fresh_server.start()
    fresh_server.wait_ready()
    assert client_of(fresh_server.hosts).get("/kept")[0] == b"data"


def test_the_fixtures_give_each_test_a_path_of_its_own(zk_client, zk_root):
    assert zk_client.exists(zk_root) is None
    zk_client.create(f"{zk_root}/a", makepath=True)
    assert zk_client.get_children(zk_root) == ["a"]


@pytest.mark.parametrize("fresh_server", [500], indirect=True)
def test_the_tick_is_as_asked_for(fresh_server):
    assert "tickTime=500\n" in fresh_server.ask("conf")


def test_stop_ends_a_suspended_server(fresh_server):
    fresh_server.suspend()
    with pytest.raises(OSError, match="timed out"):
        fresh_server.ask("srvr", 0.3)
    fresh_server.resume()
    wait_until(lambda: fresh_server.ask("srvr"), 5, "an answer after SIGCONT", fresh_server.log_tail)
    fresh_server.suspend()
    fresh_server.stop()
    assert not fresh_server.running


def test_a_server_that_was_killed_is_named_so(server):
    server.start()
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(dev.ServerError, match=rf"{server.hosts} was killed by signal 9"):
        server.wait_ready()


def test_a_server_that_refuses_its_configuration_shows_its_log(tmp_path):
    server = dev.Server(tmp_path, extra={"tickTime": "nonsense"})
    server.start()
    with pytest.raises(dev.ServerError, match=r'(?s)exited with \d.*For input string: "nonsense"'):
        server.wait_ready()


def test_a_server_does_not_take_another_ones_answer_for_its_own(fresh_server, tmp_path):
    late = dev.Server(tmp_path, port=fresh_server.port)
    late.start()
    with pytest.raises(dev.ServerError, match=r"(?s)exited with \d.*Address already in use"):
        late.wait_ready()


def test_of_two_that_come_at_once_one_starts_it_and_one_joins(tmp_path):
    [port] = dev.free_ports(1)
    argv = [sys.executable, "-c", JOIN_OR_START, str(tmp_path), str(port)]
    both = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    pids = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    started = [pid for pid in pids if pid is not None]
    try:
        assert len(started) == 1, pids
        # Both are gone and the server is not: a third one joins it.
        assert dev.join_or_start(tmp_path, port=port) is None
    finally:
        for pid in started:
            os.killpg(pid, signal.SIGKILL)


def test_a_port_that_something_else_has_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(dev.ServerError, match=f"127.0.0.1:{port} is taken by something"):
            dev.join_or_start(tmp_path, port=port)


def test_without_java_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(dev.NoZooKeeperError, match=r"(apt install|set ZOOKEEPER_HOME)"):
        dev.find_distribution()


def test_a_home_without_zookeeper_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOOKEEPER_HOME", str(tmp_path))
    with pytest.raises(dev.NoZooKeeperError, match=f"ZOOKEEPER_HOME={tmp_path} holds no ZooKeeper"):
        dev.find_distribution()


def test_a_home_laid_out_like_a_release_is_found(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "zookeeper-3.9.3.jar").touch()
    monkeypatch.setenv("ZOOKEEPER_HOME", str(tmp_path))
    assert dev._find_classpath() == (
        f"{tmp_path}/conf:{tmp_path}/lib/*:{tmp_path}/*",
        f"ZOOKEEPER_HOME={tmp_path}",
    )


def test_an_ensemble_survives_the_death_of_its_leader(ensemble, client_of):
    client = client_of(ensemble.hosts)
    client.create("/kept", b"data")
    old = ensemble.leader()
    assert len(ensemble.followers()) == 2
    ensemble.kill(old)
    ensemble.wait_quorum()
    assert ensemble.leader() not in {None, old}
    wait_until(lambda: client.connected, 15, "the client is back", ensemble.report)
    assert client.retry(client.get, "/kept")[0] == b"data"
    ensemble.start_one(old)
    ensemble.wait_quorum()
    assert old in ensemble.followers()


def test_an_ensemble_keeps_a_session_over_a_rolling_restart_and_a_freeze(ensemble, client_of):
    client = client_of(ensemble.hosts)
    client.create("/mine", ephemeral=True)
    ensemble.rolling_restart()
    ensemble.suspend_all()
    assert ensemble.leader() is None
    ensemble.resume_all()
    ensemble.wait_quorum()
    wait_until(lambda: client.connected, 15, "the client is back", ensemble.report)
    assert client.retry(client.exists, "/mine").ephemeralOwner == client.client_id[0]
