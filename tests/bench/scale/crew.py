"""Many contenders in a few processes, and the orders that they take.

A process has one loop for all of its contenders, and kazoo's threads for each. The driver talks to it over a pipe: an
order, an answer, each within a limit.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.scale.contender import Contender, Spec
from tests.support.waiting import wait_until
from zkbeat import clock
from zkbeat.core import events

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    from typing_extensions import Self

    from tests.bench.scale.timeline import Record

ANSWERS_WITHIN_S = 120.0

STACK_BYTES = 512 * 1024
"""A thousand threads in a process: the default of 8 MB each is only address space, but there is no need for it."""

JOINING_AT_ONCE = 20
"""How many contenders are started at the same moment: a rolling deploy, not a power cut."""

JOIN_EVERY_S = 0.4


class _Loop(threading.Thread):
    """One loop for all contenders of a process, as `sidecar` has one for its own."""

    def __init__(self) -> None:
        super().__init__(name="loop", daemon=True)
        self._events: queue.SimpleQueue[tuple[Contender, events.Event]] = queue.SimpleQueue()
        self._due: list[tuple[float, int, Contender]] = []
        self._serial = itertools.count()
        self._planned: dict[Contender, float | None] = {}

    def wake(self, contender: Contender, event: events.Event) -> None:
        self._events.put((contender, event))

    def run(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                contender, event = self._events.get(timeout=self._patience_s())
                if isinstance(event, events.Began):
                    contender.begin()
                else:
                    contender.step(event)
                self._plan(contender)
            self._tell_time()

    def _patience_s(self) -> float:
        return max(self._due[0][0] - clock.now(), 0.0) if self._due else 1.0

    def _plan(self, contender: Contender) -> None:
        at = contender.next_deadline
        if at != self._planned.get(contender):
            self._planned[contender] = at
            if at is not None:
                heapq.heappush(self._due, (at, next(self._serial), contender))

    def _tell_time(self) -> None:
        while self._due and self._due[0][0] <= clock.now():
            at, _, contender = heapq.heappop(self._due)
            if self._planned.get(contender) == at:
                self._planned[contender] = None
                contender.step(events.Time())
                self._plan(contender)


class _Worker:
    """The process' end of the pipe: each public method is an order."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._loop = _Loop()
        self._records: list[Record] = []
        self._contenders: dict[int, Contender] = {}
        self._loop.start()

    def join(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            contender = self._contenders[number] = Contender(number, self._spec, self._loop.wake, self._records)
            self._loop.wake(contender, events.Began())

    def settled(self) -> int:
        return sum(contender.settled for contender in self._contenders.values())

    def leaders(self) -> list[tuple[int, str | None]]:
        return [(one.number, one.znode) for one in self._contenders.values() if one.leads]

    def sessions(self) -> dict[int, int | None]:
        return {one.number: one.state.session for one in self._contenders.values()}

    def step_down(self, number: int) -> None:
        self._loop.wake(self._contenders[number], events.StepDownRequested("asked to"))

    def fall_silent(self, number: int) -> float | None:
        return self._contenders[number].fall_silent()

    def replace(self, number: int) -> None:
        """Start a contender again that had fallen silent."""
        self._contenders[number].abandon()
        self.join([number])

    def unsettled(self) -> list[str]:
        return [f"{one.number}: {one.state}" for one in self._contenders.values() if not one.settled][:3]

    def take_records(self) -> list[Record]:
        count = len(self._records)
        taken, self._records[:count] = self._records[:count], []
        return taken


def _serve(spec: Spec, orders: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends us
    threading.stack_size(STACK_BYTES)
    worker = _Worker(spec)
    while True:
        try:
            order, args = orders.recv()
        except EOFError:
            os._exit(0)  # thousands of threads need not be waited for
        orders.send(getattr(worker, order)(*args))


@dataclass(frozen=True)
class Leader:
    number: int
    znode: str


class Crew:
    """`count` contenders in `processes` processes; as a context manager it is ended, its sessions left to expire."""

    def __init__(self, spec: Spec, count: int, processes: int) -> None:
        self.spec, self.count = spec, count
        context = multiprocessing.get_context("spawn")
        self._workers = []
        for _ in range(min(processes, count)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(spec, theirs), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    @property
    def pids(self) -> list[int]:
        return [process.pid for process, _ in self._workers if process.pid is not None]

    def join(self, within_s: float = 120.0) -> float:
        """Have all of them join, some at a time; return how long it took until all had settled."""
        began_at = clock.now()
        self.join_without_waiting()
        self.wait_settled(within_s)
        return clock.now() - began_at

    def join_without_waiting(self) -> None:
        for first in range(0, self.count, JOINING_AT_ONCE):
            for index in range(len(self._workers)):
                numbers = range(first, min(first + JOINING_AT_ONCE, self.count))
                self._ask(index, "join", [number for number in numbers if number % len(self._workers) == index])
            time.sleep(JOIN_EVERY_S if first + JOINING_AT_ONCE < self.count else 0.0)

    def leading(self) -> int:
        return len(self._leaders())

    def wait_leading(self, count: int, within_s: float) -> None:
        """Wait until so many lead, each in its election; or give up without a word."""
        give_up_at = clock.now() + within_s
        while self.leading() < count and clock.now() < give_up_at:
            time.sleep(1.0)

    def wait_settled(self, within_s: float) -> None:
        def all_settled() -> bool:
            return sum(self._ask_all("settled")) == self.count and self.leading() == 1

        wait_until(all_settled, within_s, f"{self.count} contenders to settle", self._unsettled, every_s=0.5)

    def leader(self, other_than: int | None = None, within_s: float = 30.0) -> Leader:
        """Return the leader of the only election, as soon as there is one other than that."""

        def found() -> Leader | None:
            return next((Leader(*one) for one in self._leaders() if one[0] != other_than), None)

        leader = wait_until(found, within_s, "a leader", self._unsettled, every_s=0.05)
        assert leader is not None
        return leader

    def sessions(self) -> dict[int, int]:
        return {number: session for some in self._ask_all("sessions") for number, session in some.items()}

    def order(self, leader: Leader, order: str) -> Any:
        return self._ask(leader.number % len(self._workers), order, leader.number)

    def take_records(self) -> list[Record]:
        return [record for records in self._ask_all("take_records") for record in records]

    @contextlib.contextmanager
    def stepping_back(self) -> Iterator[None]:
        """Meanwhile leave the servers their share of the CPU, as if each contender had a machine of its own."""
        self._renice(10)
        try:
            yield
        finally:
            self._renice(0)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, orders in self._workers:
            process.kill()
            process.join(10)
            orders.close()

    def _signal(self, number: int) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def _renice(self, to: int) -> None:
        for task in (task for pid in self.pids for task in Path(f"/proc/{pid}/task").iterdir()):
            # A thread may have ended meanwhile; and only root may take a priority back.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), to)

    def _leaders(self) -> list[tuple[int, str]]:
        return [leader for leaders in self._ask_all("leaders") for leader in leaders]

    def _unsettled(self) -> str:
        return "\n".join(line for lines in self._ask_all("unsettled") for line in lines)

    def _ask_all(self, order: str) -> list[Any]:
        for _, orders in self._workers:
            orders.send((order, ()))
        return [self._answer(index, order) for index in range(len(self._workers))]

    def _ask(self, index: int, order: str, *args: object) -> Any:
        self._workers[index][1].send((order, args))
        return self._answer(index, order)

    def _answer(self, index: int, order: str) -> Any:
        orders = self._workers[index][1]
        if not orders.poll(ANSWERS_WITHIN_S):
            raise TimeoutError(f"process {index} of the contenders does not answer to {order!r}")
        return orders.recv()
