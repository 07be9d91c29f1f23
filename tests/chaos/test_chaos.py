"""Every fault once, on real processes, and some at random: never two, and somebody again.

ZKBEAT_TEST_CHAOS_SEED chooses another seed; the same one gives the same faults.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.chaos import facts, history
from tests.chaos.cluster import LocalCluster
from tests.chaos.faults import FAULTS, LOCAL
from tests.chaos.plan import one_each, plan
from tests.chaos.runner import Failed, run_round
from tests.support import net
from zkbeat.dev import NoZooKeeperError, find_distribution

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.chaos.history import History, Record
    from tests.chaos.plan import Round

pytestmark = pytest.mark.timeout(900)  # it takes a minute and a half on an idle machine

SEED = int(os.environ.get("ZKBEAT_TEST_CHAOS_SEED", "1"))
SIDE_BY_SIDE = 2
"""Clusters: they mostly wait."""

AT_RANDOM = 2
"""Rounds with several faults at once, in each cluster."""


@dataclass
class Recording:
    """What a run has left."""

    path: Path
    rounds: list[Record] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    reason = net.why_not()
    if reason is not None:
        pytest.skip(reason)
    try:
        find_distribution()
    except NoZooKeeperError as error:
        pytest.skip(str(error))
    seen = history.History(tmp_path_factory.mktemp("chaos") / "history.jsonl")
    found = Recording(seen.path)
    kinds = [name for name, fault in FAULTS.items() if LOCAL in fault.where]
    plans = [
        [
            *one_each(SEED + number, kinds[number::SIDE_BY_SIDE]),
            *plan(SEED + number, AT_RANDOM, kinds, several=1.0),
        ]
        for number in range(SIDE_BY_SIDE)
    ]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(lambda number: _run(f"local-{number}", plans[number], seen, found), range(SIDE_BY_SIDE)))
    seen.close()
    return found


def _run(name: str, rounds: Sequence[Round], seen: History, found: Recording) -> None:
    try:
        with LocalCluster(name, seen) as cluster:
            for one in rounds:
                if not any(FAULTS[strike.fault].why_not(cluster) for strike in one.strikes):
                    found.rounds.append(run_round(cluster, one))
    except (Failed, AssertionError) as error:
        found.failed.append(f"{name}, seed {SEED}: {error}")


def test_every_round_ends_with_a_leader_and_breaks_no_invariant(recording):
    assert not recording.failed, "\n".join(recording.failed)
    assert len(recording.rounds) > len(FAULTS) / 2


def test_there_are_never_two(recording):
    wrong = [one for one in recording.rounds if one["overlaps"] or one["late_messages"]]
    assert not wrong, f"recorded in {recording.path}"


def test_what_must_stop_the_leaders_child_does_and_what_must_not_does_not(recording):
    wrong = [one for one in recording.rounds if one["expected"] not in {None, one["touched"]}]
    assert not wrong, f"recorded in {recording.path}"


def test_the_recording_says_the_same_when_it_is_read_again(recording):
    clusters = history.read(recording.path)
    assert len(clusters) == SIDE_BY_SIDE
    for records in clusters.values():
        facts.check(records)
        assert {"started", "died", "lease", "message", "elected", "made", "gone"} <= {one["is"] for one in records}
