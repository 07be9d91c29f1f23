"""The network of namespaces that the tests of partitions stand on."""

from __future__ import annotations

import selectors
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import net
from tests.support.waiting import wait_until
from tests.support.zookeeper import Ensemble

ROOT = Path(__file__).parents[2]

ECHO_SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 4000)) as listener:
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        while data := connection.recv(100):
            connection.sendall(data)
"""

# Says what came of each line that it is to send: the echo, or the error.
ECHO_CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 4000), 5)
connection.settimeout(float(sys.argv[2]))
for line in sys.stdin:
    try:
        connection.sendall(line.encode())
        print(connection.recv(100).decode().strip(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 4000), float(sys.argv[2]))
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""

CRASH = """
import os
from tests.support.net import Lan
Lan().host("a")
print(os.getpid(), flush=True)
os._exit(1)
"""


class Talker:
    """A process on a host, spoken to by lines."""

    def __init__(self, host, code, *arguments):
        self.process = subprocess.Popen(
            [*host.exec_prefix, sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what a buffer holds, a selector does not see
        )

    def say(self, line):
        self.process.stdin.write(f"{line}\n".encode())

    def hear(self, timeout_s=10):
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout_s), "nothing was said"
        return self.process.stdout.readline().decode().strip()


def python_on(host, code, *arguments):
    argv = [*host.exec_prefix, sys.executable, "-c", code, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_a_cut_is_silent_and_healing_lets_the_old_connection_go_on(lan):
    a, b, c = (lan.host(name) for name in "abc")
    server = Talker(b, ECHO_SERVER, b.ip)
    assert server.hear() == "ready"
    client = Talker(a, ECHO_CLIENT, b.ip, "1")
    client.say("one")
    assert client.hear() == "one"

    a.cut_off([b.ip])
    client.say("two")
    assert client.hear() == "TimeoutError"
    assert python_on(a, CONNECT, b.ip, "0.5") == "TimeoutError"
    # Nothing listens on a, so that a packet which got through would be answered with a RST.
    assert python_on(b, CONNECT, a.ip, "0.5") == "TimeoutError"
    # Others are not cut off.
    assert python_on(c, CONNECT, a.ip, "5") == "ConnectionRefusedError"

    a.heal()
    assert python_on(b, CONNECT, a.ip, "5") == "ConnectionRefusedError"

    def the_lost_line_came():
        client.say("three")
        return client.hear() == "two"

    # TCP sends again what was lost, once its own timer says so.
    wait_until(the_lost_line_came, 20, "the lost line over the healed connection")


def test_a_host_reaches_itself_and_this_process_and_is_reached_from_it(lan):
    host = lan.host("a")
    server = Talker(host, ECHO_SERVER, "0.0.0.0")
    assert server.hear() == "ready"
    assert python_on(host, CONNECT, "127.0.0.1", "5") == "connected"
    ours = subprocess.run(
        [sys.executable, "-c", CONNECT, host.ip, "5"], capture_output=True, text=True, timeout=30, check=True
    )
    assert ours.stdout.strip() == "connected"
    assert python_on(host, CONNECT, lan.ip, "5") == "ConnectionRefusedError"
    host.cut_off([lan.ip])
    assert python_on(host, CONNECT, lan.ip, "0.5") == "TimeoutError"


def test_two_lans_do_not_collide_and_close_removes_everything(lan):
    with net.Lan() as other:
        assert other.ip != lan.ip
        sleeper = Talker(other.host("a"), "input()")
        namespaces = [name for name in net._namespaces() if name.startswith(f"{other._stem}-")]
        assert len(namespaces) == 2
    assert not set(namespaces) & set(net._namespaces())
    assert other._link not in net._links()
    assert sleeper.process.wait(10) == -9
    assert lan._link in net._links()


def test_what_a_crashed_process_left_behind_is_swept(lan):
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=30, check=False, cwd=ROOT
    )
    pid = crashed.stdout.strip()
    assert pid, crashed.stderr
    assert any(f"-{pid}-" in name for name in net._namespaces())
    net.sweep()
    assert not any(f"-{pid}-" in name for name in net._namespaces())
    assert not any(link.startswith(f"zkt{pid}x") for link in net._links())
    assert lan._link in net._links()


def test_an_ensemble_with_its_leader_cut_off_elects_another_one(lan, tmp_path):
    with Ensemble(tmp_path, tick_ms=500, lan=lan) as ensemble:
        old = ensemble.leader()
        others = [server.hosts.split(":")[0] for i, server in enumerate(ensemble.servers) if i != old]
        host = lan.host(f"zk{old}")
        host.cut_off(others)
        # Seen from here, which is not cut off from anyone.
        wait_until(
            lambda: ensemble.leader() not in {None, old},
            30,
            "another server leads",
            ensemble.report,
            every_s=0.1,
        )
        host.heal()
        ensemble.wait_quorum()
        assert old in ensemble.followers()


@pytest.mark.parametrize("text", ["12: zkt7x0@if3: <UP>", "12: zkt7x0: <UP>"])
def test_link_names_are_read_without_their_peer(monkeypatch, text):
    monkeypatch.setattr(net, "_ip", lambda _: text)
    assert net._links() == ["zkt7x0"]
