"""What an operator does from any host: look at an election, and ask its leader for something."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError

from zkbeat import clock, probe
from zkbeat.access import Access
from zkbeat.client import plain_client, stop_within
from zkbeat.config import base_path
from zkbeat.core import record
from zkbeat.core.record import Control, Member, Term
from zkbeat.core.term import EXIT_NO_ENSEMBLE, EXIT_NO_PERMISSION

CONNECT_WITHIN_S = 5.0
CALL_WITHIN_S = 5.0
REFRESH_EVERY_S = 1.0
WAIT_AT_MOST_S = 120.0
TERMS_SHOWN = 5
WIDTH_OF_A_PIPE = 140

EXIT_NO_LEADER = 1
EXIT_USAGE = 2


class OperatorError(Exception):
    """What was asked for cannot be done; the message is one line."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Seen:
    """A contender as it stands in ZooKeeper."""

    node: str
    member: Member | None
    epoch: int
    renewed_ago_s: float


@dataclass(frozen=True)
class Election:
    """One look at an election."""

    name: str
    line: tuple[Seen, ...]
    control: Control | None
    terms: tuple[Term, ...]
    """The latest first."""

    @property
    def leader(self) -> Seen | None:
        """The first in line, if it runs its command, or would if it were not paused."""
        head = self.line[0] if self.line else None
        leads = head is not None and head.member is not None and head.member.state in {"leading", "paused", "stopping"}
        return head if leads else None


class ElectionPath:
    """The znodes of one election, with bounded calls."""

    def __init__(self, client: KazooClient, base: str, name: str) -> None:
        self._client = client
        self.name = name
        self.base = base
        """ROOT/NAME."""

    def ask(self, method: str, *args: Any) -> Any:
        """Begin a call; the answer's `get` waits for it."""
        return getattr(self._client, f"{method}_async")(*args)

    def call(self, method: str, *args: Any) -> Any:
        """Make a call, and wait for its answer."""
        return self.ask(method, *args).get(timeout=CALL_WITHIN_S)

    def look(self) -> Election:
        """Read everything; what vanishes meanwhile is left out."""
        line: list[Seen] = []
        path = f"{self.base}/election"
        server_ms: float | None = None
        stats = []
        for node in record.line(self.children(path)):
            with contextlib.suppress(zk.NoNodeError):
                data, stat = self.call("get", f"{path}/{node}")
                stats.append((node, data, stat))
                server_ms = max(server_ms or 0.0, float(stat.mtime))
        for node, data, stat in stats:
            member = Member.decode(data)
            # The quorum leader's clock is not ours: the offset that the members measured stands in for it.
            line.append(Seen(node, member, stat.czxid, round(max(clock.wall() - stat.mtime / 1000, 0.0), 1)))
        control = None
        with contextlib.suppress(zk.NoNodeError):
            control = Control.decode(self.call("get", f"{self.base}/control")[0])
        terms: list[Term] = []
        names = sorted((name for name in self.children(f"{self.base}/terms") if name.isdigit()), reverse=True)
        for name in names[:TERMS_SHOWN]:
            with contextlib.suppress(zk.NoNodeError):
                found = Term.decode(self.call("get", f"{self.base}/terms/{name}")[0])
                terms += [found] if found is not None else []
        return Election(self.name, tuple(line), control, tuple(terms))

    def change_control(self, **changes: Any) -> None:
        """Change fields of the control record, whatever else changes it meanwhile."""
        path = f"{self.base}/control"
        while True:
            data, stat = self.call("get", path)
            control = replace(Control.decode(data) or Control(), **changes)
            with contextlib.suppress(zk.BadVersionError):
                self.call("set", path, control.encode(), stat.version)
                return

    def children(self, path: str) -> list[str]:
        """Return the names of what is below a znode; of one that is not there, nothing."""
        try:
            children: list[str] = self.call("get_children", path)
        except zk.NoNodeError:
            return []
        return children


@contextlib.contextmanager
def connected(
    access: Access, root: str, name: str | None, choose: Callable[[list[str]], str] | None = None
) -> Iterator[ElectionPath]:
    """Connect to an election, within bounds. Raises OperatorError, also for what goes wrong inside.

    `choose`: makes the election's name of those that there are, where it need not be there yet.
    """
    client = plain_client(access)
    try:
        if not client.start_async().wait(CONNECT_WITHIN_S):
            sentences = [probe.look(server, access.tls_context()).sentence for server in probe.servers(access.hosts)]
            raise OperatorError("no ZooKeeper: " + "; ".join(sentences), EXIT_NO_ENSEMBLE)
        names = _names(client, root)
        found = choose(names) if choose is not None else _which(names, root, name)
        yield ElectionPath(client, base_path(root, found), found)
    except zk.NoAuthError:
        raise OperatorError(
            f"ZooKeeper refuses access below {root}: give --auth-user and a password", EXIT_NO_PERMISSION
        ) from None
    except zk.AuthFailedError:
        raise OperatorError("ZooKeeper refuses the credentials", EXIT_NO_PERMISSION) from None
    except (zk.ConnectionLoss, zk.SessionExpiredError, zk.ConnectionClosedError, KazooTimeoutError):
        raise OperatorError("the connection to ZooKeeper was lost", EXIT_NO_ENSEMBLE) from None
    finally:
        stop_within(client, 1.0)


def _names(client: KazooClient, root: str) -> list[str]:
    try:
        found = client.get_children_async(root).get(timeout=CALL_WITHIN_S)
    except zk.NoNodeError:
        return []
    return sorted(child for child in found if not child.startswith(".doctor-"))  # what a doctor tries writing with


def _which(names: list[str], root: str, name: str | None) -> str:
    if name is not None:
        if name not in names:
            known = f"; there are {', '.join(names)}" if names else ""
            raise OperatorError(f"there is no election named {name!r} below {root}{known}", EXIT_NO_LEADER)
        return name
    if len(names) == 1:
        return names[0]
    if not names:
        raise OperatorError(f"there is no election below {root}: no zkbeat has run with it yet", EXIT_NO_LEADER)
    raise OperatorError(f"there are several elections: say which with --name ({', '.join(names)})", EXIT_USAGE)


def fail(error: OperatorError) -> int:
    """Say what went wrong; return the exit code."""
    print(f"zkbeat: {error}", file=sys.stderr)
    return error.exit_code


def status(access: Access, root: str, name: str | None, *, as_json: bool, watch: bool) -> int:
    """Print an election, once or for as long as somebody watches; return the exit code."""
    try:
        with connected(access, root, name) as path:
            election = path.look()
            if watch:
                _follow(path, election, as_json=as_json)
            elif as_json:
                print(json.dumps(_as_json(election)))
            else:
                console().print(_render(election))
    except OperatorError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    return 0 if election.leader is not None else EXIT_NO_LEADER


def _as_json(election: Election) -> dict[str, Any]:
    def seen(one: Seen) -> dict[str, Any]:
        about = asdict(one.member) if one.member is not None else {"id": None, "state": "unreadable"}
        return about | {"node": one.node, "epoch": one.epoch, "renewed_ago_s": one.renewed_ago_s}

    leader = election.leader
    return {
        "name": election.name,
        "leader": seen(leader) if leader is not None else None,
        "members": [seen(one) for one in election.line],
        "control": asdict(election.control) if election.control is not None else None,
        "terms": [asdict(one) for one in election.terms],
    }


def _follow(path: ElectionPath, election: Election, *, as_json: bool) -> None:
    if as_json:
        while True:
            print(json.dumps(_as_json(election)), flush=True)
            time.sleep(REFRESH_EVERY_S)
            election = path.look()
    from rich.live import Live

    with Live(_render(election), auto_refresh=False, screen=sys.stdout.isatty()) as live:
        while True:
            time.sleep(REFRESH_EVERY_S)
            try:
                live.update(_render(path.look()), refresh=True)
            except (zk.ConnectionLoss, zk.OperationTimeoutError, KazooTimeoutError):
                live.update("no connection to ZooKeeper: trying again", refresh=True)


def console() -> Any:
    """Return what tables are printed on."""
    from rich.console import Console

    # In a pipe or a log nothing is gained by folding the lines at rich's 80 columns.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_OF_A_PIPE)


def _render(election: Election) -> Any:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    leader = election.leader
    if leader is not None and leader.member is not None:
        title = Text.assemble("election ", (election.name, "bold"), ", leader ", (leader.member.id, "bold green"))
        lease = f", lease {leader.member.lease:.3g} s" if leader.member.lease else ""
        title.append(f", epoch {leader.epoch}{lease}")
    else:
        title = Text.assemble("election ", (election.name, "bold"), ", ", ("no leader", "bold red"))
    parts: list[Any] = [title]
    control = election.control
    if control is not None and control.paused:
        when = f" {ago(clock.wall() - control.since)} ago" if control.since else ""
        why = f": {control.reason}" if control.reason else ""
        parts.append(Text(f"paused by {control.by or 'somebody'}{when}{why}", style="bold yellow"))

    line = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = [column for column in _COLUMNS if any(column.cell(one) for one in election.line)]
    columns += [column for column in _SHARED if len({column.cell(one) for one in election.line if one.member}) > 1]
    line.add_column("", min_width=1)
    for column in columns:
        line.add_column(column.heading, justify="left" if column.text else "right", no_wrap=True)
    for place, one in enumerate(election.line):
        cells = (column.cell(one) or "-" for column in columns)
        line.add_row(str(place or "▶"), *cells, style="green" if one is leader else "")
    parts.append(line if election.line else Text("nobody is in line", style="dim"))

    if election.terms:
        terms = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="last terms", title_justify="left")
        missed = any(term.missed for term in election.terms)
        headings = ["epoch", "member", "began", "lasted", "gap before", *["missed"] * missed, "why it ended"]
        for heading in headings:
            right = heading in {"epoch", "lasted", "gap before", "missed"}
            terms.add_column(heading, justify="right" if right else "left")
        for term in election.terms:
            lasted = ago(term.end - term.start) if term.end else "goes on"
            gap = f"{term.gap:.2f} s" if term.gap is not None else "-"
            count = [str(term.missed or "-")] * missed
            terms.add_row(str(term.epoch), term.id, _clock(term.start), lasted, gap, *count, term.why or "")
        parts.append(terms)
    return Group(*parts)


@dataclass(frozen=True)
class _Column:
    """A column of the line, shown where it has something to say."""

    heading: str
    of: Callable[[Member], str | None]
    text: bool = False

    def cell(self, one: Seen) -> str | None:
        """Return what it says of a contender."""
        if one.member is not None:
            return self.of(one.member)
        # As much of it as tells it from the others, and fits.
        return {"member": f"…{one.node[-10:]}", "state": "unreadable record"}.get(self.heading)


class _Written(_Column):
    """How long ago a contender wrote its record: what only ZooKeeper knows."""

    def cell(self, one: Seen) -> str | None:
        return ago(one.renewed_ago_s)


def _ago_if(at: float | None) -> str | None:
    return ago(clock.wall() - at) if at else None


_COLUMNS = (
    _Column("member", lambda member: member.id, text=True),
    _Column("state", lambda member: member.state, text=True),
    _Column("child", lambda member: str(member.child) if member.child else None),
    _Column("preloaded", lambda member: f"{member.parked:.0f} MB" if member.parked else None),
    _Column("for", lambda member: _ago_if(member.term_since or member.since)),
    _Column("last tick", lambda member: _ago_if(member.tick)),
    _Written("written", lambda _: None),
    _Column("clock", lambda member: f"{member.offset:+.2f} s" if member.offset is not None else None),
)
_SHARED = (
    _Column("lease", lambda member: f"{member.lease:.3g} s" if member.lease else None),
    _Column("zkbeat", lambda member: member.version, text=True),
)
"""What is of interest only where it differs: while it is being upgraded, or configured."""


def ago(seconds: float) -> str:
    """Return a length of time in words."""
    seconds = max(seconds, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def operator() -> str:
    """Return who asks: user and host."""
    with contextlib.suppress(KeyError, OSError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return f"uid {os.getuid()}"


def set_paused(access: Access, root: str, name: str | None, *, paused: bool, reason: str | None) -> int:
    """Pause or resume an election; return the exit code."""
    try:
        with connected(access, root, name) as path:
            path.change_control(paused=paused, by=operator(), reason=reason, since=round(clock.wall(), 3))
            does = "paused: the leader stops its child and starts none" if paused else "resumed"
            print(f"{path.name} is {does}")
    except OperatorError as error:
        return fail(error)
    return 0


def step_down(access: Access, root: str, name: str | None, *, wait: bool) -> int:
    """Ask the leader of this moment to step down; return the exit code."""
    try:
        with connected(access, root, name) as path:
            leader = path.look().leader
            if leader is None or leader.member is None:
                print(f"zkbeat: nobody leads {path.name}", file=sys.stderr)
                return EXIT_NO_LEADER
            path.change_control(step_down=leader.epoch, by=operator())
            print(f"asked {leader.member.id} to step down (epoch {leader.epoch})")
            return _await_another(path, leader.epoch) if wait else 0
    except OperatorError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130


def _await_another(path: ElectionPath, epoch: int) -> int:
    give_up_at = clock.now() + WAIT_AT_MOST_S
    while clock.now() < give_up_at:
        leader = path.look().leader
        if leader is not None and leader.member is not None and leader.epoch != epoch:
            print(f"{leader.member.id} leads now (epoch {leader.epoch})")
            return 0
        time.sleep(0.1)
    raise OperatorError(f"no other leader within {WAIT_AT_MOST_S:g} s", EXIT_NO_LEADER)
