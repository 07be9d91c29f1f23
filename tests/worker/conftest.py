"""Workers round a real broker and a real ZooKeeper."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from tests.launcher.servers import Rabbit, Redis
from tests.worker.workers import Field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zkbeat.dev import Server

_serials = itertools.count()


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    with Rabbit(tmp_path_factory.mktemp("rabbit")) as server:
        yield server


@pytest.fixture
def make_field(tmp_path: Path, redis: Redis, request: pytest.FixtureRequest) -> Iterator[Callable[..., Field]]:
    """Makes a field whose workers are gone at the test's end."""
    made: list[Field] = []

    def make(server: Server | Any, broker: str | None = None, **conf: Any) -> Field:
        root = f"/t{next(_serials)}-{request.node.name[:20].replace('[', '-').replace(']', '')}"
        field = Field(tmp_path, broker or redis.url, redis.url, server.hosts, root, **conf)
        made.append(field)
        return field

    yield make
    for field in made:
        print(field.report())  # pytest shows it with a failure only
        field.close()


@pytest.fixture
def field(make_field: Callable[..., Field], zk_server: Any) -> Field:
    """One with Redis, and the session's ZooKeeper."""
    return make_field(zk_server)
