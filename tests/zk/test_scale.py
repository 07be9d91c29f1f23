"""What a hand-over and a renewal cost does not depend on how many stand in line; counted, not timed."""

from __future__ import annotations

import pytest

from tests.bench.scale import phases
from tests.bench.scale.crew import Crew, Spec
from zkbeat.dev import NoZooKeeperError, Server, find_distribution

FEW, MANY = 3, 20

A_WAKE = 3
"""The reads of the first in line for one watch; two quick renewals of a new leader may wake it once or twice."""


@pytest.fixture(scope="module")
def crews(tmp_path_factory):
    try:
        find_distribution()
    except NoZooKeeperError as error:
        pytest.skip(str(error))
    with Server(tmp_path_factory.mktemp("scale")) as server:
        specs = [Spec(server.hosts, f"/{count}", session_timeout_s=4.0) for count in (FEW, MANY)]
        with Crew(specs[0], FEW, 1) as few, Crew(specs[1], MANY, 2) as many:
            for crew in (few, many):
                crew.join_without_waiting()
            for crew in (few, many):
                crew.wait_settled(60.0)
            yield server, few, many


@pytest.mark.parametrize("kind", ["step-down", "removed"])
def test_a_hand_over_costs_the_same_with_three_in_line_and_with_twenty(crews, kind):
    _, few, many = crews
    of_few, of_many = (phases.hand_over(crew, kind) for crew in (few, many))
    assert of_many["cost"]["writes"] == of_few["cost"]["writes"]
    assert abs(of_many["cost"]["reads"] - of_few["cost"]["reads"]) <= A_WAKE
    assert abs(of_many["cost"]["watches"] - of_few["cost"]["watches"]) <= 2
    assert (of_few["others"]["kinds"], of_many["others"]["kinds"]) == ({}, {})


def test_a_renewal_costs_the_same_with_three_in_line_and_with_twenty(crews):
    server, few, many = crews
    for crew in (few, many):
        found = phases.idle(crew, [server], 2.0)
        assert found["kinds"]["SetData"] == found["renewals"]
        assert found["each"]["watches"] <= 1.5
        assert found["each"]["reads"] <= 1.5 * A_WAKE
        assert found["others"]["kinds"] == {}
