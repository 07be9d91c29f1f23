"""The benchmark of the schedule can fail: what is missing, run twice, or run without being due, is found."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from tests.bench.schedule import alone, beside, report
from tests.bench.schedule.entries import (
    FIRST_NOON_S,
    INTERVALS_S,
    MINUTE,
    MINUTES,
    RELATIVE_S,
    SECOND,
    Entry,
    Verdict,
    by_entry,
    compare,
    judge,
    longitude,
    mixed,
)
from tests.bench.schedule.handovers import KINDS, order

TEN = Entry("ten", "interval", 10, "all")
ONCE = Entry("ten", "interval", 10, "once")
DUE = TEN.due(0, 60 * SECOND)
SINCE = int(datetime(2026, 1, 1, 11, 58, 30, 250_000, tzinfo=timezone.utc).timestamp() * SECOND)


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


@pytest.mark.parametrize("every_s", RELATIVE_S)
def test_a_relative_interval_is_due_when_celery_says_so(every_s):
    from celery.schedules import schedule

    at, found = SINCE, []
    for _ in range(5):
        now = datetime.fromtimestamp(at / SECOND, timezone.utc)
        left = schedule(every_s, relative=True, nowfun=lambda now=now: now).remaining_estimate(now)
        at += left // timedelta(microseconds=1)
        found.append(at)
    assert Entry("r", "relative", every_s, "all").due(SINCE, at) == found


def test_the_sun_is_highest_about_when_it_is_wanted_and_when_celery_says_so():
    from celery.schedules import solar

    (found,) = Entry("n", "noon", FIRST_NOON_S, "all").due(SINCE, SINCE + 60 * MINUTE)
    assert abs(found - SINCE - FIRST_NOON_S * SECOND) < 20 * SECOND
    now = datetime.fromtimestamp(SINCE / SECOND, timezone.utc)
    left = solar("solar_noon", 0, longitude(SINCE, FIRST_NOON_S), nowfun=lambda: now).remaining_estimate(now)
    assert abs(SINCE + left // timedelta(microseconds=1) - found) < SECOND


def runs(due, late_s=0.5):
    return {at: [at / SECOND + late_s] for at in due}


def test_an_entry_that_was_forgotten_says_that_it_is_done_and_is_found():
    """Its state stands where it stopped: what was due after that, nobody has sent."""
    verdict = judge(TEN, runs(DUE[:1]), last=DUE[0], missed=0, since=0, ended=DUE[-1])
    assert verdict.missing == [f"ten@{at}" for at in DUE[1:]]


def test_an_entry_that_never_ran_is_found():
    assert len(judge(TEN, {}, last=0, missed=0, since=0, ended=DUE[-1]).missing) == len(DUE)


def test_what_was_due_while_the_beats_were_ended_counts_as_far_as_the_schedule_got():
    later = TEN.due(0, 70 * SECOND)
    assert judge(TEN, runs(later), last=later[-1], missed=0, since=0, ended=DUE[-1]).clean
    assert not judge(TEN, runs(DUE), last=later[-1], missed=0, since=0, ended=DUE[-1]).clean


def test_how_late_the_latest_run_was_is_told():
    verdict = judge(TEN, {**runs(DUE[1:]), **runs(DUE[:1], 7.25)}, last=DUE[-1], missed=0, since=0, ended=0)
    assert verdict.latest_s == 7.25


def test_a_noon_may_be_reckoned_a_little_otherwise_and_still_runs_once():
    noon = Entry("n", "noon", FIRST_NOON_S, "all")
    (due,) = noon.due(SINCE, SINCE + 60 * MINUTE)
    assert judge(noon, runs([due + 900]), last=due + 900, missed=0, since=SINCE, ended=due).clean
    assert judge(noon, runs([due + 900, due - 900]), last=due, missed=0, since=SINCE, ended=due).twice
    assert judge(noon, runs([due + 2 * SECOND]), last=due, missed=0, since=SINCE, ended=due).never_due
    assert judge(noon, {}, last=due + MINUTE, missed=0, since=SINCE, ended=due + MINUTE).missing


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
    found = [
        {"tick": "a@b@1970-01-01T00:00:01.000002+00:00", "at": 7.0},
        {"tick": "x@1970-01-01T00:00:00+00:00", "at": 8.0},
    ]
    assert by_entry([*found, {**found[1], "at": 9.0}]) == {"a@b": {SECOND + 2: [7.0]}, "x": {0: [8.0, 9.0]}}


def test_the_mix_has_every_kind_and_every_policy():
    mix = mixed(200)
    assert len({entry.name for entry in mix}) == 200
    assert {entry.kind for entry in mix} == {"interval", "relative", "crontab", "sevens", "noon"}
    assert {entry.when for entry in mix if entry.kind == "crontab"} == set(MINUTES)
    assert {entry.when for entry in mix if (entry.kind, entry.policy) == ("interval", "all")} == set(INTERVALS_S)
    assert {entry.policy for entry in mix} == {"all", "all-within", "once", "once-within", "skip"}


def test_every_kind_of_hand_over_comes_as_often_as_any_other():
    found = order(list(KINDS), 4 * len(KINDS), seed=3)
    assert {found.count(kind) for kind in KINDS} == {4}
    assert found != order(list(KINDS), 4 * len(KINDS), seed=4)


def test_minutes_beside_the_others_are_counted_by_when_they_began():
    runs = [{"tick": f"e@{n}", "at": at} for n, at in enumerate([60.1, 119.9, 187.0])]
    kept = beside.count(runs, [60, 120, 180], ["e"])
    assert (kept.due, kept.never, kept.twice, kept.late) == (3, 1, 1, 1)


def test_intervals_beside_the_others_are_counted_by_how_far_apart_they_ran():
    def counted(*at):
        return beside.count_intervals([{"tick": "ten@", "at": one} for one in at], [TEN], 0.0, 60.0)

    assert counted(5, 15, 26, 37, 49, 58) == {"due": 6, "never": 0, "twice": 0}, "drifting is not missing"
    assert counted(5, 15, 36, 46, 56) == {"due": 6, "never": 1, "twice": 0}
    assert counted(5, 15, 18, 28, 38, 48, 58) == {"due": 6, "never": 0, "twice": 1}
    assert counted()["never"] == 5
    assert counted(5, 15)["never"] == 3, "nothing until the end"


def test_who_has_redbeat_s_lock_leads_until_another_takes_it(tmp_path):
    class Running:
        def poll(self):
            return None

    beats: list[alone.Beat] = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        host = SimpleNamespace(exec_prefix=[])
        beats.append(alone.Beat(tmp_path / str(number), host, [], {}, lambda: beats))
        beats[-1].process = Running()
    log = "[2026-01-01 00:00:0{},000: INFO/MainProcess] beat: Acquired lock\n"
    (tmp_path / "0" / "log").write_text(log.format(1))
    assert [beat.says("state") for beat in beats] == ["leading", "standby"]
    (tmp_path / "1" / "log").write_text(log.format(5))
    assert [beat.says("state") for beat in beats] == ["standby", "leading"]
    assert beats[1].says("epoch") == 2


def test_the_page_tells_of_a_clock_that_was_set_meanwhile():
    verdict = asdict(Verdict(due=1, ran=1))
    part = {"entries": 1, "seed": 1, "rounds": {"TERM": 1}, "silent_s": {}, "verdict": verdict, "sends_all": verdict}
    part |= {
        "kinds": {},
        "dropped": 0,
        "seconds": 1.0,
        "load": [0.0, 0.0],
        "how": {"cores": "2", "system": "", "date": ""},
    }
    assert "+11.1 s meanwhile" in report.tables({"handovers": {**part, "clock_set_by_s": 11.06}})
    assert "meanwhile" not in report.tables({"handovers": {**part, "clock_set_by_s": 0.01}})
