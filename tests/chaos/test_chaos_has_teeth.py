"""A chaos that finds nothing is worth what it would have found: what is broken on purpose must be reported."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import zkbeat
from tests.chaos import facts, history
from tests.chaos.cluster import LocalCluster
from tests.chaos.plan import Round, Strike
from tests.chaos.runner import Failed, run_round
from tests.support import net

pytestmark = [
    pytest.mark.timeout(600),  # some seconds on an idle machine
    pytest.mark.skipif(net.why_not() is not None, reason=str(net.why_not())),
]


@dataclass(frozen=True)
class Broken:
    """What is added to a module of a copy of zkbeat, and the fault that it does not survive."""

    module: str
    code: str
    strike: Strike


BROKEN = {
    "a guard that knows its deadlines and kills nothing": Broken(
        "guard.py",
        """
Guard._carry_out_all = Guard._carry_out
Guard._carry_out = lambda self, action: None if action in {Act.TERMINATE, Act.KILL} else self._carry_out_all(action)
Guard._sweep = lambda self: True
clock.Deadman.set = lambda self, at: None
""",
        Strike("sidecar-stop", "leader", 0.0, 6.0),
    ),
    "a standby that evicts before the lease has run out": Broken(
        "core/lease.py",
        """
def evict_after_s(length_s):
    return 0.8
""",
        Strike("sidecar-stop", "leader", 0.0, 1.6),
    ),
}


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path) -> tuple[Path, Broken]:
    one = BROKEN[request.param]
    package = tmp_path / "package"
    shutil.copytree(Path(zkbeat.__file__).parent, package / "zkbeat", ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "zkbeat" / one.module).open("a") as module:
        module.write(one.code)
    return package, one


def test_what_is_broken_is_found_out(tmp_path, broken):
    package, one = broken
    seen = history.History(tmp_path / "history.jsonl")
    cluster = LocalCluster("broken", seen, package)
    try:
        with pytest.raises(Failed):
            run_round(cluster, Round(1, (one.strike,)), lambda _: None)
        assert facts.overlaps(cluster.recorder.records)
    finally:
        cluster.close()
    with pytest.raises(facts.Violation) as found:
        facts.check(history.read(seen.path)["broken"])
    assert found.value.name in {"S1", "S3"}  # it is evicted at the very moment at which the child is overdue
