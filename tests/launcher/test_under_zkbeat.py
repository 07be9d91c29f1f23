"""A real beat under zkbeat: launched, known to tick, loaded in advance; with a real ZooKeeper and a real Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.nodes import MODULE, Node, alive, wait_dead
from tests.support.waiting import wait_until
from zkbeat.core.record import Member

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT = (str(Path(sysconfig.get_path("scripts"), "celery")), "-A", "plain", "beat")
PLAIN = Path(__file__).with_name("plain")
SILENCE_S = 3.0


@pytest.fixture
def make_node(tmp_path, zk_hosts, zk_root, fresh_redis, nodes) -> Callable[..., Node]:
    """Makes and starts a node whose beat has something due every 0.2 s."""

    def make(node_id: str, *options: str, command: tuple[str, ...] = BEAT, **env: str) -> Node:
        own = ["--root", zk_root, "--session-timeout", "4", "--lease", "2", "--max-silence", str(SILENCE_S)]
        node = Node(
            tmp_path / node_id,
            hosts=zk_hosts,
            name="e",
            command=command,
            options=[*own, *options],
            env={"BROKER": fresh_redis.url, "SCHEDULE_S": "0.2", "PYTHONPATH": str(PLAIN), **env},
            cwd=tmp_path,
        )
        nodes.append(node)
        node.start()
        return node

    return make


def preloaded(node: Node, what: str = "waiting") -> dict:
    return wait_until(
        lambda: found if (found := (node.health() or {}).get("preloaded", {})).get("is") == what else None,
        15,
        f"{node.id} has it {what}",
        node.logs,
    )


def ticks(node: Node, more_than: int = 0) -> dict:
    return wait_until(
        lambda: found if (found := node.health() or {}).get("ticks", 0) > more_than else None,
        15,
        f"{node.id} ticks",
        node.logs,
    )


def zkbeat(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MODULE, *words], capture_output=True, text=True, timeout=90, check=False)


# launched


def test_a_beat_ticks_and_says_so(make_node, fresh_redis, zk_client, zk_root):
    node = make_node("n1")
    found = ticks(node)
    assert (found["ready"], found["ticking"], found["last_tick"]) == (True, True, "entry")
    sent = fresh_redis.messages()[0]
    assert sent.headers["zkbeat-epoch"] == str(found["epoch"])
    assert sent.headers["zkbeat-tick"].startswith("entry@")

    def told() -> bool:
        (name,) = zk_client.get_children(f"{zk_root}/e/election")
        member = Member.decode(zk_client.get(f"{zk_root}/e/election/{name}")[0])
        return member is not None and member.tick is not None

    wait_until(told, 5, "the record tells the last tick", node.logs)


@pytest.mark.parametrize("command", [BEAT, (sys.executable, "-m", "celery", "-A", "plain", "beat")])
def test_however_celery_is_called_its_beat_is_launched(make_node, command):
    node = make_node("n1", command=command)
    ticks(node)
    words = psutil.Process(node.child).cmdline()
    assert words[-3:] == list(command[-3:])
    assert any(word.endswith("zkbeat/launcher/__main__.py") for word in words)


def test_a_beat_that_is_not_to_be_launched_is_just_run(make_node, fresh_redis):
    node = make_node("n1", "--no-launcher")
    wait_until(lambda: fresh_redis.count() > 1, 15, "messages", node.logs)
    assert "ticking" not in node.health()
    assert "zkbeat-epoch" not in fresh_redis.messages()[0].headers


def test_a_celery_without_zkbeat_is_run_plainly_and_said_once(make_node, tmp_path, fresh_redis):
    foreign = tmp_path / "elsewhere" / "python3"
    foreign.parent.mkdir()
    refuses = 'case "$*" in *zkbeat*) echo No module named zkbeat >&2; exit 1;; esac'
    foreign.write_text(f'#!/bin/sh\n{refuses}\nexec {sys.executable} "$@"\n')
    foreign.chmod(0o755)
    node = make_node("n1", "--preload", command=(str(foreign), "-m", "celery", "-A", "plain", "beat"))
    wait_until(lambda: fresh_redis.count() > 1, 15, "messages", node.logs)
    assert node.logs().count("started without the launcher") == 1
    assert "pip install zkbeat" in node.logs()


# ticks


def test_a_beat_whose_broker_is_frozen_is_not_ready_until_it_ticks_again(make_node, fresh_redis):
    node = make_node("n1")
    ticks(node)
    fresh_redis.freeze()
    wait_until(lambda: not node.health()["ready"], SILENCE_S + 5, "not ready", node.logs)
    asked = zkbeat("health", "--ready", "--runtime-dir", str(node.runtime_dir))
    assert asked.returncode == 1
    assert "could not send 'entry'" in asked.stdout
    assert "its last tick was" in asked.stdout
    assert zkbeat("health", "--leader", "--runtime-dir", str(node.runtime_dir)).returncode == 0
    fresh_redis.thaw()
    wait_until(lambda: node.health()["ready"], 15, "ready again", node.logs)


def test_a_beat_that_hangs_is_not_ready(make_node):
    node = make_node("n1", TROUBLE="")
    ticks(node)
    os.kill(node.child, signal.SIGSTOP)
    wait_until(lambda: not node.health()["ready"], SILENCE_S + 5, "not ready", node.logs)
    assert "beat's loop has not turned" in node.health()["why"] or "could not send" in node.health()["why"]


def test_a_beat_that_is_stuck_is_replaced_by_another_node_where_that_is_wanted(make_node):
    first = make_node("n1", "--restart-stuck", "--stop-timeout", "1")
    ticks(first)
    second = make_node("n2", "--restart-stuck")
    second.wait_state("standby")
    stuck = first.child
    os.kill(stuck, signal.SIGSTOP)
    ticks(second)
    assert not alive(stuck)
    assert first.state() == "standby"


def test_a_schedule_with_nothing_due_is_healthy(make_node):
    node = make_node("n1", SCHEDULE_S="3600")
    node.wait_state("leading")
    since = wait_until(lambda: (node.health() or {}).get("ticking"), 15, "the loop turns", node.logs)
    assert since
    until = time.monotonic() + 2 * SILENCE_S
    wait_until(lambda: time.monotonic() > until or not node.health()["ready"], 60, "time passes", node.logs)
    assert node.health()["ready"]
    assert node.health()["ticks"] == 0


# loaded in advance


def test_a_preloaded_standby_takes_over_with_the_process_that_waited(make_node, fresh_redis):
    first = make_node("n1", "--preload")
    ticks(first)
    second = make_node("n2", "--preload")
    waits = preloaded(second)
    os.kill(first.sidecar, signal.SIGKILL)
    found = ticks(second)
    assert found["child"] == waits["pid"]
    epochs = [int(message.headers["zkbeat-epoch"]) for message in fresh_redis.messages()]
    assert epochs == sorted(epochs), "none of the old one's came after the new one's first"
    assert set(epochs) == {epochs[0], found["epoch"]}


def test_what_waits_has_no_connection_and_has_read_no_schedule(make_node, tmp_path):
    make_node("n1", "--preload")
    second = make_node("n2", "--preload", command=(*BEAT, "-s", str(tmp_path / "waiting")))
    waits = psutil.Process(preloaded(second)["pid"])
    assert not waits.net_connections(kind="inet")
    assert waits.num_threads() == 1
    assert not list(tmp_path.glob("waiting*"))
    assert waits.memory_info().rss > 20 << 20, "but it has loaded the app"


@pytest.mark.parametrize(("trouble", "says"), [("thread", "started threads"), ("socket", "opened sockets")])
def test_an_app_that_cannot_wait_is_started_plainly(make_node, trouble, says):
    node = make_node("n1", "--preload", TROUBLE=trouble)
    ticks(node)
    node.process.send_signal(signal.SIGUSR1)  # alone, it leads again: and then it had the time to be refused
    wait_until(lambda: says in node.logs(), 15, "it says why", node.logs)
    before = node.health()["epoch"]
    wait_until(
        lambda: (node.health() or {}).get("ticks") and node.health()["epoch"] != before, 15, "it ticks", node.logs
    )


def test_a_reload_replaces_what_waits(make_node):
    leader = make_node("n1", "--preload")
    ticks(leader)
    standby = make_node("n2", "--preload")
    before = preloaded(standby)["pid"]
    asked = zkbeat("reload", "--runtime-dir", str(standby.runtime_dir))
    assert asked.returncode == 0, asked.stderr
    after = preloaded(standby)["pid"]
    assert after != before
    assert f"process {after} waits" in asked.stdout
    wait_dead([before], 2)
    child = leader.child
    asked = zkbeat("reload", "--runtime-dir", str(leader.runtime_dir))
    assert (asked.returncode, "this node leads" in asked.stdout) == (0, True)
    assert alive(child)


def test_a_reload_where_nothing_is_preloaded_says_so(make_node, tmp_path):
    node = make_node("n1")
    ticks(node)
    asked = zkbeat("reload", "--runtime-dir", str(node.runtime_dir))
    assert (asked.returncode, asked.stderr.count("\n")) == (1, 1)
    assert "without --preload" in asked.stderr
    asked = zkbeat("reload", "--runtime-dir", str(tmp_path / "none"))
    assert (asked.returncode, asked.stderr.count("\n")) == (1, 1)


def test_a_frozen_node_sends_nothing_of_its_term_after_the_next_one_has_begun(make_node, fresh_redis):
    first = make_node("n1", SCHEDULE_S="0.05")
    epoch = ticks(first)["epoch"]
    second = make_node("n2", SCHEDULE_S="0.05")
    second.wait_state("standby")
    first.signal_everything(signal.SIGSTOP)
    begun = ticks(second)["epoch"]
    first.signal_everything(signal.SIGCONT)
    wait_until(lambda: (first.health() or {}).get("state") == "standby", 15, "the first stands by", first.logs)
    epochs = [int(message.headers["zkbeat-epoch"]) for message in fresh_redis.messages()]
    assert begun > epoch
    assert epochs == sorted(epochs)
