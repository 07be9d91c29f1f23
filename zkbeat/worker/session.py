"""The worker's one session with ZooKeeper: questions with a deadline, and a thread for what can wait.

It is made by the first message that needs it, in the worker's main process. A pool process that is forked later
inherits the socket, and closes it.

Everything asked here must be repeatable: after a lost connection nobody knows whether the server has done it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient, KazooState
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import KeeperState

from zkbeat import clock
from zkbeat.access import Access
from zkbeat.client import describe, plain_client, stop_within

logger = logging.getLogger("zkbeat.worker")

_FIRST_CONNECT_WITHIN_S = 3.0
"""The first message waits for the connection that it has caused; what comes later does not."""
_ANEW_AFTER_S = 30.0
"""How long a client whose credentials were refused is left alone before another one tries."""
_TRY_AGAIN_AFTER_S = 0.5
_UNANSWERED_FOR_S = 5.0
"""How long one unanswered question speaks for all; kazoo may drop one that races with a reconnect."""
_CLOSE_WITHIN_S = 2.0
_ANSWERS = (zk.NodeExistsError, zk.NoNodeError, zk.NotEmptyError)

Begin = Callable[[KazooClient], Any]


class UnavailableError(Exception):
    """ZooKeeper could not be asked, or did not answer in time; what was asked may have been done all the same."""


class Session:
    """One session, which comes back by itself, as another one, after it was lost."""

    def __init__(self, access: Access) -> None:
        self._hosts = access.hosts
        self._access = access
        self._mutex = threading.Lock()
        self._client: KazooClient | None = None
        self._made_at = 0.0
        self._up = threading.Event()
        self._unanswered: Any = None
        self._unanswered_since = 0.0
        self._outage = False
        self._jobs: deque[Callable[[], None]] = deque()
        self._job_there = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._error = ""
        self.on_lost: list[Callable[[], None]] = []
        """Called in kazoo's thread when a session has expired, with all that was ephemeral: must not wait."""

    @property
    def up(self) -> bool:
        """Whether it is connected, as far as is known."""
        return self._up.is_set()

    def ask(self, begin: Begin, deadline: float) -> Any:
        """Return the answer to what `begin` has sent, or raise it: that a znode exists, does not, or is not empty.

        Raises UnavailableError: at once where the client knows that it is not connected, or where an earlier question
        is still unanswered, so that an outage costs one wait and not one for each message.
        """
        while True:
            client = self._connected()
            answer = begin(client)
            try:
                return answer.get(timeout=max(deadline - clock.now(), 0.001))
            except _ANSWERS:
                raise
            except KazooTimeoutError:
                self._unanswered, self._unanswered_since = answer, clock.now()
                raise UnavailableError("it does not answer") from None
            except zk.ConnectionLoss:
                # A new connection is often there at once: to another server, when this one is restarted.
                if not self._up.wait(max(deadline - clock.now(), 0.0)):
                    raise UnavailableError("the connection was lost") from None
            except Exception as error:
                raise UnavailableError(describe(error)) from error

    def send(self, begin: Begin) -> bool:
        """Have this done in the order of what is sent, without waiting for it; False if it was not sent."""
        client = self._client
        if client is None or not self.up:
            return False
        begin(client)
        return True

    def later(self, job: Callable[[], None]) -> None:
        """Have the thread do this, one after the other, and again for as long as it raises UnavailableError."""
        with self._mutex:
            self._jobs.append(job)
            self._job_there.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="zkbeat-worker", daemon=True)
                self._thread.start()

    def failed(self, why: Exception, so: str) -> None:
        """Warn, once for each outage."""
        if not self._outage:
            self._outage = True
            reason = f"{why} ({self._error})" if self._error and not self.up else str(why)
            logger.warning("zkbeat: no word from ZooKeeper at %s: %s; until there is, %s", self._hosts, reason, so)

    def worked(self) -> None:
        """Say so, if it did not before. Not for every answer: there may be one that it is not allowed."""
        if self._outage:
            self._outage = False
            logger.info("zkbeat: ZooKeeper at %s answers again", self._hosts)

    def close(self) -> None:
        """End the session; everything ephemeral goes with it. Takes 2 s at most."""
        self._closed.set()
        self._job_there.set()
        with self._mutex:
            client, self._client = self._client, None
        self._up.clear()
        if client is not None:
            stop_within(client, _CLOSE_WITHIN_S)

    def abandon(self) -> None:
        """In a forked process: let go of the parent's socket, without a word to the server."""
        client, self._client = self._client, None
        self._up = threading.Event()
        self._closed.set()
        with contextlib.suppress(Exception):
            os.close(client._connection._socket.detach())  # type: ignore[union-attr]  # noqa: SLF001

    def _connected(self) -> KazooClient:
        client = self._started()
        unanswered = self._unanswered
        if unanswered is not None:
            if not unanswered.ready() and clock.now() - self._unanswered_since < _UNANSWERED_FOR_S:
                raise UnavailableError("it does not answer")
            self._unanswered = None
        patience_s = self._made_at + _FIRST_CONNECT_WITHIN_S - clock.now()
        if not self._up.wait(max(patience_s, 0.0)):
            raise UnavailableError("not connected")
        return client

    def _started(self) -> KazooClient:
        with self._mutex:
            if self._closed.is_set():
                raise UnavailableError("the worker is being stopped")
            client = self._client
            refused = client is not None and client.client_state == KeeperState.AUTH_FAILED
            if refused and clock.now() - self._made_at > _ANEW_AFTER_S:
                threading.Thread(target=stop_within, args=(client, _CLOSE_WITHIN_S), daemon=True).start()
                client = None
            if client is None:
                client = self._client = plain_client(self._access, on_error=self._on_error)
                self._made_at = clock.now()
                client.add_listener(self._on_state)
                client.start_async()
            return client

    def _on_state(self, state: str) -> None:
        if state == KazooState.CONNECTED:
            self._error = ""
            self._up.set()
        else:
            self._up.clear()
            self._unanswered = None  # whatever it was has failed with the connection
            if state == KazooState.LOST and not self._closed.is_set():
                for tell in self.on_lost:
                    tell()

    def _on_error(self, error: Exception) -> None:
        self._error = describe(error)

    def _work(self) -> None:
        while not self._closed.is_set():
            self._job_there.wait()
            with self._mutex:
                if not self._jobs:
                    self._job_there.clear()
                    continue
                job = self._jobs[0]
            try:
                job()
            except UnavailableError:
                self._closed.wait(_TRY_AGAIN_AFTER_S)
                continue
            except Exception:
                logger.exception("zkbeat: %r failed", job)
            with self._mutex:
                self._jobs.popleft()


_sessions: dict[Access, Session] = {}


def session_with(access: Access) -> Session:
    """Return this process's session; it is not connected before somebody asks."""
    return _sessions.setdefault(access, Session(access))


def close_all() -> None:
    """End the sessions of this process; a worker that is started in it afterwards has new ones."""
    while _sessions:
        _sessions.popitem()[1].close()


def _abandon_all() -> None:
    while _sessions:
        _sessions.popitem()[1].abandon()


os.register_at_fork(after_in_child=_abandon_all)
