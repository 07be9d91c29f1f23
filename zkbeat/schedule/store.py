"""The schedule's edge to ZooKeeper: one session, one writer. Carries out what the book says, and decides nothing.

Each transaction checks the leader's election znode, and replaces the intent at the version that is known: a leader that
has been deposed, or a second writer, cannot get one through. When the answer is lost, the intent tells whether it did.
All calls are bounded; those that find no ensemble raise `UnavailableError`, and can be repeated.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from kazoo import exceptions as zk
from kazoo.handlers.threading import KazooTimeoutError

from zkbeat import client
from zkbeat.core import schedule
from zkbeat.core.record import Term
from zkbeat.core.schedule import Book, Change
from zkbeat.settings import Place

CALL_WITHIN_S = 2.0
"""How long to wait for an answer before the loop is given a turn; the call may still go through."""

_LOST = (zk.ConnectionLoss, zk.SessionExpiredError, zk.OperationTimeoutError, zk.ConnectionClosedError)


class UnavailableError(Exception):
    """There is no ensemble that answers; whether the last call went through is not known."""


class FencedError(Exception):
    """The leader's election znode is gone: this process leads no more."""


class SupersededError(Exception):
    """Somebody else has written the schedule: it is to be read anew."""


class ControlChangedError(Exception):
    """An operator has written meanwhile: what they ask for is to be read again."""


class RefusedError(Exception):
    """ZooKeeper refuses the credentials, or the rights; the message is one line."""


class Store:
    """One session, for the one thread that is beat's loop."""

    def __init__(self, place: Place, leader: str | None) -> None:
        """`leader`: the election znode that each transaction checks; None for a beat without an election."""
        self._place = place
        self._leader = leader
        self._error = ""
        self._client = client.plain_client(place.access, on_error=self._failed)
        self._live = self._client.start_async()
        self._confirming: tuple[Change, Any] | None = None
        self._doubted: Change | None = None

    def _failed(self, error: Exception) -> None:
        self._error = client.describe(error)

    def wait_connected(self, within_s: float) -> None:
        """Wait for the session, but not for long."""
        self._live.wait(within_s)

    # reading

    def take_over(self, book: Book) -> list[str]:
        """Become the schedule's writer, and read all of it into an empty book; return what could not be read.

        Our own write comes first: whatever a former leader got through is seen by what we read after it.
        """
        self._confirming = self._doubted = None
        for path in (schedule.STATE, schedule.ABOUT):
            self._call("ensure_path", path)
        garbage: list[str] = []
        book.intent, book.intent_version = self._find_intent()
        if not book.intent.id and book.intent_version >= 0:
            garbage.append(schedule.INTENT)
        self.commit(book, book.change())
        try:
            self.look(book)
        except schedule.GarbageError as error:
            garbage.append(str(error))
        numbers = schedule.bucket_numbers(self._call("get_children", schedule.STATE))
        for number, answer in [(number, self._ask("get", schedule.bucket_path(number))) for number in numbers]:
            data, stat = self._answer(answer)
            try:
                garbage += book.read_bucket(number, data, stat.version)
            except schedule.GarbageError as error:
                garbage.append(str(error))
        return garbage

    def look(self, book: Book) -> bool:
        """Read what operators ask for; say whether that has changed. Raises GarbageError, once, and NewerError."""
        try:
            data, version = self._get(schedule.CONTROL)
        except zk.NoNodeError:
            data, version = schedule.Control().encode(), -1
        if version == book.control_version:
            return False
        book.control_version = version  # of what cannot be read, too: it is told once, and what was known stays
        book.read_control(data, version)
        return True

    # writing

    def commit(self, book: Book, change: Change) -> None:
        """Carry out a change; nothing else may be under way, or in doubt.

        Raises UnavailableError if it is not known whether it went through: `settle` finds out. Raises FencedError,
        SupersededError.
        """
        self._doubted = change
        self._finish(book, change, self._send(change))

    def confirm(self, change: Change) -> None:
        """Begin to carry out a change that nothing waits for: what was sent. One is under way at a time."""
        self._confirming = change, self._send(change)

    @property
    def confirming(self) -> bool:
        """Whether a confirm is under way; `poll` and `settle` say how it ended."""
        return self._confirming is not None

    def poll(self, book: Book) -> None:
        """Take the answer of a confirm, if it is there. Raises as `commit` does."""
        if self._confirming is not None and self._confirming[1].ready():
            self.settle(book)

    def settle(self, book: Book) -> None:
        """Find out how what is under way, or in doubt, has ended. Raises as `commit` does."""
        if self._confirming is not None:
            (change, answer), self._confirming = self._confirming, None
            self._doubted = change
            self._finish(book, change, answer)
        elif self._doubted is not None:
            intent, version = self._find_intent()  # as long as there is no answer, the doubt stays
            change, self._doubted = self._doubted, None
            if intent.id == change.intent.id:
                book.changed(change)
            elif version != book.intent_version:
                raise SupersededError(intent.id)

    def _find_intent(self) -> tuple[schedule.Intent, int]:
        """Return what stands there, and its version: of what cannot be read, that alone."""
        try:
            data, version = self._get(schedule.INTENT)
        except zk.NoNodeError:
            return schedule.Intent(), -1
        try:
            return schedule.Intent.decode(data), version
        except schedule.GarbageError:
            return schedule.Intent(), version

    def _send(self, change: Change) -> Any:
        transaction = self._client.transaction()
        if self._leader is not None:
            transaction.check(self._leader, -1)
        for write in change.writes:
            if write.version < 0:
                transaction.create(self._path(write.path), write.data)
            else:
                transaction.set_data(self._path(write.path), write.data, write.version)
        self._check_connected()
        return transaction.commit_async()

    def _finish(self, book: Book, change: Change, answer: Any) -> None:
        results = self._answer(answer)
        errors = [one for one in results if isinstance(one, Exception)]
        if not errors:
            self._doubted = None
            book.changed(change)
            return
        self._doubted = None  # it is known: nothing of it went through
        if self._leader is not None and isinstance(results[0], zk.NoNodeError):
            raise FencedError(self._leader)
        if any(isinstance(one, zk.NoAuthError) for one in errors):
            raise self._refused()
        checks = 0 if self._leader is None else 1
        for write, result in zip(change.writes, results[checks:], strict=False):
            if isinstance(result, (zk.BadVersionError, zk.NoNodeError, zk.NodeExistsError)):
                raise ControlChangedError if write.path == schedule.CONTROL else SupersededError(write.path)
        raise UnavailableError(", ".join(sorted({client.describe(one) for one in errors})))

    # what is written down on the side

    def tell(self, number: int, about: bytes) -> None:
        """Have this stand as the texts of a bucket."""
        path = schedule.bucket_path(number, schedule.ABOUT)
        try:
            if self._get(path)[0] != about:
                self._call("set", path, about)
        except zk.NoNodeError:
            with contextlib.suppress(zk.NodeExistsError):  # by somebody else who leads no more, or is not fenced
                self._call("create", path, about)

    def report_missed(self, epoch: int, missed: int) -> bool:
        """Add to what the term's record says was missed; return False if the record is not there yet."""
        path = f"terms/{epoch:020d}"
        try:
            data, version = self._get(path)
            term = Term.decode(data)
            if term is not None:
                total = (term.missed or 0) + missed
                self._call("set", path, replace(term, missed=total).encode(), version)
        except (zk.NoNodeError, zk.BadVersionError):
            return False
        return True

    # calls

    def close(self, within_s: float) -> None:
        """Close the session, if that is possible in time."""
        client.stop_within(self._client, within_s)

    def _path(self, path: str) -> str:
        return f"{self._place.base}/{path}"

    def _get(self, path: str) -> tuple[bytes, int]:
        data, stat = self._call("get", path)
        return data, stat.version

    def _call(self, method: str, path: str, *args: Any) -> Any:
        return self._answer(self._ask(method, path, *args))

    def _ask(self, method: str, path: str, *args: Any) -> Any:
        self._check_connected()
        return getattr(self._client, f"{method}_async")(self._path(path), *args)

    def _check_connected(self) -> None:
        # Else kazoo queues it, for as long as it takes, and it would act after the loop has moved on.
        if not self._client.connected:
            raise UnavailableError(self._error or "no connection yet")

    def _answer(self, answer: Any) -> Any:
        try:
            return answer.get(timeout=CALL_WITHIN_S)
        except zk.NoAuthError:
            raise self._refused() from None
        except zk.AuthFailedError:
            raise RefusedError("ZooKeeper refuses the credentials") from None
        except (*_LOST, KazooTimeoutError) as error:
            raise UnavailableError(client.describe(error)) from None

    def _refused(self) -> RefusedError:
        return RefusedError(f"ZooKeeper refuses to let us write below {self._place.base}: check credentials and ACLs")
