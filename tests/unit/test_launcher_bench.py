"""The measurements of the launcher: what is counted of recorded messages, and what the page says of a result."""

from __future__ import annotations

import json

import pytest

from tests.bench.launcher import report
from tests.bench.launcher.figures import Message, after, first_of_another, late, stretches

OLD, NEW = 100, 200


def messages(*seen):
    return [Message(float(at), pid, epoch) for at, (pid, epoch) in enumerate(seen)]


def test_a_message_of_the_old_epoch_after_the_first_of_the_new_one_is_late():
    seen = messages((OLD, 1), (OLD, 1), (NEW, 2), (OLD, 1), (NEW, 2), (OLD, 1))
    assert late(seen, seen[0], 0.0) == 2


def test_without_epochs_the_publisher_tells_the_term():
    seen = messages((OLD, None), (NEW, None), (OLD, None))
    assert late(seen, seen[0], 0.0) == 1


def test_a_new_process_with_the_old_epoch_is_no_other_leader():
    seen = messages((OLD, 1), (NEW, 1), (OLD, 1))
    assert late(seen, seen[0], 0.0) == 0


def test_what_comes_before_the_first_of_the_new_one_is_not_late():
    seen = messages((OLD, 1), (OLD, 1), (NEW, 2), (NEW, 2))
    assert late(seen, seen[0], 1.0) == 0
    assert after(seen, OLD, 1.0) == 1
    assert first_of_another(seen, OLD, 0.0) == seen[2]


def test_the_steps_of_a_hand_over_add_up_also_where_one_was_seen_too_late():
    record = {"dead_s": 0.1, "znode_gone_s": 0.305, "elected_s": 0.3, "started_s": 0.32, "first_s": 0.4}
    steps = stretches(record)
    assert steps["elected_s"] == 0.0
    assert sum(steps.values()) == pytest.approx(0.4)


def fence_round(variant, count, **more):
    seen = {"late": count, "after_thaw": count, "dead_before_thaw": not count, "dead_after_thaw_s": 0.1, "new_s": 2.0}
    return {"variant": variant, "round": 0, **seen, "load": 1.0, **more}


def fence_variant(name, *, must_be_none=True, why_not=None):
    return {"name": name, "what": name, "how": "signals", "why_not": why_not, "must_be_none": must_be_none}


def start(app, way, took_s):
    figures = {"gone_to_elected_s": 0.01, "elected_to_started_s": 0.02, "elected_to_first_s": took_s}
    figures |= {"beat_ran_s": took_s / 2, "beat_waited_s": 0.0}
    return {"app": app, "way": way, **figures, "load": 1.0}


def kill(way, first_s):
    instants = {"dead_s": 0.1, "znode_gone_s": 0.2, "elected_s": 0.2, "started_s": 0.25, "first_s": first_s}
    return {"app": "trivial", "way": way, **instants, "load": 1.0}


def memory(way, process, mb):
    return {"app": "trivial", "way": way, "process": process, "rss_mb": mb, "pss_mb": mb / 2, "private_mb": mb / 4}


APPS = {"trivial": "a trivial app", "django": "Django"}


def result(**parts):
    variants = [
        fence_variant("launcher"),
        fence_variant("by-hand", must_be_none=False),
        fence_variant("v2", why_not="no"),
    ]
    about = {"session_timeout_s": 2.0, "every_s": 0.05, "entries": 2, "variants": variants}
    kept = {
        "how": {"date": "2026-01-02", "cores": "2", "system": "Linux", "Python": "3.11"},
        "fence": {**about, "rounds": [fence_round("launcher", 0), fence_round("by-hand", 3)]},
        "alone": {
            "every_s": 0.005,
            "entries": 2,
            "lease_s": 1.0,
            "watched_s": 0.5,
            "rounds": [
                {"variant": "launcher", "publishing": True, "after_thaw": 0, "dead_after_thaw_s": 0.01, "load": 1.0},
                {"variant": "no-launcher", "publishing": None, "after_thaw": 70, "load": 1.0},
            ],
        },
        "preload": {
            "apps": APPS,
            "rounds": [
                start("trivial", "launcher", 0.8),
                start("trivial", "preload", 0.1),
                start("django", "preload", 0.2),
            ],
        },
        "memory": {"rounds": [memory("preload", "sidecar", 26.0), memory("preload", "waiting beat", 54.0)]},
        "kill": {"apps": APPS, "every_s": 0.05, "rounds": [kill("launcher", 1.5), kill("preload", 0.4)]},
    }
    return {**kept, **parts}


def test_a_result_that_shows_what_it_must_is_good():
    assert report.all_ok(result())


@pytest.mark.parametrize(
    ("part", "rounds"),
    [
        ("fence", [fence_round("launcher", 1)]),
        ("preload", [start("django", "preload", 0.4)]),
        ("kill", [kill("preload", 0.6)]),
    ],
)
def test_a_result_that_misses_one_target_is_not(part, rounds):
    assert not report.all_ok(result(**{part: {**result()[part], "rounds": rounds}}))


def test_a_round_that_could_not_be_carried_out_counts_as_missed_where_none_may_be_late():
    assert not report.all_ok(result(fence={**result()["fence"], "rounds": [{"variant": "launcher", "error": "?"}]}))


def test_the_tables_say_what_was_seen():
    said = report.tables(result())
    assert "| launcher | signals | 1 | 0 | 0 | 1 | 0.10 | 2.00 |" in said
    assert "| by-hand | signals | 1 | **1** | 3, at most 3 | 0 | 0.10 | 2.00 |" in said
    assert "| v2 | signals | no |" in said
    assert "| a trivial app | `--preload` | 1 | 0.010 | 0.020 | 0.100 | 0.050 | 0.000 | 0.12 | <= 0.15 | yes |" in said
    assert "| Django | `--preload` | 1 | 0.010 | 0.020 | 0.200 | 0.100 | 0.000 | - | <= 0.3 | yes |" in said
    assert "| a trivial app | `--preload` | all | 80.0 | 40.0 | 20.0 |" in said


def test_rounds_are_replaced_or_added_to():
    found = {"kill": {"apps": APPS, "rounds": [kill("preload", 0.3)]}}
    assert len(report.merged(result(), found, more=False)["kill"]["rounds"]) == 1
    assert len(report.merged(result(), found, more=True)["kill"]["rounds"]) == 3
    assert report.merged(result(), found, more=False)["fence"] == result()["fence"]


def test_the_page_comes_from_the_json_alone(tmp_path):
    path, document = tmp_path / "launcher.json", tmp_path / "launcher-measured.md"
    path.write_text(report.dumped(result()))
    assert json.loads(path.read_text()) == result()
    document.write_text(f"# Title\n{report.BEGIN}\nof before\n{report.END}\nThe end.\n")
    report.write(path, document)
    written = document.read_text()
    assert "of before" not in written
    assert written.endswith("The end.\n")
    report.write(path, document)
    assert document.read_text() == written


def test_a_page_without_markers_is_not_written_over():
    with pytest.raises(ValueError, match="lacks a marker"):
        report.page("# Title\n", "new")
