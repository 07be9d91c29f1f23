"""The shipped supervisord configuration, under the real supervisord, round a real ZooKeeper.

Three programs on one machine stand for one on each of three nodes: made from the shipped sections with other paths.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from kazoo.client import KazooClient
from supervisor.childutils import getRPCInterface

from tests.support.lives import Life, Lives, end, family, is_alive, left_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIPPED = Path(__file__).parents[2] / "compose" / "supervisord"
NODES = ("n1", "n2", "n3")

SESSION_TIMEOUT_S = 4.0
LEASE_S = SESSION_TIMEOUT_S * 2 / 3
BUSY_S = 10.0
"""What a busy machine may add to anything."""


def shipped() -> configparser.RawConfigParser:
    config = configparser.RawConfigParser(inline_comment_prefixes=(" ;",))
    config.read(SHIPPED / "zkbeat.conf")
    return config


def executable(name: str) -> str:
    """Return the one beside the interpreter that runs the tests, else the system's."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: pip install supervisor, or the Debian package of that name")
    return found


class Supervised:
    """A supervisord with three nodes."""

    def __init__(self, directory: Path, hosts: str, root: str) -> None:
        self.directory = directory
        self.lives = Lives(directory / "lives")
        self.socket = directory / "supervisor.sock"
        self.config = directory / "supervisord.conf"
        self.rpc = getRPCInterface({"SUPERVISOR_SERVER_URL": f"unix://{self.socket}"}).supervisor
        self._daemon: subprocess.Popen[bytes] | None = None
        self._family: list[psutil.Process] = []
        self._write_config(hosts, root)

    def runtime_dir(self, node: str) -> Path:
        return self.directory / "run" / node

    def _write_config(self, hosts: str, root: str) -> None:
        config = configparser.RawConfigParser()
        config["unix_http_server"] = {"file": str(self.socket), "chmod": "0700"}
        config["supervisord"] = {
            "logfile": str(self.directory / "supervisord.log"),
            "pidfile": str(self.directory / "supervisord.pid"),
            "childlogdir": str(self.directory),
            "nodaemon": "true",
            "user": str(os.getuid()),
        }
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        config["supervisorctl"] = {"serverurl": f"unix://{self.socket}"}
        own = shipped()
        zkbeat = executable("zkbeat")
        for node in NODES:
            environment = {
                "ZKBEAT_HOSTS": hosts,
                "ZKBEAT_ROOT": root,
                "ZKBEAT_NAME": "proj",
                "ZKBEAT_ID": node,
                "ZKBEAT_RUNTIME_DIR": str(self.runtime_dir(node)),
                "ZKBEAT_SESSION_TIMEOUT": f"{SESSION_TIMEOUT_S:g}",
                "ZKBEAT_STOP_TIMEOUT": "10",
            }
            program = {
                **own["program:zkbeat"],
                "command": " ".join([zkbeat, "--", *self.lives.command]),
                "directory": str(self.directory),
                "environment": ",".join(f'{key}="{value}"' for key, value in environment.items()),
                "stdout_logfile": str(self.directory / f"{node}.log"),
            }
            del program["user"]
            config[f"program:{node}"] = program
        for code in ("78", "75", "0"):
            config[f"program:ends-with-{code}"] = {
                **own["program:zkbeat"],
                "command": f"sh -c 'sleep 3; exit {code}'",
                "directory": str(self.directory),
                "environment": "",
                "stdout_logfile": str(self.directory / f"ends-with-{code}.log"),
                "autostart": "false",
            }
            del config[f"program:ends-with-{code}"]["user"]
        told = own["eventlistener:zkbeat_health"]
        *_, failures, _program = told["command"].split()
        listener = [sys.executable, str(SHIPPED / "zkbeat_health.py"), "--zkbeat", zkbeat, "--failures", failures]
        config["eventlistener:zkbeat_health"] = {
            **told,
            "command": " ".join([*listener, *(f"{node}={self.runtime_dir(node)}" for node in NODES)]),
            "stderr_logfile": str(self.directory / "health.log"),
        }
        with self.config.open("w") as file:
            config.write(file)

    def start(self) -> None:
        with (self.directory / "stdout").open("wb") as out:
            self._daemon = subprocess.Popen(
                [executable("supervisord"), "-c", str(self.config)], stdout=out, stderr=subprocess.STDOUT
            )
        wait_until(self.socket.exists, BUSY_S, "supervisord opens its socket", self.report)
        self.in_line()

    def in_line(self) -> None:
        wait_until(lambda: all(self.ready(node) for node in NODES), 3 * BUSY_S, "all three are in line", self.report)

    def start_stopped(self) -> None:
        for node in NODES:
            if self.info(node)["statename"] in {"STOPPED", "EXITED", "FATAL"}:
                self.ctl("start", node)
        self.in_line()

    def close(self) -> None:
        everything = [*self._family, *self.family()]
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
        end(everything)

    def stop(self) -> None:
        """SIGTERM to supervisord itself, and wait for its end."""
        assert self._daemon is not None
        self._family = self.family()
        self._daemon.terminate()
        self._daemon.wait(60)

    def kill(self) -> list[psutil.Process]:
        """SIGKILL to supervisord itself; return all that ran under it."""
        assert self._daemon is not None
        self._family = self.family()
        self._daemon.kill()
        self._daemon.wait()
        return self._family

    def family(self) -> list[psutil.Process]:
        return [] if self._daemon is None else family(self._daemon.pid)

    def ctl(self, *words: str) -> str:
        done = subprocess.run(
            [executable("supervisorctl"), "-c", str(self.config), *words],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"supervisorctl {words}: {done.stdout}{done.stderr}\n{self.report()}"
        return done.stdout

    def info(self, node: str) -> dict[str, object]:
        return self.rpc.getProcessInfo(node)

    def pid(self, node: str) -> int:
        pid = self.info(node)["pid"]
        assert isinstance(pid, int)
        assert pid > 0, f"{node} does not run\n{self.report()}"
        return pid

    def health(self, node: str, *words: str) -> bool:
        command = [executable("zkbeat"), "health", "--runtime-dir", str(self.runtime_dir(node)), *words]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0

    def ready(self, node: str) -> bool:
        return self.health(node, "--ready")

    def leading(self) -> tuple[str, Life]:
        """Wait for the leader; return its node and its child."""
        life = wait_until(self.lives.leader, 3 * BUSY_S, "one child runs", self.report)
        return life.env["ZKBEAT_ID"], life

    def replaced(self, before: Life, within_s: float) -> tuple[str, Life]:
        """Wait for another child to run in place of this one."""
        what = f"another child than {before.pid} runs"
        life = wait_until(lambda: self.lives.next(before), within_s + BUSY_S, what, self.report)
        return life.env["ZKBEAT_ID"], life

    def restarted(self, node: str, pid: int, within_s: float) -> int:
        """Wait for supervisord to run this node's zkbeat under another pid, and for that to be in line again."""

        def again() -> bool:
            info = self.info(node)
            return info["statename"] == "RUNNING" and info["pid"] != pid and self.ready(node)

        wait_until(again, within_s + BUSY_S, f"{node} is restarted and in line again", self.report)
        return self.pid(node)

    def report(self) -> str:
        logs = [*sorted(self.directory.glob("*.log")), self.directory / "stdout"]
        texts = [f"--- {log.name}\n{log.read_text()[-4000:]}" for log in logs if log.exists()]
        return "\n".join([*texts, f"--- lives\n{self.lives.all()}"])


@contextlib.contextmanager
def supervision(hosts: str, root: str) -> Iterator[Supervised]:
    # Not tmp_path: a socket's path must be short.
    directory = Path(tempfile.mkdtemp(prefix="zkbeat-supervisord-"))
    supervised = Supervised(directory, hosts, root)
    try:
        supervised.start()
        yield supervised
    finally:
        supervised.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def shared(zk_hosts: str) -> Iterator[Supervised]:
    root = f"/test-{uuid.uuid4().hex[:12]}"
    with supervision(zk_hosts, root) as supervised:
        yield supervised
    client = KazooClient(hosts=zk_hosts)
    client.start()
    client.delete(root, recursive=True)
    client.stop()
    client.close()


@pytest.fixture
def supervised(shared: Supervised) -> Iterator[Supervised]:
    """Three nodes in line, whatever the test before has left."""
    shared.start_stopped()
    yield shared
    shared.lives.check_one_at_a_time()


@pytest.fixture
def doomed(zk_hosts: str, zk_root: str) -> Iterator[Supervised]:
    """Three nodes under a supervisord that the test may end."""
    with supervision(zk_hosts, zk_root) as supervised:
        yield supervised
        supervised.lives.check_one_at_a_time()


def test_the_shipped_settings_fit_zkbeat():
    program = shipped()["program:zkbeat"]
    environment = dict(pair.split("=") for pair in program["environment"].replace('"', "").split(",") if "=" in pair)
    assert program["stopsignal"] == "TERM"
    assert program["stopasgroup"] == program["killasgroup"] == "false"
    # Stopping the child, leaving the line, closing the session, writing the last log line.
    assert float(program["stopwaitsecs"]) > float(environment["ZKBEAT_STOP_TIMEOUT"]) + 6
    assert program["autorestart"] == "unexpected"
    assert program["exitcodes"] == "2,77,78,126,127"


def test_stopping_the_leader_ends_it_cleanly_and_another_takes_over(supervised):
    node, life = supervised.leading()
    processes = family(supervised.pid(node))
    supervised.ctl("stop", node)
    assert supervised.info(node)["statename"] == "STOPPED"
    assert supervised.info(node)["exitstatus"] == 0, supervised.report()
    assert not is_alive(life.pid)
    wait_until(lambda: not left_of(processes), BUSY_S, "nothing of it is left", supervised.report)
    assert next(one for one in supervised.lives.all() if one.pid == life.pid).stopped, "the child was not asked to stop"
    after, _ = supervised.replaced(life, 0)
    assert after != node


def test_a_leader_whose_sidecar_is_killed_is_replaced_and_restarted(supervised):
    node, life = supervised.leading()
    pid = supervised.pid(node)
    os.kill(pid, signal.SIGKILL)
    after, _ = supervised.replaced(life, 1)
    assert after != node
    supervised.restarted(node, pid, 10)
    assert len(supervised.lives.running()) == 1


def test_a_leader_whose_sidecar_hangs_is_killed_by_its_guard_and_restarted(supervised):
    node, life = supervised.leading()
    pid = supervised.pid(node)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: not is_alive(life.pid), LEASE_S + BUSY_S, "the child is dead", supervised.report)
    after, _ = supervised.replaced(life, LEASE_S + 2)
    assert after != node
    supervised.restarted(node, pid, LEASE_S + 10)


def test_a_standby_that_hangs_is_killed_by_the_health_listener_and_restarted(supervised):
    node, life = supervised.leading()
    standby = next(one for one in NODES if one != node)
    pid = supervised.pid(standby)
    os.kill(pid, signal.SIGSTOP)
    # Three ticks of 5 s, each with a check that waits 2 s.
    supervised.restarted(standby, pid, 3 * 5 + 2)
    assert "killing" in (supervised.directory / "health.log").read_text()
    assert supervised.lives.leader().pid == life.pid, "the leader was disturbed"


def test_restarting_all_at_once_leaves_one_leader(supervised):
    _, life = supervised.leading()
    pids = {node: supervised.pid(node) for node in NODES}
    supervised.ctl("restart", "all")
    supervised.replaced(life, 0)
    for node in NODES:
        supervised.restarted(node, pids[node], 10)
    assert len(supervised.lives.running()) == 1


def test_a_term_that_supervisord_did_not_send_is_followed_by_a_restart(supervised):
    node, life = supervised.leading()
    pid = supervised.pid(node)
    os.kill(pid, signal.SIGTERM)
    supervised.replaced(life, 0)
    supervised.restarted(node, pid, 10)


def test_nothing_outlives_a_supervisord_that_is_killed(doomed):
    doomed.leading()
    processes = doomed.kill()
    assert len(processes) > 2 * len(NODES)
    wait_until(lambda: not left_of(processes), LEASE_S + BUSY_S, "nothing is left", doomed.report)


def test_supervisord_itself_stopped_ends_all_of_them_cleanly(doomed):
    _, life = doomed.leading()
    processes = doomed.family()
    doomed.stop()
    assert not left_of(processes), doomed.report()
    assert next(one for one in doomed.lives.all() if one.pid == life.pid).stopped, "the child was not asked to stop"
    log = (doomed.directory / "supervisord.log").read_text()
    assert all(f"stopped: {node} (exit status 0)" in log for node in NODES), log


def test_only_what_a_restart_may_mend_is_started_again(supervised):
    for code in ("78", "75", "0"):
        supervised.ctl("start", f"ends-with-{code}")
    first = {code: supervised.pid(f"ends-with-{code}") for code in ("75", "0")}

    def all_ended() -> bool:
        again = all(supervised.info(f"ends-with-{code}")["pid"] not in {0, pid} for code, pid in first.items())
        return again and supervised.info("ends-with-78")["statename"] == "EXITED"

    wait_until(all_ended, BUSY_S, "78 stays ended, 75 and 0 are started again", supervised.report)
    assert supervised.info("ends-with-78")["exitstatus"] == 78
