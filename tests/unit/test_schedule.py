"""The schedule's decisions and its book, as far as they are pure: what is sent, what is missed, what is written."""

from __future__ import annotations

import itertools
import json
import math
import re
import uuid
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkbeat.core import schedule
from zkbeat.core.schedule import (
    BUCKET_BYTES,
    COUNTED_AT_MOST,
    KEY_CHARACTERS,
    TRANSACTION_BYTES,
    Book,
    CatchUp,
    Control,
    Due,
    Dues,
    GarbageError,
    Hold,
    Intent,
    NewerError,
    Policy,
    Request,
    State,
    Tick,
    decide,
)

SECOND = 1_000_000
NOW = schedule.to_us(datetime(2026, 3, 1, 12, tzinfo=timezone.utc))
ONCE, SKIP, ALL = Policy(), Policy(CatchUp.SKIP), Policy(CatchUp.ALL)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
LONG_TEXT = st.builds(lambda text, times: text * times, ANY_TEXT, st.integers(1, 20))
KEYS = st.one_of(ANY_TEXT, LONG_TEXT).map(schedule.key_of)
INSTANTS = st.integers(schedule.to_us(datetime(1990, 1, 1, tzinfo=timezone.utc)), NOW * 2)
STATES = st.builds(
    State,
    last=INSTANTS,
    count=st.integers(0, 2**40),
    missed=st.integers(0, 2**40),
    fingerprint=st.one_of(st.none(), st.just(""), st.text("0123456789abcdef", min_size=12, max_size=12)),
    following=st.one_of(st.none(), INSTANTS),
)
POLICIES = st.builds(Policy, st.sampled_from(CatchUp), st.one_of(st.none(), st.floats(0, 500)))


def every(seconds):
    us = int(seconds * SECOND)
    return Dues(after=lambda last: last + us, every=us)


def calendar(instants, *, known=True):
    """Return a calendar of these instants; not `known`: it must be gone through."""
    ordered = sorted(instants)

    def after(last):
        return next((one for one in ordered if one > last), None)

    return Dues(after=after, calendar=known)


# what is due


def test_nothing_is_due_before_its_time():
    assert decide(NOW, NOW + 10 * SECOND - 1, every(10), ONCE) is None
    assert decide(NOW, NOW + 10 * SECOND, every(10), ONCE) == Due(NOW + 10 * SECOND, NOW + 10 * SECOND)


@pytest.mark.parametrize("policy", [ONCE, SKIP, ALL])
def test_what_is_due_just_now_is_sent_whatever_the_policy(policy):
    late = NOW + 10 * SECOND + SECOND // 10
    assert decide(NOW, late, every(10), policy) == Due(NOW + 10 * SECOND, NOW + 10 * SECOND)


def test_once_sends_the_latest_and_counts_the_others():
    assert decide(NOW, NOW + 35 * SECOND, every(10), ONCE) == Due(NOW + 30 * SECOND, NOW + 30 * SECOND, missed=2)


def test_skip_sends_none_and_counts_all():
    assert decide(NOW, NOW + 35 * SECOND, every(10), SKIP) == Due(None, NOW + 30 * SECOND, missed=3)


def test_skip_sends_what_a_handover_was_late_for():
    late = NOW + 30 * SECOND + int(schedule.SKIP_AFTER_S * SECOND)
    assert decide(NOW, late, every(10), SKIP) == Due(NOW + 30 * SECOND, NOW + 30 * SECOND, missed=2)
    assert decide(NOW, late + 1, every(10), SKIP) == Due(None, NOW + 30 * SECOND, missed=3)


def test_all_sends_the_earliest_and_goes_on_with_the_next():
    last, sent = NOW, []
    while (due := decide(last, NOW + 35 * SECOND, every(10), ALL)) is not None:
        assert due.missed == 0
        sent.append(due.send)
        last = due.last
    assert sent == [NOW + 10 * SECOND, NOW + 20 * SECOND, NOW + 30 * SECOND]


def test_a_deadline_gives_up_what_is_older():
    twenty = Policy(CatchUp.ALL, 20)
    assert decide(NOW, NOW + 45 * SECOND, every(10), twenty) == Due(NOW + 30 * SECOND, NOW + 30 * SECOND, missed=2)
    assert decide(NOW, NOW + 45 * SECOND, every(10), Policy(CatchUp.ALL, 4)) == Due(None, NOW + 40 * SECOND, missed=4)
    assert decide(NOW, NOW + 45 * SECOND, every(10), Policy(within_s=4)) == Due(None, NOW + 40 * SECOND, missed=4)
    assert decide(NOW, NOW + 45 * SECOND, every(10), Policy(within_s=5)).send == NOW + 40 * SECOND


def test_a_deadline_of_nothing_sends_only_what_is_due_at_this_very_instant():
    for catch_up in CatchUp:
        assert decide(NOW, NOW + 20 * SECOND, every(10), Policy(catch_up, 0)).send == NOW + 20 * SECOND
        assert decide(NOW, NOW + 20 * SECOND + 1, every(10), Policy(catch_up, 0)).send is None


def test_what_never_comes_again_is_never_due():
    assert decide(NOW, NOW + 10**15, Dues(after=lambda _last: None), ONCE) is None
    last_ever = calendar([NOW + SECOND])
    assert decide(NOW, NOW + 10**9, last_ever, ALL) == Due(NOW + SECOND, NOW + SECOND)
    assert decide(NOW + SECOND, NOW + 10**9, last_ever, ALL) is None


@pytest.mark.parametrize("policy", [ONCE, SKIP, ALL, Policy(CatchUp.ALL, 60)])
@pytest.mark.parametrize("answer", [NOW - 5, NOW])
def test_a_schedule_that_answers_with_the_past_is_not_due(policy, answer):
    """A class of the user's, asked by a leader whose clock is behind its predecessor's."""
    assert decide(NOW, NOW + 100 * SECOND, Dues(after=lambda _last: answer), policy) is None


def test_intervals_are_counted_however_many_there_are():
    due = decide(NOW, NOW + 10**6 * SECOND, every(0.05), ONCE)
    assert due.missed == 20 * 10**6 - 1
    assert due.send == NOW + 10**6 * SECOND


def test_of_a_calendar_the_first_hundred_are_counted_and_the_latest_is_sent():
    minutes = calendar(range(NOW, NOW + 500 * 60 * SECOND, 60 * SECOND))
    due = decide(NOW, NOW + 333 * 60 * SECOND + 5, minutes, ONCE)
    assert due == Due(NOW + 333 * 60 * SECOND, NOW + 333 * 60 * SECOND, missed=COUNTED_AT_MOST - 1)


def test_after_a_year_the_latest_due_time_is_found_in_few_steps():
    """Each step of a crontab takes celery a tenth of a millisecond, and there are fifty thousand."""
    asked = []

    def after(last):
        asked.append(last)
        return (last // (600 * SECOND) + 1) * 600 * SECOND

    due = decide(NOW, NOW + 365 * 86400 * SECOND + 599 * SECOND, Dues(after=after, calendar=True), ONCE)
    assert due.send == NOW + 365 * 86400 * SECOND
    assert len(asked) < 2 * COUNTED_AT_MOST


@pytest.mark.parametrize("missed", [COUNTED_AT_MOST - 1, COUNTED_AT_MOST, COUNTED_AT_MOST + 1, 3 * COUNTED_AT_MOST])
def test_a_schedule_that_must_be_gone_through_is_gone_through_to_its_end(missed):
    steps = calendar(range(NOW, NOW + 1000 * SECOND, SECOND), known=False)
    now = NOW + missed * SECOND
    assert decide(NOW, now, steps, ONCE).send == now
    due = decide(NOW, now, steps, Policy(CatchUp.ALL, 10))
    assert due.send == now - 10 * SECOND


def test_what_cannot_be_gone_through_in_one_turn_is_not_sent_half_way(monkeypatch):
    """Once means the latest of them, and not one of each so-and-so-many."""
    monkeypatch.setattr(schedule, "WALKED_AT_MOST", 50)
    steps = calendar(range(NOW, NOW + 1000 * SECOND, SECOND), known=False)
    now, last, sent = NOW + 220 * SECOND, NOW, []
    while (due := decide(last, now, steps, ONCE)) is not None:
        assert due.last > last
        last = due.last
        sent += [due.send] if due.send is not None else []
    assert sent == [now]


GAPS = st.lists(st.integers(1, 10**11), min_size=1, max_size=300)


@given(gaps=GAPS, after_us=st.integers(0, 10**12))
def test_looking_back_finds_what_stepping_finds(gaps, after_us):
    instants = [NOW + sum_ for sum_ in itertools.accumulate(gaps)]
    now = NOW + after_us
    past = [one for one in instants if one <= now]
    due = decide(NOW, now, calendar(instants), ONCE)
    if not past:
        assert due is None
    else:
        assert due.last == due.send == past[-1]
        assert due.missed == min(len(past), COUNTED_AT_MOST) - 1


def by_the_book(last, now, instants, policy):
    """Return what is to be sent, in order, and how many were missed: as the documentation has it, in plain words."""
    within_s = policy.within_s
    if policy.catch_up is CatchUp.SKIP and within_s is None:
        within_s = schedule.SKIP_AFTER_S
    past = [one for one in instants if last < one <= now]
    wanted = past if policy.catch_up is CatchUp.ALL else past[-1:]
    sent = [one for one in wanted if within_s is None or one >= now - int(within_s * SECOND)]
    return sent, len(past) - len(sent)


@given(
    gaps=st.lists(st.integers(1, 200 * SECOND), min_size=1, max_size=60),
    policy=POLICIES,
    after_us=st.integers(0, 3000 * SECOND),
    known=st.booleans(),
)
def test_each_due_time_is_sent_or_missed_as_the_policy_says(gaps, policy, after_us, known):
    instants = [NOW + sum_ for sum_ in itertools.accumulate(gaps)]
    now = NOW + after_us
    last, sent, missed = NOW, [], 0
    while (due := decide(last, now, calendar(instants, known=known), policy)) is not None:
        assert due.last > last
        assert due.send in {None, due.last}
        sent += [due.send] if due.send is not None else []
        missed += due.missed
        last = due.last
    assert (sent, missed) == by_the_book(NOW, now, instants, policy)


@given(us=st.integers(1, 500 * SECOND), policy=POLICIES, after_us=st.integers(0, 3000 * SECOND))
def test_an_interval_is_reckoned_as_if_it_were_gone_through(us, policy, after_us):
    now = NOW + after_us
    reckoned = decide(NOW, now, Dues(after=lambda last: last + us, every=us), policy)
    if after_us // us < COUNTED_AT_MOST:
        assert reckoned == decide(NOW, now, Dues(after=lambda last: last + us), policy)
    else:
        assert reckoned.last <= now
        assert (reckoned.last - NOW) % us == 0


# policies


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("once", ONCE),
        ("skip", SKIP),
        ("all", ALL),
        (("all", 3600), Policy(CatchUp.ALL, 3600)),
        (["once", 0.5], Policy(CatchUp.ONCE, 0.5)),
        (("skip", None), SKIP),
    ],
)
def test_what_a_setting_can_say(said, meant):
    assert Policy.parse(said) == meant


@pytest.mark.parametrize("said", ["twice", "", None, 3, {}, [], ("all",), ("all", 1, 2), ("never", 3), (["all"], 3)])
def test_another_word_is_refused_with_what_can_be_said(said):
    with pytest.raises(ValueError, match="say 'once', 'skip' or 'all'"):
        Policy.parse(said)


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan, "3600", timedelta(hours=1), [1]])
def test_a_deadline_is_a_number_of_seconds(seconds):
    with pytest.raises(ValueError, match="within how many seconds must be a number"):
        Policy.parse(("all", seconds))


def test_an_entry_s_own_policy_goes_before_a_pattern_s_and_the_first_pattern_before_the_next():
    look_up = schedule.policies({"report-*": "all", "*": "skip", "report-1": "once", "odd[1]": "once"})
    assert look_up("report-1") == ONCE
    assert look_up("report-2") == ALL
    assert look_up("other") == SKIP
    assert look_up("odd[1]") == ONCE
    assert schedule.policies({"a": "all"})("b") is None


# names


def test_a_short_name_is_its_own_key():
    assert schedule.key_of("x" * KEY_CHARACTERS) == "x" * KEY_CHARACTERS


@given(text=ANY_TEXT, other=ANY_TEXT)
def test_long_names_that_differ_have_keys_that_differ(text, other):
    names = {"n" * KEY_CHARACTERS + text, "n" * KEY_CHARACTERS + other}
    keys = {schedule.key_of(name) for name in names}
    assert len(keys) == len(names)
    assert all(len(key) <= KEY_CHARACTERS for key in keys)


@given(key=KEYS, due=INSTANTS, request=st.one_of(st.none(), st.just("9f3c")), other=INSTANTS)
def test_a_tick_has_one_id_whoever_sends_it_and_no_other_has_it(key, due, request, other):
    tick = Tick(key, due, request)
    assert tick.task_id("/zkbeat/e") == Tick(key, due, request).task_id("/zkbeat/e")
    assert uuid.UUID(tick.task_id("/zkbeat/e")).version == 5
    others = [tick.task_id("/zkbeat/f"), Tick(f"{key}x", due, request).task_id("/zkbeat/e")]
    others += [Tick(key, other, request).task_id("/zkbeat/e")] if other != due else []
    assert tick.task_id("/zkbeat/e") not in others


def test_a_tick_s_name_and_id_are_what_they_were_in_earlier_versions():
    """A new version takes over what an old one intended; the two must mean the same message."""
    tick = Tick("report", NOW)
    assert tick.name == "report@2026-03-01T12:00:00+00:00"
    assert tick.task_id("/zkbeat/app") == "a74a019e-7dbc-54ac-9692-b2ba419ca02d"
    assert Tick("report", NOW + 1, "r1").name == "report@2026-03-01T12:00:00.000001+00:00#r1"


@given(us=INSTANTS)
def test_instants_are_exact(us):
    assert schedule.to_us(schedule.to_datetime(us)) == us


# what is written


@given(state=STATES)
def test_a_state_comes_back_as_it_was_written(state):
    assert State.from_json(json.loads(json.dumps(state.to_json()))) == state


@given(ticks=st.lists(st.builds(Tick, KEYS, INSTANTS, st.one_of(st.none(), st.text(max_size=20))), max_size=10))
def test_an_intent_comes_back_as_it_was_written(ticks):
    intent = Intent("w.1", tuple(ticks))
    assert Intent.decode(intent.encode()) == intent


@given(
    held=st.dictionaries(KEYS, st.builds(Hold, ANY_TEXT, st.floats(0, 1e10), st.one_of(st.none(), ANY_TEXT))),
    requests=st.lists(st.builds(Request, ANY_TEXT, KEYS, ANY_TEXT, INSTANTS)),
)
def test_control_comes_back_as_it_was_written(held, requests):
    control = Control(held, tuple(requests))
    assert Control.decode(control.encode()) == control


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(ANY_TEXT, inner, max_size=4)),
    max_leaves=12,
)


@given(ticks=JSON, name=JSON, held=JSON, requests=JSON, entries=JSON, data=st.binary(max_size=40))
def test_anything_that_stands_in_a_znode_is_read_or_said_to_be_garbage(ticks, name, held, requests, entries, data):
    """What was read can be used: a tick goes into sets, an instant can be shown."""
    for intent in (
        data,
        dump(id=name, ticks=ticks),
        dump(id="a", ticks=[ticks]),
        dump(id="a", ticks=[["k", 1, ticks]]),
    ):
        found = read(Intent.decode, intent)
        for tick in found.ticks if found else ():
            assert len({tick}) == 1
            assert tick.name
    for control in (data, dump(held=held, requests=requests), dump(held={}, requests=[requests])):
        found = read(Control.decode, control)
        for request in found.requests if found else ():
            assert Tick(request.key, request.at, request.id).name
    for bucket in (data, dump(entries=entries), dump(entries={"k": entries})):
        book = Book("w")
        read(lambda bytes_, book=book: book.read_bucket(0, bytes_, 3), bucket)
        for state in book.states.values():
            assert schedule.to_datetime(state.last)
    schedule.decode_about(data)
    schedule.decode_about(dump(entries=entries))


def dump(**about):
    return json.dumps({"v": 1, **about}).encode()


def read(decode, data):
    try:
        return decode(data)
    except (GarbageError, NewerError):
        return None


@given(last=st.integers(-(2**64), 2**64), following=st.one_of(st.none(), st.integers(-(2**64), 2**64)))
def test_a_state_that_was_read_names_instants(last, following):
    try:
        state = State.from_json([last, 0, 0, "", following])
    except (ValueError, OverflowError):
        return
    assert schedule.to_datetime(state.last)
    assert state.following is None or schedule.to_datetime(state.following)


@pytest.mark.parametrize("decode", [Intent.decode, Control.decode, lambda data: Book("w").read_bucket(0, data, 0)])
def test_what_a_newer_version_wrote_is_left_alone(decode):
    with pytest.raises(NewerError, match=re.escape("upgrade this one")):
        decode(b'{"v":99,"entries":{},"id":"a","ticks":[]}')


@pytest.mark.parametrize("child", ["000012", "999999"])
def test_a_bucket_s_znode_has_a_number(child):
    (number,) = schedule.bucket_numbers([child])
    assert schedule.bucket_path(number) == f"schedule/state/{child}"


@pytest.mark.parametrize(
    "child", ["", "12", "x", "00000²", "-00001", "0000123", "00001\n", "\u0660\u0660\u0660\u0660\u0660\u0661"]
)
def test_other_znodes_beside_the_buckets_are_none_of_ours(child):
    assert schedule.bucket_numbers([child]) == []


def test_texts_are_only_looked_at_so_what_cannot_be_read_of_them_is_nothing():
    assert schedule.decode_about(schedule.encode_about({"a": ("tasks.run", "<crontab>")})) == {
        "a": ("tasks.run", "<crontab>")
    }
    for data in (b"", b"[]", b'{"v":1}', b'{"v":99,"entries":{}}', b'{"v":1,"entries":{"a":3}}'):
        assert schedule.decode_about(data) == {}


# the book


class Znodes:
    """What the book's transactions make of the znodes; as ZooKeeper does, it refuses a version that is not the last."""

    def __init__(self):
        self.znodes = {}
        self.largest = 0

    def carry_out(self, book, change):
        self.largest = max(self.largest, sum(len(write.data) + len(write.path) for write in change.writes))
        for write in change.writes:
            assert self.znodes.get(write.path, (b"", -1))[1] == write.version
        for write in change.writes:
            self.znodes[write.path] = write.data, write.version + 1
        book.changed(change)

    def read(self):
        book = Book("another")
        book.read_intent(*self.znodes[schedule.INTENT])
        for path, (data, version) in self.znodes.items():
            if path.startswith(f"{schedule.STATE}/"):
                assert book.read_bucket(int(path.rpartition("/")[2]), data, version) == []
        return book


CHANGES = st.lists(
    st.dictionaries(KEYS, st.one_of(st.none(), STATES), max_size=30),
    min_size=1,
    max_size=12,
)


@given(changes=CHANGES)
def test_whatever_is_changed_another_reads_what_the_book_says(changes):
    znodes, book, expected = Znodes(), Book("w"), {}
    for states in changes:
        for portion in book.portions(states):
            znodes.carry_out(book, book.change(portion, ticks=[Tick("a", NOW)]))
        expected.update(states)
        expected = {key: state for key, state in expected.items() if state is not None}
        znodes.carry_out(book, book.change())
        found = znodes.read()
        assert found.states == book.states == expected
        assert found.intent == book.intent
        assert all(found.bucket_of(key) == book.bucket_of(key) for key in expected)
        check_buckets(znodes)


def check_buckets(znodes):
    for path, (data, _version) in znodes.znodes.items():
        if path.startswith(f"{schedule.STATE}/") and len(json.loads(data)["entries"]) > 1:
            assert len(data) <= BUCKET_BYTES + 64


def test_until_a_change_went_through_the_book_says_what_it_said():
    book, znodes = Book("w"), Znodes()
    znodes.carry_out(book, book.change({"a": State(NOW)}))
    lost = book.change({"a": State(NOW + 1), "b": State(NOW)}, ticks=[Tick("a", NOW + 1)])
    assert book.states == {"a": State(NOW)}
    assert book.intent.ticks == ()
    assert lost.intent.id != book.intent.id
    znodes.carry_out(book, book.change({"b": State(NOW)}))
    assert book.states == {"a": State(NOW), "b": State(NOW)}


def test_each_transaction_has_an_id_of_its_own():
    books = [Book("v"), Book("w")]
    ids = [book.change().intent.id for book in books for _ in range(5)]
    assert len(set(ids)) == len(ids)


def test_a_change_of_one_entry_writes_one_bucket():
    book, znodes = Book("w"), Znodes()
    states = {f"entry-{number}": State(NOW, fingerprint="0123456789ab") for number in range(1000)}
    for portion in book.portions(states):
        znodes.carry_out(book, book.change(portion))
    assert len(book.numbers) > 10
    assert len(book.change({"entry-500": State(NOW + 1)}).writes) == 2


@pytest.mark.parametrize(
    ("letter", "count"), [("x", 10_000), ("\x00", 5000), ("ж", 3000), ("\U0001f600", 2000), ('"', 2000)]
)
def test_thousands_of_entries_go_through_in_transactions_that_zookeeper_takes(letter, count):
    """Also where JSON needs several times as many bytes for a name as it has letters."""
    book, znodes = Book("w"), Znodes()
    states = {f"{number}{letter * 150}": State(NOW, 10, 10, "0123456789ab", NOW) for number in range(count)}
    for portion in book.portions(states):
        znodes.carry_out(book, book.change(portion))
    check_buckets(znodes)
    moved = {key: State(NOW + 1, 11, 10, "0123456789ab", NOW + 2) for key in states}
    for portion in book.portions(moved):
        znodes.carry_out(book, book.change(portion))
    assert znodes.read().states == moved
    assert znodes.largest < 512 * 1024
    assert znodes.largest > TRANSACTION_BYTES / 4  # and not one by one
    check_buckets(znodes)


def test_the_room_of_forgotten_entries_is_used_again():
    book, znodes = Book("w"), Znodes()
    for day in range(60):
        new = {f"{day}-{number}": State(NOW, fingerprint="0123456789ab") for number in range(100)}
        old = {key: None for key in book.states if not key.startswith(f"{day - 1}-")}
        for portion in book.portions({**new, **old}):
            znodes.carry_out(book, book.change(portion))
    assert len(book.states) == 200
    assert len(book.numbers) < 12


def test_what_no_app_has_is_forgotten_after_its_time_and_nothing_else():
    states = {
        "old": State(NOW, fingerprint=""),
        "kept": State(NOW, fingerprint="f"),
        "new": State(NOW + 9, fingerprint=""),
    }
    assert schedule.forget(states, NOW + 5) == {"old": None}


def test_an_entry_that_is_gone_has_nothing_due_meanwhile_and_never_goes_back():
    assert schedule.gone(State(NOW, 3, 1, "f", NOW + 5), NOW + 100) == State(NOW + 100, 3, 1, "", None)
    assert schedule.gone(State(NOW, 3, 1, "f", NOW + 5), NOW - 100).last == NOW


def test_a_bucket_that_tells_nothing_is_kept_as_an_empty_one_and_written_over():
    book = Book("w")
    with pytest.raises(GarbageError, match="schedule/state/3"):
        book.read_bucket(3, b"garbage", 7)
    change = book.change({"a": State(NOW)})
    assert [(write.path, write.version) for write in change.writes[1:]] == [("schedule/state/000003", 7)]


def test_one_state_that_cannot_be_read_costs_that_entry_alone():
    book = Book("w")
    data = dump(entries={"good": State(NOW).to_json(), "bad": [1, 2], "worse": "x"})
    assert sorted(book.read_bucket(0, data, 4)) == ["bad", "worse"]
    assert book.states == {"good": State(NOW)}
