"""The arithmetic behind docs/scale.md, over timelines made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.scale import report, timeline
from tests.bench.scale.timeline import Record

KEPT = Path(__file__).resolve().parents[2] / "docs" / "scale.json"

OLD, NEW, NEXT, OTHER = 1, 2, 3, 4


def hand_over_records() -> list[Record]:
    return [
        Record(9.9, OTHER, "request", "GetData"),  # before
        Record(10.0, OLD, "leave"),
        Record(10.01, OLD, "request", "Transaction"),
        Record(10.02, NEW, "watch", 2),
        Record(10.03, NEW, "elected"),
        Record(10.04, NEW, "renew"),
        Record(10.04, NEW, "request", "SetData"),
        Record(10.05, NEXT, "watch", 3),
        Record(10.06, NEXT, "request", "GetChildren"),
        Record(10.07, NEXT, "names", 4),
        Record(10.07, NEXT, "queued", 1),
        Record(10.08, NEW, "started"),
        Record(10.09, NEW, "renew"),
        Record(10.09, NEW, "request", "SetData"),
        Record(10.5, OTHER, "request", "SetData"),
        Record(11.2, NEW, "renew"),
        Record(11.2, NEW, "request", "SetData"),  # a renewal as any other
    ]


def test_a_hand_over_is_timed_from_the_old_leader_s_end():
    found = timeline.hand_over(hand_over_records(), OLD, 10.0)
    assert (found["elected_s"], found["started_s"]) == (0.03, 0.08)


def test_a_hand_over_costs_what_those_concerned_ask_for_until_the_renewals_are_regular():
    found = timeline.hand_over(hand_over_records(), OLD, 10.0)
    assert found["cost"] == {
        "writes": 3,
        "reads": 1,
        "watches": 2,
        "names": 4,
        "kinds": {"GetChildren": 1, "SetData": 2, "Transaction": 1},
    }
    assert found["others"]["kinds"] == {"SetData": 1}


def test_a_renewal_costs_what_the_leader_and_the_first_in_line_ask_for():
    one = [
        Record(1.0, 1, "renew"),
        Record(1.0, 1, "request", "SetData"),
        Record(1.1, 2, "watch", 3),
        Record(1.1, 2, "request", "GetChildren"),
        Record(1.1, 2, "names", 7),
        Record(1.1, 2, "queued", 1),
        Record(1.1, 2, "request", "GetData"),
    ]
    records = [*one, *(record._replace(at=record.at + 1) for record in one), Record(1.5, 9, "request", "SetData")]
    found = timeline.renewals(records, 1, 2.0)
    assert found["renewals"] == 2
    assert found["each"] == {"writes": 1, "reads": 2, "watches": 1, "names": 7}
    assert found["others"]["writes"] == 1


def test_contenders_that_come_back_are_counted_from_the_first_of_them():
    records = [
        Record(5.0, 1, "suspended"),
        Record(6.0, 1, "refused"),
        Record(6.5, 2, "refused"),
        Record(10.2, 1, "connected", 11),
        Record(10.3, 1, "renewed", 0.01),
        Record(10.4, 2, "connected", 99),
        Record(10.6, 2, "started"),
        Record(10.9, 2, "renewed", 0.01),
        Record(12.0, 2, "renewed", 0.01),  # one of many to come
    ]
    found = timeline.reconnects(records, 5.0, 9.0, {1: 11, 2: 22}, 2)
    assert (found["came_back"], found["sessions_kept"]) == (2, 1)
    assert (found["p50_s"], found["last_s"]) == (0.0, 0.2)
    assert found["settled_s"] == 0.7
    assert found["started_s"] == 0.4
    assert found["refused_per_contender_and_s"] == 0.19
    assert not found["child_stopped"]


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.99, 4), (1.0, 4), (0.01, 1)])
def test_a_percentile_is_one_of_the_values(share, value):
    assert timeline.percentile([4, 2, 3, 1], share) == value


def test_what_a_latency_may_be_follows_from_two_renewals_in_a_quarter_of_the_session_timeout():
    assert report.latency_budget_s(10.0) == pytest.approx(10 / 4 - 2 * 10 / 9)


def test_the_rate_that_is_carried_is_the_highest_that_was_answered_in_time():
    def row(rate: float, p99_ms: float, answered: float = 1.0) -> dict[str, float]:
        return {"asked_per_s": rate, "p99_ms": p99_ms, "answered": answered}

    assert report.carried([row(500, 10), row(1000, 50), row(2000, 900)], 10.0) == (1000, True)
    assert report.carried([row(500, 10), row(1000, 50), row(2000, 800)], 30.0) == (2000, False)
    assert report.carried([row(500, 10), row(1000, 50, answered=0.9)], 10.0) == (500, True)


def test_the_page_in_the_docs_is_what_its_json_says():
    assert KEPT.with_suffix(".md").read_text(encoding="utf-8") == report.page(json.loads(KEPT.read_text("utf-8")))
