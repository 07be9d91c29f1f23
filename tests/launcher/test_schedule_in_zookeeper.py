"""celery beat -S zookeeper under zkbeat: whatever becomes of the leader, each due time is sent, and none is twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.nodes import Node, environment
from tests.support.waiting import wait_until
from zkbeat.core.schedule import Control, Hold, Request, Tick, key_of, to_us
from zkbeat.dev import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kazoo.client import KazooClient

    from tests.launcher.servers import Message, Redis

PLAIN = Path(__file__).with_name("plain")
CELERY = (sys.executable, "-m", "celery", "-A", "kept", "beat", "-S", "zookeeper", "-l", "info")
EVERY_S = 0.25
ALL = {"zkbeat_catch_up": {"*": "all"}}


class Kept:
    """What several nodes with one schedule have sent."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def messages(self, entry: str = "entry") -> list[Message]:
        found = self._redis.messages()
        return [one for one in found if one.headers["zkbeat-tick"].rpartition("@")[0] == entry]

    def dues(self, entry: str = "entry") -> list[datetime]:
        """Return the due times that were sent, in their order, each as often as it was."""
        return sorted(
            datetime.fromisoformat(one.headers["zkbeat-tick"].rpartition("@")[2]) for one in self.messages(entry)
        )

    def wait_more(self, node: Node, more: int = 4) -> None:
        """Wait until so many more were sent."""
        count = self._redis.count()
        wait_until(lambda: self._redis.count() >= count + more, 20, f"{more} more messages", node.logs)

    def check_unbroken(self, every_s: float = EVERY_S, *, sent_again: bool = False) -> None:
        """See that each due time from the first to the last was sent, once; again, if at all, under the same id."""
        dues = self.dues()
        steps = Counter(later - sooner for sooner, later in itertools.pairwise(dues))
        repeats = steps.pop(timedelta(0), 0)
        assert steps.keys() == {timedelta(seconds=every_s)}, steps
        assert sent_again or repeats == 0, f"{repeats} were sent twice"
        by_tick: dict[str, list[Message]] = {}
        for one in self.messages():
            by_tick.setdefault(one.headers["zkbeat-tick"], []).append(one)
        for tick, messages in by_tick.items():
            assert len({one.headers["id"] for one in messages}) == 1, tick
            assert len({one.headers["zkbeat-nonce"] for one in messages}) == len(messages), tick


@pytest.fixture
def kept(fresh_redis: Redis) -> Kept:
    return Kept(fresh_redis)


@pytest.fixture
def make_node(tmp_path, zk_hosts, zk_root, fresh_redis, nodes) -> Callable[..., Node]:
    """Makes and starts a node."""

    def make(
        node_id: str,
        *options: str,
        hosts: str = zk_hosts,
        entries: dict[str, Any] | None = None,
        conf: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> Node:
        given = {
            "BROKER": fresh_redis.url,
            "ENTRIES": json.dumps({"entry": EVERY_S} if entries is None else entries),
            "CONF": json.dumps(ALL if conf is None else conf),
            "PYTHONPATH": str(PLAIN),
        }
        node = Node(
            tmp_path / node_id,
            hosts=hosts,
            name="e",
            command=CELERY,
            options=["--root", zk_root, "--session-timeout", "4", "--lease", "2", *options],
            env={**given, **(env or {})},
            cwd=tmp_path,
        )
        nodes.append(node)
        node.start()
        return node

    return make


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A ZooKeeper of the test's own, which it may freeze."""
    with Server(tmp_path / "zookeeper") as server:
        yield server


def state(client: KazooClient, root: str, entry: str = "entry") -> list[Any]:
    """Return an entry's state as it stands in ZooKeeper."""
    for bucket in client.get_children(f"{root}/e/schedule/state"):
        entries = json.loads(client.get(f"{root}/e/schedule/state/{bucket}")[0])["entries"]
        if entry in entries:
            return entries[entry]
    raise AssertionError(f"no state of {entry!r}")


# hand-overs


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        pytest.param(lambda node: node.stop(), False, id="stopped"),
        pytest.param(lambda node: os.kill(node.sidecar, signal.SIGKILL), True, id="sidecar-killed"),
        pytest.param(lambda node: node.kill_everything(), True, id="node-killed"),
        pytest.param(lambda node: node.signal_everything(signal.SIGSTOP), True, id="node-frozen"),
    ],
)
def test_the_next_leader_goes_on_where_the_last_one_stopped(make_node, kept, fault, again):
    first = make_node("n1")
    kept.wait_more(first)
    second = make_node("n2")
    second.wait_state("standby")
    fault(first)
    second.wait_state("leading")
    kept.wait_more(second)
    first.signal_everything(signal.SIGCONT)
    kept.wait_more(second)
    kept.check_unbroken(sent_again=again)


def test_a_schedule_that_is_slower_than_the_deploys_still_ticks(make_node, kept):
    """Plain election starts such an interval anew with each leader, so that it is never due."""
    for deploy in range(3):
        node = make_node(f"n{deploy}", entries={"entry": 6.0})
        node.wait_state("leading")
        wait_until(lambda node=node: "entries, " in node.stderr, 15, "the schedule is read", node.logs)
        node.stop()
    last = make_node("last", entries={"entry": 6.0})
    wait_until(kept.dues, 5.5, "it was sent", last.logs)


def test_what_was_missed_is_caught_up_with_as_the_app_has_it(make_node, kept, zk_client, zk_root):
    entries = dict.fromkeys(("entry", "once", "skipped"), EVERY_S)
    conf = {"zkbeat_catch_up": {"skip*": ("skip", 0.2), "entry": "all"}}
    first = make_node("n1", entries=entries, conf=conf)
    kept.wait_more(first, 9)
    first.stop()
    last = {name: kept.dues(name)[-1] for name in entries}
    gone_at = datetime.now().astimezone()
    wait_until(lambda: datetime.now().astimezone() > gone_at + timedelta(seconds=1.5), 5, "nobody leads for a while")
    second = make_node("n2", entries=entries, conf=conf)
    kept.wait_more(second, 20)
    kept.check_unbroken()
    for name in ("once", "skipped"):
        following = next(due for due in kept.dues(name) if due > last[name])
        assert following - last[name] > timedelta(seconds=1), "it has been caught up with"
    second.stop()
    for name in ("once", "skipped"):
        done_with, count, missed, *_ = state(zk_client, zk_root, name)
        dues = kept.dues(name)
        assert count == len(dues), second.logs()
        assert count + missed == (done_with - to_us(dues[0])) // int(EVERY_S * 1_000_000) + 1, (dues, second.logs())
    terms = [
        json.loads(zk_client.get(f"{zk_root}/e/terms/{name}")[0])
        for name in zk_client.get_children(f"{zk_root}/e/terms")
    ]
    assert sum(term.get("missed", 0) for term in terms) >= 8


# trouble


def test_a_broker_that_refuses_loses_nothing(make_node, kept, fresh_redis):
    node = make_node("n1")
    kept.wait_more(node)
    before = fresh_redis.messages()
    fresh_redis.stop()
    wait_until(lambda: "was not sent, trying again" in node.stderr, 15, "a publish fails", node.logs)
    fresh_redis.restart()
    kept.wait_more(node, 8)
    kept.messages = lambda entry="entry", found=kept.messages: [*before, *found(entry)]  # type: ignore[method-assign]
    kept.check_unbroken(sent_again=True)
    assert "Traceback" not in node.stderr


def test_an_ensemble_that_does_not_answer_for_less_than_the_lease_loses_nothing(make_node, kept, server):
    node = make_node("n1", hosts=server.hosts)
    kept.wait_more(node)
    child = node.child
    server.suspend()
    frozen_at = datetime.now().astimezone()
    wait_until(lambda: datetime.now().astimezone() > frozen_at + timedelta(seconds=1), 5, "a second has passed")
    server.resume()
    kept.wait_more(node, 10)
    assert node.child == child
    kept.check_unbroken()


def test_an_ensemble_that_comes_back_after_an_outage_finds_the_schedule_as_it_was(make_node, kept, server):
    node = make_node("n1", hosts=server.hosts)
    kept.wait_more(node)
    server.stop()
    wait_until(lambda: node.state() != "leading", 15, "the lease has run out", node.logs)
    server.start()
    kept.wait_more(node, 30)
    kept.check_unbroken(sent_again=True)


# what operators ask for


def test_an_entry_is_held_back_and_let_go_and_run_when_somebody_asks(make_node, kept, zk_client, zk_root):
    node = make_node("n1", conf={})
    kept.wait_more(node)
    path = f"{zk_root}/e/schedule/control"
    zk_client.create(path, Control({"entry": Hold("somebody")}, (Request("now", "entry", "somebody", 1),)).encode())
    asked = Tick("entry", 1, "now").name
    wait_until(
        lambda: asked in {one.headers["zkbeat-tick"] for one in node_messages(kept)}, 10, "it is sent", node.logs
    )
    control = wait_until(
        lambda: found if not (found := Control.decode(zk_client.get(path)[0])).requests else None, 5, "taken"
    )
    assert control.held.keys() == {"entry"}
    count = len(node_messages(kept))
    wait_until(lambda: state(zk_client, zk_root)[4] < to_us(datetime.now().astimezone()) - 1_000_000, 5, "it is due")
    assert len(node_messages(kept)) == count
    zk_client.set(path, Control().encode())
    kept.wait_more(node, 4)
    assert sum(one.headers["zkbeat-tick"] == asked for one in node_messages(kept)) == 1


def node_messages(kept: Kept) -> list[Message]:
    return kept._redis.messages()


# what it takes


def test_names_of_any_text_and_thousands_of_entries(make_node, kept, fresh_redis, zk_client, zk_root):
    odd = ["", "a/b@c", "\N{SNOWMAN} \ud800", "x" * 5000, "line\nbreak", "'quoted' \"twice\""]
    node = make_node("n1", entries=dict.fromkeys(odd, 1.0), env={"IDLE": "3000"})
    wait_until(lambda: fresh_redis.count() >= 3 * len(odd), 30, "all are sent", node.logs)
    for name in odd:
        assert kept.dues(key_of(name)), name
    sizes = [
        zk_client.get(f"{zk_root}/e/schedule/state/{bucket}")[1].dataLength
        for bucket in zk_client.get_children(f"{zk_root}/e/schedule/state")
    ]
    assert len(sizes) > 50
    assert max(sizes) < 10_000


def test_preloaded_it_goes_on_within_a_fraction_of_a_second(make_node, kept):
    first = make_node("n1", "--preload")
    kept.wait_more(first)
    second = make_node("n2", "--preload")
    wait_until(lambda: (second.health() or {}).get("preloaded", {}).get("is") == "waiting", 15, "parked", second.logs)
    first.stop()
    kept.wait_more(second)
    kept.check_unbroken()


def test_the_credentials_reach_beat_and_nobody_else(make_node, kept, tmp_path):
    own = {"ZKBEAT_AUTH_USER": "beat", "ZKBEAT_AUTH_PASSWORD": "s3cret"}
    node = make_node("n1", env=own)
    kept.wait_more(node)
    found = [path for path in (tmp_path / "n1").rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert [path.name for path in found] == ["place"]
    assert found[0].stat().st_mode & 0o777 == 0o600
    assert b"s3cret" not in Path(f"/proc/{node.child}/environ").read_bytes()
    assert "s3cret" not in node.logs()


def test_without_the_launcher_the_app_says_where_the_ensemble_is(make_node, kept, zk_hosts, zk_root):
    conf = {**ALL, "zkbeat_hosts": zk_hosts, "zkbeat_root": zk_root, "zkbeat_name": "e"}
    first = make_node("n1", "--no-launcher", conf=conf)
    kept.wait_more(first)
    second = make_node("n2", "--no-launcher", conf=conf)
    second.wait_state("standby")
    first.stop()
    kept.wait_more(second)
    kept.check_unbroken()
    assert all(int(one.headers["zkbeat-epoch"]) > 0 for one in kept.messages())


# by itself


def beat_alone(tmp_path: Path, redis: Redis, hosts: str, root: str, **conf: Any) -> subprocess.Popen[str]:
    settings = {**ALL, "zkbeat_hosts": hosts, "zkbeat_root": root, "zkbeat_name": "e", **conf}
    given = {"BROKER": redis.url, "ENTRIES": '{"entry": 0.25}', "CONF": json.dumps(settings), "PYTHONPATH": str(PLAIN)}
    return subprocess.Popen(
        CELERY, env=environment(given), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_it_refuses_to_run_without_zkbeat(tmp_path, fresh_redis, zk_hosts, zk_root):
    beat = beat_alone(tmp_path, fresh_redis, zk_hosts, zk_root)
    _, errors = beat.communicate(timeout=20)
    said = [line for line in errors.splitlines() if "zkbeat: " in line]
    assert (beat.returncode, len(said), "Traceback" in errors) == (78, 1, False), errors
    assert "zkbeat -- celery" in said[0]


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        ({"zkbeat_catch_up": {"entry": "sometimes"}}, "zkbeat_catch_up: 'sometimes'"),
        ({"zkbeat_hosts": None}, "Set zkbeat_hosts"),
        ({"zkbeat_name": None}, "Set zkbeat_name"),
    ],
)
def test_settings_that_cannot_be_used_end_it_with_one_line(tmp_path, fresh_redis, zk_hosts, zk_root, conf, says):
    beat = beat_alone(tmp_path, fresh_redis, zk_hosts, zk_root, zkbeat_unfenced=True, **conf)
    _, errors = beat.communicate(timeout=20)
    said = [line for line in errors.splitlines() if "zkbeat: " in line]
    assert (beat.returncode, len(said), "Traceback" in errors) == (78, 1, False), errors
    assert says in said[0]


def test_a_start_that_finds_no_ensemble_can_be_stopped(tmp_path, fresh_redis, zk_root):
    beat = beat_alone(tmp_path, fresh_redis, "127.0.0.1:1", zk_root, zkbeat_unfenced=True)
    first = beat.stderr.readline()
    while "no answer from ZooKeeper" not in first:
        assert first, "it has ended"
        first = beat.stderr.readline()
    beat.terminate()
    _, errors = beat.communicate(timeout=10)
    assert (beat.returncode, "Traceback" in errors) == (0, False), errors


def test_two_that_nothing_fences_send_each_due_time_under_one_id(tmp_path, fresh_redis, kept, zk_hosts, zk_root):
    beats = [beat_alone(tmp_path, fresh_redis, zk_hosts, zk_root, zkbeat_unfenced=True) for _ in range(2)]
    try:
        wait_until(lambda: fresh_redis.count() > 20, 30, "both send")
    finally:
        for beat in beats:
            beat.kill()
            print(beat.communicate()[1])
    kept.check_unbroken(sent_again=True)
