"""Which runs are going on: an ephemeral znode for each, which goes with the worker's session.

A run has two znodes, made and deleted together: BASE/runs/KEY, the lock, and BASE/run-tokens/TOKEN with a name that no
other run has. ZooKeeper cannot be told "delete KEY if it is mine": versions begin at 0 for everybody. But a transaction
that deletes both fails as a whole when the token is gone, and the token goes, with the lock, when the session does. So
deleting twice, late, or under another session never takes the lock of somebody else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from kazoo import exceptions as zk
from kazoo.client import KazooClient

from zkbeat import clock
from zkbeat.worker.session import Session, UnavailableError, logger

_WITHIN_S = 1.0
_RELEASE_WITHIN_S = 10.0
_RACES = 10
_KEY_AT_MOST = 200


@dataclass(eq=False)
class Run:
    """A run that has, or wants, the lock."""

    key: str
    task_id: str
    label: str
    """For the log."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Holder:
    """Who is in the way."""

    token: str
    task_id: str
    worker: str
    here: bool
    """In this process."""


class Runs:
    """The locks that this worker holds."""

    def __init__(self, session: Session, base: str, who: str) -> None:
        self._session = session
        self._locks = f"{base}/runs"
        self._tokens = f"{base}/run-tokens"
        self._who = who
        self._mutex = threading.Lock()
        self._held: dict[str, Run] = {}
        self._going: dict[str, Run] = {}
        """Let go of, but the server has not said yet that it knows."""
        session.on_lost.append(self._lost)

    def take(self, run: Run) -> Holder | None:
        """Take the lock; return who has it, if somebody has. Raises UnavailableError: then it may be taken or not.

        Either way `release` is owed, unless a holder is returned.
        """
        deadline = clock.now() + _WITHIN_S
        with self._mutex:
            self._held[run.token] = run
            going = [other for other in self._going.values() if other.key == run.key]
        for other in going:
            self._session.send(functools.partial(self._delete, run=other))  # first things first
        for _ in range(_RACES):
            results = self._session.ask(functools.partial(self._create, run=run), deadline)
            if all(isinstance(result, str) for result in results):
                self._session.worked()
                return None
            if any(isinstance(result, zk.NodeExistsError) for result in results):
                holder = self._holder(run, deadline)
                if holder is None:
                    continue
                self._session.worked()
                if holder.token == run.token:  # the answer to the first attempt was lost
                    return None
                with self._mutex:
                    self._held.pop(run.token, None)
                    here = holder.token in self._held or holder.token in self._going
                return Holder(holder.token, holder.task_id, holder.worker, here)
            if any(isinstance(result, zk.NoNodeError) for result in results):
                for parent in (self._locks, self._tokens):
                    self._session.ask(functools.partial(_ensure, path=parent), deadline)
                continue
            raise UnavailableError(f"{self._lock_of(run)}: {results}")
        raise UnavailableError(f"{self._lock_of(run)} comes and goes")

    def release(self, run: Run) -> None:
        """Let go, without waiting, at once where that is possible and else as soon as ZooKeeper is back."""
        with self._mutex:
            if self._held.pop(run.token, None) is None:
                return
            self._going[run.token] = run
        self._session.send(functools.partial(self._delete, run=run))
        self._session.later(functools.partial(self._see_it_gone, run))

    def _see_it_gone(self, run: Run) -> None:
        # Again, as nobody has looked at the first answer.
        self._session.ask(functools.partial(self._delete, run=run), clock.now() + _RELEASE_WITHIN_S)
        with self._mutex:
            self._going.pop(run.token, None)

    def _lost(self) -> None:
        with self._mutex:
            held = list(self._held.values())
        for run in held:
            logger.warning("zkbeat: the session with ZooKeeper was lost: %s goes on without its lock", run.label)
            self._session.later(functools.partial(self._take_again, run))

    def _take_again(self, run: Run) -> None:
        """Lock the rest of the run, unless another one has begun meanwhile."""
        if run.token not in self._held:
            return
        results = self._session.ask(functools.partial(self._create, run=run), clock.now() + _RELEASE_WITHIN_S)
        if all(isinstance(result, str) for result in results):
            logger.info("zkbeat: %s has its lock again", run.label)
        with self._mutex:
            over = run.token not in self._held
            if over:
                self._going[run.token] = run
        if over:  # its release may have come before the lock did
            self._see_it_gone(run)

    def _holder(self, run: Run, deadline: float) -> _Data | None:
        try:
            data, _stat = self._session.ask(lambda client: client.get_async(self._lock_of(run)), deadline)
        except zk.NoNodeError:
            return None
        return _Data.decode(data)

    def _create(self, client: KazooClient, run: Run) -> Any:
        about = {"token": run.token, "id": run.task_id, "worker": self._who, "at": round(clock.wall(), 3)}
        transaction = client.transaction()
        transaction.create(self._lock_of(run), json.dumps(about).encode(), ephemeral=True)
        transaction.create(self._token_of(run), ephemeral=True)
        return transaction.commit_async()

    def _delete(self, client: KazooClient, run: Run) -> Any:
        transaction = client.transaction()
        transaction.delete(self._token_of(run))
        transaction.delete(self._lock_of(run))
        return transaction.commit_async()

    def _lock_of(self, run: Run) -> str:
        return f"{self._locks}/{run.key}"

    def _token_of(self, run: Run) -> str:
        return f"{self._tokens}/{run.token}"


@dataclass(frozen=True)
class _Data:
    token: str
    task_id: str
    worker: str

    @classmethod
    def decode(cls, data: bytes) -> _Data:
        try:
            raw = json.loads(data)
            return cls(str(raw["token"]), str(raw["id"]), str(raw["worker"]))
        except (ValueError, KeyError, TypeError):
            return cls("", "?", "?")


def key_of(task: str, key: str) -> str:
    """Return the name of the lock's znode."""
    name = quote(task, safe="") + (f"={quote(key, safe='')}" if key else "")
    if len(name) > _KEY_AT_MOST:
        name = f"{name[:_KEY_AT_MOST]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name if name.strip(".") else name.replace(".", "%2E")


def _ensure(client: KazooClient, path: str) -> Any:
    return client.ensure_path_async(path)
