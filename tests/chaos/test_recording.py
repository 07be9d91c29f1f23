"""From records to facts, and from a seed to a plan: what needs no processes."""

from __future__ import annotations

import struct

import pytest

from tests.chaos import facts, txnlog
from tests.chaos.faults import FAULTS, LOCAL
from tests.chaos.plan import plan


def started(at: float, child: str, *, alone: bool = True, epoch: int = 1) -> dict:
    node, _, own = child.partition("/")
    return {"is": "started", "at": at, "node": node, "epoch": epoch, "child": child, "alone": alone, "own": own}


def died(at: float, child: str, epoch: int = 1) -> dict:
    return {"is": "died", "at": at, "node": child.partition("/")[0], "epoch": epoch, "child": child}


def message(at: float, child: str, epoch: int = 1) -> dict:
    node, _, own = child.partition("/")
    return {
        "is": "message",
        "at": at,
        "sent_at": at,
        "hard": at + 2,
        "node": node,
        "epoch": epoch,
        "own": own,
        "tick": 1,
    }


def test_a_death_that_was_seen_late_was_before_the_start_of_a_child_that_found_itself_alone():
    records = [started(1, "a/1"), started(2, "b/1", epoch=2), died(2.01, "a/1")]
    assert facts.deaths(records)["a/1"] < 2
    assert not facts.overlaps(records)


def test_a_child_that_did_not_find_itself_alone_is_an_overlap():
    records = [started(1, "a/1"), started(2, "b/1", epoch=2, alone=False), died(2.01, "a/1")]
    assert [start["child"] for start in facts.overlaps(records)] == ["b/1"]


def test_a_death_that_is_seen_long_after_its_znode_was_removed_was_after_it():
    gone = {"is": "gone", "at": 2.0, "epoch": 1, "why": "left"}
    assert facts.deaths([started(1, "a/1"), died(2.04, "a/1"), gone])["a/1"] < 2
    assert facts.deaths([started(1, "a/1"), died(2.2, "a/1"), gone])["a/1"] == 2.2


@pytest.mark.parametrize("died_at", [9.05, 12.0])
def test_a_child_that_dies_as_it_is_thawed_counts_as_dead_from_when_it_was_frozen(died_at):
    frozen = [{"is": "frozen", "at": 2.0, "node": "a"}, {"is": "thawed", "at": 9.0, "node": "a"}]
    records = [started(1, "a/1"), message(1.9, "a/1"), *frozen, message(9.01, "a/1"), died(died_at, "a/1")]
    at_once = died_at < 10
    assert facts.deaths(records)["a/1"] == (2.0 if at_once else died_at)
    assert [leak["at"] for leak in facts.leaks(records)] == ([9.01] if at_once else [])


def test_a_message_that_was_sent_in_time_and_arrives_when_its_sender_is_dead_was_in_flight():
    records = [started(1, "a/1"), died(3, "a/1"), started(4, "b/1", epoch=2), message(4.1, "b/1", epoch=2)]
    late = message(9, "a/1")
    assert facts.in_flight([*records, {**late, "sent_at": 2.9, "hard": 3.5}])
    assert not facts.late_messages([*records, {**late, "sent_at": 2.9, "hard": 3.5}])
    assert facts.late_messages([*records, {**late, "sent_at": 2.9, "hard": 2.8}])


def test_messages_of_an_old_publisher_after_its_successors_first_are_late():
    order = ["a/1", "a/1", "b/1", "a/1", "b/1"]
    records = [message(at, child, epoch=1 if child == "a/1" else 2) for at, child in enumerate(order)]
    records += [started(0, "a/1"), started(1.5, "b/1", epoch=2, alone=False)]
    assert [late["at"] for late in facts.late_messages(records)] == [3]


def test_a_seed_decides_everything():
    kinds = [name for name, fault in FAULTS.items() if LOCAL in fault.where]
    assert plan(7, 50, kinds) == plan(7, 50, list(reversed(kinds)))
    assert plan(7, 50, kinds) != plan(8, 50, kinds)


def test_a_plan_comes_to_every_kind_before_it_comes_to_one_again():
    kinds = sorted(name for name, fault in FAULTS.items() if LOCAL in fault.where)
    struck = [one.strikes[0].fault for one in plan(1, len(kinds), kinds, several=0.0)]
    assert sorted(struck) == kinds


def _record(zxid: int, kind: int, body: bytes) -> bytes:
    data = struct.pack(">qiqqi", 7, 1, zxid, 1500, kind) + body
    return struct.pack(">qi", 0, len(data)) + data + b"B"


def _string(text: str) -> bytes:
    return struct.pack(">i", len(text)) + text.encode()


def test_what_only_one_of_three_servers_has_logged_is_not_taken_for_committed(tmp_path):
    head = struct.pack(">4siq", b"ZKLG", 2, 0)
    create = _record(1, txnlog.CREATE, _string("/a") + _string("data"))
    inner = _string("/b")
    multi = struct.pack(">ii", 1, txnlog.DELETE) + struct.pack(">i", len(inner)) + inner
    logs = [create + _record(2, txnlog.MULTI, multi), create + _record(2, txnlog.MULTI, multi), create]
    logs[2] += _record(3, txnlog.DELETE, _string("/lost"))
    for number, log in enumerate(logs):
        directory = tmp_path / str(number) / "version-2"
        directory.mkdir(parents=True)
        (directory / "log.1").write_bytes(head + log + bytes(64))
    found = txnlog.committed([tmp_path / str(number) for number in range(3)])
    assert [(txn.zxid, txn.kind, txn.path, txn.at) for txn in found] == [
        (1, txnlog.CREATE, "/a", 1.5),
        (2, txnlog.DELETE, "/b", 1.5),
    ]
    assert [txn.zxid for txn in txnlog.committed([tmp_path / "0", tmp_path / "1"], after=1)] == [2]
