"""The benchmark of the schedule can fail: what is missing, run twice, or run without being due, is found."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from tests.bench.schedule import beside
from tests.bench.schedule.entries import MINUTE, MINUTES, SECOND, Entry, by_entry, compare, mixed
from tests.bench.schedule.handovers import KINDS, order

TEN = Entry("ten", "interval", 10, "all")
ONCE = Entry("ten", "interval", 10, "once")
DUE = TEN.due(0, 60 * SECOND)


def test_an_interval_is_due_in_steps_from_its_last_run():
    assert TEN.due(5, 30 * SECOND + 5) == [10 * SECOND + 5, 20 * SECOND + 5, 30 * SECOND + 5]


@pytest.mark.parametrize("spec", MINUTES)
def test_a_crontab_is_due_in_the_minutes_that_celery_has(spec):
    from celery.schedules import crontab

    at = datetime(2026, 1, 1, 11, 58, 30, tzinfo=timezone.utc)
    since = int(at.timestamp()) * SECOND
    expected = [at.replace(second=0) + timedelta(minutes=minute) for minute in range(1, 130)]
    fitting = [one for one in expected if one.minute in crontab(minute=spec).minute]
    found = Entry("c", "crontab", spec, "all").due(since, since + 129 * MINUTE)
    assert [datetime.fromtimestamp(one / SECOND, timezone.utc) for one in found] == fitting


def test_what_ran_as_it_was_due_is_clean():
    verdict = compare(TEN, DUE, DUE, 0)
    assert (verdict.clean, verdict.due, verdict.ran) == (True, 6, 6)


def test_a_due_time_that_never_ran_is_missing():
    assert compare(TEN, DUE, DUE[:3] + DUE[4:], 0).missing == [f"ten@{DUE[3]}"]


def test_an_entry_that_catches_up_with_all_has_no_excuse():
    assert compare(TEN, DUE, DUE[1:], 1).missing == [f"ten@{DUE[0]}"]


def test_what_an_entry_s_policy_gave_up_must_have_been_counted():
    assert compare(ONCE, DUE, DUE[2:], 2).clean
    assert len(compare(ONCE, DUE, DUE[2:], 1).missing) == 1
    assert not compare(ONCE, DUE, DUE[2:], 3).clean, "one more was counted than is absent"


def test_a_second_run_and_one_that_was_not_due_are_found():
    verdict = compare(TEN, DUE, [*DUE, DUE[2], DUE[2] + 1], 0)
    assert (verdict.twice, verdict.never_due) == ([f"ten@{DUE[2]}"], [f"ten@{DUE[2] + 1}"])


def test_runs_are_told_apart_by_the_tick_in_their_header():
    runs = [{"tick": "a@b@1970-01-01T00:00:01.000002+00:00"}, {"tick": "x@1970-01-01T00:00:00+00:00"}]
    assert by_entry(runs) == {"a@b": [SECOND + 2], "x": [0]}


def test_the_mix_has_every_kind_and_every_policy():
    mix = mixed(200)
    assert len({entry.name for entry in mix}) == 200
    assert {entry.kind for entry in mix} == {"interval", "crontab", "sevens", "solar"}
    assert {entry.policy for entry in mix} == {"all", "all-within", "once", "once-within", "skip"}


def test_every_kind_of_hand_over_comes_as_often_as_any_other():
    found = order(list(KINDS), 4 * len(KINDS), seed=3)
    assert {found.count(kind) for kind in KINDS} == {4}
    assert found != order(list(KINDS), 4 * len(KINDS), seed=4)


def test_minutes_beside_the_others_are_counted_by_when_they_began():
    runs = [{"tick": f"e@{n}", "at": at} for n, at in enumerate([60.1, 119.9, 187.0])]
    kept = beside.count(runs, [60, 120, 180], ["e"])
    assert (kept.due, kept.never, kept.twice, kept.late) == (3, 1, 1, 1)
