"""The first of two places to keep a message from running: when it has arrived, before celery makes anything of it.

Here a message can be dropped without a trace, since there is no request, no event and no state yet. Which tick it is of
is decided here; whether runs overlap is decided when the run would begin (`request`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.exceptions import InvalidTaskError
from celery.worker import strategy as celery_strategy
from kombu.exceptions import ContentDisallowed

from zkbeat.config import EXIT_CONFIG
from zkbeat.errors import ConfigError
from zkbeat.launcher.stamp import NONCE, TICK
from zkbeat.settings import Place, place
from zkbeat.worker import NoOverlap, OncePerTick
from zkbeat.worker.claims import Claims, Tick
from zkbeat.worker.request import Gate
from zkbeat.worker.runs import Runs
from zkbeat.worker.session import UnavailableError, close_all, logger, session_with
from zkbeat.worker.waiting import Wait, later

_KEPT_S = 6 * 3600.0


class Keeper:
    """What the tasks of one worker share: its session, and what is kept there."""

    def __init__(self, where: Place, who: str, kept_s: float, *, fail_closed: bool) -> None:
        self.session = session_with(where.access)
        self.claims = Claims(self.session, where.base, kept_s, who)
        self.runs = Runs(self.session, where.base, who)
        self.fail_closed = fail_closed

    def failed(self, error: UnavailableError) -> None:
        """Say, once for each outage, what happens to messages meanwhile."""
        so = "are held back" if self.fail_closed else "are run, unclaimed and without a lock"
        self.session.failed(error, f"messages of OncePerTick and NoOverlap tasks {so}")


_keepers: dict[Place, Keeper] = {}


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Return what celery calls for each message of this task. A worker that cannot be configured ends with code 78."""
    try:
        keeper = _keeper(app, consumer)
        if isinstance(task, NoOverlap):
            _check_overlap(task)
    except ConfigError as error:
        logger.critical("zkbeat: %s: %s", task.name, error)
        raise SystemExit(error.exit_code) from None
    if isinstance(task, NoOverlap):
        Gate.of(task, consumer, keeper.runs, keeper.failed, fail_closed=keeper.fail_closed)
    handle = celery_strategy.default(task, app, consumer, **options)
    return Admission(task.name, keeper, consumer, handle) if isinstance(task, OncePerTick) else handle


class Admission:
    """Lets those messages of a task through to celery's own strategy that are the first of their tick."""

    def __init__(self, task: str, keeper: Keeper, consumer: Any, handle: Callable[..., Any]) -> None:
        self._task = task
        self._keeper = keeper
        self._consumer = consumer
        self._handle = handle

    def __call__(self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
        """Do as celery's own handler does, for those that may run."""
        headers = message.headers or {}
        tick = Tick.of(headers.get(TICK), headers.get(NONCE))
        go_on = functools.partial(self._handle, message, body, ack, reject, callbacks, **options)
        if tick is None:
            return go_on()
        return self._admit(message, body, tick, ack, reject, go_on, None)

    def _admit(
        self, message: Any, body: Any, tick: Tick, ack: Any, reject: Any, go_on: Callable[[], Any], wait: Wait | None
    ) -> Any:
        errors = self._consumer.connection_errors
        try:
            ours = self._keeper.claims.claim(tick, self._task)
        except UnavailableError as error:
            self._keeper.failed(error)
            if self._keeper.fail_closed:
                wait = wait or Wait(self._consumer)
                if wait.too_long():
                    return reject(logger, errors, True)
                step = functools.partial(self._again, message, body, tick, ack, reject, go_on, wait)
                later(self._consumer, wait.next_s(), step)
                return None
            ours = True
        if ours:
            return go_on()
        logger.info("zkbeat: %s: %s belongs to another message: dropped", self._name(message, body), tick.text)
        return ack(logger, errors)

    def _again(
        self, message: Any, body: Any, tick: Tick, ack: Any, reject: Any, go_on: Callable[[], Any], wait: Wait
    ) -> None:
        try:
            self._admit(message, body, tick, ack, reject, go_on, wait)
        except (InvalidTaskError, ContentDisallowed) as error:  # celery catches them in its loop; this is a timer
            self._consumer.on_invalid_task(body, message, error)

    def _name(self, message: Any, body: Any) -> str:
        found = message.headers.get("id") or (body.get("id") if isinstance(body, dict) else None)
        return f"{self._task}[{found}]"


def _keeper(app: Any, consumer: Any) -> Keeper:
    where = place(app)
    if where not in _keepers:
        kept_s = _kept_s(app)
        closed = bool(app.conf.get("zkbeat_fail_closed", False))
        _keepers[where] = Keeper(where, consumer.hostname, kept_s, fail_closed=closed)
    return _keepers[where]


def _kept_s(app: Any) -> float:
    value = app.conf.get("zkbeat_claims_kept", _KEPT_S)
    try:
        kept_s = float(value)
    except (TypeError, ValueError):
        kept_s = math.nan
    if not 0 < kept_s < math.inf:
        raise ConfigError(f"zkbeat_claims_kept must be a positive number of seconds, not {value!r}", EXIT_CONFIG)
    return kept_s


def _check_overlap(task: Any) -> None:
    if task.on_overlap not in {"drop", "postpone"}:
        raise ConfigError(f"on_overlap must be 'drop' or 'postpone', not {task.on_overlap!r}", EXIT_CONFIG)


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _close(**_: Any) -> None:
    _keepers.clear()
    close_all()
