"""An ensemble of real ZooKeeper servers that a test may kill, stop, suspend and cut off."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kazoo.exceptions import NotEmptyError

from tests.support.waiting import wait_until
from zkbeat.dev import Server, ServerError, free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kazoo.client import KazooClient
    from typing_extensions import Self

    from tests.support.net import Lan

QUORUM_TIMEOUT_S = 30.0
_ASK_TIMEOUT_S = 0.5
_MODE = re.compile(r"^Mode: (\w+)$", re.MULTILINE)


class Ensemble:
    """`size` servers, by default on the loopback; with a `lan`, each on a host of its own named zk0, zk1, ...

    Servers are named by their index. As a context manager it is started, waited for, and closed at the end.
    """

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        *,
        tick_ms: int = 2000,
        lan: Lan | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        hosts = [] if lan is None else [lan.host(f"zk{i}") for i in range(size)]
        # A host of its own has all of its ports free.
        ports = free_ports(3 * size) if lan is None else [2181, 2888, 3888] * size
        ips = [host.ip for host in hosts] or ["127.0.0.1"] * size
        members = {f"server.{i + 1}": f"{ips[i]}:{ports[3 * i + 1]}:{ports[3 * i + 2]}" for i in range(size)}
        self.servers = [
            Server(
                directory / f"zk{i}",
                port=ports[3 * i],
                tick_ms=tick_ms,
                bind=ips[i],
                extra={**members, **(extra or {})},
                myid=i + 1,
                prefix=hosts[i].exec_prefix if hosts else (),
            )
            for i in range(size)
        ]

    @property
    def hosts(self) -> str:
        """All the addresses, as a ZooKeeper client takes them."""
        return ",".join(server.hosts for server in self.servers)

    def start(self) -> None:
        """Start every server; returns before there is a quorum."""
        for server in self.servers:
            server.start()

    def wait_quorum(self, timeout_s: float = QUORUM_TIMEOUT_S, members: int | None = None) -> None:
        """Wait until one server leads and, with it, `members` serve: by default every one that runs."""
        running = sum(server.running for server in self.servers)
        wanted = max(running if members is None else members, len(self.servers) // 2 + 1)

        def complete() -> bool:
            modes = self.modes()
            return modes.count("leader") == 1 and len(modes) - modes.count(None) >= wanted

        what = f"one leader, and {wanted} of {len(self.servers)} servers serving"
        wait_until(complete, timeout_s, what, self.report)

    def modes(self) -> list[str | None]:
        """Return what each server says that it is, `leader` or `follower`; None for one that does not serve."""
        return [_mode(server) for server in self.servers]

    def leader(self) -> int | None:
        """Return the index of the leader, if there is exactly one.

        A leader that has just lost its quorum says that it leads until it notices.
        """
        leaders = [i for i, mode in enumerate(self.modes()) if mode == "leader"]
        return leaders[0] if len(leaders) == 1 else None

    def followers(self) -> list[int]:
        """Return the indices of the servers that follow."""
        return [i for i, mode in enumerate(self.modes()) if mode == "follower"]

    def kill(self, index: int) -> None:
        """End one with SIGKILL."""
        self.servers[index].kill()

    def stop(self, index: int) -> None:
        """End one with SIGTERM."""
        self.servers[index].stop()

    def start_one(self, index: int) -> None:
        """Start one again, on its old data; returns before it serves."""
        self.servers[index].start()

    def suspend_all(self) -> None:
        """Freeze every server."""
        for server in self.servers:
            server.suspend()

    def resume_all(self) -> None:
        """Thaw every server."""
        for server in self.servers:
            server.resume()

    def rolling_restart(self, timeout_s: float = QUORUM_TIMEOUT_S) -> None:
        """Restart one after the other, the leader last, each after the one before it serves again."""
        leader = self.leader()
        for index in sorted(range(len(self.servers)), key=lambda index: index == leader):
            self.stop(index)
            self.start_one(index)
            self.wait_quorum(timeout_s)

    def close(self) -> None:
        """End every server at once: what they hold is of no more use."""
        for server in self.servers:
            server.kill()

    def report(self) -> str:
        """Return what each server is and the end of its log, for the message of a failure."""
        return "\n".join(
            f"--- {server.hosts} {'runs' if server.running else 'is dead'}, mode {mode}\n{server.log_tail()}"
            for server, mode in zip(self.servers, self.modes(), strict=True)
        )

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_quorum()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mode(server: Server) -> str | None:
    if not server.running:
        return None
    try:
        answer = server.ask("srvr", _ASK_TIMEOUT_S)
    except (OSError, ServerError):
        return None
    found = _MODE.search(answer)
    return found[1] if found else None


def delete_all(client: KazooClient, path: str) -> None:
    """Delete a znode and everything below it, as `deleteall` does, also when others go on making znodes there."""
    while True:
        try:
            client.delete(path, recursive=True)
        except NotEmptyError:
            continue
        return
