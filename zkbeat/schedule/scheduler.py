"""`celery beat -S zookeeper`: celery's scheduler, with its state in ZooKeeper.

Definitions come from `beat_schedule` and `add_periodic_task`, as ever; what was sent, and what is about to be, is in
ZooKeeper (`zkbeat.core.schedule` says in which steps). Everything happens in beat's own loop, one turn at a time: find
what is due, intend it, publish it, confirm it. A turn that finds no ensemble ends, and the next one tries again.

| setting | what |
|---|---|
| zkbeat_catch_up | {entry or pattern: "once", "skip", "all", or ("all", SECONDS)} |
| zkbeat_unfenced | run without zkbeat's election: nothing but the schedule's own versions keeps two beats apart |
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from celery import beat
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from zkbeat import clock, fence
from zkbeat.config import EXIT_CONFIG
from zkbeat.core import schedule
from zkbeat.core.schedule import Book, Change, Due, Policy, State, Tick
from zkbeat.errors import ConfigError
from zkbeat.launcher import stamp
from zkbeat.launcher.clocks import FUTURE_S, as_utc, describe_names
from zkbeat.launcher.scheduler import EPOCH
from zkbeat.schedule import calendars
from zkbeat.schedule.store import (
    ControlChangedError,
    FencedError,
    RefusedError,
    Store,
    SupersededError,
    UnavailableError,
)
from zkbeat.settings import Place, place

LEADER_ZNODE = "ZKBEAT_LEADER_ZNODE"

EXIT_NO_PERMISSION = 77

TURN_AT_LEAST_EVERY_S = 1.0
"""How soon a request, a hold or a change of the app's definitions is seen."""

TRY_AGAIN_S = 0.25
"""When to look for an ensemble again that did not answer."""

FIRST_CONNECT_WITHIN_S = 2.0
"""How long a start waits for its session before it says that there is none."""

SAY_AGAIN_AFTER_S = 10.0
"""How often to say that there is still none."""

CONFIRM_EVERY_S = 0.02
"""In a long row of publishes, what was sent is written down this often: so much of it is sent again after a crash."""

PUBLISH_AGAIN_S = (0.25, 10.0)
"""When to publish again after a failure: at first soon (a connection that idled may just be stale), then ever later."""

FORGET_AFTER_S = 30 * 86400.0
"""How long the state of an entry is kept that no app has any more."""

TOLD_AT_ONCE = 20
"""How many buckets of texts are looked at in one idle turn."""

FLUSH_WITHIN_S = 1.0

FUTURE_US = int(FUTURE_S * 1_000_000)
_SECOND_US = 1_000_000

_NEVER = (0, 0.0)
"""How often a tick was tried, and from when on it may be tried again, CLOCK_BOOTTIME: the wall clock may be set."""

_logger = get_logger(__name__)


@dataclass
class _Plan:
    """What a turn is about to do: a change, and what is true once that went through."""

    states: dict[str, State] = field(default_factory=dict)
    ticks: list[Tick] = field(default_factory=list)
    dropped: list[Tick] = field(default_factory=list)
    missed: dict[str, int] = field(default_factory=dict)
    control: schedule.Control | None = None
    change: Change | None = None

    def __bool__(self) -> bool:
        return bool(self.states or self.ticks or self.dropped or self.control)


class ZooKeeperScheduler(beat.Scheduler):  # type: ignore[misc]
    """Keeps each entry's last due time in ZooKeeper, so that the next leader goes on exactly where this one stopped."""

    _heap: Any

    due_times_are_committed = True
    """To the clock guard: what was sent stays sent, whatever the clock says now."""

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        self._closing = self._closed = self._in_turn = False
        self._exit_code: int | None = None
        self._store: Any = None
        self._book = Book("")
        self._keys: dict[str, Any] = {}
        self._at: dict[str, int] = {}
        self._defined: dict[str, Any] = {}
        self._stale = True
        self._began = False
        self._ready: deque[str] = deque()
        self._done: set[Tick] = set()
        self._tries: dict[Tick, tuple[int, float]] = {}
        self._broker_tries = 0
        self._broker_at = 0.0
        self._unfinished: _Plan | None = None
        self._untold: set[int] = set()
        self._missed_untold = 0
        self._said_at = 0.0
        self._unavailable = False
        self._looked_at = 0.0
        self._next_s: float = 0.0
        self._confirmed_at = 0.0
        self._place: Place | None = None
        try:
            self._place = place(app)
            self._policy = schedule.policies(app.conf.get("zkbeat_catch_up") or {})
        except ConfigError as error:
            if not lazy:
                _refuse(str(error), error.exit_code)
        except ValueError as error:
            if not lazy:
                _refuse(f"zkbeat_catch_up: {error}", EXIT_CONFIG)
        self._leader = os.environ.get(LEADER_ZNODE)
        self._epoch = os.environ.get(EPOCH, "")
        if not lazy and self._leader is None and not app.conf.get("zkbeat_unfenced"):
            _refuse(
                "-S zookeeper is to be run by zkbeat, which sees to it that there is one: zkbeat -- celery ... beat "
                "(or set zkbeat_unfenced = True)",
                EXIT_CONFIG,
            )
        super().__init__(app, *args, lazy=lazy, **kwargs)

    # the schedule

    def setup_schedule(self) -> None:
        """Read the app's definitions. Their states are read in the loop's first turn.

        Until this scheduler is made, celery has none that its signal handler could close: nothing here may wait.
        """
        self._define()
        self._store = self._open()

    def _define(self) -> None:
        """Take over the app's definitions; what was added by hand stays."""
        defined = self._definitions()
        for name in self._defined.keys() - defined.keys():
            self.data.pop(name, None)
        self.data.update(
            {name: self.Entry(**{**entry, "name": name, "app": self.app}) for name, entry in defined.items()}
        )
        self.install_default_entries(self.data)
        self._defined = defined

    def _definitions(self) -> dict[str, Any]:
        """Return a copy of them: an app may change one where it stands."""
        return {name: dict(entry) for name, entry in list(self.app.conf.beat_schedule.items())}

    def _open(self) -> Any:
        if self._leader is None:
            _logger.warning("zkbeat: nothing fences this beat (zkbeat_unfenced)")
        return Store(self._place, self._leader)  # type: ignore[arg-type]

    def _take_over(self) -> None:
        """Become the writer of the schedule, with what stands there."""
        book = Book(os.urandom(4).hex())
        garbage = self._store.take_over(book)
        if garbage:
            _logger.error(
                "zkbeat: cannot read %s in ZooKeeper: what was due until now is not sent", describe_names(garbage)
            )
        self._book = book
        self._unfinished = None
        self._keys.clear()
        self._ready.clear()
        new = self._adopt(self.data.values())
        gone = {
            key: schedule.gone(state, self._now())
            for key, state in book.states.items()
            if key not in self._keys and state.fingerprint != ""
        }
        old = schedule.forget(book.states, self._now() - int(FORGET_AFTER_S * 1_000_000))
        self._write({**gone, **old})
        self._stale = False
        self._heap = None
        self._untold = set(book.numbers)
        owed = len(book.intent.ticks)
        _logger.info(
            "zkbeat: %d entries, %d of them new%s", len(self._keys), new, f"; {owed} ticks are owed" * bool(owed)
        )

    def _adopt(self, entries: Iterable[Any]) -> int:
        """Give these entries the state that they have, and those that are new or changed one that is written down.

        Return how many are new.
        """
        now = self._now()
        states: dict[str, State | None] = {}
        new = 0
        future: list[str] = []
        for entry in entries:
            key = schedule.key_of(str(entry.name))
            self._keys[key] = entry
            found = self._book.state(key)
            mark = calendars.fingerprint(entry.schedule)
            if found is None:
                new += 1
                last = min(schedule.to_us(as_utc(entry.last_run_at)), now)
                state = State(last=last, count=entry.total_run_count, fingerprint=mark)
            elif found.fingerprint in {mark, None}:
                state = replace(found, fingerprint=mark)
            else:
                # What the new schedule would have had due before it was known, nobody has asked for. An interval goes
                # on from the last run.
                state = replace(found, fingerprint=mark)
                while (past := self._consider(entry, state.last, now, Policy())) is not None:
                    state = replace(state, last=past.last)
            if state.last > now + FUTURE_US:
                future.append(key)
                if calendars.elapses(entry.schedule):
                    state = replace(state, last=now)
            if state != found:
                states[key] = replace(state, following=self._following(entry, state.last, now))
            self._show(entry, state)
        self._write(states)
        if future:
            _logger.warning(
                "zkbeat: the last due time of %d entries lay in the future (%s): intervals go on from now, the others "
                "are silent until then; a clock is wrong, this node's or an earlier leader's",
                len(future),
                describe_names(future),
            )
        return new

    def _write(self, states: dict[str, State | None]) -> None:
        for portion in self._book.portions(states):
            self._store.commit(self._book, self._book.change(portion))

    def _show(self, entry: Any, state: State) -> None:
        """Have celery's own entry say what stands in its state."""
        entry.last_run_at = schedule.to_datetime(state.last)
        entry.total_run_count = state.count

    def _refresh(self) -> None:
        """Take over what the app has defined, changed or removed since."""
        if self._definitions() != self._defined:
            try:
                self._define()
            except Exception:
                _logger.exception("zkbeat: beat_schedule was changed to what cannot be used: it stays as it was")
                self._defined = self._definitions()
            self._stale = True
        known = {schedule.key_of(str(name)): entry for name, entry in list(self.data.items())}
        self._stale |= known != self._keys
        if self._stale:
            self._take_over()

    def populate_heap(self, *_args: Any, **_kwargs: Any) -> None:
        """Reckon when each entry is due."""
        now = self._now()
        self._heap = []
        self._at.clear()
        for key in self._keys:
            self._push(key, now)

    def _push(self, key: str, now: int) -> None:
        if self._heap is None:
            return  # all of them will be, before it is looked at
        entry = self._keys[key]
        last = self._last(entry)
        at = self._following(entry, last, now)
        if at is not None and at <= last:  # no schedule of celery's own: it is asked again, and not at once
            at = now + _SECOND_US
        if at is not None:
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))

    # one turn

    def tick(self, *_args: Any, **_kwargs: Any) -> float:
        """Take one turn: send what is due; return after how many seconds the next one is."""
        if self._closing:
            raise SystemExit
        self._in_turn = True
        try:
            return self._next_s if self._go(self._turn) else TRY_AGAIN_S
        finally:
            self._in_turn = False

    def _go(self, step: Any) -> bool:
        """Take a step; say whether it got to its end. It is taken again if it did not."""
        try:
            step()
        except UnavailableError as error:
            self._unavailable = True
            self.owes("the schedule, from ZooKeeper")
            if clock.now() - self._said_at > SAY_AGAIN_AFTER_S:
                self._said_at = clock.now()
                _logger.warning("zkbeat: no answer from ZooKeeper (%s): nothing is sent meanwhile", error)
            return False
        except ControlChangedError:
            self._looked_at = 0.0
            return False
        except SupersededError as error:
            _logger.warning("zkbeat: somebody else has written the schedule (%s): it is read anew", error)
            self._stale = True
            return False
        except FencedError:
            fence.end("this node leads no more")
        except (RefusedError, schedule.NewerError) as error:
            self._exit_code = EXIT_NO_PERMISSION if isinstance(error, RefusedError) else EXIT_CONFIG
            _refuse(str(error), self._exit_code)
        if self._unavailable:
            self._unavailable = False
            if not self._tries:  # else the broker takes nothing
                self.owes_nothing()
        if self._said_at:
            self._said_at = 0.0
            _logger.info("zkbeat: ZooKeeper answers again")
        return True

    def owes(self, what: str) -> None:
        """Say what keeps this beat from sending; to the launcher's mixin, where there is one."""

    def owes_nothing(self) -> None:
        """Say that it is over."""

    def _turn(self) -> None:
        if not self._began:
            self._began = True
            self._store.wait_connected(FIRST_CONNECT_WITHIN_S)
        self._settle()
        now = self._now()
        if self._stale or clock.now() - self._looked_at >= TURN_AT_LEAST_EVERY_S:
            self._refresh()
            self._look()
            self._looked_at = clock.now()
        if self._heap is None:  # read anew, or the clock guard has moved some last runs
            self.populate_heap()
        self._collect_due(now)
        plan = self._plan(now)
        if plan:
            self._carry_out(plan)
        self._send(now)
        if self._goes_on():
            self._next_s = 0.0
            return
        self._tell()
        self._next_s = self._sleep_s()

    def _goes_on(self) -> bool:
        """Whether the next turn has something to intend, and comes at once."""
        return bool(self._ready) and not self._full()

    def _sleep_s(self) -> float:
        now = self._now()
        wakes_s = [TURN_AT_LEAST_EVERY_S, float(self.max_interval)]
        if self._heap and not self._ready:
            wakes_s.append((self._heap[0][0] - now) / 1e6)
        tries = [self._tries.get(tick, _NEVER)[1] for tick in self._owed()]
        if tries:
            wakes_s.append(max(min(tries), self._broker_at) - clock.now())
        return max(min(wakes_s), 0.0)

    def _settle(self) -> None:
        """Find out how the last turn's change has ended, if that was not known."""
        self._store.settle(self._book)
        plan, self._unfinished = self._unfinished, None
        if plan is not None and plan.change is not None and self._book.intent.id == plan.change.intent.id:
            self._carried_out(plan)
        elif plan is not None:
            self._ready.extendleft(plan.states)
        self._forget_done()

    def _look(self) -> None:
        """See what operators ask for."""
        try:
            if self._store.look(self._book):
                now = self._now()
                for key in self._keys.keys() - self._at.keys() - set(self._ready):
                    self._push(key, now)
        except (schedule.GarbageError, schedule.NewerError) as error:
            _logger.error("zkbeat: cannot read what operators ask for: %s", error)  # noqa: TRY400

    # what is due

    def _collect_due(self, now: int) -> None:
        """Move what is due from the heap into the row of what is to be looked at; entries of one bucket together."""
        if self._ready:
            return
        due: list[str] = []
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._at.get(key) == at:  # else it was filed anew since
                del self._at[key]
                due.append(key)
        if len(due) > 1:
            due.sort(key=self._book.bucket_of)
        self._ready.extend(due)

    def _plan(self, now: int) -> _Plan:
        """Decide about as much of what is due as one transaction can carry."""
        plan = _Plan()
        self._plan_drops(plan, now)
        if self._full():
            return plan
        self._plan_requests(plan)
        owed = {tick.key for tick in self._owed() if tick.request is None}
        buckets: set[int] = set()
        while self._ready and len(plan.ticks) < schedule.GROUP_AT_MOST:
            key = self._ready[0]
            buckets.add(self._book.bucket_of(key))
            if len(buckets) * schedule.BUCKET_BYTES > schedule.TRANSACTION_BYTES:
                break
            self._ready.popleft()
            entry = self._keys.get(key)
            # One that is owed is looked at again when it went out, one that is held back when it is let go.
            if entry is None or key in owed or key in self._book.control.held:
                continue
            last = self._last(entry)
            due = self._consider(entry, last, now, self._policy_of(entry))
            if due is None:
                self._push(key, now)
                continue
            state = self._book.state(key) or State(last)
            plan.states[key] = replace(
                state,
                last=due.last,
                count=state.count + (due.send is not None),
                missed=state.missed + due.missed,
                following=self._following(entry, due.last, now),
            )
            if due.send is not None:
                plan.ticks.append(Tick(key, due.send))
            if due.missed:
                plan.missed[key] = due.missed
        return plan

    def _full(self) -> bool:
        """Whether so much is owed that nothing more is intended: what is due waits, and nothing of it is lost."""
        return len(self._owed()) >= schedule.GROUP_AT_MOST

    def _plan_requests(self, plan: _Plan) -> None:
        control = self._book.control
        if not control.requests:
            return
        for request in control.requests[: schedule.GROUP_AT_MOST]:
            if request.key in self._keys:
                plan.ticks.append(Tick(request.key, request.at, request.id))
            else:
                _logger.warning("zkbeat: %s wants %r to run, which is no entry", request.by, request.key)
        plan.control = replace(control, requests=control.requests[schedule.GROUP_AT_MOST :])

    def _plan_drops(self, plan: _Plan, now: int) -> None:
        """Give up what is owed and can no longer be sent."""
        for tick in self._owed():
            entry = self._keys.get(tick.key)
            if entry is None:
                _logger.warning("zkbeat: %s was to be sent, and is in the schedule no more: dropped", tick.name)
            elif tick.request is None and self._too_late(entry, tick, now):
                _logger.warning("zkbeat: %s could not be sent in time: dropped", tick.name)
                plan.missed[tick.key] = 1
            else:
                continue
            plan.dropped.append(tick)
            state = self._book.state(tick.key)
            if state is not None and tick.request is None:
                plan.states[tick.key] = replace(state, missed=state.missed + 1)

    def _carry_out(self, plan: _Plan) -> None:
        """Write down what is about to be sent."""
        self._store.settle(self._book)
        self._forget_done()
        kept = [tick for tick in self._owed() if tick not in plan.dropped]
        plan.change = self._book.change(plan.states, [*kept, *plan.ticks], plan.control)
        self._unfinished = plan
        self._store.commit(self._book, plan.change)
        self._unfinished = None
        self._carried_out(plan)

    def _carried_out(self, plan: _Plan) -> None:
        self._forget_done()
        now = self._now()
        sent = {tick.key for tick in plan.ticks if tick.request is None}
        for key, state in plan.states.items():
            if key in self._keys:
                self._show(self._keys[key], state)
                if key not in sent:
                    self._push(key, now)
        if plan.missed:
            count = sum(plan.missed.values())
            self._missed_untold += count
            _logger.warning("zkbeat: %d due times were missed, of %s", count, describe_names(list(plan.missed)))

    def _consider(self, entry: Any, last: int, now: int, policy: Policy) -> Due | None:
        try:
            return schedule.decide(last, now, calendars.dues_of(entry.schedule, now), policy)
        except Exception:  # noqa: BLE001  # a schedule class of the user's
            self._cannot_reckon(entry)
            return None

    def _following(self, entry: Any, last: int, now: int) -> int | None:
        try:
            return schedule.instant(calendars.dues_of(entry.schedule, now).after(last))
        except Exception:  # noqa: BLE001  # a schedule class of the user's
            self._cannot_reckon(entry)
            return now + int(self.max_interval * 1_000_000)

    def _cannot_reckon(self, entry: Any) -> None:
        # As celery does: one entry that cannot be reckoned with must not stop all others.
        _logger.error(
            "zkbeat: cannot reckon when %r is due, trying again in %g s",
            entry.name,
            self.max_interval,
            exc_info=True,  # noqa: LOG014  # called from handlers only
        )

    def _policy_of(self, entry: Any) -> Policy:
        found = self._policy(str(entry.name))
        if found is not None:
            return found
        deadline_s = self.app.conf.beat_cron_starting_deadline
        return Policy(within_s=deadline_s if calendars.is_crontab(entry.schedule) else None)

    # what is sent

    def _owed(self) -> list[Tick]:
        return [tick for tick in self._book.intent.ticks if tick not in self._done]

    def _send(self, now: int) -> None:
        """Publish what is owed, and write down what went out; stop at a broker that takes nothing."""
        for tick in self._owed():
            if clock.now() < self._broker_at:
                break
            tries, at = self._tries.get(tick, _NEVER)
            if at > clock.now() or tick.key not in self._keys:
                continue
            if self._publish(self._keys[tick.key], tick, tries):
                self._broker_tries = 0
                self._sent(tick, now)
        self._confirm_rest()

    def _too_late(self, entry: Any, tick: Tick, now: int) -> bool:
        policy = self._policy_of(entry)
        if policy.within_s is not None and tick.due < now - int(policy.within_s * 1_000_000):
            return True
        if tick not in self._tries or policy.catch_up is schedule.CatchUp.ALL:
            return False  # what a former leader owed is sent once, even where what was missed is not
        following = self._following(entry, tick.due, now)
        return following is not None and following <= now

    def _publish(self, entry: Any, tick: Tick, tries: int) -> bool:
        headers = stamp.of_tick(tick.name, self._epoch)
        stamped = stamp.stamped(entry, headers)
        stamped.options.update(task_id=tick.task_id(self._place.base), retry=False)  # type: ignore[union-attr]
        _logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            self.apply_async(stamped, producer=self.producer, advance=False)
        except Exception as error:  # noqa: BLE001  # whatever the transport, a serializer or the app's task class raise
            if self._is_of_the_broker(error):  # it is so for all of them
                wait_s = _backed_off_s(self._broker_tries)
                self._broker_tries, self._broker_at = self._broker_tries + 1, clock.now() + wait_s
                self._tries[tick] = tries + 1, self._broker_at
            else:
                wait_s = _backed_off_s(tries)
                self._tries[tick] = tries + 1, clock.now() + wait_s
            _logger.error("zkbeat: %s was not sent, trying again in %g s: %s", tick.name, wait_s, error)  # noqa: TRY400
            self._drop_connection()
            return False
        return True

    def _is_of_the_broker(self, error: Exception) -> bool:
        """Whether it is the broker that fails, and not this one message."""
        connection = self.__dict__.get("connection")
        transport = (*connection.connection_errors, *connection.channel_errors) if connection is not None else ()
        cause = error.__cause__ or error.__context__ or error
        return isinstance(cause, (OSError, OperationalError, *transport))

    def _sent(self, tick: Tick, now: int) -> None:
        self._done.add(tick)
        self._tries.pop(tick, None)
        if tick.request is None and tick.key in self._keys:
            self._push(tick.key, now)
        self._store.poll(self._book)
        if not self._store.confirming and clock.now() - self._confirmed_at >= CONFIRM_EVERY_S:
            self._confirm()

    def _confirm(self) -> None:
        self._confirmed_at = clock.now()
        self._forget_done()
        if self._done:
            self._store.confirm(self._book.change(ticks=self._owed()))

    def _confirm_rest(self) -> None:
        """Have all that went out written down before the loop sleeps."""
        while self._done and not self._goes_on():
            if not self._store.confirming:
                self._confirm()
            self._store.settle(self._book)
            self._forget_done()

    def _forget_done(self) -> None:
        owed = set(self._book.intent.ticks)
        self._done.intersection_update(owed)
        self._tries = {tick: tried for tick, tried in self._tries.items() if tick in owed}

    def _ensure_connected(self) -> Any:
        """Connect to the broker, or fail: celery's own goes on trying, and the loop has other things to do."""
        return self.connection.ensure_connection(max_retries=0)

    def _drop_connection(self) -> None:
        """Have the next publish make a new connection: without retries kombu keeps one that is broken."""
        self.__dict__.pop("producer", None)
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            try:
                connection.collect(socket_timeout=1.0)
            except Exception:
                _logger.debug("zkbeat: closing the connection to the broker failed", exc_info=True)

    # on the side

    def _tell(self) -> None:
        """Write down, when there is time, what the entries are about, and what was missed."""
        if self._missed_untold and self._epoch and self._store.report_missed(int(self._epoch), self._missed_untold):
            self._missed_untold = 0
        for number in sorted(self._untold)[:TOLD_AT_ONCE]:
            entries = {key: self._keys[key] for key in self._book.keys_in(number) if key in self._keys}
            texts = {key: (str(entry.task), calendars.in_words(entry.schedule)) for key, entry in entries.items()}
            self._store.tell(number, schedule.encode_about(texts))
            self._untold.discard(number)

    def _last(self, entry: Any) -> int:
        return schedule.to_us(as_utc(entry.last_run_at))

    def _now(self) -> int:
        return schedule.to_us(as_utc(self.app.now()))

    # the end

    def close(self) -> None:
        """Send nothing any more, and write down what was sent.

        Celery calls this in a signal handler, perhaps in the middle of a turn, where nothing may wait; and once more
        when its loop has ended. There it swallows the exit code of a SystemExit, so that is raised again from here.
        """
        self._closing = True
        if self._in_turn or self._closed:
            return
        self._closed = True
        super().close()
        try:
            self._store.settle(self._book)
            self._forget_done()
            if self._done:
                self._store.commit(self._book, self._book.change(ticks=self._owed()))
        except (UnavailableError, SupersededError, ControlChangedError, FencedError, RefusedError):
            _logger.warning("zkbeat: what was sent last may be sent again: ZooKeeper could not be told")
        self._store.close(FLUSH_WITHIN_S)
        if self._exit_code is not None:
            raise SystemExit(self._exit_code)

    @property
    def info(self) -> str:
        """What celery's banner says."""
        where = f"{self._place.access.hosts}{self._place.base}" if self._place is not None else "not configured"
        return f"    . zookeeper -> {where}"


def _backed_off_s(tries: int) -> float:
    first, longest = PUBLISH_AGAIN_S
    return float(min(first * 2 ** min(tries, 10), longest))


def _refuse(line: str, exit_code: int) -> NoReturn:
    _logger.critical("zkbeat: %s", line)  # celery has its log set up by now, and standard error goes there
    raise SystemExit(exit_code)
