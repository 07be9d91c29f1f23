"""One mixin over whichever scheduler class beat was told to use: fence, latch, pulse, headers, clock guard.

`install()` is called once in the process that becomes beat, before celery's beat runs. What the sidecar has to say is
in the environment, and read when the scheduler is made: a preloaded process gets it only after it was elected.

| variable | what |
|---|---|
| ZKBEAT_LEASE_FILE | the lease's deadlines (`zkbeat.fence`); without it, nothing here does anything |
| ZKBEAT_PULSE_FILE | where to say how beat is (`zkbeat.pulse`) |
| ZKBEAT_EPOCH | the term's epoch, decimal |
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import types
from collections.abc import Callable, Mapping
from typing import Any

from celery import beat
from celery.utils.imports import load_extension_class_names, symbol_by_name
from celery.utils.log import get_logger

from zkbeat import clock, fence
from zkbeat.fence import Fence
from zkbeat.launcher import brokers, stamp
from zkbeat.launcher.clocks import ClockGuard, is_redbeat
from zkbeat.pulse import Pulse, Reporter

LEASE_FILE = "ZKBEAT_LEASE_FILE"
PULSE_FILE = "ZKBEAT_PULSE_FILE"
EPOCH = "ZKBEAT_EPOCH"

SLEEP_AT_MOST_S = 5.0
"""How long beat's loop sleeps at most: so soon it notices a lease that has run out, or a clock that has jumped."""

_NAMESPACE = "celery.beat_schedulers"

_logger = get_logger(__name__)


def install() -> None:
    """Have celery's beat supervise whichever scheduler it makes from now on."""
    stock = beat.Service.get_scheduler
    if getattr(stock, "by_zkbeat", False):
        return

    @functools.wraps(stock)
    def get_scheduler(service: Any, lazy: bool = False, extension_namespace: str = _NAMESPACE) -> Any:  # noqa: FBT001, FBT002
        make = functools.partial(stock, service, lazy=lazy, extension_namespace=extension_namespace)
        if LEASE_FILE not in os.environ:
            if not lazy:
                _logger.warning("zkbeat: %s is not set: beat is not run by zkbeat, so nothing fences it", LEASE_FILE)
            return make()
        return _make_supervised(service, make, dict(load_extension_class_names(extension_namespace)), lazy=lazy)

    get_scheduler.by_zkbeat = True  # type: ignore[attr-defined]
    beat.Service.get_scheduler = get_scheduler


def _make_supervised(service: Any, make: Callable[[], Any], aliases: Mapping[str, str], *, lazy: bool) -> Any:
    chosen = service.scheduler_cls
    cls = symbol_by_name(chosen, aliases=aliases)
    try:
        service.scheduler_cls = supervised(cls)
    except Exception as error:  # noqa: BLE001  # whatever its metaclass says
        return _make_fenced(make, error, lazy=lazy)
    try:
        return make()
    finally:
        service.scheduler_cls = chosen


def _make_fenced(make: Callable[[], Any], error: Exception, *, lazy: bool) -> Any:
    """Make a scheduler whose class cannot be supervised: an election without a beat would help nobody."""
    if lazy:
        return make()
    supervision = Supervision(os.environ)
    scheduler = make()
    _logger.warning(
        "zkbeat: the scheduler is fenced, but without pulse, headers, clock guard: its class is not to be derived: %s",
        error,
    )
    for name in ("tick", "reserve", "apply_async", "sync", "close"):
        method = getattr(scheduler, name, None)
        if method is not None:
            setattr(scheduler, name, supervision.fenced(method))
    return scheduler


def supervised(cls: Any) -> Any:
    """Return the class, supervised, under its own name: celery's banner is to say what the user chose.

    Raises TypeError if it is not a class, or what its metaclass has against a second base.
    """
    if not isinstance(cls, type):
        raise TypeError(f"{cls!r} is not a class")
    if issubclass(cls, Supervised):
        return cls
    kept = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(cls.__name__, (Supervised, cls), exec_body=lambda body: body.update(kept))


class Supervision:
    """What one scheduler needs besides itself. Takes no locks: `close()` runs in a signal handler."""

    def __init__(self, environ: Mapping[str, str] | None) -> None:
        """`environ`: None for a scheduler that is only looked at, for the banner; it is neither fenced nor heard."""
        self.closed = False
        self.guard: ClockGuard | None = None
        self.publishing: _Publishing | None = None
        self._watched = environ is not None
        self._epoch = "" if environ is None else environ.get(EPOCH, "")
        self._fence = None if environ is None else _open(environ[LEASE_FILE])
        pulse_file = None if environ is None else environ.get(PULSE_FILE)
        self._reporter = Reporter(pulse_file) if pulse_file else None
        self._pulse = Pulse()
        self._unstamped: set[type] = set()
        self.check_fence()

    # fence and latch

    def check_fence(self) -> None:
        """Return if the lease holds; else the process ends here."""
        if self._watched and self._passed():
            fence.end("the lease has run out")

    def check(self) -> None:
        """Return if a message may be sent; else the process ends, here or with SystemExit.

        celery 5.7.0 loses the SystemExit of its own signal handler when that runs within a publish: beat has closed its
        scheduler then, and goes on.
        """
        self.check_fence()
        if self.closed:
            raise SystemExit

    def fenced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function behind the fence."""

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self.check_fence()
            return function(*args, **kwargs)

        return checked

    def _passed(self) -> bool:
        try:
            return self._fence is None or self._fence.passed()
        except OSError:
            return True

    # pulse

    def turning(self) -> None:
        """Say that the loop turns now; as long as this is the last word, it has not come round."""
        now = clock.now()
        self._say(at=now, wake_at=now)

    def sleeping(self, for_s: float) -> None:
        """Say when the loop is to turn again."""
        now = clock.now()
        self._say(at=now, wake_at=now + max(for_s, 0.0))

    def begins(self, name: str) -> None:
        """Say that a message is due; it is owed until one has gone out."""
        now = clock.now()
        self._say(at=now, owing_since=self._pulse.owing_since or now, name=name)

    def published(self) -> None:
        """Say that it has gone out."""
        now = clock.now()
        count = self._pulse.count + 1
        self._say(at=now, owing_since=0.0, published_at=now, published_wall=clock.wall(), count=count)

    def nothing_owed(self) -> None:
        """Say that nothing is owed any more, though no message has gone out."""
        self._say(at=clock.now(), owing_since=0.0)

    def _say(self, **changes: Any) -> None:
        self._pulse = dataclasses.replace(self._pulse, **changes)
        if self._reporter is not None:
            self._reporter.say(self._pulse)

    # messages

    def publish(self, entry: Any, now: Any) -> _Publishing:
        """Return what is to be published in place of this entry."""
        if stamp.is_stamped(entry):
            return _Publishing(entry, entry, {})
        headers = stamp.headers(entry, self._epoch, now)
        return _Publishing(entry, self.stamped(entry, headers), headers)

    def stamped(self, entry: Any, headers: dict[str, str]) -> Any:
        """Return the entry with these headers; as it is, if its class does not let us."""
        try:
            return stamp.stamped(entry, headers)
        except Exception:
            if type(entry) not in self._unstamped:
                self._unstamped.add(type(entry))
                _logger.exception("zkbeat: messages of %r get no headers", type(entry))
            return entry

    def check_each_attempt(self, producer: Any) -> Any:
        """Have the producer ask before each message, also when kombu tries again after it has waited for the broker."""
        publish = getattr(producer, "_publish", None)
        if publish is None or hasattr(publish, "by_zkbeat"):
            return producer

        @functools.wraps(publish)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return publish(*args, **kwargs)

        checked.by_zkbeat = True  # type: ignore[attr-defined]
        producer._publish = checked  # noqa: SLF001
        return producer


@dataclasses.dataclass(frozen=True)
class _Publishing:
    """A publish that has begun: the entry, what is sent in its place, and what that was stamped with."""

    entry: Any
    stamped: Any
    headers: dict[str, str]


class _Inherited:
    """An attribute of the wrapped class, passed through a function whenever it is made.

    No data descriptor: the wrapped class caches it in the object's `__dict__`, or not, as it did before.
    """

    def __init__(self, through: Callable[[Supervised, Any], Any]) -> None:
        self._through = through

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, scheduler: Any, _owner: type | None = None) -> Any:
        if scheduler is None:
            return self
        return self._through(scheduler, getattr(super(Supervised, scheduler), self._name))


class Supervised:
    """Goes before a scheduler class, see `supervised`.

    Each method passes on what it is given: the classes differ in their signatures (RedBeat's `tick`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        lazy = kwargs.get("lazy", False)
        self._zkbeat = Supervision(None if lazy else os.environ)
        up: Any = super()
        up.__init__(*args, **kwargs)
        _release_redbeat_lock(self, silently=lazy)
        if not lazy:
            self._zkbeat.guard = ClockGuard(self)
            # What is loaded by now lives as long as beat: Python need not go through all of it when beat is to end, and
            # the next leader waits for that.
            gc.freeze()
            _warn_of_the_broker(self)

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Take one turn of the loop; return after how many seconds the next one is due."""
        up: Any = super()
        supervision = self._zkbeat
        supervision.check()
        supervision.turning()
        if supervision.guard is not None:
            supervision.guard.turn()
        # Not `max_interval` is made shorter, but the sleep: celery also takes that for the time after which an entry is
        # tried again that cannot be reckoned with.
        interval = up.tick(*args, **kwargs)
        supervision.check()  # rather than sleep first, and sync
        sleep_s = min(interval or 0.0, SLEEP_AT_MOST_S)
        supervision.sleeping(sleep_s)
        return sleep_s

    def populate_heap(self, *args: Any, **kwargs: Any) -> Any:
        """Reckon anew when each entry is due: the schedule was read, or read anew."""
        up: Any = super()
        if self._zkbeat.guard is not None:
            self._zkbeat.guard.loaded()
        return up.populate_heap(*args, **kwargs)

    def reserve(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        """Write down that the entry runs; some classes write to their store at once."""
        up: Any = super()
        supervision = self._zkbeat
        supervision.check()
        publishing = supervision.publishing
        if publishing is None or entry is not publishing.stamped:
            return up.reserve(entry, *args, **kwargs)
        # `apply_async` reserves what it was given: our clone. What comes of the entry is kept; that, stamped, sent.
        return supervision.stamped(up.reserve(publishing.entry, *args, **kwargs), publishing.headers)

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        """Send the entry's message; `entry` is as it was before it was reserved."""
        up: Any = super()
        app: Any = self.app  # type: ignore[attr-defined]
        supervision = self._zkbeat
        supervision.begins(str(entry.name))
        publishing = supervision.publishing = supervision.publish(entry, app.now())
        supervision.check()
        try:
            result = up.apply_async(publishing.stamped, *args, **kwargs)
        finally:
            supervision.publishing = None
        supervision.published()
        return result

    def sync(self, *args: Any, **kwargs: Any) -> Any:
        """Write the schedule down."""
        up: Any = super()
        self._zkbeat.check_fence()
        return up.sync(*args, **kwargs)

    def close(self, *args: Any, **kwargs: Any) -> Any:
        """Write the schedule down, and send nothing any more. Runs in a signal handler, and then once more."""
        up: Any = super()
        self._zkbeat.closed = True
        self._zkbeat.check_fence()
        return up.close(*args, **kwargs)

    def owes(self, what: str) -> None:
        """For a scheduler that cannot get as far as a publish: say what keeps it."""
        self._zkbeat.begins(what)

    def owes_nothing(self) -> None:
        """And that it is over."""
        self._zkbeat.nothing_owed()

    @_Inherited
    def connection(self, connection: Any) -> Any:
        """Beat's own connection; the app's others are left alone."""
        brokers.confirm(connection)
        return connection

    @_Inherited
    def producer(self, producer: Any) -> Any:
        """What beat publishes with."""
        return self._zkbeat.check_each_attempt(producer)


def _open(path: str) -> Fence | None:
    """Open the lease file; None if it cannot be, which is as good as a lease that has run out."""
    try:
        return Fence(path)
    except OSError:
        return None


def _warn_of_the_broker(scheduler: Any) -> None:
    try:
        brokers.warn(scheduler.app)
    except Exception:  # a transport of the user's: it will say itself what is wrong
        _logger.debug("zkbeat: cannot look at the broker's settings", exc_info=True)


def _release_redbeat_lock(scheduler: Any, *, silently: bool) -> None:
    """Leave the exclusion to zkbeat, unless the user has asked for RedBeat's own lock by name.

    It is held for 1500 s by default: a leader that was killed would keep its successor from ticking for as long.
    """
    if not is_redbeat(scheduler) or not scheduler.lock_key:
        return
    if not scheduler.app.redbeat_conf.is_key_in_conf("redbeat_lock_key"):
        scheduler.lock_key = None
        if not silently:
            _logger.info("zkbeat: RedBeat's own lock is off: zkbeat's lease is in its place")
    elif not silently:
        _logger.warning(
            "zkbeat: redbeat_lock_key is set: the successor of a leader that was killed waits for it for up to %d s; "
            "set redbeat_lock_key = None",
            scheduler.lock_timeout,
        )
