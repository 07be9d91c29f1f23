"""The shipped manifest: against Kubernetes' own schemas, and its container's settings with the real zkbeat as PID 1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from tests.support.lives import Lives, end, family, hold_first_election
from tests.support.waiting import wait_until
from zkbeat import config, health
from zkbeat.__main__ import route
from zkbeat.command import check_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kazoo.client import KazooClient

MANIFEST = Path(__file__).parents[2] / "compose" / "kubernetes" / "zkbeat.yaml"
BIN = Path(sys.executable).parent
USER, PASSWORD = "proj", "not-to-be-seen"
SESSION_TIMEOUT_S = 30.0
"""So long that nothing in here can be mistaken for what a lease that runs out, after 20 s, would bring about."""

BUSY_S = 10.0
"""What a busy machine may add to anything."""


class _Strict(yaml.SafeLoader):
    """YAML lets a key be given twice; Kubernetes takes the last, and nobody notices."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"a key is given twice: {keys}"
        return super().construct_mapping(node, deep)


def documents() -> dict[str, dict[str, Any]]:
    loaded = yaml.load_all(MANIFEST.read_text(), Loader=_Strict)  # a SafeLoader
    return {document["kind"]: document for document in loaded}


def pod() -> dict[str, Any]:
    return documents()["Deployment"]["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    return only


def plain_environment() -> dict[str, str]:
    """Return the variables that the manifest itself gives a value."""
    return {variable["name"]: variable["value"] for variable in container()["env"] if "value" in variable}


PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


@pytest.mark.parametrize("kind", ["Deployment", "PodDisruptionBudget"])
def test_the_manifest_keeps_to_the_schema(kind):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for version in ("1.25", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(documents()[kind], version, strict=True)


def test_the_labels_agree():
    deployment, budget = documents()["Deployment"]["spec"], documents()["PodDisruptionBudget"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == budget["selector"]["matchLabels"]
    (term,) = pod()["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"] == labels


def test_there_is_always_a_spare():
    deployment, budget = documents()["Deployment"]["spec"], documents()["PodDisruptionBudget"]["spec"]
    assert deployment["replicas"] >= 3
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert budget["maxUnavailable"] == 1


def test_a_pod_has_time_to_stop():
    # Stopping the child, leaving the line, closing the session, writing the last log line.
    assert pod()["terminationGracePeriodSeconds"] > float(plain_environment()["ZKBEAT_STOP_TIMEOUT"]) + 6


def test_the_pod_keeps_to_the_restricted_security_standard():
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container()["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}


def test_the_runtime_directory_is_below_a_volume_in_memory_and_not_the_volume():
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod()["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    runtime_dir = Path(plain_environment()["ZKBEAT_RUNTIME_DIR"])
    assert volumes[mounts[str(runtime_dir.parent)]]["medium"] == "Memory"
    # The rest of the file system cannot be written to.
    schedule = Path(container()["args"][-1])
    assert str(schedule.parent) in mounts


def test_secrets_come_from_a_secret():
    secret = {variable["name"] for variable in container()["env"] if "secretKeyRef" in variable.get("valueFrom", {})}
    assert {"ZKBEAT_AUTH_USER", "ZKBEAT_AUTH_PASSWORD", "BROKER_URL"} <= secret


def test_the_container_runs_a_command_that_zkbeat_takes(tmp_path):
    assert container()["command"] == ["zkbeat"]
    what, options, command = route(container()["args"])
    assert (what, options) == ("run", [])
    check_command([str(BIN / command[0]), *command[1:]])
    environment = plain_environment()
    given = {
        name.removeprefix("ZKBEAT_").lower(): value for name, value in environment.items() if name.startswith("ZKBEAT_")
    }
    resolved = config.resolve({**given, "id": "proj-beat-0", "runtime_dir": str(tmp_path)}, {}, environment, command)
    assert resolved.name == "proj"
    assert resolved.log_format == "json"


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_asks_what_zkbeat_understands(probe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZKBEAT_RUNTIME_DIR", str(tmp_path))
    program, subcommand, *arguments = container()[probe]["exec"]["command"]
    assert (program, subcommand) == ("zkbeat", "health")
    # 1, no, and not 2, usage.
    assert health.main(arguments) == 1
    assert "nobody listens" in capsys.readouterr().err
    assert container()[probe]["timeoutSeconds"] > health.ANSWER_WITHIN_S


class Container:
    """The manifest's container as far as a PID namespace makes one: zkbeat is PID 1, with its environment."""

    def __init__(self, directory: Path, name: str, hosts: str, root: str, lives: Lives) -> None:
        run = directory / name / "run"  # the volume: open to everybody, as the kubelet makes it
        run.mkdir(parents=True)
        run.chmod(0o777)
        self.log = directory / f"{name}.log"
        own = plain_environment()
        self._environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            **own,
            "ZKBEAT_ID": name,
            "ZKBEAT_HOSTS": hosts,
            "ZKBEAT_ROOT": root,
            "ZKBEAT_SESSION_TIMEOUT": f"{SESSION_TIMEOUT_S:g}",
            "ZKBEAT_AUTH_USER": USER,
            "ZKBEAT_AUTH_PASSWORD": PASSWORD,
            "ZKBEAT_RUNTIME_DIR": str(run / Path(own["ZKBEAT_RUNTIME_DIR"]).name),
        }
        isolate = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self._command = [*isolate, *container()["command"], "--", *lives.command]
        self.start()

    def start(self) -> None:
        """Start it, or start it again, on the same volume."""
        with self.log.open("ab") as out:
            self._unshare = subprocess.Popen(self._command, env=self._environment, stdout=out, stderr=out)

    def pid(self) -> int:
        """Return zkbeat's pid, outside of the namespace."""
        (inner,) = wait_until(lambda: family(self._unshare.pid)[1:2], BUSY_S, "it runs", self.log.read_text)
        return inner.pid

    def exec(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the kubelet does."""
        enter = ["nsenter", "--target", str(self.pid()), "--pid", "--mount"]
        return subprocess.run(
            [*enter, *command], env=self._environment, capture_output=True, text=True, timeout=30, check=False
        )

    def passes(self, probe: str) -> bool:
        return self.exec(container()[probe]["exec"]["command"]).returncode == 0

    def wait(self) -> int:
        return self._unshare.wait(2 * BUSY_S)

    def close(self) -> None:
        end(family(self._unshare.pid))
        self._unshare.wait()


@pytest.fixture
def start(tmp_path: Path, zk_hosts: str, zk_root: str, zk_client: KazooClient) -> Iterator[Any]:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None or os.geteuid() != 0:
        pytest.skip("needs root, unshare and nsenter (util-linux)")
    credentials = {"ZKBEAT_AUTH_USER": USER, "ZKBEAT_AUTH_PASSWORD": PASSWORD}
    name = plain_environment()["ZKBEAT_NAME"]
    hold_first_election(zk_hosts, zk_root, name, tmp_path, **credentials)
    lives = Lives(tmp_path / "lives")
    started: list[Container] = []

    def start_one(name: str) -> Container:
        one = Container(tmp_path, name, zk_hosts, zk_root, lives)
        started.append(one)
        for probe in PROBES:
            wait_until(lambda: one.passes(probe), 3 * BUSY_S, f"{name} passes its {probe}", one.log.read_text)  # noqa: B023
        return one

    start_one.lives = lives
    yield start_one
    for one in started:
        one.close()
    # Only who has the credentials may.
    zk_client.add_auth("digest", f"{USER}:{PASSWORD}")
    zk_client.delete(zk_root, recursive=True)


def test_pre_stop_hands_over_from_a_leader_and_just_ends_a_standby(start):
    pods = {name: start(name) for name in ("a", "b", "c")}

    # Pids are those of other namespaces here: who runs is what was written last, by whom.
    def leader(after: float = 0.0) -> str | None:
        latest = start.lives.all()
        return latest[-1].env["ZKBEAT_ID"] if latest and latest[-1].began > after else None

    def report() -> str:
        return "\n".join(one.log.read_text() for one in pods.values())

    first = wait_until(leader, BUSY_S, "one leads", report)
    standby = next(name for name in pods if name != first)
    hook = container()["lifecycle"]["preStop"]["exec"]["command"]

    assert pods[standby].exec(hook).returncode == 0
    assert pods[standby].wait() == 0, report()
    assert len(start.lives.all()) == 1, "a standby's end disturbed the leader"

    assert pods[first].exec(hook).returncode == 0
    assert pods[first].wait() == 0, report()
    life = start.lives.all()[0]
    assert life.stopped, "the child was not asked to stop"
    after = wait_until(lambda: leader(life.last), BUSY_S, "another leads", report)
    assert after not in {first, standby}
    assert PASSWORD not in report() + str(life.env)


def test_a_container_that_was_killed_leads_again_as_soon_as_it_is_restarted(start):
    """Its election znode is noted on the volume, which outlives the container: nobody has to wait for its session."""
    one = start("a")
    (first,) = wait_until(start.lives.all, BUSY_S, "it leads", one.log.read_text)
    psutil.Process(one.pid()).kill()  # PID 1: the kernel kills everything with it
    one.wait()
    one.start()
    wait_until(lambda: len(start.lives.all()) == 2, BUSY_S, "it leads again", one.log.read_text)
    start.lives.check_one_at_a_time()
    assert start.lives.all()[1].env["ZKBEAT_EPOCH"] > first.env["ZKBEAT_EPOCH"]
