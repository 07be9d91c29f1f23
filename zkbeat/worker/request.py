"""The second place to keep a message from running: when the pool has room for it, so that waiting locks nothing.

`execute_using_pool` is the only way of a request into any pool, and raising TaskRevokedError there is how celery itself
decides not to run it: the pool's slot is given back.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from celery.worker import state
from celery.worker.request import Request

from zkbeat import clock
from zkbeat.worker.runs import Holder, Run, Runs, key_of
from zkbeat.worker.session import UnavailableError, logger
from zkbeat.worker.waiting import Wait, later

_SECOND_LOOK_AFTER_S = 0.02
"""The prefork pool gives a slot to the next request right before it says that the last one has ended, so a run of this
very worker that is in the way gets a moment to be over."""
_SEEN_IS_GOOD_FOR_S = 0.3
"""How long those that wait for one lock believe what one of them has seen."""
_KILLED_WITHIN_S = 10.0
_KILLED_EVERY_S = 0.05


class LockedRequest(Request):  # type: ignore[misc]
    """A request that passes the task's gate on its way into the pool, and tells it when the run is over."""

    zkbeat_run: Run | None = None
    zkbeat_wait: Wait | None = None
    zkbeat_looked_at: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Stay in front of what celery's `create_request_cls` overrides in a class of its own for each task."""
        super().__init_subclass__(**options)
        if "execute_using_pool" in cls.__dict__:
            cls.execute_using_pool = _gated(cls.execute_using_pool)
        if "on_success" in cls.__dict__:
            cls.on_success = _ending(cls.on_success)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """Take note of each end but success: failure, retry, a lost or terminated process, a hard time limit."""
        try:
            return super().on_failure(exc_info, *args, **options)
        finally:
            error = getattr(exc_info, "exception", None)
            _over(self, killed=isinstance(getattr(error, "exc", error), TimeLimitExceeded))

    def on_timeout(self, soft: Any, timeout: Any) -> Any:
        """Take note of a hard time limit: for gevent it is the only thing that is ever said."""
        try:
            return super().on_timeout(soft, timeout)
        finally:
            if not soft:
                _over(self, killed=True)


class Gate:
    """Lets a request of one task into the pool when it has the lock."""

    def __init__(
        self, task: Any, consumer: Any, runs: Runs, failed: Callable[[UnavailableError], None], *, fail_closed: bool
    ) -> None:
        self._task = task
        self._consumer = consumer
        self._runs = runs
        self._failed = failed
        self._fail_closed = fail_closed
        self._inside: set[LockedRequest] = set()
        self._seen: dict[str, tuple[float, Holder]] = {}

    @classmethod
    def of(cls, task: Any, *arguments: Any, **options: Any) -> Gate:
        """Put up a task's gate, for a new connection to the broker; the runs of the last one stay known."""
        gate = cls(task, *arguments, **options)
        last = getattr(task, "zkbeat_gate", None)
        task.zkbeat_gate = gate
        if last is not None:
            last.hand_over()
        return gate

    def hand_over(self) -> None:
        """Let go of the runs that will not be: the prefork pool forgets what no process has accepted yet.

        It does so when the connection to the broker is lost, without a word, and the broker sends them again.
        """
        for request in list(self._inside):
            if request.time_start is None and self._consumer.pool.uses_semaphore:
                self.over(request)

    def enter(self, request: LockedRequest) -> None:
        """Return if the request may run now. Raises TaskRevokedError if it may not; then it is taken care of."""
        if request.revoked():
            raise TaskRevokedError(request.id)
        run = request.zkbeat_run = Run(self._key(request), request.id, request.humaninfo())
        try:
            holder = self._seen_lately(request, run) or self._runs.take(run)
        except UnavailableError as error:
            self._failed(error)
            if self._fail_closed:
                self.over(request)  # it may have been taken all the same, and nobody knows whether this one runs here
                self._wait(request)
                raise TaskRevokedError(request.id) from None
            holder = None
        if holder is not None:
            request.zkbeat_run = None
            self._turn_away(request, run, holder)
            raise TaskRevokedError(request.id)
        self._inside.add(request)

    def over(self, request: LockedRequest, *, killed: bool = False) -> None:
        """Let go of the lock; `killed`: not before the pool's process is dead, which it will be in a moment."""
        self._inside.discard(request)
        run, request.zkbeat_run = request.zkbeat_run, None
        if run is None:
            return
        self._seen.pop(run.key, None)
        if killed and self._consumer.pool.uses_semaphore and request.worker_pid:
            self._release_when_dead(run, request.worker_pid, clock.now() + _KILLED_WITHIN_S)
        else:
            self._runs.release(run)

    def _seen_lately(self, request: LockedRequest, run: Run) -> Holder | None:
        """Spare ZooKeeper the questions of each of many that wait; those that may be dropped do ask."""
        at, holder = self._seen.pop(run.key, (0.0, None))
        if holder is None or request.zkbeat_wait is None or clock.now() - at > _SEEN_IS_GOOD_FOR_S:
            return None
        self._seen[run.key] = at, holder
        return holder

    def _key(self, request: LockedRequest) -> str:
        try:
            key = str(self._task.overlap_key(request.args, request.kwargs))
        except Exception:  # noqa: BLE001  # the user's own; to lock too much is the safe side
            logger.exception("zkbeat: overlap_key of %s failed: locking the task as a whole", request.humaninfo())
            key = ""
        return key_of(self._task.name, key)

    def _turn_away(self, request: LockedRequest, run: Run, holder: Holder) -> None:
        name = request.humaninfo()
        if holder.here and request.zkbeat_looked_at != holder.token:
            request.zkbeat_looked_at = holder.token
            self._put_off(request, _SECOND_LOOK_AFTER_S)
        elif holder.task_id == request.id:
            # A retry is published before its predecessor has ended, and the lock of a lost worker outlives it.
            self._wait(request, f"its own lock is still held by {holder.worker}")
        elif self._task.on_overlap == "postpone":
            self._seen.setdefault(run.key, (clock.now(), holder))
            self._wait(request, f"would overlap with [{holder.task_id}] on {holder.worker}")
        else:
            logger.info("zkbeat: %s would overlap with [%s] on %s: dropped", name, holder.task_id, holder.worker)
            state.task_ready(request)
            request.acknowledge()
            request.send_event("task-rejected", requeue=False)

    def _wait(self, request: LockedRequest, why: str | None = None) -> None:
        wait = request.zkbeat_wait
        if wait is None:
            wait = request.zkbeat_wait = Wait(self._consumer)
            if why is not None:
                logger.info("zkbeat: %s %s: postponed", request.humaninfo(), why)
        if wait.too_long():
            logger.info("zkbeat: %s has waited for long: given back to the broker", request.humaninfo())
            state.task_ready(request)
            request.reject(requeue=True)
        else:
            self._put_off(request, wait.next_s())

    def _put_off(self, request: LockedRequest, delay_s: float) -> None:
        state.task_ready(request)
        entry = later(self._consumer, delay_s, self._again, request)
        if hasattr(state, "task_scheduled"):  # celery 5.7: for `inspect query_task`; it ends with the connection
            state.task_scheduled(request)
            request._eta_timer_entry = entry  # noqa: SLF001

    def _again(self, request: LockedRequest) -> None:
        state.task_reserved(request)
        self._consumer.on_task_request(request)

    def _release_when_dead(self, run: Run, pid: int, at_most_until: float) -> None:
        if _lives(pid) and clock.now() < at_most_until:
            self._consumer.timer.call_after(_KILLED_EVERY_S, self._release_when_dead, (run, pid, at_most_until))
        else:
            self._runs.release(run)


def _gated(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def execute_using_pool(self: LockedRequest, pool: Any, **options: Any) -> Any:
        gate: Gate = self.task.zkbeat_gate
        gate.enter(self)
        try:
            return execute(self, pool, **options)
        except BaseException:
            gate.over(self)
            raise

    return execute_using_pool


def _ending(on_success: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(on_success)
    def on_success_and_over(self: LockedRequest, *args: Any, **options: Any) -> Any:
        try:
            return on_success(self, *args, **options)
        finally:
            _over(self)

    return on_success_and_over


def _over(request: LockedRequest, *, killed: bool = False) -> None:
    request.task.zkbeat_gate.over(request, killed=killed)


def _lives(pid: int) -> bool:
    """Say whether this child of ours still runs; the pool is left to reap it, which it does after some seconds."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except OSError:
        return False
