"""The parts of the worker side that need no worker: names, ages, waiting, and who may run."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from kazoo.exceptions import NoNodeError

from zkbeat.access import Access
from zkbeat.worker import NoOverlap, OncePerTick, claims, request, waiting
from zkbeat.worker.claims import Tick
from zkbeat.worker.request import Gate
from zkbeat.worker.runs import Holder, Run, key_of
from zkbeat.worker.session import Session, UnavailableError
from zkbeat.worker.strategy import Admission

TICK = "report@2026-01-01T06:07:08.900000+00:00"


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("report@2026-01-01T06:00:00+00:00", "20260101T0600Z"),
        ("report@2026-01-01T06:09:59.999999+00:00", "20260101T0600Z"),
        ("report@2026-01-01T06:10:00+00:00", "20260101T0610Z"),
        ("report@2026-01-01T06:10:00", "20260101T0610Z"),
        ("a@b@2026-01-01T07:10:00+01:00", "20260101T0610Z"),
        ("report@2026-01-01T06:10:00.000001+00:00#f00", "20260101T0610Z"),
    ],
)
def test_all_messages_of_a_tick_meet_in_the_slot_of_its_due_time(text: str, slot: str):
    tick = Tick.of(text, "n")
    assert tick is not None
    assert tick.slot == slot


@pytest.mark.parametrize(
    ("text", "nonce"),
    [(None, "n"), ("report", "n"), ("report@noon", "n"), (TICK, None), (TICK, ""), (b"x", "n"), (TICK, 7)],
)
def test_headers_that_zkbeat_has_not_written_are_no_tick(text: Any, nonce: Any):
    assert Tick.of(text, nonce) is None


@pytest.mark.parametrize(
    ("task", "key", "name"),
    [
        ("proj.report", "", "proj.report"),
        ("proj.report", "a/b", "proj.report=a%2Fb"),
        ("proj=report", "", "proj%3Dreport"),
        ("..", "", "%2E%2E"),
        ("Überblick", "", "%C3%9Cberblick"),
    ],
)
def test_each_task_and_key_has_a_znode_of_its_own(task: str, key: str, name: str):
    assert key_of(task, key) == name


def test_a_long_key_is_shortened_and_stays_different():
    first, second = key_of("t", "x" * 999 + "1"), key_of("t", "x" * 999 + "2")
    assert first != second
    assert len(first) < 250


DUE = datetime(2026, 1, 1, 6, 10, tzinfo=timezone.utc).timestamp()  # the end of the slot


@pytest.mark.parametrize(
    ("made_at", "young_until"),
    [
        (DUE - 500, DUE),
        (DUE + 3600, DUE + 3600),  # late, or the beat's clock is behind
        (DUE - 30 * 86_400, DUE - 29 * 86_400),  # the beat's clock is a month ahead
    ],
)
def test_a_slot_grows_old_from_its_due_times_or_from_when_it_was_made(made_at: float, young_until: float):
    assert claims._young_until("20260101T0600Z", made_at) == young_until
    assert claims._young_until("what", made_at) == made_at


class Timer:
    def __init__(self) -> None:
        self.entries: list[tuple[float, Any, Any]] = []

    def call_after(self, delay_s: float, step: Any, args: Any = ()) -> None:
        self.entries.append((delay_s, step, args))

    def fire(self) -> None:
        entries, self.entries = self.entries, []
        for _, step, args in entries:
            step(*args)


class QoS:
    value = 4

    def increment_eventually(self) -> None:
        self.value += 1

    def decrement_eventually(self) -> None:
        self.value -= 1


class Consumer:
    connection_errors = ()
    connection = object()
    hostname = "w"

    def __init__(self, *, prefork: bool = True, **options: Any) -> None:
        self.timer = Timer()
        self.qos = QoS()
        self.pool = SimpleNamespace(uses_semaphore=prefork)
        self.app = SimpleNamespace(conf=SimpleNamespace(broker_transport_options=options))
        self.requested: list[Any] = []

    def on_task_request(self, request: Any) -> None:
        self.requested.append(request)


def test_what_waits_lets_one_more_message_in_for_as_long_as_it_waits():
    consumer = Consumer()
    done: list[str] = []
    waiting.later(consumer, 1, done.append, "x")
    assert (consumer.qos.value, done) == (5, [])
    consumer.timer.fire()
    assert (consumer.qos.value, done) == (4, ["x"])


@pytest.mark.parametrize("lost", ["connection", "qos"])
def test_what_waits_is_left_to_the_broker_when_the_connection_is_lost(lost: str):
    consumer = Consumer()
    done: list[str] = []
    waiting.later(consumer, 1, done.append, "x")
    setattr(consumer, lost, None if lost == "connection" else QoS())
    consumer.timer.fire()
    assert not done
    assert lost == "connection" or consumer.qos.value == 4, "the new connection's window is its own"


def test_a_message_is_given_back_before_the_broker_would_send_it_again(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(waiting.clock, "now", lambda: now)
    default, short = waiting.Wait(Consumer()), waiting.Wait(Consumer(visibility_timeout=60))
    now = 31.0
    assert (default.too_long(), short.too_long()) == (False, True)
    now = 901.0
    assert default.too_long()


class Keeper:
    fail_closed = True
    claims: Any
    warned = 0

    def failed(self, _error: UnavailableError) -> None:
        self.warned += 1


def _admission(claim: Any, *, closed: bool = True) -> tuple[Admission, Consumer, list[str], Any]:
    said: list[str] = []
    consumer, keeper = Consumer(), Keeper()
    keeper.fail_closed = closed
    keeper.claims = SimpleNamespace(claim=claim)
    admission = Admission("t", keeper, consumer, lambda *_args, **_options: said.append("run"))
    message = SimpleNamespace(headers={"zkbeat-tick": TICK, "zkbeat-nonce": "n", "id": "1"})
    ack, reject = (lambda *_: said.append("ack")), (lambda *args: said.append(f"requeue={args[2]}"))
    return admission, consumer, said, lambda: admission(message, None, ack, reject, [])


def _down(*_args: Any) -> bool:
    raise UnavailableError("down")


@pytest.mark.parametrize(
    ("claim", "closed", "said"),
    [
        (lambda *_: True, False, ["run"]),
        (lambda *_: False, False, ["ack"]),
        (_down, False, ["run"]),
        (_down, True, []),
    ],
)
def test_who_may_run(claim: Any, closed: bool, said: list[str]):  # noqa: FBT001
    _, _, found, deliver = _admission(claim, closed=closed)
    deliver()
    assert found == said


def test_a_held_message_is_tried_until_it_is_claimed_or_given_back(monkeypatch: pytest.MonkeyPatch):
    answers = [None, None, True]

    def claim(*_args: Any) -> bool:
        answer = answers.pop(0)
        return _down() if answer is None else answer

    _, consumer, said, deliver = _admission(claim)
    deliver()
    consumer.timer.fire()
    assert (said, consumer.qos.value) == ([], 5)
    consumer.timer.fire()
    assert (said, consumer.qos.value) == (["run"], 4)
    _, consumer, said, deliver = _admission(_down)
    deliver()
    monkeypatch.setattr(waiting.Wait, "too_long", lambda _self: True)
    consumer.timer.fire()
    assert (said, consumer.qos.value, consumer.timer.entries) == (["requeue=True"], 4, [])


class Runs:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.released: list[Run] = []

    def take(self, _run: Run) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def release(self, run: Run) -> None:
        self.released.append(run)


class Asked:
    """What of a celery request the gate looks at."""

    zkbeat_run = zkbeat_wait = zkbeat_looked_at = None
    args: Any = ()
    kwargs: Any = None
    time_start: float | None = None
    worker_pid: int | None = None

    def __init__(self, task: Any, id_: str = "1") -> None:
        self.task, self.id, self.name, self.said = task, id_, "t", []
        self.said: list[str] = []

    def revoked(self) -> bool:
        return False

    def humaninfo(self) -> str:
        return f"t[{self.id}]"

    def acknowledge(self) -> None:
        self.said.append("ack")

    def reject(self, *, requeue: bool) -> None:
        self.said.append(f"requeue={requeue}")

    def send_event(self, *_args: Any, **_options: Any) -> None:
        pass


def _gate(*answers: Any, closed: bool = False, **task: Any) -> tuple[Gate, Runs, Consumer]:
    runs, consumer = Runs(*answers), Consumer()
    defaults = {"name": "t", "on_overlap": "drop", "overlap_key": lambda *_: ""}
    owner = SimpleNamespace(**{**defaults, **task})
    return Gate.of(owner, consumer, runs, lambda _error: None, fail_closed=closed), runs, consumer


OTHER = Holder("token", "other", "elsewhere", here=False)


def test_a_run_that_would_overlap_is_dropped_and_the_message_itself_never():
    gate, _, consumer = _gate(OTHER, Holder("token", "1", "lost", here=False))
    dropped, again = Asked(None, "2"), Asked(None, "1")
    for asked in (dropped, again):
        with pytest.raises(TaskRevokedError):
            gate.enter(asked)
    assert (dropped.said, again.said) == (["ack"], [])
    assert len(consumer.timer.entries) == 1, "the message whose own lock is in the way waits"


def test_a_run_of_this_worker_that_is_in_the_way_gets_a_moment_to_be_over():
    here = Holder("token", "other", "w", here=True)
    gate, _, consumer = _gate(here, None)
    asked = Asked(None)
    with pytest.raises(TaskRevokedError):
        gate.enter(asked)
    consumer.timer.fire()
    assert consumer.requested == [asked]
    gate.enter(asked)
    gate, _, consumer = _gate(here, here)
    asked = Asked(None)
    for _ in range(2):
        with pytest.raises(TaskRevokedError):
            gate.enter(asked)
    assert asked.said == ["ack"]


def test_fail_open_runs_and_still_lets_go_and_fail_closed_waits():
    gate, runs, _ = _gate(UnavailableError("down"))
    asked = Asked(None)
    gate.enter(asked)
    gate.over(asked)
    gate.over(asked)
    assert len(runs.released) == 1
    gate, runs, consumer = _gate(UnavailableError("down"), closed=True)
    with pytest.raises(TaskRevokedError):
        gate.enter(Asked(None))
    assert len(runs.released) == 1, "it may have been taken all the same"
    assert len(consumer.timer.entries) == 1


def test_many_that_wait_for_one_lock_ask_for_it_now_and_then():
    gate, runs, _ = _gate(OTHER, OTHER, on_overlap="postpone")
    first, second = Asked(None, "1"), Asked(None, "2")
    for asked in (first, second, first, second, first):
        with pytest.raises(TaskRevokedError):
            gate.enter(asked)
    assert runs.answers == []


def test_a_key_that_cannot_be_made_locks_the_task_as_a_whole():
    gate, _, _ = _gate(None, overlap_key=lambda *_: 1 / 0)
    asked = Asked(None)
    gate.enter(asked)
    assert asked.zkbeat_run.key == "t"


@pytest.mark.parametrize(("prefork", "released"), [(True, 1), (False, 0)])
def test_what_the_prefork_pool_forgets_with_its_connection_lets_go(prefork: bool, released: int):  # noqa: FBT001
    gate, runs, consumer = _gate(None, None)
    consumer.pool.uses_semaphore = prefork
    waits, runs_on = Asked(None, "1"), Asked(None, "2")
    gate.enter(waits)
    gate.enter(runs_on)
    runs_on.time_start = 1.0
    Gate.of(gate._task, consumer, runs, lambda _error: None, fail_closed=False)
    assert len(runs.released) == released


def test_a_process_that_is_a_zombie_does_not_live():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not request._lives(pid)
    os.waitpid(pid, 0)
    assert not request._lives(pid)


def test_one_answer_does_not_end_an_outage():
    said: list[str] = []

    def ask(begin: Any, _deadline: float) -> Any:  # as where claims may be read and not be made
        del begin
        said.append("asked")
        raise NoNodeError if len(said) == 1 else UnavailableError("NoAuthError")

    session = SimpleNamespace(ask=ask, worked=lambda: said.append("worked"), later=None)
    tick = Tick.of(TICK, "n")
    assert tick is not None
    with pytest.raises(UnavailableError, match="NoAuth"):
        claims.Claims(session, "/base", 60.0, "w").claim(tick, "t")
    assert said == ["asked", "asked"]


def test_a_session_that_cannot_connect_holds_up_the_first_question_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zkbeat.worker.session._FIRST_CONNECT_WITHIN_S", 0.2)
    session = Session(Access("127.0.0.1:1", session_timeout_s=4))
    try:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="not connected"):
                session.ask(lambda client: client.exists_async("/"), 0.0)
    finally:
        session.close()
    with pytest.raises(UnavailableError, match="stopped"):
        session.ask(lambda client: client.exists_async("/"), 0.0)


def test_the_bases_can_be_combined():
    class Both(OncePerTick, NoOverlap):
        pass

    class TheOtherWay(NoOverlap, OncePerTick):
        pass

    for base in (Both, TheOtherWay):
        assert base.Strategy == "zkbeat.worker.strategy:strategy"
        assert base.Request == "zkbeat.worker.request:LockedRequest"


def test_a_tick_of_any_name_can_be_claimed():
    """A name may hold half of a surrogate pair, which plain UTF-8 has no bytes for."""
    session = SimpleNamespace(ask=lambda _begin, _deadline: None, worked=lambda: None)
    tick = Tick.of(f"\ud800 report@{TICK.partition('@')[2]}", "n")
    assert tick is not None
    assert claims.Claims(session, "/base", 60.0, "w").claim(tick, "t")
