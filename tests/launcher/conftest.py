"""Brokers and databases round a real beat; no ZooKeeper."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.launcher.beats import CLASSES, PROJECT, Beat
from tests.launcher.servers import RABBITMQ, Rabbit, Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.nodes import Node

_MIGRATE = "import django; django.setup(); from django.core.management import call_command; call_command('migrate')"


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """The nodes of a test, which adds to it those that it starts; in the end their logs are shown, and all are dead."""
    found: list[Node] = []
    yield found
    for node in found:
        print(node.logs())
        node.kill_everything()


@pytest.fixture(scope="session")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(_redis: Redis) -> Redis:
    """One that is empty."""
    _redis.forget()
    return _redis


@pytest.fixture
def fresh_redis(tmp_path: Path) -> Iterator[Redis]:
    """One of the test's own, which it may freeze and kill."""
    with Redis(tmp_path / "redis") as server:
        yield server
        server.thaw()


@pytest.fixture(scope="session")
def _rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    if not RABBITMQ.exists():
        # The Makefile installs it; where that cannot be, a run by hand goes on without.
        unless = pytest.fail if os.environ.get("CI") else pytest.skip
        unless("the Debian package rabbitmq-server is not installed")
    with Rabbit(tmp_path_factory.mktemp("rabbit")) as server:
        yield server


@pytest.fixture
def rabbit(_rabbit: Rabbit) -> Iterator[Rabbit]:
    """One that is empty."""
    _rabbit.forget()
    yield _rabbit
    _rabbit.thaw()


@pytest.fixture(scope="session")
def _database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Makes a database with all tables and nothing in them."""
    made: dict[bool, Path] = {}

    def make(use_tz: bool) -> Path:  # noqa: FBT001
        if use_tz not in made:
            path = made[use_tz] = tmp_path_factory.mktemp("database") / "db.sqlite3"
            settings = json.dumps({"database": str(path), "use_tz": use_tz})
            env = {**os.environ, "LAUNCHER_TEST": settings, "DJANGO_SETTINGS_MODULE": "settings"}
            env["PYTHONPATH"] = str(PROJECT)
            subprocess.run([sys.executable, "-c", _MIGRATE], env=env, check=True, capture_output=True, timeout=120)
        return made[use_tz]

    return make


@pytest.fixture(params=list(CLASSES))
def kind(request: pytest.FixtureRequest) -> str:
    """Each scheduler class in turn."""
    return str(request.param)


@pytest.fixture
def make_beat(
    tmp_path: Path, redis: Redis, request: pytest.FixtureRequest, _database: Callable[[bool], Path]
) -> Callable[..., Beat]:
    """Makes a beat that is to be entered; the second one of a test takes over what the first has left behind."""

    def make(kind: str, schedule: dict[str, Any], **keywords: Any) -> Beat:
        database = tmp_path / "beat" / "db.sqlite3"
        if kind == "database" and not database.exists():
            database.parent.mkdir()
            shutil.copy(_database(keywords.get("use_tz", True)), database)
        if kind == "zookeeper":
            place = {
                "hosts": request.getfixturevalue("zk_hosts"),
                "root": request.getfixturevalue("zk_root"),
                "name": "e",
            }
            own = {"zkbeat_unfenced": True, **{f"zkbeat_{name}": value for name, value in place.items()}}
            keywords["conf"] = {**own, **keywords.get("conf", {})}
        broker = keywords.pop("broker", redis)
        return Beat(tmp_path / "beat", kind, broker.url, schedule, store=redis.url, **keywords)

    return make
