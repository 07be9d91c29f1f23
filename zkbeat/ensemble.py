"""The election's edge to ZooKeeper: kazoo's Election, a session round it, and the records beside it.

It carries out what `core.term` decides and reports back by posting events; it decides nothing.
Everything here that kazoo calls runs in kazoo's threads and only posts.
Each attempt in an election has its own Election and Lock objects, which are never used again (kazoo #282, #482, #732).
What kazoo's client leaves open by itself is closed in `client`.
"""

from __future__ import annotations

import contextlib
import queue
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import EventType, KazooState, WatchedEvent
from kazoo.recipe.lock import Lock
from kazoo.retry import ForceRetryError, KazooRetry

from zkbeat import clock, probe
from zkbeat.access import Access
from zkbeat.client import describe, plain_client, stop_within
from zkbeat.core import actions, events, record, term
from zkbeat.core.record import Control, Ledger, Member
from zkbeat.core.record import Term as TermRecord
from zkbeat.retire import LeftBehind, retire

TERMS_KEPT = 100

EXPLAIN_AFTER_S = 2.0
EXPLAIN_EVERY_S = 30.0
"""How soon, and then how often, to say why there is no connection yet."""

CALL_TAKES_AT_MOST_S = 5.0
"""For what is written down on the side; nothing waits for it."""

PROMPT_WITHIN_S = 0.5
"""An answer that took longer says too little about a clock: nothing within half of that, and 2 s are warned about."""

FORMER_KEPT = 20
"""How many earlier attempts' znodes to look for before the next one."""

Post = Callable[[events.Event], None]


def _went_through(result: Any) -> bool:
    """Say whether a transaction did: one that failed returns its exceptions."""
    return result.exception is None and not any(isinstance(one, Exception) for one in result.value)


class _Line(Lock):  # type: ignore[misc]
    """kazoo's Lock, which also tells our place in the line whenever it looks at it."""

    def __init__(
        self, client: KazooClient, path: str, data: bytes, on_queued: Callable[[str, int, str | None], None]
    ) -> None:
        super().__init__(client, path, data.decode())
        self._on_queued = on_queued
        self._known: tuple[str, list[str]] | None = None
        self._only_written = False

    def _watch_predecessor(self, event: WatchedEvent) -> None:
        # Who is before us is not changed by what they write, and a leader writes every second. (After a lost connection
        # all is looked at again: we may have lost our own place.)
        self._only_written = event.type == EventType.CHANGED
        super()._watch_predecessor(event)

    def _get_predecessor(self, node: str) -> str | None:
        """Watch only whom kazoo's own would (kazoo/recipe/lock.py), the one just before us: no herd."""
        ahead = self._ahead_of(node)
        self._on_queued(node, len(ahead), ahead[0] if ahead else None)
        return ahead[-1] if ahead else None

    def _ahead_of(self, node: str) -> list[str]:
        known, only_written = self._known, self._only_written
        self._only_written = False  # should they be gone meanwhile, kazoo asks again
        # Only if it is the leader who has written: before any other, those who were told to us may have gone.
        if only_written and known is not None and known[0] == node and len(known[1]) == 1:
            return known[1]
        line = record.line(self.client.get_children(self.path))
        if node not in line:
            raise ForceRetryError
        ahead = line[: line.index(node)]
        self._known = node, ahead
        return ahead


class _Attempt:
    """One attempt to lead: a thread that does nothing but kazoo's `Election.run`."""

    def __init__(
        self, number: int, client: KazooClient, path: str, data: bytes, prepare: Callable[[], None], post: Post
    ) -> None:
        self.number = number
        self._path = path
        self._prepare = prepare
        self._post = post
        self._over = threading.Event()
        self._election = client.Election(path, "")
        self._lock = self._election.lock = _Line(client, path, data, self._queued)
        self.prefix: str = self._lock.prefix
        # kazoo's own would back off further with each session that is lost, perhaps when first in line.
        # Interrupted, it calls the leader function without the leadership: `_lead` looks.
        self._lock._retry = KazooRetry(  # noqa: SLF001
            max_tries=-1,
            delay=0.05,
            max_delay=1.0,
            sleep_func=client.handler.sleep_func,
            interrupt=self._over.is_set,
        )
        threading.Thread(target=self._run, name=f"election-{number}", daemon=True).start()

    def leave(self) -> None:
        self._over.set()
        self._lock.cancel()

    def look_again(self) -> None:
        self._lock.wake_event.set()

    def _queued(self, node: str, ahead: int, head: str | None) -> None:
        self._post(events.Queued(self.number, node, ahead, head))

    def _run(self) -> None:
        error: str | None = None
        try:
            self._prepare()
            if not self._over.is_set():
                self._election.run(self._lead)
        except (zk.NoAuthError, zk.AuthFailedError):
            refused = f"ZooKeeper refuses to let us write below {self._path}: check the credentials and the ACLs there"
            self._post(events.Refused(term.EXIT_NO_PERMISSION, refused))
        except _MissingChrootError as missing:
            self._post(events.Refused(term.EXIT_CONFIG, str(missing)))
        # Whatever it is, the loop must hear that this attempt is over.
        except Exception as failure:  # noqa: BLE001
            error = None if self._over.is_set() else describe(failure)
        self._post(events.ElectionEnded(self.number, error))

    def _lead(self) -> None:
        if self._lock.is_acquired and self._lock.node is not None and not self._over.is_set():
            self._post(events.Elected(self.number, self._lock.node))
            self._over.wait()


class _MissingChrootError(Exception):
    pass


class Ensemble:
    """A session with ZooKeeper, and this election in it. All methods return at once; answers are posted."""

    def __init__(self, access: Access, root: str, name: str, post: Post, left_behind: LeftBehind | None = None) -> None:
        self._access = access
        self._base = f"{root.rstrip('/')}/{name}"
        self._election_path = f"{self._base}/election"
        self._post = post
        self._client: Any = None
        self._attempt: _Attempt | None = None
        self._former: tuple[str, ...] = ()
        self._notes: queue.Queue[Callable[[], None]] = queue.Queue(maxsize=100)
        self._last_error: str | None = None
        # A note of another election, that had this runtime directory before, is not ours to act on.
        ours = left_behind is not None and left_behind.znode.startswith(f"{self._election_path}/")
        self._left_behind = left_behind if ours else None
        self._lease_s = 0.0
        threading.Thread(target=self._keep_notes, name="notes", daemon=True).start()

    @property
    def last_error(self) -> str | None:
        """What the last connection attempt failed for."""
        return self._last_error

    def znode(self, node: str) -> str:
        """Return the full path of an election znode, without the chroot."""
        return f"{self._election_path}/{node}"

    # the session

    def open(self) -> None:
        """Start connecting; goes on until `close`."""

        def connected(sent_at: float, session_timeout_s: float) -> None:
            if client is self._client:
                self._last_error = None
                self._post(events.Connected(client.client_id[0], session_timeout_s, sent_at))

        client = self._client = plain_client(self._access, connected, self._connection_failed)

        def state_changed(state: str) -> None:
            if client is not self._client:
                return
            if state == KazooState.SUSPENDED:
                self._post(events.Suspended())
            elif state == KazooState.LOST:
                self._post(events.Lost())
                if client._state == "AUTH_FAILED":  # noqa: SLF001
                    self._post(events.Refused(term.EXIT_NO_PERMISSION, "ZooKeeper refuses the credentials"))

        client.add_listener(state_changed)
        client.start_async()
        threading.Thread(target=self._explain, args=(client,), name="explain", daemon=True).start()

    def _explain(self, client: KazooClient) -> None:
        """While there is no connection, find out why and say so; give up on what trying again does not mend."""
        pause_s = EXPLAIN_AFTER_S
        while client is self._client:
            if client._live.wait(pause_s):  # noqa: SLF001
                return
            if client is not self._client:
                return
            findings = [probe.look(server, self._access.tls_context()) for server in probe.servers(self._access.hosts)]
            message = "no connection to ZooKeeper: " + "; ".join(finding.sentence for finding in findings)
            if all(finding.hopeless for finding in findings):
                self._post(events.Refused(max(finding.exit_code for finding in findings), message))
                return
            self._post(events.Unreachable(message))
            pause_s = EXPLAIN_EVERY_S

    def renew_session(self) -> None:
        """Drop the session, whatever state it is in, and open another."""
        client, self._client, self._attempt = self._client, None, None
        if client is not None:
            stop_within(client, 0.0)
        self.open()

    def close(self, within_s: float) -> bool:
        """Close the session; say whether that was possible in time."""
        client, self._client = self._client, None
        return client is None or stop_within(client, within_s)

    def _connection_failed(self, error: Exception) -> None:
        self._last_error = describe(error)
        if isinstance(error, ssl.SSLError):
            self._last_error = f"TLS: {self._last_error}"

    # the election

    def join(self, attempt: int, member: Member) -> None:
        """Contend, with this record."""
        if self._client is not None:
            path, data = self._election_path, member.encode()
            former = self._former
            self._attempt = _Attempt(attempt, self._client, path, data, lambda: self._prepare(former), self._post)
            self._former = (*former, self._attempt.prefix)[-FORMER_KEPT:]

    def look_again(self, attempt: int) -> None:
        """Have that attempt look at the whole line, which tells our place."""
        if self._attempt is not None and self._attempt.number == attempt:
            self._attempt.look_again()

    def leave(self, attempt: int, led: str | None) -> None:
        """End that attempt; with `led`, have the ledger say first that the child of that znode's term is dead."""
        current = self._attempt
        if current is None or current.number != attempt:
            return
        if led is None or self._client is None:
            current.leave()
            return

        def certified(result: Any) -> None:
            if _went_through(result):
                self._left_behind = None
            current.leave()  # if it is not certified, the next attempt does it before it joins

        self._left_behind = LeftBehind(self.znode(led), led=True)
        last = Ledger(led=led, lease=self._lease_s, left=True)
        transaction = self._client.transaction()
        transaction.delete(self.znode(led))
        transaction.set_data(f"{self._base}/ledger", last.encode())
        transaction.commit_async().rawlink(certified)

    def _prepare(self, former: tuple[str, ...]) -> None:
        client = self._client
        if client is None:
            return
        if client.chroot and client.exists("/") is None:
            raise _MissingChrootError(
                f"the path {client.chroot}, given with the hosts, is not in ZooKeeper: create it, or leave it out"
            )
        for path in (self._election_path, f"{self._base}/terms", f"{self._base}/control", f"{self._base}/ledger"):
            client.ensure_path(path)
        if self._left_behind is not None:
            # Of an earlier life, then the host lock is ours, or of an earlier term, whose child is dead: else the
            # machine would not have us join (S3).
            with contextlib.suppress(zk.NoAuthError):  # made with other credentials: it goes with its session
                retire(client, self._left_behind)
            self._left_behind = None
        if former:
            # kazoo's Lock leaves a znode in the line when the connection is lost while it cleans up, or before it has
            # learned its name (#732). It would live as long as our session does, and who waits behind it is not woken.
            for node in client.get_children(self._election_path):
                if node.startswith(former):
                    with contextlib.suppress(zk.NoNodeError):
                        client.delete(self.znode(node))

    def look_at(self, node: str) -> None:
        """Read a contender's record."""

        def seen(result: Any) -> None:
            with contextlib.suppress(zk.KazooException, KazooTimeoutError):
                data, stat = result.get()
                self._post(events.MemberSeen(node, stat.version, Member.decode(data)))

        self._call("get_async", self.znode(node), then=seen)

    def evict(self, node: str, version: int) -> None:
        """Delete a contender's znode if it is still at this version."""

        def tried(result: Any) -> None:
            self._post(events.EvictionTried(node, deleted=result.exception is None))

        self._call("delete_async", self.znode(node), version, then=tried)

    def renew(self, node: str, sent_at: float, member: Member) -> None:
        """Write our record: a quorum write, which only succeeds while the leadership exists."""
        wall_sent = clock.wall()

        def answered(result: Any) -> None:
            error = result.exception
            if error is None:
                stat = result.value
                wall_now = clock.wall()
                # When the server wrote it, is known to within half of what the answer took.
                prompt = 0.0 <= wall_now - wall_sent <= PROMPT_WITHIN_S
                offset_s = round((wall_sent + wall_now) / 2 - stat.mtime / 1000, 3) if prompt else None
                self._post(events.Renewed(node, sent_at, stat.ephemeralOwner, stat.czxid, offset_s))
                return
            refused = isinstance(error, (zk.NoNodeError, zk.SessionExpiredError, zk.NoAuthError))
            self._post(events.RenewalFailed(node, sent_at, refused, describe(error)))

        self._call("set_async", self.znode(node), member.encode(), then=answered)

    def read_ledger(self) -> None:
        """Read who led last, and watch it."""

        def touched(_event: Any) -> None:
            self._post(events.LedgerTouched())

        def made(result: Any) -> None:
            if result.exception is None:  # else everything is gone, our znode too: the next renewal is refused
                self._post(events.LedgerTouched())

        def read(result: Any) -> None:
            if result.exception is None:
                data, stat = result.value
                self._post(events.LedgerRead(Ledger.decode(data), stat.version))
            elif isinstance(result.exception, zk.NoNodeError):
                # Somebody has deleted it. Empty, it has us wait for a lease.
                self._call("create_async", path, b"", then=made)

        path = f"{self._base}/ledger"
        self._call("get_async", path, touched, then=read)

    def enter(self, node: str, version: int, lease_s: float) -> None:
        """Write into the ledger that we lead, unless somebody has written there, or our znode is gone."""
        if self._client is None:
            return
        self._lease_s = lease_s

        def entered(result: Any) -> None:
            self._post(events.Entered(node, ok=_went_through(result)))

        transaction = self._client.transaction()
        transaction.check(self.znode(node), -1)
        transaction.set_data(f"{self._base}/ledger", Ledger(led=node, lease=lease_s).encode(), version)
        transaction.commit_async().rawlink(entered)

    def read_control(self) -> None:
        """Read what operators ask for, and watch it."""
        path = f"{self._base}/control"

        def touched(_event: Any) -> None:
            self._post(events.ControlTouched())

        def read(result: Any) -> None:
            error = result.exception
            if error is None:
                data, _stat = result.value
                self._post(events.ControlRead(Control.decode(data) if data else None))
            elif isinstance(error, zk.NoNodeError):
                self._post(events.ControlRead(None))
            elif isinstance(error, zk.NoAuthError):
                refused = f"ZooKeeper refuses to let us read {path}: check the credentials and the ACL there"
                self._post(events.Refused(term.EXIT_NO_PERMISSION, refused))
            # Else the connection is lost, and it is read again once there is another.

        self._call("get_async", path, touched, then=read)

    def _call(self, method: str, *args: Any, then: Callable[[Any], None]) -> None:
        if self._client is not None:
            getattr(self._client, method)(*args).rawlink(then)

    # what is written down on the side

    def term_began(self, epoch: int, member_id: str, after: actions.Rival | None, offset_s: float) -> None:
        """Note the beginning of a term, and the end of one whose leader could not."""
        began = clock.wall() - offset_s
        seen_ago_s = clock.now() - after.seen_at if after is not None and after.seen_at is not None else None

        def note(client: KazooClient) -> None:
            terms = f"{self._base}/terms"
            epochs = sorted(name for name in _get(client.get_children_async(terms)) if name.isdigit())
            gap = None
            if epochs:
                last_path = f"{terms}/{epochs[-1]}"
                data, _stat = _get(client.get_async(last_path))
                last = TermRecord.decode(data)
                if last is not None and last.end is None:
                    ended = began - seen_ago_s if seen_ago_s is not None else None
                    last = replace(last, end=ended, why="lost: the leader did not say why")
                    _get(client.set_async(last_path, last.encode()))
                if last is not None and last.end is not None:
                    gap = round(began - last.end, 3)
            mine = TermRecord(epoch=epoch, id=member_id, start=round(began, 3), gap=gap)
            with contextlib.suppress(zk.NodeExistsError):
                _get(client.create_async(f"{terms}/{epoch:020d}", mine.encode()))
            for name in epochs[: max(len(epochs) + 1 - TERMS_KEPT, 0)]:
                with contextlib.suppress(zk.NoNodeError):
                    _get(client.delete_async(f"{terms}/{name}"))

        self._note(note)

    def term_ended(self, epoch: int, why: str, offset_s: float) -> None:
        """Note the end of a term."""
        ended = round(clock.wall() - offset_s, 3)

        def note(client: KazooClient) -> None:
            path = f"{self._base}/terms/{epoch:020d}"
            data, _stat = _get(client.get_async(path))
            mine = TermRecord.decode(data)
            if mine is not None:
                _get(client.set_async(path, replace(mine, end=ended, why=why).encode()))

        self._note(note)

    def flush_notes(self, within_s: float) -> None:
        """Wait until what was to be written down is written, but not for long."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._notes.put_nowait(written.set)
            written.wait(within_s)

    def _note(self, write: Callable[[KazooClient], None]) -> None:
        client = self._client
        if client is not None:
            with contextlib.suppress(queue.Full):
                self._notes.put_nowait(lambda: write(client))

    def _keep_notes(self) -> None:
        while True:
            write = self._notes.get()
            # Best effort: the history of the terms is for people, and nothing depends on it.
            with contextlib.suppress(Exception):
                write()


def _get(result: Any) -> Any:
    return result.get(timeout=CALL_TAKES_AT_MOST_S)
