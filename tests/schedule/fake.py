"""A ZooKeeper in memory, and sessions with it that look like kazoo's, as far as the schedule's store makes use of them.

The real `Store` runs on it; `test_store_contract.py` holds it against the real ensemble. A session can be told what
becomes of its next calls, and a write whose answer was lost can arrive whenever that hurts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from kazoo import exceptions as zk

if TYPE_CHECKING:
    from collections.abc import Callable


class Fate(Enum):
    """What becomes of one call."""

    OK = "answered"
    SLOW = "carried out when somebody waits for it"
    DONE_UNHEARD = "carried out, the answer is lost"
    LOST = "neither"
    LATE = "the answer is lost, and it is carried out some time later"


@dataclass
class Stat:
    version: int


class Ensemble:
    """The znodes. `on_commit(before, note)` hears of each transaction that went through; the note is its session's."""

    def __init__(self) -> None:
        self.znodes: dict[str, tuple[bytes, int]] = {}
        self.late: deque[Callable[[], None]] = deque()
        self.on_commit: Callable[[dict[str, tuple[bytes, int]], Any], None] = lambda _before, _note: None

    def children(self, path: str) -> list[str]:
        below = {znode[len(path) + 1 :].split("/")[0] for znode in self.znodes if znode.startswith(f"{path}/")}
        return sorted(below)

    def deliver_late(self, at_most: int = 10**6) -> None:
        """Carry out what was lost on its way, the first of it first."""
        while self.late and at_most:
            at_most -= 1
            self.late.popleft()()

    def multi(self, operations: list[tuple[Any, ...]], note: Any) -> list[Any]:
        """Carry out all of them or none, and answer as kazoo does: one error that tells, and others around it."""
        before = dict(self.znodes)
        results: list[Any] = []
        for operation in operations:
            try:
                results.append(self._apply(*operation))
            except zk.KazooException as error:
                self.znodes = before
                rest = len(operations) - len(results) - 1
                return [
                    *(zk.RolledBackError() for _ in results),
                    error,
                    *(zk.RuntimeInconsistency() for _ in range(rest)),
                ]
        self.on_commit(before, note)
        return results

    def _apply(self, what: str, path: str, data: bytes = b"", version: int = -1) -> Any:
        found = self.znodes.get(path)
        if what == "create":
            if found is not None:
                raise zk.NodeExistsError
            self.znodes[path] = data, 0
            return path
        if found is None:
            raise zk.NoNodeError
        if version not in {-1, found[1]}:
            raise zk.BadVersionError
        if what == "set":
            self.znodes[path] = data, found[1] + 1
        return Stat(self.znodes[path][1])


class Answer:
    """What kazoo's asynchronous calls return."""

    def __init__(self, carry_out: Callable[[], Any], *, heard: bool = True) -> None:
        self._carry_out: Callable[[], Any] | None = carry_out
        self._heard = heard
        self._result: Any = None

    def settle(self) -> None:
        if self._carry_out is None:
            return
        carry_out, self._carry_out = self._carry_out, None
        try:
            self._result = carry_out()
        except zk.KazooException as error:
            self._result = error

    def ready(self) -> bool:
        return self._carry_out is None

    def get(self, timeout: float | None = None) -> Any:
        assert timeout, "a call that nothing bounds"
        self.settle()
        if not self._heard:
            raise zk.ConnectionLoss
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class Session:
    """One kazoo client."""

    def __init__(
        self,
        ensemble: Ensemble,
        reaches: Callable[[], bool] = lambda: True,
        point: Callable[[], None] = lambda: None,
        note: Callable[[], Any] = lambda: None,
    ) -> None:
        """`reaches`: whether there is a connection. `point`: called wherever the process may stop or be held up.

        `note`: what is true as a transaction is sent, for whoever hears when it went through.
        """
        self._ensemble = ensemble
        self._reaches = reaches
        self._point = point
        self._note = note
        self._waiting: deque[Answer] = deque()
        self.fates: deque[Fate] = deque()
        self.closed = False

    # as kazoo has it

    @property
    def connected(self) -> bool:
        return not self.closed and self._reaches()

    def start_async(self) -> Session:
        return self

    def wait(self, _within_s: float) -> bool:
        return self.connected

    def stop(self) -> None:
        for answer in self._waiting:
            answer.settle()
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def transaction(self) -> Transaction:
        return Transaction(self)

    def get_async(self, path: str) -> Answer:
        return self.submit(lambda: self._get(path))

    def get_children_async(self, path: str) -> Answer:
        return self.submit(lambda: self._ensemble.children(path))

    def ensure_path_async(self, path: str) -> Answer:
        return self.submit(lambda: self._ensemble.znodes.setdefault(path, (b"", 0)) and True)

    def set_async(self, path: str, data: bytes, version: int = -1) -> Answer:
        return self.submit(lambda: self._ensemble._apply("set", path, data, version))

    def create_async(self, path: str, data: bytes) -> Answer:
        return self.submit(lambda: self._ensemble._apply("create", path, data))

    def commit(self, operations: list[tuple[Any, ...]]) -> Answer:
        note = self._note()
        return self.submit(lambda: self._ensemble.multi(operations, note))

    def _get(self, path: str) -> tuple[bytes, Stat]:
        found = self._ensemble.znodes.get(path)
        if found is None:
            raise zk.NoNodeError
        return found[0], Stat(found[1])

    def submit(self, carry_out: Callable[[], Any]) -> Answer:
        """Carry it out after what was submitted before, as a session does; or as its fate has it."""
        self._point()
        fate = self.fates.popleft() if self.fates else Fate.OK
        while self._waiting:
            self._waiting.popleft().settle()
        if fate is Fate.LATE:
            self._ensemble.late.append(Answer(carry_out).settle)
        if fate in {Fate.LATE, Fate.LOST}:
            return Answer(lambda: None, heard=False)
        answer = Answer(carry_out, heard=fate is not Fate.DONE_UNHEARD)
        if fate is Fate.SLOW:
            self._waiting.append(answer)
        else:
            answer.settle()
            self._point()
        return answer


class Transaction:
    """kazoo's transaction request."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._operations: list[tuple[Any, ...]] = []

    def check(self, path: str, version: int) -> None:
        self._operations.append(("check", path, b"", version))

    def create(self, path: str, data: bytes) -> None:
        self._operations.append(("create", path, data))

    def set_data(self, path: str, data: bytes, version: int) -> None:
        self._operations.append(("set", path, data, version))

    def commit_async(self) -> Answer:
        return self._session.commit(self._operations)
