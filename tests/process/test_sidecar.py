"""The sidecar, its guard and its child round an imagined ZooKeeper: signals, exits, hangs, and what they run in."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.process.driving import signals_in, status, stop
from tests.support.nodes import Node, alive, wait_dead
from tests.support.waiting import wait_until
from zkbeat import clock

BEHIND_A_SHELL = ["sh", "-c", '"$@"; exit $?', "sh"]
"""A prefix that stays the parent of what it starts."""

SHORT = ("--session-timeout", "3")
"""Makes the lease 2 s, its soft deadline 1.5 s."""


def terms(node: Node) -> list[str]:
    path = Path(node.env["ALONE"]) / "terms"
    return path.read_text().splitlines() if path.exists() else []


def make_ensemble(node: Node, fault: str) -> None:
    """Have the imagined ZooKeeper be `mute`, or `failing`."""
    (Path(node.env["ALONE"]) / fault).touch()


def mend_ensemble(node: Node) -> None:
    for fault in ("mute", "failing"):
        (Path(node.env["ALONE"]) / fault).unlink(missing_ok=True)


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


# stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_term_and_int_stop_the_child_and_then_zkbeat_with_0(alone, kin, number):
    family = kin("child")
    with alone(command=family.argv) as node:
        pids = family.wait_ready(node.logs)
        os.kill(node.sidecar, number)
        assert node.wait(5) == 0
        assert family.signals("child") == ["SIGTERM"]
        wait_dead(pids.values(), 0)
        assert f"received {number.name}" in node.stderr
        assert terms(node) == ["began 1", f"ended 1 received {number.name}"]
        wait_until(lambda: not node.pids(), 2, "its guard gone as well", node.pids)
        assert not (node.runtime_dir / "health.sock").exists()


def test_a_second_interrupt_kills_a_child_that_ignores_term(alone, kin):
    family = kin("child+stubborn", "fork:grandchild+stubborn")
    with alone("--stop-timeout", "60", command=family.argv) as node:
        pids = family.wait_ready(node.logs)
        os.kill(node.sidecar, signal.SIGINT)
        wait_until(lambda: family.signals("child"), 5, "TERM", node.logs)
        assert node.state() == "stopping"
        os.kill(node.sidecar, signal.SIGINT)
        assert node.wait(2) == 0
        wait_dead(pids.values(), 0)


def test_a_second_term_does_not_hurry(alone, kin):
    family = kin("child+stubborn")
    with alone("--stop-timeout", "1", command=family.argv) as node:
        family.wait_ready(node.logs)
        began_at = clock.now()
        for _ in range(2):
            os.kill(node.sidecar, signal.SIGTERM)
            wait_until(lambda: family.signals("child"), 5, "TERM", node.logs)
        assert node.wait(5) == 0
        assert clock.now() - began_at >= 1.0


def test_quit_kills_at_once(alone, kin):
    family = kin("child+stubborn")
    with alone("--stop-timeout", "60", command=family.argv) as node:
        pids = family.wait_ready(node.logs)
        os.kill(node.sidecar, signal.SIGQUIT)
        assert node.wait(2) == 0
        wait_dead(pids.values(), 0)
        assert family.signals("child") == []


def test_a_child_that_ignores_term_is_killed_after_the_stop_timeout(alone, kin):
    family = kin("child+stubborn", "daemon:stray+stubborn")
    with alone("--stop-timeout", "0.6", command=family.argv) as node:
        pids = family.wait_ready(node.logs)
        began_at = clock.now()
        assert node.stop(5) == 0
        assert 0.6 <= clock.now() - began_at < 2.0
        assert family.signals("child") == ["SIGTERM"]
        wait_dead(pids.values(), 0)


def test_a_stop_before_there_is_a_child_ends_with_0(alone):
    with alone() as node:
        make_ensemble(node, "mute")  # so that no term is ever proven
        node.wait_state("starting")
        assert node.stop(5) == 0
        wait_until(lambda: not node.pids(), 2, "its guard gone as well", node.pids)
        assert terms(node) == []


# signals for the child


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH], ids=lambda number: number.name)
def test_a_signal_that_is_the_childs_reaches_it(alone, kin, number):
    family = kin("child")
    with alone(command=family.argv) as node:
        family.wait_ready(node.logs)
        node.wait_state("leading")
        os.kill(node.sidecar, number)
        wait_until(lambda: family.signals("child") == [number.name], 5, number.name, node.logs)
        assert node.state() == "leading"


def test_usr1_ends_the_term_and_the_next_one_has_a_child_of_its_own(alone, kin):
    family = kin("child")
    with alone(command=family.argv) as node:
        first = family.wait_ready(node.logs)["child"]
        epoch = node.wait_state("leading")["epoch"]
        os.kill(node.sidecar, signal.SIGUSR1)
        wait_until(lambda: (node.health() or {}).get("epoch") == epoch + 1, 5, "another term", node.logs)
        wait_until(lambda: node.state() == "leading", 5, "leading again", node.logs)
        assert family.signals("child")[0] == "SIGTERM"
        wait_dead([first], 0)
        assert alive(node.child)
        assert terms(node) == ["began 1", "ended 1 received SIGUSR1", "began 2"]


# the child ends by itself


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137)])
def test_with_on_exit_exit_the_childs_code_becomes_zkbeats(alone, script, code):
    with alone("--on-exit", "exit", command=["sh", "-c", script]) as node:
        assert node.wait(10) == code
        assert f"exit code {code}" in node.stderr
        wait_until(lambda: not node.pids(), 2, "its guard gone as well", node.pids)


def test_with_on_exit_rejoin_it_backs_off_and_starts_the_child_again_as_a_new_term(alone):
    with alone(command=["sh", "-c", "echo $ZKBEAT_EPOCH; exit 4"]) as node:
        account = node.wait_state("backing off")
        assert "exit code 4" in account["why"]
        assert not account["ready"]
        first_at = clock.now()
        wait_until(lambda: node.stdout.split() == ["1", "2"], 5, "a second child", node.logs)
        assert 0.8 <= clock.now() - first_at < 2.5
        wait_until(lambda: "backing off for 2 s" in node.stderr, 5, "a longer pause", node.logs)
        assert node.stop(5) == 0


# the lease


@pytest.mark.parametrize("fault", ["mute", "failing"])
def test_without_an_acknowledged_renewal_the_child_is_dead_by_the_lease(alone, kin, fault):
    family = kin("child+stubborn", "fork:grandchild+stubborn")
    with alone(*SHORT, command=family.argv) as node:
        pids = family.wait_ready(node.logs)
        make_ensemble(node, fault)
        muted_at = clock.now()
        wait_until(lambda: not any(map(alive, pids.values())), 5, "all dead", node.logs, every_s=0.005)
        # The last acknowledged renewal is up to a quarter of the lease old.
        assert 1.3 < clock.now() - muted_at < 2.0 + 0.1
        assert family.when("child", "SIGTERM") - muted_at < 1.5 + 0.1
        assert alive(node.sidecar)
        assert node.state() != "leading"
        family.forget()
        mend_ensemble(node)
        family.wait_ready(node.logs)
        assert "the lease ran out" in terms(node)[1]


def test_a_pause_in_the_renewals_shorter_than_the_lease_does_not_touch_the_child(alone, kin):
    family = kin("child")
    with alone(*SHORT, command=family.argv) as node:
        pid = family.wait_ready(node.logs)["child"]
        lease_left_s = node.wait_state("leading")["lease_left_s"]
        make_ensemble(node, "failing")
        wait_until(lambda: node.health()["lease_left_s"] < 1.2, 5, f"less lease left than {lease_left_s} s", node.logs)
        mend_ensemble(node)
        wait_until(lambda: node.health()["lease_left_s"] > 1.6, 5, "renewed", node.logs)
        assert alive(pid)
        assert family.signals("child") == []
        assert terms(node) == ["began 1"]


@pytest.mark.parametrize("who", ["sidecar", "everything but the child"])
def test_a_suspended_node_has_no_child_beyond_its_lease(alone, kin, who):
    family = kin("child+stubborn")
    with alone(*SHORT, command=family.argv) as node:
        pid = family.wait_ready(node.logs)["child"]
        sidecar, guard = node.sidecar, node.guard
        stop(sidecar)
        stopped_at = clock.now()
        if who == "sidecar":
            wait_dead([pid], 2.0 + 0.2)
            wait_dead([sidecar], 2.0, "the sidecar, so that it does not keep the leadership by its pings")
            return
        # No process of ours is left that could act. What is published is all there is: it says so.
        stop(guard)
        lease = (node.runtime_dir / "lease").read_bytes()
        wait_until(lambda: clock.now() > stopped_at + 2.1, 5, "the lease is over")
        assert int.from_bytes(lease[8:16], sys.byteorder) / 1e9 < clock.now()
        os.kill(guard, signal.SIGCONT)
        wait_dead([pid], 0.3, "the child, as soon as the guard may run")


def test_the_lease_file_follows_the_renewals(alone, kin):
    family = kin("child")
    with alone(*SHORT, command=family.argv) as node:
        family.wait_ready(node.logs)

        def hard() -> int:
            return int.from_bytes((node.runtime_dir / "lease").read_bytes()[8:16], sys.byteorder)

        first = hard()
        wait_until(lambda: hard() > first, 2, "a later deadline", node.logs)
        assert hard() / 1e9 < clock.now() + 2.0


# the three processes


def test_a_killed_guard_ends_the_term_and_another_one_begins(alone, kin):
    family = kin("child+stubborn", "daemon:stray+stubborn")
    with alone(command=family.argv) as node:
        pids = family.wait_ready(node.logs)
        guard = node.guard
        family.forget()
        os.kill(guard, signal.SIGKILL)
        wait_dead([pids["child"]], 0.25)
        again = family.wait_ready(node.logs)
        wait_dead(pids.values(), 0)
        assert node.guard != guard
        assert not set(again.values()) & set(pids.values())
        assert terms(node) == ["began 1", "ended 1 the guard was killed", "began 2"]


def test_a_suspended_guard_is_killed_within_the_lease_and_its_child_with_it(alone, kin):
    family = kin("child+stubborn")
    with alone(*SHORT, "--stop-timeout", "0.2", command=family.argv) as node:
        pid = family.wait_ready(node.logs)["child"]
        guard = node.guard
        family.forget()
        stop(guard)
        wait_dead([pid, guard], 2.0)
        family.wait_ready(node.logs)
        assert "the guard does not answer" in node.stderr
        assert node.stop(5) == 0


def test_a_killed_sidecar_takes_everything_along(alone, kin):
    family = kin("child+stubborn", "daemon:stray+stubborn")
    with alone(command=family.argv) as node:
        pids = family.wait_ready(node.logs)
        os.kill(node.sidecar, signal.SIGKILL)
        wait_dead(pids.values(), 1.5)


def test_a_guard_that_is_killed_on_the_standby_is_replaced(alone):
    with alone(*SHORT) as node:
        make_ensemble(node, "mute")
        node.wait_state("starting")
        guard = node.guard
        os.kill(guard, signal.SIGKILL)
        wait_dead([guard], 2)
        wait_until(lambda: "starting another" in node.stderr, 5, "it is noticed", node.logs)
        mend_ensemble(node)
        node.wait_state("leading")


# what it was started by


def test_when_the_process_that_started_it_is_killed_nothing_is_left(alone, kin):
    family = kin("child+stubborn", "daemon:stray+stubborn")
    with alone("--stop-timeout", "0.5", command=family.argv, prefix=BEHIND_A_SHELL) as node:
        family.wait_ready(node.logs)
        node.process.kill()
        wait_until(lambda: not node.pids(), 4, "nothing left", node.pids)
        assert "the process that started zkbeat is gone" in node.stderr


@pytest.mark.parametrize("how", ["nohup", "setsid"])
def test_told_to_outlive_the_process_that_started_it_it_does(alone, how):
    with alone(prefix=[*BEHIND_A_SHELL, how]) as node:
        pid = node.wait_state("leading")["child"]
        node.process.kill()
        node.process.wait()
        sidecar = node.sidecar
        wait_until(lambda: psutil.Process(sidecar).ppid() != node.process.pid, 2, "it is an orphan")
        account = node.wait_state("leading")
        assert "is gone" not in node.stderr
        assert alive(pid)
        if how == "nohup":
            os.kill(sidecar, signal.SIGHUP)
            assert signal.SIGHUP in signals_in(status(pid, "SigIgn")), "it is ignored by the child, too"
        assert node.wait_state("leading")["child"] == account["child"]


def test_it_starts_and_leads_with_all_standard_streams_closed(alone, kin):
    family = kin("child")
    with alone(command=family.argv, prefix=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]) as node:
        family.wait_ready(node.logs)
        node.wait_state("leading")
        for pid in (node.sidecar, node.guard, node.child):
            for fd in (0, 1, 2):
                assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null", (pid, fd)  # noqa: PTH115
        assert node.stop(5) == 0


def test_it_goes_on_when_the_reader_of_its_log_is_gone(alone, kin):
    family = kin("child")
    reading, writing = os.pipe()
    with alone(command=family.argv, stderr=writing) as node:
        os.close(writing)
        family.wait_ready(node.logs)
        os.close(reading)
        for epoch in (2, 3):
            os.kill(node.sidecar, signal.SIGUSR1)
            wait_until(lambda epoch=epoch: (node.health() or {}).get("epoch") == epoch, 5, f"term {epoch}", node.logs)
        node.wait_state("leading")
        assert node.stop(5) == 0


def test_it_goes_on_when_nobody_reads_its_log(alone, kin):
    family = kin("child")
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"." * 4096)
    try:
        with alone(command=family.argv, stderr=writing) as node:
            family.wait_ready(node.logs)
            for epoch in (2, 3):
                os.kill(node.sidecar, signal.SIGUSR1)
                wait_until(
                    lambda epoch=epoch: (node.health() or {}).get("epoch") == epoch, 5, f"term {epoch}", node.logs
                )
            node.wait_state("leading")
            assert node.stop(5) == 0
    finally:
        os.close(reading)
        os.close(writing)


# as PID 1


@pytest.fixture
def first(alone, kin):
    """A node that is PID 1 of a namespace, as in a container, and the family of its child."""
    need_root()
    family = kin("child")
    with alone(command=family.argv, prefix=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]) as node:
        family.wait_ready(node.logs)
        node.wait_state("leading")
        yield node, family


def test_as_pid_1_it_stops_on_term(first):
    node, family = first
    assert node.health()["pid"] == 1
    os.kill(node.sidecar, signal.SIGTERM)
    assert node.wait(5) == 0
    assert family.signals("child") == ["SIGTERM"]


def test_as_pid_1_it_reaps_the_orphans_that_it_is_given(first):
    node, _ = first
    enter = ["nsenter", "--target", str(node.sidecar), "--pid", "--mount"]
    subprocess.run([*enter, "sh", "-c", "sleep 0.3 & true"], check=True, env=node.env, timeout=10)
    sidecar = psutil.Process(node.sidecar)
    wait_until(lambda: "sleep" in [each.name() for each in sidecar.children()], 2, "it is given one")
    wait_until(lambda: len(sidecar.children()) == 1, 2, "only the guard is left", sidecar.children, every_s=0.05)


# the runtime directory while it runs


def test_a_runtime_directory_that_fills_up_while_it_leads_does_not_stop_it(alone, kin):
    need_root()
    family = kin("child")
    node = alone(*SHORT, command=family.argv)
    node.runtime_dir.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", node.runtime_dir], check=True)
    try:
        with node:
            family.wait_ready(node.logs)
            with pytest.raises(OSError, match="No space left"):
                (node.runtime_dir / "filler").write_bytes(b"x" * 100_000)
            os.kill(node.sidecar, signal.SIGUSR1)
            wait_until(lambda: (node.health() or {}).get("epoch") == 2, 5, "another term", node.logs)
            node.wait_state("leading")
            hard = (node.runtime_dir / "lease").read_bytes()
            wait_until(lambda: (node.runtime_dir / "lease").read_bytes() != hard, 3, "the lease goes on", node.logs)
            assert "cannot note the znode" in node.stderr
            assert "Traceback" not in node.stderr
            assert node.stop(5) == 0
    finally:
        subprocess.run(["umount", "--lazy", node.runtime_dir], check=True)


# health, of a sidecar that leads


def test_health_says_yes_of_a_leader_and_no_within_3_s_once_it_is_suspended(alone):
    with alone() as node:
        node.wait_state("leading")

        def ask(*flags: str) -> subprocess.CompletedProcess[str]:
            argv = [sys.executable, "-m", "zkbeat", "health", "--runtime-dir", str(node.runtime_dir), *flags]
            return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False, env=node.env)

        assert [ask(*flags).returncode for flags in ((), ("--ready",), ("--leader",))] == [0, 0, 0]
        assert json.loads(ask("--json").stdout)["state"] == "leading"
        stop(node.sidecar)
        began_at = time.monotonic()
        asked = ask()
        assert time.monotonic() - began_at < 3.0
        assert asked.returncode == 1
        assert "does not answer" in asked.stderr
        assert len(asked.stderr.splitlines()) == 1


def test_health_with_the_socket_of_a_killed_sidecar_says_no(alone):
    with alone() as node:
        node.wait_state("leading")
        os.kill(node.sidecar, signal.SIGKILL)
        node.process.wait()
        argv = [sys.executable, "-m", "zkbeat", "health", "--runtime-dir", str(node.runtime_dir)]
        asked = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False, env=node.env)
        assert asked.returncode == 1
        assert "nobody listens" in asked.stderr


# what the processes show


def test_secrets_are_in_no_command_line_no_childs_environment_and_no_log(alone, kin, tmp_path):
    family = kin("child", "fork:grandchild")
    secret, other = "hunter2hunter2", "swordfish-swordfish"
    file = tmp_path / "zkbeat.toml"
    file.write_text(f'tls-key-password = "{other}"\n')
    options = ["--auth-user", "beat", "--log-level", "debug", "--config", str(file)]
    with alone(*options, command=family.argv, env={"ZKBEAT_AUTH_PASSWORD": secret}) as node:
        children = family.wait_ready(node.logs).values()
        pids = node.pids()
        assert {node.sidecar, node.guard, *children} <= set(pids)
        os.kill(node.sidecar, signal.SIGUSR1)
        wait_until(lambda: (node.health() or {}).get("epoch") == 2, 5, "another term", node.logs)
        for pid in node.pids():
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            assert secret not in line, line
            assert other not in line, line
        environment = Path(f"/proc/{node.child}/environ").read_bytes().decode()
        assert secret not in environment
        assert other not in environment
        assert "ZKBEAT_EPOCH=" in environment
        assert "ZKBEAT_SYS_PATH" not in environment
        assert json.dumps(node.health()).find(secret) == -1
        node.stop()
        for text in (node.stderr, *(path.read_text() for path in node.runtime_dir.iterdir() if path.name != "lease")):
            assert secret not in text
            assert other not in text


def test_the_child_is_told_about_its_term(alone):
    with alone("--on-exit", "exit", command=["env"]) as node:
        assert node.wait() == 0
        told = dict(line.split("=", 1) for line in node.stdout.splitlines() if line.startswith("ZKBEAT_"))
        assert told == {
            "ZKBEAT_NAME": "test",
            "ZKBEAT_ID": node.id,
            "ZKBEAT_EPOCH": "1",
            "ZKBEAT_LEADER_ZNODE": "/imagined/alone__lock__0000000001",
            "ZKBEAT_LEASE_FILE": str(node.runtime_dir / "lease"),
            "ZKBEAT_PULSE_FILE": str(node.runtime_dir / "pulse"),
        }


def test_a_bad_byte_in_the_childs_environment_passes_through(alone):
    with alone("--on-exit", "exit", command=["sh", "-c", 'printf "%s" "$ODD"'], env={"ODD": "\udcff\udcfeä"}) as node:
        assert node.wait() == 0
        assert (node.directory / "stdout").read_bytes() == b"\xff\xfe" + "ä".encode()
