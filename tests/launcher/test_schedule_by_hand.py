"""An operator and a real beat under zkbeat: an entry is held back, run by hand, and let go."""

from __future__ import annotations

import json
import shelve
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery.beat import ScheduleEntry

from tests.support.nodes import Node, environment
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN = Path(__file__).with_name("plain")
CELERY = (sys.executable, "-m", "celery", "-A", "kept", "beat", "-S", "zookeeper", "-l", "info")
EVERY_S = 0.5


@pytest.fixture
def node(tmp_path, zk_hosts, zk_root, fresh_redis) -> Iterator[Node]:
    """Leads, with two entries."""
    env = {
        "BROKER": fresh_redis.url,
        "ENTRIES": json.dumps({"held": EVERY_S, "other": EVERY_S}),
        "PYTHONPATH": str(PLAIN),
    }
    options = ["--root", zk_root, "--session-timeout", "4", "--lease", "2"]
    with Node(
        tmp_path / "n1", hosts=zk_hosts, name="e", command=CELERY, options=options, env=env, cwd=tmp_path
    ) as node:
        yield node


@pytest.fixture
def zkbeat(zk_hosts, zk_root) -> Callable[..., Any]:
    """Runs a subcommand of `zkbeat schedule`; returns what it says as JSON."""

    def call(*words: str) -> Any:
        where = ("--hosts", zk_hosts, "--root", zk_root)
        done = subprocess.run(
            [sys.executable, "-m", "zkbeat", "schedule", words[0], *where, "--json", *words[1:]],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return call


def test_an_entry_is_held_back_run_by_hand_and_let_go(node, zkbeat, fresh_redis):
    def ticks(entry: str = "held") -> list[str]:
        names = [one.headers["zkbeat-tick"] for one in fresh_redis.messages()]
        return [name for name in names if name.startswith(f"{entry}@")]

    def overdue_s() -> float:
        one = zkbeat("show", "held")
        return (datetime.now(timezone.utc) - datetime.fromisoformat(one["next"])).total_seconds()

    wait_until(lambda: len(ticks()) > 2, 20, "it is sent", node.logs)
    assert zkbeat("pause", "held", "--reason", "a test")["held_back"] == ["held"]
    wait_until(lambda: overdue_s() > 2, 15, "the leader holds it back", node.logs)
    count, others = len(ticks()), len(ticks("other"))
    time.sleep(2 * EVERY_S)
    assert len(ticks()) == count, "nothing of it is sent"
    assert len(ticks("other")) > others, "but of the other one"

    asked = zkbeat("run", "held", "--wait")
    assert (asked["leader"], asked["sent"]) == ("n1", True)
    (by_hand,) = ticks()[count:]
    assert by_hand.endswith(f"#{asked['request']}"), "when it says that it was sent, it was"
    (found,) = (one for one in zkbeat("list")["entries"] if one["entry"] == "held")
    assert (found["held"]["reason"], found["pending"], found["waiting"]) == ("a test", [], [])
    assert (found["task"], found["schedule"]) == ("task", "every 0.5 s")

    assert zkbeat("resume", "held")["let_go"] == ["held"]
    wait_until(lambda: len(ticks()) > count + 3, 15, "it is sent again", node.logs)
    dues = [datetime.fromisoformat(name.partition("@")[2]) for name in ticks() if "#" not in name]
    assert len(set(dues)) == len(dues) == len(ticks()) - 1, "none twice"
    assert {(due - dues[0]) % timedelta(seconds=EVERY_S) for due in dues} == {timedelta(0)}, "in the same phase"
    assert dues[count] - dues[count - 1] > timedelta(seconds=2), "of what was missed the latest one"
    (found,) = (one for one in zkbeat("list")["entries"] if one["entry"] == "held")
    assert found["missed"] >= 3


def test_an_import_beside_a_leader_disturbs_nothing(node, zkbeat, fresh_redis, tmp_path):
    def dues() -> list[datetime]:
        names = [one.headers["zkbeat-tick"] for one in fresh_redis.messages()]
        return [datetime.fromisoformat(name.partition("@")[2]) for name in names if name.startswith("other@")]

    wait_until(lambda: len(dues()) > 2, 20, "it is sent", node.logs)
    path = str(tmp_path / "celerybeat-schedule")
    with shelve.open(path) as store:
        hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
        store["entries"] = {name: ScheduleEntry(name, "task", hour_ago, 9, 0.5) for name in ("other", "not-here")}
    found = {one["entry"]: one["what"] for one in zkbeat("import", "shelve", path)["entries"]}
    assert found == {"other": "kept", "not-here": "imported"}
    count = len(dues())
    wait_until(lambda: len(dues()) > count + 3, 15, "it goes on", node.logs)
    assert len(set(dues())) == len(dues()), "none twice"
    assert {(due - dues()[0]) % timedelta(seconds=EVERY_S) for due in dues()} == {timedelta(0)}, "in the same phase"
    assert node.logs().count("somebody else has written the schedule") >= 1, "the leader has read it anew"
    (stranger,) = (one for one in zkbeat("list", "--all")["entries"] if one["entry"] == "not-here")
    assert stranger["gone"], "what the app has not is kept, and not sent"
