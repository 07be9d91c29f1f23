from __future__ import annotations

import json
import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kazoo.recipe.lock import Lock

from zkbeat.core.record import Control, Ledger, Member, Term, digest, line

RECORDS = (Member, Control, Ledger, Term)

text = st.text(max_size=30)
numbers = st.floats(-1e12, 1e12, allow_nan=False)
integers = st.integers(-(2**62), 2**62)


def or_none(strategy):
    return st.one_of(st.none(), strategy)


records = st.one_of(
    st.builds(
        Member,
        id=text,
        host=text,
        pid=integers,
        version=text,
        digest=text,
        since=numbers,
        lease=or_none(numbers),
        state=text,
        offset=or_none(numbers),
        child=or_none(integers),
        term_since=or_none(numbers),
        tick=or_none(numbers),
    ),
    st.builds(
        Control,
        paused=st.booleans(),
        by=or_none(text),
        reason=or_none(text),
        since=or_none(numbers),
        step_down=or_none(integers),
    ),
    st.builds(Ledger, led=text, lease=numbers, left=st.booleans()),
    st.builds(
        Term, epoch=integers, id=text, start=numbers, end=or_none(numbers), why=or_none(text), gap=or_none(numbers)
    ),
)

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
fields = sorted({name for kind in RECORDS for name in kind.__dataclass_fields__})


@given(records)
def test_what_was_written_is_read_back(record):
    assert type(record).decode(record.encode()) == record


@given(st.sampled_from(RECORDS), st.binary(max_size=200))
def test_no_bytes_make_reading_fail(kind, data):
    assert kind.decode(data) is None or data.lstrip().startswith(b"{")


@given(st.sampled_from(RECORDS), st.dictionaries(st.sampled_from([*fields, "v"]), json_values))
def test_no_json_makes_reading_fail_and_what_is_read_can_be_written(kind, raw):
    for version in ({}, {"v": 1}):
        read = kind.decode(json.dumps(raw | version).encode())
        assert read is None or kind.decode(read.encode()) == read


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{}",
        b'{"id": "a"}',
        b'{"v": 1}',
        b'{"v": true, "id": "a"}',
        b'{"v": "1", "id": "a"}',
        b'{"v": 2, "id": "a"}',
        b'{"v": 1, "id": 7}',
        b'{"v": 1, "id": "a", "lease": "long"}',
        b'{"v": 1, "id": "a", "lease": true}',
        b'{"v": 1, "id": "a", "lease": NaN}',
        b'{"v": 1, "id": "a", "lease": 1e999}',
        b'{"v": 1, "id": "a", "pid": 1.5}',
        b'{"v": 1, "id": "a", "pid": ' + b"9" * 30 + b"}",
        b'{"v": 1, "id": "a", "pid": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
    ids=lambda data: repr(data)[:40],
)
def test_garbage_is_no_member(data):
    assert Member.decode(data) is None


def test_what_a_newer_version_adds_is_passed_over():
    assert Member.decode(b'{"v": 1, "id": "a", "shoe_size": [46]}') == Member(id="a")


def test_what_is_not_set_takes_no_room():
    assert json.loads(Ledger(led="a", lease=2.0).encode()) == {"v": 1, "led": "a", "lease": 2.0, "left": False}
    assert b"term_since" not in Member(id="a").encode()


def test_the_digest_tells_commands_apart_and_takes_any_bytes():
    assert digest(["celery", "-A", "a", "beat"]) == digest(("celery", "-A", "a", "beat"))
    assert digest(["a b"]) != digest(["a", "b"])
    assert len(digest(["\udcff"])) == 12


class _Children:
    """As much of a kazoo client as its Lock needs to look at the line."""

    class handler:  # noqa: N801
        event_object = lock_object = sleep_func = staticmethod(lambda *_args: None)

    def __init__(self, children):
        self._children = children

    def get_children(self, _path):
        return list(self._children)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12, unique=True), st.randoms())
def test_the_line_is_in_kazoos_order(numbers, shuffled):
    nodes = [f"{uuid.UUID(int=shuffled.getrandbits(128)).hex}__lock__{number:010d}" for number in numbers]
    children = [*nodes, "notes", "x__rlock__0000000001", "__lock__12", "a__lock__00000000010"]
    random.Random(0).shuffle(children)
    found = line(children)
    assert sorted(found) == sorted(nodes)
    lock = Lock(_Children(children), "/election")
    for node, before in zip(found, [None, *found[:-1]], strict=True):
        lock.prefix = node[: -len("0123456789")]
        assert lock._get_predecessor(node) == before
