"""Workers run what was due, no more and no less: one hand-over of each kind on the real thing."""

from __future__ import annotations

import os

import pytest

from tests.bench.schedule.handovers import KINDS, measure
from tests.support import net


@pytest.fixture(autouse=True)
def _a_network() -> None:
    why_not = net.why_not()
    if why_not is not None:
        unless = pytest.fail if os.environ.get("CI") else pytest.skip
        unless(why_not)


@pytest.mark.timeout(280)
def test_what_workers_ran_is_what_was_due():
    found = measure(rounds=len(KINDS), count=60, seed=7)
    assert found.verdict.clean, found.verdict
    assert found.verdict.ran > 30
    assert set(found.rounds) == set(KINDS)
