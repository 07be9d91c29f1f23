"""The shipped unit, as systemd reads it; and the notify protocol, spoken with the real zkbeat."""

from __future__ import annotations

import configparser
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from kazoo.client import KazooClient

from tests.support.lives import ZKBEAT, Lives, end, family, is_alive
from tests.support.waiting import wait_until
from zkbeat.dev import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNIT = Path(__file__).parents[2] / "compose" / "systemd" / "zkbeat@.service"

SESSION_TIMEOUT_S = 4.0
WATCHDOG_S = 1.0
BUSY_S = 10.0
"""What a busy machine may add to anything."""


@dataclass(frozen=True)
class News:
    """One datagram."""

    at: float
    pid: int
    text: dict[str, str]


class Systemd:
    """The receiving end of NOTIFY_SOCKET; as systemd, it asks the kernel who has sent what."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.news: list[News] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while True:
            try:
                data, extra, *_ = self._socket.recvmsg(4096, 64)
            except OSError:
                return
            if not data:
                return
            pid = int.from_bytes(extra[0][2][:4], sys.byteorder)
            text = dict(line.split("=", 1) for line in data.decode().splitlines())
            self.news.append(News(time.monotonic(), pid, text))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def all_of(self, key: str) -> list[News]:
        return [news for news in self.news if key in news.text]

    def status(self) -> str:
        told = self.all_of("STATUS")
        return told[-1].text["STATUS"] if told else ""


class Service:
    """One zkbeat, started as systemd starts it."""

    def __init__(self, directory: Path, lives: Lives, settings: Mapping[str, str]) -> None:
        directory.mkdir()
        self.systemd = Systemd(directory / "notify")
        self.runtime_dir = directory / "run"
        self.log = directory / "log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ZKBEAT_")}
        environment = {
            **inherited,
            "ZKBEAT_NAME": "proj",
            "ZKBEAT_ID": directory.name,
            "ZKBEAT_RUNTIME_DIR": str(self.runtime_dir),
            "ZKBEAT_SESSION_TIMEOUT": f"{SESSION_TIMEOUT_S:g}",
            "NOTIFY_SOCKET": str(self.systemd.path),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
            **settings,
        }
        # WATCHDOG_PID names the process that is to be: it is known only when it is there, so a shell fills it in.
        script = 'WATCHDOG_PID=$$ exec "$0" "$@"'
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                ["sh", "-c", script, str(ZKBEAT), "--", *lives.command],
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def close(self) -> None:
        """End it in order, so that the next test's leader need not wait for this one's lease."""
        everything = family(self.process.pid)
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.process.send_signal(number)
        try:
            self.process.wait(BUSY_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        end(everything)
        self.systemd.close()

    def ready(self) -> bool:
        return bool(self.systemd.all_of("READY"))

    def report(self) -> str:
        return f"{self.log.read_text()}\n{self.systemd.news}"


class Services:
    """Several, in one election."""

    def __init__(self, directory: Path, hosts: str, root: str) -> None:
        self.directory = directory
        self.lives = Lives(directory / "lives")
        self._settings = {"ZKBEAT_HOSTS": hosts, "ZKBEAT_ROOT": root}
        self._started: list[Service] = []

    def start(self, name: str, **settings: str) -> Service:
        service = Service(self.directory / name, self.lives, {**self._settings, **settings})
        self._started.append(service)
        return service

    def ready(self, name: str) -> Service:
        service = self.start(name)
        wait_until(service.ready, 3 * BUSY_S, f"{name} is ready", service.report)
        return service

    def leading(self, name: str) -> Service:
        service = self.start(name)
        wait_until(self.lives.leader, 3 * BUSY_S, f"{name} leads", service.report)
        return service

    def close(self) -> None:
        for service in self._started:
            service.close()


@pytest.fixture(scope="module")
def root(zk_hosts: str) -> Iterator[str]:
    path = f"/test-{uuid.uuid4().hex[:12]}"
    yield path
    client = KazooClient(hosts=zk_hosts)
    client.start()
    client.delete(path, recursive=True)
    client.stop()
    client.close()


@pytest.fixture
def services(tmp_path: Path, zk_hosts: str, root: str) -> Iterator[Services]:
    services = Services(tmp_path, zk_hosts, root)
    yield services
    services.close()
    services.lives.check_one_at_a_time()


def unit() -> configparser.RawConfigParser:
    config = configparser.RawConfigParser(strict=False, comment_prefixes=("#",), inline_comment_prefixes=None)
    config.optionxform = str  # type: ignore[assignment,method-assign]
    config.read(UNIT)
    return config


def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    # The command must exist, and so the unit must name one that does.
    shutil.copy("/bin/true", tmp_path / "zkbeat")
    text = UNIT.read_text().replace("/srv/%i/venv/bin/zkbeat ", f"{tmp_path}/zkbeat ")
    (tmp_path / UNIT.name).write_text(text)
    instance = tmp_path / "zkbeat@proj.service"
    instance.symlink_to(UNIT.name)
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", instance],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # What it says about other units of this machine is not ours.
    ours = [line for line in done.stderr.splitlines() if "zkbeat" in line]
    assert not ours
    assert done.returncode == 0, done.stderr


def test_the_unit_gives_zkbeat_time_to_stop():
    service = unit()["Service"]
    stop_timeout_s = next(
        float(word.partition("=")[2])
        for word in service["Environment"].split()
        if word.startswith("ZKBEAT_STOP_TIMEOUT=")
    )
    # Stopping the child, leaving the line, closing the session, writing the last log line.
    assert float(service["TimeoutStopSec"]) > stop_timeout_s + 6


def test_the_unit_keeps_the_noted_znode_over_a_restart():
    assert unit()["Service"]["RuntimeDirectoryPreserve"] == "restart"


def test_a_node_is_ready_once_it_is_in_line(services, zk_client, root):
    leader = services.leading("a")
    wait_until(leader.ready, BUSY_S, "a says that it is ready", leader.report)
    standby = services.ready("b")
    assert len(zk_client.get_children(f"{root}/proj/election")) == 2
    assert standby.systemd.status() == "standby"
    assert len(leader.systemd.all_of("READY")) == 1


def test_a_node_without_zookeeper_is_not_ready_but_feeds_the_watchdog(services):
    (port,) = free_ports(1)
    lost = services.start("a", ZKBEAT_HOSTS=f"127.0.0.1:{port}")
    wait_until(lambda: len(lost.systemd.all_of("WATCHDOG")) >= 4, 4 * WATCHDOG_S + BUSY_S, "it is fed", lost.report)
    assert not lost.ready()
    assert lost.systemd.status() == "connecting"


def test_the_status_follows_what_the_node_does(services):
    leader = services.leading("a")
    standby = services.ready("b")
    epoch = services.lives.leader().env["ZKBEAT_EPOCH"]
    wait_until(lambda: leader.systemd.status() == f"leading, epoch {epoch}", BUSY_S, "it says so", leader.report)
    leader.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: standby.systemd.status().startswith("leading"), BUSY_S, "b leads", standby.report)
    wait_until(lambda: leader.systemd.status() == "standby", BUSY_S, "a stands by", leader.report)


def test_the_watchdog_is_fed_twice_in_its_time(services):
    service = services.leading("a")
    wait_until(lambda: len(service.systemd.all_of("WATCHDOG")) >= 8, 8 * WATCHDOG_S, "it is fed", service.report)
    times = [news.at for news in service.systemd.all_of("WATCHDOG")]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # Due twice in WATCHDOG_S; what is beyond that is the machine's load, and must stay far from a whole one.
    assert sorted(gaps)[len(gaps) // 2] < WATCHDOG_S / 2 + 0.05, gaps
    assert max(gaps) < WATCHDOG_S * 0.8, gaps


def test_the_watchdog_starves_when_the_sidecar_hangs(services):
    services.leading("a")
    service = services.ready("b")
    wait_until(lambda: service.systemd.all_of("WATCHDOG"), BUSY_S, "it is fed", service.report)
    service.process.send_signal(signal.SIGSTOP)
    hung = psutil.Process(service.process.pid)
    wait_until(lambda: hung.status() == psutil.STATUS_STOPPED, BUSY_S, "it is stopped", service.report)
    time.sleep(WATCHDOG_S * 1.5)  # systemd would have lost its patience, and the receiving thread has long run
    hung_at = time.monotonic() - WATCHDOG_S
    fed = len(service.systemd.all_of("WATCHDOG"))
    assert service.systemd.all_of("WATCHDOG")[-1].at < hung_at, service.report()
    service.process.send_signal(signal.SIGCONT)
    wait_until(lambda: len(service.systemd.all_of("WATCHDOG")) > fed, BUSY_S, "it is fed again", service.report)


def test_a_stop_is_announced_before_the_child_is_dead(services):
    service = services.leading("a")
    life = services.lives.leader()
    os.kill(life.pid, signal.SIGSTOP)  # it takes a while to stop
    service.process.terminate()
    wait_until(lambda: service.systemd.all_of("STOPPING"), BUSY_S, "it says STOPPING", service.report)
    assert is_alive(life.pid)
    os.kill(life.pid, signal.SIGCONT)
    assert service.process.wait(BUSY_S) == 0, service.report()
    assert not is_alive(life.pid)


def test_a_stop_is_announced_by_a_node_that_never_saw_zookeeper(services):
    (port,) = free_ports(1)
    service = services.start("a", ZKBEAT_HOSTS=f"127.0.0.1:{port}")
    wait_until(lambda: service.systemd.status() == "connecting", BUSY_S, "it is up", service.report)
    service.process.terminate()
    assert service.process.wait(BUSY_S) == 0, service.report()
    wait_until(lambda: service.systemd.all_of("STOPPING"), BUSY_S, "it says STOPPING", service.report)


def test_only_the_main_process_speaks_and_the_child_knows_of_no_socket(services):
    service = services.leading("a")
    wait_until(service.ready, BUSY_S, "it is ready", service.report)
    seen = services.lives.leader().env
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & seen.keys()
    assert {news.pid for news in service.systemd.news} == {service.process.pid}
