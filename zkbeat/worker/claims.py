"""Which message a tick belongs to: one znode for each tick, made by the first worker that gets a message of it.

BASE/claims/SLOT/HASH holds the nonce of the publish attempt. SLOT is ten minutes of *due* times, so that all messages
of one tick meet at one path, however late each is. Old slots are deleted as a whole by the worker that makes a new one:
about one of all the workers, every ten minutes, without anybody electing it.

A slot's age counts from its due times or, if that is later, from when the server saw it made; and by the server's clock
or the worker's, whichever says that it is younger. So a clock that is wrong makes claims stay longer, and has to be
wrong together with another one to make them go too early.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient

from zkbeat import clock
from zkbeat.worker.session import Session, UnavailableError, logger

_WITHIN_S = 1.0
"""How long a claim may hold up the worker's loop."""
_RACES = 10
_SLOT_S = 600
_SLOT_FORM = "%Y%m%dT%H%MZ"
_BELIEVED_AHEAD_S = 86_400.0
"""A due time further in the future than this, as the server sees it, does not keep a slot any longer."""
_CLEAN_WITHIN_S = 10.0
_CLEAN_AT_MOST = 100_000
_AT_ONCE = 100


@dataclass(frozen=True)
class Tick:
    """What the headers of a beat's message say."""

    text: str
    slot: str
    nonce: str

    @classmethod
    def of(cls, text: Any, nonce: Any) -> Tick | None:
        """Return the tick, or None for headers that zkbeat has not written."""
        if not (isinstance(text, str) and isinstance(nonce, str) and nonce):
            return None
        try:
            # What somebody asked for has its id behind the instant.
            due = datetime.fromisoformat(text.rpartition("@")[2].partition("#")[0])
            at = (due if due.tzinfo else due.replace(tzinfo=timezone.utc)).timestamp()
            return cls(text, _slot(at), nonce)
        except (ValueError, OverflowError, OSError):
            return None


class Claims:
    """The claims of one election's ticks."""

    def __init__(self, session: Session, base: str, kept_s: float, who: str) -> None:
        self._session = session
        self._root = f"{base}/claims"
        self._kept_s = kept_s
        self._who = who

    def claim(self, tick: Tick, task: str) -> bool:
        """Say whether this message may run: whether the tick is its own, from now on or from earlier.

        Of each task apart: a task that hands its headers on to another one has not given its tick away.
        Raises UnavailableError.
        """
        deadline = clock.now() + _WITHIN_S
        slot = f"{self._root}/{tick.slot}"
        # An entry's name may hold half of a surrogate pair.
        digest = hashlib.sha256(f"{task} {tick.text}".encode("utf-8", "surrogatepass")).hexdigest()
        path = f"{slot}/{digest[:32]}"
        about = {"nonce": tick.nonce, "tick": tick.text, "worker": self._who, "at": round(clock.wall(), 3)}
        data = json.dumps(about).encode()
        for _ in range(_RACES):
            try:
                self._session.ask(lambda client: client.create_async(path, data), deadline)
            except zk.NoNodeError:
                self._make(slot, deadline)
            except zk.NodeExistsError:
                # Perhaps by this very message: the answer to the first attempt may have been lost.
                try:
                    found, _stat = self._session.ask(lambda client: client.get_async(path), deadline)
                except zk.NoNodeError:
                    continue
                self._session.worked()
                return bool(_nonce(found) == tick.nonce)
            else:
                self._session.worked()
                return True
        raise UnavailableError(f"{slot} was removed again and again")

    def clean(self, made: str) -> None:
        """Delete the slots that are old enough; `made` was made just now, so it knows what time it is there."""
        try:
            self._clean(made)
        except UnavailableError as error:
            logger.debug("zkbeat: old claims stay for now: %s", error)

    def _make(self, slot: str, deadline: float) -> None:
        try:
            self._session.ask(lambda client: client.create_async(slot, makepath=True), deadline)
        except (zk.NodeExistsError, zk.NoNodeError):
            return
        self._session.later(functools.partial(self.clean, slot))

    def _ask(self, method: str, *args: Any) -> Any:
        return self._session.ask(lambda client: getattr(client, method)(*args), clock.now() + _CLEAN_WITHIN_S)

    def _clean(self, made: str) -> None:
        stat = self._ask("exists_async", made)
        if stat is None:
            return
        now = min(stat.ctime / 1000, clock.wall())
        left = _CLEAN_AT_MOST
        for name in sorted(self._ask("get_children_async", self._root)):
            slot = f"{self._root}/{name}"
            stat = self._ask("exists_async", slot)
            if stat is None or now - _young_until(name, stat.ctime / 1000) <= self._kept_s:
                continue
            left -= self._remove(slot, left)
            if left <= 0:
                return

    def _remove(self, slot: str, at_most: int) -> int:
        """Delete a slot, which others may be deleting as well; return how many claims went."""
        try:
            claims = self._ask("get_children_async", slot)[:at_most]
            for at in range(0, len(claims), _AT_ONCE):
                self._remove_all([f"{slot}/{name}" for name in claims[at : at + _AT_ONCE]])
            self._ask("delete_async", slot)
        except (zk.NoNodeError, zk.NotEmptyError):
            return 0
        logger.debug("zkbeat: deleted %s with %d claims", slot, len(claims))
        return len(claims)

    def _remove_all(self, paths: list[str]) -> None:
        def begin(client: KazooClient) -> Any:
            transaction = client.transaction()
            for path in paths:
                transaction.delete(path)
            return transaction.commit_async()

        if all(result is True for result in self._session.ask(begin, clock.now() + _CLEAN_WITHIN_S)):
            return
        for path in paths:  # one of them was gone already, which undoes all of the transaction
            try:
                self._ask("delete_async", path)
            except zk.NoNodeError:
                continue


def _slot(at: float) -> str:
    return datetime.fromtimestamp(at // _SLOT_S * _SLOT_S, timezone.utc).strftime(_SLOT_FORM)


def _young_until(name: str, made_at: float) -> float:
    """Return from when on a slot grows old, in seconds since the epoch."""
    try:
        due = datetime.strptime(name, _SLOT_FORM).replace(tzinfo=timezone.utc).timestamp() + _SLOT_S
    except ValueError:
        return made_at
    return max(made_at, min(due, made_at + _BELIEVED_AHEAD_S))


def _nonce(data: bytes) -> Any:
    try:
        return json.loads(data)["nonce"]
    except (ValueError, KeyError, TypeError):
        return None
