"""Whole containers paused, killed, restarted and disconnected, round both versions of ZooKeeper."""

from __future__ import annotations

import os

import pytest

from tests.chaos import facts, history
from tests.chaos.plan import one_each
from tests.chaos.runner import run_round
from tests.container import lab
from tests.container.conftest import engine, zkbeat_image  # noqa: F401

pytestmark = pytest.mark.container

SEED = int(os.environ.get("ZKBEAT_TEST_CHAOS_SEED", "1"))
IMAGES = os.environ.get("ZKBEAT_TEST_ZOOKEEPER_IMAGES", lab.ZOOKEEPER_IMAGE).split(",")
WITH_EACH = ("container-pause", "container-kill", "quorum-leader-kill", "sidecar-kill", "network-disconnect")


@pytest.mark.parametrize("image", IMAGES)
def test_containers_are_never_two_and_one_again(image, zkbeat_image, tmp_path):  # noqa: F811
    from tests.chaos.boxes import BoxCluster

    seen = history.History(tmp_path / "history.jsonl")
    with BoxCluster("boxes", seen, image, zkbeat_image) as cluster:
        rounds = [run_round(cluster, one) for one in one_each(SEED, WITH_EACH)]
        facts.check(cluster.recorder.records)
    assert not [one for one in rounds if one["overlaps"] or one["late_messages"]]
    assert not [one for one in rounds if one["expected"] not in {None, one["touched"]}]
