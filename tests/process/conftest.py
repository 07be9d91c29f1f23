"""The processes of one node, without a ZooKeeper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.process.driving import FakeSidecar
from tests.process.kin import Kin
from tests.support.nodes import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_ALONE = str(Path(__file__).with_name("alone.py"))


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[FakeSidecar]:
    """A fake sidecar with a guard that is ready."""
    with FakeSidecar(tmp_path) as sidecar:
        yield sidecar


@pytest.fixture
def kin(tmp_path: Path) -> Callable[..., Kin]:
    """Makes a child that notes what happens to it."""
    return lambda *words, shell=False: Kin(tmp_path / "kin", *words, shell=shell)


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., Node]:
    """Makes a node whose ZooKeeper is imagined; to be entered."""

    def make(*options: str, command: Sequence[str] = ("sleep", "1000"), **keywords: Any) -> Node:
        env = {"ALONE": str(tmp_path), **keywords.pop("env", {})}
        program = [sys.executable, _ALONE]
        return Node(tmp_path / "node", options=options, command=command, env=env, program=program, **keywords)

    return make
