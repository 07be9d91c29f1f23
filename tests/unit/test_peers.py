"""The comparison with others: what its figures and its page say of recorded messages."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.bench.peers import report
from tests.bench.peers.contestants import DEFAULT, MATCHED, EtcdctlLock, MultiBeat, RedBeat, SingleBeat, Zkbeat
from tests.bench.peers.faults import FAULTS
from tests.bench.peers.figures import figures
from tests.bench.peers.report import Result, cell, line, page, tables
from tests.bench.peers.run import Plan, batches

FAULT = {"name": "node-kill", "what": "all `kill -9`", "of_a_sidecar": False, "hands_over": True}
OF_A_SIDECAR = {"name": "sidecar-kill", "what": "sidecar `kill -9`", "of_a_sidecar": True, "hands_over": True}
OUTAGE = {"name": "store-stop", "what": "store gone", "of_a_sidecar": False, "hands_over": False}


def contestant(name, *, in_process=False, matched="the lock at 10 s"):
    return {
        "name": name,
        "label": name,
        "version": "1.0",
        "store": "redis",
        "in_process": in_process,
        "settings": {"default": "as it comes", "matched": matched},
    }


def record(*ticks, watched_s=20.0, fault="node-kill", name="one", setting="matched", **more):
    return {
        "contestant": name,
        "setting": setting,
        "fault": fault,
        "load": 0.5,
        "standby_mb": 40.4,
        "pressure": 0.25,
        "watched_s": watched_s,
        "ticks": [list(tick) for tick in ticks],
        "round": 0,
        **more,
    }


def seconds(publisher, first, last):
    return [(float(at), publisher) for at in range(first, last + 1)]


def result(*trials, those=None):
    how = dict.fromkeys(report.VERSIONS, "1") | {"date": "2026-01-02", "cores": 2, "system": "Linux", "beside": 3}
    return Result(
        {
            "how": how,
            "contestants": those or [contestant("one")],
            "faults": [FAULT, OF_A_SIDECAR, OUTAGE],
            "trials": trials,
        }
    )


CRASH = record((-0.4, 0), *seconds(1, 9, 12), watched_s=12.5)
TWO_BEATS = record(*sorted([*seconds(0, 0, 20), *seconds(1, 11, 20)]))
FROZEN = record((-0.5, 0), *seconds(1, 9, 24), (24.5, 0), *seconds(1, 25, 34), watched_s=34.5, thawed_s=24.4)
GOES_ON = record(*seconds(0, 0, 30), watched_s=30.1)
NOBODY = record((-0.5, 0), watched_s=40.0)


def test_a_takeover_counts_from_the_fault_and_a_gap_from_the_last_message_before_it():
    seen = figures(CRASH)
    assert (seen.takeover_s, seen.gap_s, seen.dup) == (9.0, 9.4, 0)
    assert not seen.two_beats
    assert not seen.goes_on


def test_two_publishers_that_both_go_on_are_two_beats():
    seen = figures(TWO_BEATS)
    assert seen.two_beats
    assert seen.takeover_s == 11.0
    assert seen.dup == 9
    assert seen.gap_s == 1.0


def test_a_message_of_a_publisher_that_thaws_is_a_duplicate_but_no_second_beat():
    seen = figures(FROZEN)
    assert seen.dup == 1
    assert not seen.two_beats


def test_an_old_publisher_that_nothing_stops_goes_on():
    seen = figures(GOES_ON)
    assert seen.goes_on
    assert seen.takeover_s is None


def test_a_gap_that_nobody_ends_lasts_until_one_stops_watching():
    seen = figures(NOBODY)
    assert seen.takeover_s is None
    assert not seen.goes_on
    assert seen.gap_s == 40.5


@pytest.mark.parametrize(
    ("trials", "fault", "said"),
    [
        ([CRASH], FAULT, "9.0, gap 9.4"),
        ([CRASH, CRASH, NOBODY], FAULT, "9.0, nobody in 40 s in 1 of 3, gap 9.4 (40.5)"),
        ([TWO_BEATS], FAULT, "**two beats** from 11.0, dup 9"),
        ([TWO_BEATS, CRASH], FAULT, "**two beats** in 1 of 2 from 10.0 (11.0), dup 4.5 (9)"),
        ([FROZEN], FAULT, "9.0, gap 9.5, dup 1"),
        ([GOES_ON], FAULT, "goes on, gap 1.0"),
        ([NOBODY], FAULT, "nobody in 40 s, gap 40.5"),
        ([{**GOES_ON, "fault": "store-stop"}], OUTAGE, "gap 1.0"),
        ([{**CRASH, "fault": "store-stop"}], OUTAGE, "**hand-over** after 9.0, gap 9.4"),
        ([{"contestant": "one", "setting": "matched", "fault": "node-kill", "error": "?"}], FAULT, "failed 1 of 1"),
        ([], FAULT, "-"),
    ],
)
def test_a_cell_says_what_was_seen_in_all_rounds(trials, fault, said):
    shown = result(*trials)
    assert cell(shown, shown.contestants[0], "matched", fault) == said


def test_without_a_sidecar_there_is_nothing_to_do_to_it():
    shown = result(CRASH)
    assert cell(shown, contestant("one", in_process=True), "matched", OF_A_SIDECAR) == "in-process"


def test_a_table_has_those_that_were_measured_with_its_settings():
    those = [contestant("one"), contestant("two", matched="as it comes")]
    shown = result(CRASH, {**CRASH, "contestant": "two"}, {**CRASH, "setting": "default"}, those=those)
    matched, default = tables(shown).split("### With their defaults")
    assert "| fault | one | two |" in matched
    assert "| two | 1.0 | redis | as it comes | the same | 40 MB |" in matched
    assert "| fault | one |\n" in default


def test_a_trial_on_a_machine_that_is_too_busy_is_counted_and_not_shown():
    shown = result(CRASH, {**NOBODY, "load": 10.1})
    assert cell(shown, shown.contestants[0], "matched", FAULT) == "9.0, gap 9.4"
    assert "Another 1 trials" in tables(shown)


def test_only_what_is_between_the_markers_is_written_anew():
    before = f"# Title\n{report.BEGIN}\nold\n{report.END}\nThe end.\n"
    assert page(before, "new") == f"# Title\n{report.BEGIN}\n\nnew\n\n{report.END}\nThe end.\n"
    with pytest.raises(ValueError, match="lacks a marker"):
        page("# Title\n", "new")


def test_the_page_and_the_plot_come_from_the_json_alone(tmp_path):
    pytest.importorskip("matplotlib")
    kept = {
        "how": dict(result(CRASH).how),
        "contestants": [contestant("one"), contestant("zkbeat")],
        "faults": [FAULT, OF_A_SIDECAR, OUTAGE],
        "trials": [CRASH, TWO_BEATS, {**NOBODY, "setting": "default"}, {**GOES_ON, "contestant": "zkbeat"}],
    }
    path = tmp_path / "peers.json"
    path.write_text(report.dumped(kept))
    assert json.loads(path.read_text()) == kept
    report.write(path)
    written = [path.with_suffix(end).read_text() for end in (".md", ".svg")]
    assert "two beats" in written[0]
    report.write(path)
    assert [path.with_suffix(end).read_text() for end in (".md", ".svg")] == written


def test_a_run_says_a_trial_in_a_line():
    assert line(CRASH) == "matched node-kill one: 9.0, gap 9.4 (load 0.5, pressure 25%)"
    assert line({**NOBODY, "error": "no leader"}) == "matched node-kill one: failed: no leader"


def _planned(**rounds):
    those = [Zkbeat(), SingleBeat(), RedBeat(), MultiBeat(), EtcdctlLock()]
    return list(batches(Plan(those, FAULTS, {MATCHED: 0, DEFAULT: 0, **rounds}, beside=3)))


def test_all_take_turns_inside_each_fault_and_no_more_than_asked_for_at_a_time():
    planned = _planned(matched=1)
    assert {len(batch.contestants) for batch in planned} <= {2, 3}
    for fault in FAULTS:
        done = [one.name for batch in planned if batch.fault is fault for one in batch.contestants]
        in_process = set() if fault.of_a_sidecar else {"redbeat", "multibeat"}
        assert sorted(done) == sorted({"zkbeat", "single-beat", "etcdctl"} | in_process)
    assert [batch.fault for batch in planned] == sorted((batch.fault for batch in planned), key=FAULTS.index)


def test_defaults_that_are_the_matched_settings_are_not_measured_twice():
    done = {one.name for batch in _planned(default=1) for one in batch.contestants}
    assert done == {"single-beat", "redbeat", "multibeat"}


def test_rounds_are_done_at_different_phases_and_one_setting_waits_for_no_other():
    planned = _planned(matched=2, default=1)
    assert [key for key, _ in itertools.groupby((batch.setting, batch.phase) for batch in planned)] == [
        (MATCHED, 0.25),
        (DEFAULT, 0.5),
        (MATCHED, 0.75),
    ]
