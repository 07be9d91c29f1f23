"""The shipped unit, as it is, under a real systemd: PID 1 of a container, with this machine's /usr for its own.

The container lends no more than a file system and namespaces. What the unit expects on a node, an account, an
application in /srv/proj and its environment file, is mounted; `celery` there stands in for the real one.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import sysconfig
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
from docker.errors import APIError, DockerException

from tests.support.lives import BEAT, Life, Lives, hold_first_election
from tests.support.waiting import wait_until
from zkbeat.dev import NoZooKeeperError, Server, find_distribution

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker.models.containers import Container

pytestmark = pytest.mark.container

CHECKOUT = Path(__file__).parents[2]
UNIT = CHECKOUT / "compose" / "systemd" / "zkbeat@.service"
SYSTEMD = Path("/usr/lib/systemd/systemd")
IMAGE = os.environ.get("ZKBEAT_TEST_PYTHON_IMAGE", "python:3.12-slim")
SERVICE = "zkbeat@proj.service"

SESSION_TIMEOUT_S = 30.0
"""So long that the watchdog, of 3 s here, comes before the lease's deadlines."""

BUSY_S = 15.0
"""What a busy machine may add to anything."""

# A machine with an id is not booted for the first time, when systemd would enable whatever there is in /usr.
BOOT = f"""\
set -e
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
echo celery:x:10002:10002::/nonexistent:/bin/false >> /etc/passwd
echo celery:x:10002: >> /etc/group
mount -o remount,rw /sys/fs/cgroup
mount -o remount,rw /sys/fs/cgroup/systemd 2>/dev/null || true
exec {SYSTEMD} --unit=basic.target
"""

# The interpreter and the packages of the tests, found where the unit's hardening leaves them visible.
PYTHON = f"""\
#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/checkout:/opt/site
exec /opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"""


class Machine:
    """A container that systemd has booted."""

    def __init__(self, container: Container, lives: Lives) -> None:
        self.container = container
        self.lives = lives

    def run(self, *command: str) -> tuple[int, str]:
        code, output = self.container.exec_run(list(command))
        return code, output.decode(errors="replace").strip()

    def systemctl(self, *words: str) -> str:
        code, output = self.run("systemctl", *words)
        assert code == 0, f"systemctl {words}: {output}\n{self.report()}"
        return output

    def show(self, what: str) -> str:
        return self.run("systemctl", "show", SERVICE, "--value", "--property", what)[1]

    def leading(self, after: Life | None = None) -> Life:
        """Wait for a child that began after another one's end, and for systemd to hear of it."""

        def one() -> Life | None:
            latest = self.lives.all()[-1:]
            new = bool(latest) and (after is None or latest[0].began > after.last)
            return latest[0] if new and self.show("StatusText").startswith("leading") else None

        return wait_until(one, 2 * BUSY_S, "it leads", self.report, every_s=0.1)

    def report(self) -> str:
        return "\n".join([self.run("systemctl", "status", SERVICE)[1], self.journal()])

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--unit", SERVICE, "--lines", "100")[1]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    try:
        engine = docker.from_env()
        engine.ping()
    except DockerException as error:
        if os.environ.get("ZKBEAT_TEST_CONTAINERS") == "required":
            pytest.fail(f"no Docker engine answers: {error} (ZKBEAT_TEST_CONTAINERS=required)")
        pytest.skip(f"no Docker engine answers: {error}")
    try:
        find_distribution()
    except NoZooKeeperError as error:
        pytest.skip(str(error))
    if not SYSTEMD.exists():
        pytest.skip(f"no {SYSTEMD} on this machine")
    bridge = engine.networks.list(names=["bridge"])[0].attrs["IPAM"]["Config"][0]
    gateway = bridge.get("Gateway") or str(ipaddress.ip_network(bridge["Subnet"])[1])
    directory = tmp_path_factory.mktemp("machine")
    with Server(tmp_path_factory.mktemp("zookeeper"), bind=gateway) as zookeeper:
        hold_first_election(zookeeper.hosts, "/zkbeat", "proj", directory)
        container = boot(engine, directory, zookeeper.hosts)
        try:
            machine = Machine(container, Lives(directory / "state" / "lives"))

            def booted() -> bool:
                return machine.run("systemctl", "is-active", "basic.target")[1] == "active"

            wait_until(booted, 2 * BUSY_S, "systemd is up", lambda: container.logs().decode(), every_s=0.2)
            yield machine
        finally:
            container.remove(force=True)
            engine.close()


def boot(engine: docker.DockerClient, directory: Path, hosts: str) -> Container:
    files = {
        "app/venv/bin/zkbeat": f'{PYTHON} -m zkbeat "$@"\n',
        "app/venv/bin/celery": f"{PYTHON} /opt/checkout/{BEAT.relative_to(CHECKOUT)} /var/lives/lives\n",
        "etc/proj.env": f"ZKBEAT_HOSTS={hosts}\nZKBEAT_SESSION_TIMEOUT={SESSION_TIMEOUT_S:g}\n",
        # For the time that a test has: what the unit says is for machines that are busier than this one.
        "drop-in/times.conf": "[Service]\nWatchdogSec=3\n",
        # Outside of what the unit lets beat write to, for the tests alone.
        "drop-in/lives.conf": "[Service]\nReadWritePaths=/var/lives\n",
        "state/lives": "",
    }
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (directory / "state" / "lives").chmod(0o666)
    mounts = {
        "/usr": "/usr",
        sys.base_prefix: "/opt/python",
        sysconfig.get_path("purelib"): "/opt/site",
        str(CHECKOUT): "/opt/checkout",
        str(directory / "app"): "/srv/proj",
        str(directory / "etc"): "/etc/zkbeat",
        str(UNIT): f"/etc/systemd/system/{UNIT.name}",
        str(directory / "drop-in"): f"/etc/systemd/system/{SERVICE}.d",
    }
    # Not a dictionary of volumes: one source may be mounted twice.
    volumes = [f"{source}:{target}:ro" for source, target in mounts.items()]
    try:
        return engine.containers.run(
            IMAGE,
            ["-c", BOOT],
            entrypoint="/bin/sh",
            name=f"zkbeat-systemd-{uuid.uuid4().hex[:8]}",
            detach=True,
            user="0",
            # Less than --privileged: systemd mounts things, and that is all that it needs here.
            cap_add=["SYS_ADMIN"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            cgroupns="private",
            environment={"container": "docker"},
            tmpfs={"/run": "", "/run/lock": ""},
            volumes=[*volumes, f"{directory / 'state'}:/var/lives:rw"],
        )
    except APIError as error:
        pytest.skip(f"systemd cannot be run in a container here: {error}")


def test_start_returns_once_the_node_is_in_line(machine):
    machine.systemctl("start", SERVICE)
    assert machine.show("ActiveState") == "active"
    assert machine.show("StatusText").startswith(("standby", "leading", "starting"))
    life = machine.leading()
    assert "NOTIFY_SOCKET" not in life.env
    # It runs so with what the unit restricts really restricted.
    status = machine.run("cat", f"/proc/{machine.show('MainPID')}/status")[1].split()
    assert status[status.index("NoNewPrivs:") + 1] == "1"
    assert status[status.index("Seccomp:") + 1] == "2"
    assert int(status[status.index("CapBnd:") + 1], 16) == 0
    code, output = machine.run("/srv/proj/venv/bin/zkbeat", "health", "--leader")
    assert code == 0, output


def test_a_sidecar_that_is_killed_is_restarted_and_leads_again_at_once(machine):
    life = machine.leading()
    machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", SERVICE)
    machine.leading(life)
    # By expiry it would have taken 30 s, and longer than `leading` waits by the lease: the noted znode was deleted.
    assert machine.show("NRestarts") == "1"
    machine.lives.check_one_at_a_time()


def test_a_sidecar_that_hangs_is_killed_by_the_watchdog_and_restarted(machine):
    life = machine.leading()
    before = int(machine.show("NRestarts"))
    machine.systemctl("kill", "--kill-whom=main", "--signal=STOP", SERVICE)
    machine.leading(life)
    assert int(machine.show("NRestarts")) == before + 1
    assert "Watchdog timeout" in machine.journal()
    machine.lives.check_one_at_a_time()


def test_a_beat_that_is_killed_does_not_end_the_service(machine):
    life = machine.leading()
    before = machine.show("MainPID"), machine.show("NRestarts")
    assert machine.run("pkill", "-KILL", "-u", "celery", "-f", "beat.py /var/lives")[0] == 0
    machine.leading(life)
    assert (machine.show("MainPID"), machine.show("NRestarts")) == before


def test_stop_ends_everything_cleanly(machine):
    machine.leading()
    machine.systemctl("stop", SERVICE)
    assert machine.show("ActiveState") == "inactive"
    assert machine.show("Result") == "success"
    assert machine.show("ExecMainStatus") == "0"
    assert machine.lives.all()[-1].stopped, "the child was not asked to stop"
    assert machine.run("pgrep", "-u", "celery")[1] == ""
    assert machine.run("ls", "/run/zkbeat")[1] == ""


def test_what_a_restart_does_not_mend_is_left_alone(machine):
    drop_in = f"/run/systemd/system/{SERVICE}.d"
    machine.run("mkdir", "-p", drop_in)
    machine.run("sh", "-c", f"printf '[Service]\\nEnvironment=ZKBEAT_LEASE=29\\n' > {drop_in}/wrong.conf")
    machine.systemctl("daemon-reload")
    code, _ = machine.run("systemctl", "start", SERVICE)
    assert code != 0
    assert machine.show("ExecMainStatus") == "2"
    assert machine.show("ActiveState") == "failed"
