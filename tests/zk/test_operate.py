"""What an operator does from any host: status, step-down, pause, resume, doctor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.nodes import Node, alive, environment, wait_dead
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def zkbeat(zk_hosts, zk_root) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a subcommand on the test's election."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        where = ["--hosts", zk_hosts, "--root", zk_root]
        return subprocess.run(
            [sys.executable, "-m", "zkbeat", arguments[0], *where, *arguments[1:]],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def nodes(tmp_path, zk_hosts, zk_root) -> Iterator[tuple[Node, Node]]:
    """A leader and a standby."""
    options = ["--root", zk_root, "--session-timeout", "4", "--lease", "1.5"]
    first, second = (
        Node(tmp_path / name, hosts=zk_hosts, name="e", options=options, command=["sleep", "1000"])
        for name in ("first", "second")
    )
    with first:
        first.wait_state("leading")
        with second:
            wait_until(lambda: (second.health() or {}).get("ready"), 15, "the standby ready", second.logs)
            yield first, second


def test_status_shows_the_leader_the_line_and_the_terms(nodes, zkbeat):
    first, _second = nodes
    shown = zkbeat("status")
    assert shown.returncode == 0, shown.stderr
    for expected in ("election e", "leader first", "second", "standby", str(first.child), "goes on"):
        assert expected in shown.stdout, shown.stdout
    found = json.loads(zkbeat("status", "--json").stdout)
    assert found["leader"]["id"] == "first"
    assert found["leader"]["epoch"] == first.health()["epoch"]
    assert found["leader"]["child"] == first.child
    assert [member["id"] for member in found["members"]] == ["first", "second"]
    assert [member["state"] for member in found["members"]] == ["leading", "standby"]
    assert all(member["offset"] is not None for member in found["members"])
    assert found["terms"][0]["id"] == "first"


def test_status_exits_1_while_nobody_leads(nodes, zkbeat):
    for node in nodes:
        node.stop()
    shown = zkbeat("status")
    assert shown.returncode == 1
    assert "no leader" in shown.stdout
    assert "received SIGTERM" in shown.stdout


@pytest.mark.usefixtures("nodes")
def test_status_survives_records_that_it_cannot_read(zkbeat, zk_client, zk_root):
    zk_client.create(f"{zk_root}/e/election/zzz__lock__9999999999", b"\xff{")
    zk_client.set(f"{zk_root}/e/control", b"nonsense")
    zk_client.create(f"{zk_root}/e/terms/99999999999999999999", b"[]")
    shown = zkbeat("status")
    assert shown.returncode == 0, shown.stderr
    assert "unreadable record" in shown.stdout
    assert zkbeat("status", "--json").returncode == 0


@pytest.mark.usefixtures("nodes")
def test_status_follows_as_json_until_it_is_interrupted(zk_hosts, zk_root):
    following = subprocess.Popen(
        [sys.executable, "-m", "zkbeat", "status", "--hosts", zk_hosts, "--root", zk_root, "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert [json.loads(following.stdout.readline())["leader"]["id"] for _ in range(2)] == ["first", "first"]
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130
        assert following.stderr.read() == ""
    finally:
        following.kill()
        following.communicate()


def test_step_down_waits_for_the_other_to_lead(nodes, zkbeat):
    first, second = nodes
    child = first.child
    done = zkbeat("step-down", "--wait")
    assert done.returncode == 0, done.stderr
    assert "second leads now" in done.stdout
    assert not alive(child)
    assert second.health()["leader"]
    first.wait_state("standby")


def test_a_request_to_step_down_is_meant_for_one_term_only(nodes, zkbeat):
    first, second = nodes
    zkbeat("step-down", "--wait")
    # Back again by itself: the old request must not meet the new term.
    os.kill(second.sidecar, signal.SIGUSR1)
    first.wait_state("leading")
    child = first.child
    wait_until(lambda: first.health()["leader"], 5, "the first leads")
    assert zkbeat("status").returncode == 0
    assert alive(child)


def test_pause_stops_the_child_and_starts_none_until_resume(nodes, zkbeat):
    first, second = nodes
    child = first.child
    assert zkbeat("pause", "--reason", "the broker moves").returncode == 0
    wait_dead([child], 5.0)
    first.wait_state("paused")
    shown = zkbeat("status")
    assert "paused by" in shown.stdout
    assert "the broker moves" in shown.stdout
    # Nor does the next leader, should this one go.
    os.kill(first.sidecar, signal.SIGUSR1)
    second.wait_state("paused")
    assert zkbeat("resume").returncode == 0
    second.wait_state("leading")
    assert zkbeat("status").returncode == 0


@pytest.mark.usefixtures("nodes")
def test_an_election_that_does_not_exist_is_named_with_those_that_do(zkbeat, zk_root):
    done = zkbeat("status", "--name", "elsewhere")
    assert done.returncode == 1
    assert done.stderr == f"zkbeat: there is no election named 'elsewhere' below {zk_root}; there are e\n"


@pytest.mark.usefixtures("nodes")
def test_of_several_elections_one_must_be_chosen(zkbeat, zk_client, zk_root):
    zk_client.ensure_path(f"{zk_root}/another/election")
    done = zkbeat("status")
    assert done.returncode == 2
    assert "another, e" in done.stderr
    assert zkbeat("status", "--name", "e").returncode == 0


@pytest.mark.parametrize("subcommand", ["status", "step-down", "pause", "resume"])
def test_without_zookeeper_there_is_one_line_and_69(subcommand):
    done = subprocess.run(
        [sys.executable, "-m", "zkbeat", subcommand, "--hosts", "127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 69
    assert done.stderr == "zkbeat: no ZooKeeper: 127.0.0.1:1: nothing listens there; is ZooKeeper running?\n"


def test_the_doctor_is_content_with_a_healthy_ensemble(zkbeat):
    done = zkbeat("doctor", "--", "sleep", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("answers in", "session timeout 10 s, lease 6.67 s", "quorum write", "clock", "sleep is found"):
        assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--", "no-such-program"], "'no-such-program' is not found", id="no such command"),
        pytest.param(["--lease", "9"], "too long", id="a lease that is too long"),
        pytest.param(["--session-timeout", "400"], "asked for 400 s, granted 40 s", id="a timeout that is not granted"),
    ],
)
def test_the_doctor_says_what_to_do_about_each_line_that_fails(zkbeat, arguments, says):
    done = zkbeat("doctor", *arguments)
    assert done.returncode == 1, done.stdout
    lines = done.stdout.splitlines()
    failing = [number for number, line in enumerate(lines) if line.startswith("  FAIL")]
    assert any(says in lines[number] for number in failing), done.stdout
    assert all(lines[number + 1].startswith("        -> ") for number in failing)


def test_contenders_that_run_something_else_are_told_so(tmp_path, nodes, zk_hosts, zk_root):
    options = ["--root", zk_root, "--session-timeout", "4", "--lease", "1.5"]
    with Node(tmp_path / "odd", hosts=zk_hosts, name="e", options=options, command=["sleep", "999"]) as odd:
        odd.wait_state("standby")
        wait_until(lambda: "runs another command" in odd.stderr, 5, "the warning", odd.logs)
    strict = [*options, "--strict"]
    with Node(tmp_path / "strict", hosts=zk_hosts, name="e", options=strict, command=["sleep", "998"]) as refused:
        assert refused.wait() == 78
        assert "runs another command" in refused.stderr
    assert nodes[0].health()["leader"]


def test_a_clock_that_is_too_far_off_stands_back(tmp_path, zk_hosts, zk_root):
    # Any real clock is a little off; a limit of nothing at all makes every clock too far off.
    options = ["--root", zk_root, "--session-timeout", "4", "--lease", "1.5", "--max-clock-offset", "0.0000001"]
    with Node(tmp_path / "off", hosts=zk_hosts, name="e", options=options) as node:
        account = node.wait_state("backing off")
        assert "clock is off" in account["why"]
        assert node.stdout == ""
