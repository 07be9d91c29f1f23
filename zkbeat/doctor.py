"""`zkbeat doctor`: looks at each thing that zkbeat needs, and says what to do about what is wrong."""

from __future__ import annotations

import math
import queue
import statistics
import uuid
from collections.abc import Sequence

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError

from zkbeat import clock, probe
from zkbeat.access import Access
from zkbeat.client import describe, plain_client, stop_within
from zkbeat.command import check_command, launch
from zkbeat.core.lease import LeaseError, agree
from zkbeat.errors import ConfigError

CONNECT_WITHIN_S = 5.0
CALL_WITHIN_S = 5.0
WRITES = 20
SLOW_WRITE_S = 0.5
OFFSET_WARNED_S = 2.0


class _Report:
    """What was found, a line each."""

    def __init__(self) -> None:
        self.failed = 0

    def good(self, text: str) -> None:
        print(f"  ok    {text}")

    def note(self, text: str) -> None:
        print(f"  note  {text}")

    def bad(self, text: str, todo: str) -> None:
        self.failed += 1
        print(f"  FAIL  {text}\n        -> {todo}")


def examine(access: Access, root: str, lease_s: float | None, command: Sequence[str]) -> int:
    """Print the report; return 0 if all is well, else 1."""
    report = _Report()
    _servers(access, report)
    granted: queue.Queue[float] = queue.Queue()
    client = plain_client(access, lambda _sent_at, session_timeout_s: granted.put(session_timeout_s))
    try:
        client.start_async()
        try:
            _session(access, granted.get(timeout=CONNECT_WITHIN_S), lease_s, report)
            _writes(client, root, report)
        except queue.Empty:
            report.bad("no session", "mend what is said about the servers above, or the credentials")
    finally:
        stop_within(client, 1.0)
    if command:
        _command(command, report)
    print("all is well" if not report.failed else f"{report.failed} to mend")
    return 1 if report.failed else 0


def _servers(access: Access, report: _Report) -> None:
    for server in probe.servers(access.hosts):
        finding = probe.look(server, access.tls_context())
        if finding.answers:
            report.good(f"{finding.sentence} in {finding.took_s * 1000:.0f} ms")
        else:
            report.bad(finding.sentence, "start that server, open the way to it, or take it out of --hosts")
    if access.servers == 1:
        report.note("one server is a single point of failure: production wants three or five")


def _session(access: Access, timeout_s: float, lease_s: float | None, report: _Report) -> None:
    asked_s = access.session_timeout_s
    if not math.isclose(timeout_s, asked_s, abs_tol=0.001):
        todo = "ask for what it grants (--session-timeout), or change minSessionTimeout/maxSessionTimeout there"
        report.bad(f"session timeout: asked for {asked_s:g} s, granted {timeout_s:g} s", todo)
    try:
        lease = agree(timeout_s, lease_s)
    except LeaseError as error:
        report.bad(f"lease: {error}", "choose another --lease or --session-timeout")
    else:
        took = f"a lost node is replaced after {lease.evict_after_s:.2f} s at most"
        report.good(f"session timeout {timeout_s:g} s, lease {lease.length_s:.3g} s: {took}")


def _writes(client: KazooClient, root: str, report: _Report) -> None:
    path = f"{root.rstrip('/')}/.doctor-{uuid.uuid4().hex[:12]}"
    try:
        if client.chroot and client.exists_async("/").get(timeout=CALL_WITHIN_S) is None:
            report.bad(f"the path {client.chroot}, given with the hosts, does not exist", "create it, or leave it out")
            return
        client.ensure_path_async(root).get(timeout=CALL_WITHIN_S)
        client.create_async(path, b"", ephemeral=True).get(timeout=CALL_WITHIN_S)
        took_s: list[float] = []
        offset_s = 0.0
        for _ in range(WRITES):
            sent, wall = clock.now(), clock.wall()
            stat = client.set_async(path, b"x" * 300).get(timeout=CALL_WITHIN_S)
            took_s.append(clock.now() - sent)
            offset_s = wall + took_s[-1] / 2 - stat.mtime / 1000
        client.delete_async(path).get(timeout=CALL_WITHIN_S)
    except (zk.NoAuthError, zk.AuthFailedError):
        report.bad(f"no right to write below {root}", "give --auth-user and its password, or mend the ACL there")
        return
    except (zk.KazooException, KazooTimeoutError) as error:
        report.bad(f"writing failed: {describe(error)}", "has the ensemble a quorum?")
        return
    median_s, worst_s = statistics.median(took_s), max(took_s)
    text = f"quorum write: median {median_s * 1000:.1f} ms, worst of {WRITES} {worst_s * 1000:.1f} ms"
    if worst_s > SLOW_WRITE_S:
        report.bad(text, "the ensemble is slow: look at its disks and its network")
    else:
        report.good(text)
    if abs(offset_s) > OFFSET_WARNED_S:
        report.bad(f"this node's clock is {offset_s:+.2f} s off ZooKeeper's", "look at NTP here and there")
    else:
        report.good(f"clock: {offset_s:+.3f} s off ZooKeeper's")


def _command(command: Sequence[str], report: _Report) -> None:
    try:
        check_command(command)
    except ConfigError as error:
        report.bad(f"command: {error}", "mend the command behind --")
    else:
        report.good(f"command: {command[0]} is found and may be run")
        how = launch(command)
        if how.launched:
            report.good("launcher: beat will be fenced and watched from within, and may be preloaded")
        elif how.why_not is not None:
            report.note(f"beat will be started without the launcher: {how.why_not}")
