"""What an operator does with a schedule in ZooKeeper, from any host and without the app.

Looks at its entries, and writes what is asked for (`schedule/control`), which the leader reads. Never writes what the
leader writes: states and intent.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kazoo import exceptions as zk

from zkbeat import clock
from zkbeat.access import Access
from zkbeat.config import EXIT_CONFIG
from zkbeat.core import schedule
from zkbeat.core.schedule import Book, Control, Hold, Request, State, Tick, key_of
from zkbeat.operate import (
    CALL_WITHIN_S,
    Election,
    ElectionPath,
    OperatorError,
    ago,
    connected,
    console,
    fail,
    operator,
)

EXIT_NOT_SO = 1

ASKED_AT_ONCE = 100
"""How many znodes are being read at a time."""

WAIT_AT_MOST_S = 60.0
LOOK_EVERY_S = 0.2

CONTROL_BYTES = 200_000
"""What operators may ask for at a time: the leader's transactions carry it, beside the states."""

NEAREST = 3
WIDE = 110
"""From how many columns on a table has one line an entry, in columns of its own for task and schedule."""

TEXT_AT_MOST = 80


@dataclass(frozen=True)
class Entry:
    """One entry, as it stands in ZooKeeper."""

    key: str
    state: State
    task: str = ""
    schedule: str = ""
    pending: tuple[Tick, ...] = ()
    """What is owed: intended, and not known to be sent."""
    waiting: tuple[Request, ...] = ()
    """What was asked for, and no leader has seen yet."""
    hold: Hold | None = None

    @property
    def is_gone(self) -> bool:
        """No app has it any more."""
        return self.state.fingerprint == ""

    @property
    def words(self) -> list[str]:
        """What is to be said of it, beside the figures."""
        owed, asked = len(self.pending), len(self.waiting)
        return [
            *["held back"] * (self.hold is not None),
            *[f"{owed} owed"] * bool(owed),
            *[f"{asked} asked for"] * bool(asked),
            *["gone"] * self.is_gone,
            *["imported"] * (self.state.fingerprint is None),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it for machines; instants are in ISO 8601 and UTC, as in the header of a tick."""
        hold = self.hold
        return {
            "entry": self.key,
            "task": self.task or None,
            "schedule": self.schedule or None,
            "next": _iso(self.state.following),
            "last": _iso(self.state.last),
            "count": self.state.count,
            "missed": self.state.missed,
            "pending": [{"due": _iso(one.due), "request": one.request} for one in self.pending],
            "waiting": [{"request": one.id, "by": one.by, "at": _iso(one.at)} for one in self.waiting],
            "held": {"by": hold.by, "since": hold.since, "reason": hold.reason} if hold is not None else None,
            "gone": self.is_gone,
            "imported": self.state.fingerprint is None,
        }


@dataclass(frozen=True)
class Schedule:
    """One look at a schedule."""

    election: Election
    entries: Mapping[str, Entry]
    control: Control
    garbage: Sequence[str] = ()

    def find(self, name: str) -> Entry:
        """Return the entry of this name. Raises OperatorError, which says which names are near."""
        entry = self.entries.get(key_of(name))
        if entry is None:
            raise OperatorError(self.unknown([name]), EXIT_NOT_SO)
        return entry

    def unknown(self, names: Iterable[str]) -> str:
        """Say that there are no such entries, and which are near."""
        said = []
        for name in names:
            near = difflib.get_close_matches(name, list(self.entries), n=NEAREST)
            hint = f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
            said.append(f"{self.election.name} has no entry {name!r}{hint}")
        return "; ".join(said)


class Reader:
    """Reads a schedule's znodes: many at a time, and all of them within bounds."""

    def __init__(self, path: ElectionPath) -> None:
        self._path = path
        self._base = path.base

    def look(self, *, texts: bool) -> Schedule:
        """Read everything; without `texts`, not what the entries are about. Raises OperatorError."""
        numbers = self._numbers()
        book = Book("")
        garbage: list[str] = []
        # Requests first: one that the leader takes out meanwhile is seen twice, and not lost sight of.
        control, _version = self.control(garbage)
        self._read_intent(book, garbage)
        for number, (data, version) in self._get_all(numbers, schedule.STATE):
            try:
                garbage += book.read_bucket(number, data, version)
            except schedule.GarbageError as error:
                garbage.append(str(error))
            except schedule.NewerError as error:
                raise OperatorError(str(error), EXIT_CONFIG) from None
        about: dict[str, tuple[str, ...]] = {}
        if texts:
            for _number, (data, _) in self._get_all(numbers, schedule.ABOUT):
                about |= schedule.decode_about(data)
        return Schedule(self._path.look(), _entries(book, control, about), control, garbage)

    def control(self, garbage: list[str] | None = None) -> tuple[Control, int]:
        """Return what operators ask for, and the version; -1 for a znode that is not there."""
        try:
            data, stat = self._path.call("get", f"{self._base}/{schedule.CONTROL}")
            return Control.decode(data), stat.version
        except zk.NoNodeError:
            return Control(), -1
        except schedule.GarbageError as error:
            if garbage is not None:
                garbage.append(str(error))
            return Control(), stat.version
        except schedule.NewerError as error:
            raise OperatorError(str(error), EXIT_CONFIG) from None

    def change_control(self, change: Callable[[Control], Control]) -> None:
        """Change what operators ask for, whatever else changes it meanwhile. Raises OperatorError."""
        path = f"{self._base}/{schedule.CONTROL}"
        while True:
            found, version = self.control()
            wanted = change(found)
            if wanted == found:
                return
            data = wanted.encode()
            if len(data) > CONTROL_BYTES:
                raise OperatorError("too much is asked for at a time already: nothing was changed", EXIT_NOT_SO)
            try:
                if version < 0:
                    self._path.call("create", path, data)
                else:
                    self._path.call("set", path, data, version)
            except (zk.BadVersionError, zk.NodeExistsError):
                continue
            return

    def is_owed(self, request: str) -> bool:
        """Whether a request still waits for the leader, or for its tick to be sent."""
        control, _version = self.control()
        if any(one.id == request for one in control.requests):
            return True
        # In this order: the leader moves it from there to here, in one transaction.
        book = Book("")
        self._read_intent(book, [])
        return any(one.request == request for one in book.intent.ticks)

    def _numbers(self) -> list[int]:
        try:
            children = self._path.call("get_children", f"{self._base}/{schedule.STATE}")
        except zk.NoNodeError:
            name = self._path.name
            raise OperatorError(
                f"no schedule is kept in ZooKeeper for {name}: has beat run with -S zookeeper?", EXIT_NOT_SO
            ) from None
        return schedule.bucket_numbers(children)

    def _read_intent(self, book: Book, garbage: list[str]) -> None:
        try:
            data, stat = self._path.call("get", f"{self._base}/{schedule.INTENT}")
            book.read_intent(data, stat.version)
        except zk.NoNodeError:
            return
        except schedule.GarbageError as error:
            garbage.append(str(error))
        except schedule.NewerError as error:
            raise OperatorError(str(error), EXIT_CONFIG) from None

    def _get_all(self, numbers: Sequence[int], of: str) -> Iterator[tuple[int, tuple[bytes, int]]]:
        """Read the buckets, some round trips' worth at a time; one that is not there is left out."""
        for start in range(0, len(numbers), ASKED_AT_ONCE):
            paths = {
                number: f"{self._base}/{schedule.bucket_path(number, of)}" for number in numbers[start:][:ASKED_AT_ONCE]
            }
            give_up_at = clock.now() + CALL_WITHIN_S
            asked = [(number, self._path.ask("get", path)) for number, path in paths.items()]
            for number, answer in asked:
                try:
                    data, stat = answer.get(timeout=max(give_up_at - clock.now(), 0.01))
                except zk.NoNodeError:
                    continue
                yield number, (data, stat.version)


def _entries(book: Book, control: Control, about: Mapping[str, Sequence[str]]) -> dict[str, Entry]:
    pending: dict[str, list[Tick]] = {}
    for tick in book.intent.ticks:
        pending.setdefault(tick.key, []).append(tick)
    waiting: dict[str, list[Request]] = {}
    for request in control.requests:
        waiting.setdefault(request.key, []).append(request)
    found = {}
    for key, state in book.states.items():
        task, words = (*about.get(key, ()), "", "")[:2]
        found[key] = Entry(
            key,
            state,
            task,
            words,
            tuple(pending.get(key, ())),
            tuple(waiting.get(key, ())),
            control.held.get(key),
        )
    return found


def _with_schedule(
    access: Access, root: str, name: str | None, act: Callable[[Reader, Schedule], int], *, texts: bool = False
) -> int:
    """Look at a schedule and do something with it; return the exit code."""
    try:
        with connected(access, root, name) as path:
            reader = Reader(path)
            found = reader.look(texts=texts)
            if found.garbage:
                _warn(f"cannot read {', '.join(found.garbage)} in ZooKeeper")
            return act(reader, found)
    except OperatorError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130


def _warn(line: str) -> None:
    print(f"zkbeat: {line}", file=sys.stderr)


# looking


def show_all(access: Access, root: str, name: str | None, *, gone: bool, as_json: bool) -> int:
    """Print all entries, with `gone` also those that no app has any more; return the exit code."""

    def act(_reader: Reader, found: Schedule) -> int:
        ordered = sorted(
            (one for one in found.entries.values() if gone or not one.is_gone),
            key=lambda one: (one.is_gone, one.state.following is None, one.state.following or 0, one.key),
        )
        if as_json:
            print(json.dumps({**_head_json(found), "entries": [one.to_json() for one in ordered]}))
        else:
            screen = console()
            screen.print(_head(found))
            screen.print(_table(ordered, wide=screen.width >= WIDE) if ordered else dim("it has no entries"))
            hidden = len(found.entries) - len(ordered)
            if hidden:
                screen.print(dim(f"{hidden} more that no app has any more: --all shows them"))
        return 0

    return _with_schedule(access, root, name, act, texts=True)


def show_one(access: Access, root: str, name: str | None, entry: str, *, as_json: bool) -> int:
    """Print everything about one entry; return the exit code."""

    def act(_reader: Reader, found: Schedule) -> int:
        one = found.find(entry)
        if as_json:
            print(json.dumps({**_head_json(found), **one.to_json()}))
        else:
            screen = console()
            screen.print(_head(found))
            screen.print(_grid(one))
        return 0

    return _with_schedule(access, root, name, act, texts=True)


def _head_json(found: Schedule) -> dict[str, Any]:
    leader = found.election.leader
    member = leader.member if leader is not None else None
    since = member.term_since if member is not None else None
    return {"name": found.election.name, "leader": member.id if member is not None else None, "leads_since": since}


def _head(found: Schedule) -> Any:
    from rich.text import Text

    election = found.election
    title = Text.assemble("schedule of ", (election.name, "bold"), ", ")
    leader = election.leader
    if leader is None or leader.member is None:
        return title.append("no leader: nothing is sent", style="bold red")
    title.append("leader ").append(leader.member.id, style="bold green")
    if leader.member.term_since:
        since = int(leader.member.term_since * 1_000_000)
        title.append(f" since {when(since)} ({ago(clock.wall() - leader.member.term_since)})")
    if election.control is not None and election.control.paused:
        title.append(", the whole election is paused: nothing is sent", style="bold yellow")
    return title


def _table(entries: Sequence[Entry], *, wide: bool) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    missed = any(one.state.missed for one in entries)
    words = any(one.words for one in entries)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("entry", overflow="fold")
    table.add_column("next due", no_wrap=True)
    table.add_column("last run", no_wrap=True, justify="right")
    table.add_column("runs", no_wrap=True, justify="right")
    if missed:
        table.add_column("missed", no_wrap=True, justify="right")
    if words and wide:
        table.add_column("is", no_wrap=True)
    for heading in ("task", "schedule") if wide else ("task, schedule",):
        table.add_column(heading, overflow="fold")
    for one in entries:
        # Not as strings: a name may have brackets, which rich would take for markup.
        texts = [Text(plain(one.task)), Text(plain(_in_words(one.schedule)))]
        entry, said = Text(plain(one.key, None)), ", ".join(one.words)
        if not wide and said:
            entry.append(f"\n({said})")
        table.add_row(
            entry,
            (" " if wide else "\n").join(_next(one)),
            _last(one.state),
            str(one.state.count),
            *[str(one.state.missed or "-")] * missed,
            *[said] * (words and wide),
            *(texts if wide else [Text("\n").join(text for text in texts if text)]),
            style="yellow" if one.hold is not None else "dim" if one.is_gone else "",
        )
    return table


def _grid(one: Entry) -> Any:
    from rich.table import Table
    from rich.text import Text

    state = one.state
    lines: list[tuple[str, str]] = [
        ("entry", plain(one.key, at_most=None)),
        ("task", plain(one.task, at_most=None) or "not known"),
        ("schedule", plain(_in_words(one.schedule), at_most=None) or "not known"),
        ("next due", " ".join(_next(one, exact=True))),
        ("last due time", f"{when(state.last, exact=True)} ({_since(state.last)} ago), the last that is done with"),
        ("runs", str(state.count)),
        ("missed", str(state.missed)),
    ]
    if one.is_gone:
        lines.append(("gone", "no app has it any more; it is forgotten after 30 days"))
    if state.fingerprint is None:
        lines.append(("imported", "no leader has seen it since"))
    if one.hold is not None:
        since = int(one.hold.since * 1_000_000)
        why = f": {plain(one.hold.reason, at_most=None)}" if one.hold.reason else ""
        lines.append(
            ("held back", f"by {plain(one.hold.by) or 'somebody'}, since {when(since)} ({_since(since)}){why}")
        )
    for tick in one.pending:
        asked = f", asked for (request {tick.request})" if tick.request is not None else ""
        lines.append(("owed", f"{when(tick.due, exact=True)}{asked}"))
    lines += [("asked for", f"by {plain(each.by)}, {_since(each.at)} ago (request {each.id})") for each in one.waiting]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in lines:
        grid.add_row(label, Text(text))
    return grid


def dim(line: str) -> Any:
    """Return a line that is less important."""
    from rich.text import Text

    return Text(line, style="dim")


def _next(one: Entry, *, exact: bool = False) -> list[str]:
    """Return when it is due next, and in how long that is."""
    at = one.state.following
    if one.is_gone or at is None:
        return ["never" if not one.is_gone and one.state.fingerprint is not None else "-"]
    left_s = at / 1e6 - clock.wall()
    return [when(at, exact=exact), f"(in {_length(left_s)})" if left_s > 0 else f"({_length(-left_s)} ago)"]


def _last(state: State) -> str:
    # Of an entry that has never run it is when it was first seen.
    return f"{_since(state.last)} ago" if state.count else "-"


def _since(us: int) -> str:
    return _length(clock.wall() - us / 1e6)


def _length(seconds: float) -> str:
    return f"{seconds:.0f} s" if 10 <= seconds < 120 else ago(seconds)  # noqa: PLR2004  # no tenths where none matter


def when(us: int, *, exact: bool = False) -> str:
    """Return an instant in local time: of today the time, else as much of the date as is needed."""
    local = schedule.to_datetime(us).astimezone()
    now = schedule.to_datetime(int(clock.wall() * 1e6)).astimezone()
    if exact:
        return local.isoformat(sep=" ", timespec="milliseconds" if us % 1_000_000 else "seconds")
    if local.date() == now.date():
        return f"{local:%H:%M:%S}"
    return f"{local:%m-%d %H:%M}" if local.year == now.year else f"{local:%Y-%m-%d}"


def _iso(us: int | None) -> str | None:
    return None if us is None else schedule.to_datetime(us).isoformat()


def _in_words(text: str) -> str:
    """Return celery's `repr` of a schedule without what is the same in all of them."""
    words = " ".join(text.strip("<>").split()).replace(" (m/h/dM/MY/d)", "").replace(" (m/h/d/dM/MY)", "")
    for before, after in (("freq: ", "every "), ("crontab: ", "crontab ")):
        words = words.replace(before, after, 1) if words.startswith(before) else words
    return words


def plain(text: str | None, at_most: int | None = TEXT_AT_MOST) -> str:
    """Return a text that a terminal can show, whatever is in it."""
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text or "")
    return shown if at_most is None or len(shown) <= at_most else f"{shown[: at_most - 1]}…"


# asking


def run(access: Access, root: str, name: str | None, entry: str, *, wait: bool, as_json: bool) -> int:
    """Have an entry run once, now; return the exit code."""

    def act(reader: Reader, found: Schedule) -> int:
        one = found.find(entry)
        if one.is_gone:
            raise OperatorError(f"{entry!r} cannot run: no app has it any more", EXIT_NOT_SO)
        request = Request(os.urandom(6).hex(), one.key, operator(), int(clock.wall() * 1e6))
        reader.change_control(lambda control: replace(control, requests=(*control.requests, request)))
        leader = found.election.leader
        member = leader.member if leader is not None else None
        paused = found.election.control is not None and found.election.control.paused
        if member is None or paused:
            _warn(
                f"{'the election is paused' if paused else f'nobody leads {found.election.name}'}: "
                "it will be sent once somebody leads"
            )
        elif wait:
            _await_sent(reader, request)
        answer = {"entry": one.key, "request": request.id, "leader": None if member is None or paused else member.id}
        sent = wait and answer["leader"] is not None
        if as_json:
            print(json.dumps({**answer, "sent": sent}))
        else:
            print(f"{plain(entry, None)} was sent" if sent else f"asked for {plain(entry, None)} to be sent once")
        return 0

    return _with_schedule(access, root, name, act)


def _await_sent(reader: Reader, request: Request) -> None:
    give_up_at = clock.now() + WAIT_AT_MOST_S
    while reader.is_owed(request.id):
        if clock.now() > give_up_at:
            raise OperatorError(
                f"it was not sent within {WAIT_AT_MOST_S:g} s, and is still asked for: "
                "does the leader's beat run with -S zookeeper, and its broker take messages?",
                EXIT_NOT_SO,
            )
        time.sleep(LOOK_EVERY_S)
    state = reader.look(texts=False).entries.get(request.key)
    if state is None or state.is_gone:
        raise OperatorError(f"{request.key!r} was not sent: the leader's app has no such entry", EXIT_NOT_SO)


@dataclass
class _Done:
    """Which entries a command has changed, and which were so already."""

    changed: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)


def pause(
    access: Access, root: str, name: str | None, entries: Sequence[str], *, reason: str | None, as_json: bool
) -> int:
    """Hold entries back; return the exit code."""

    def act(reader: Reader, found: Schedule) -> int:
        unknown = [one for one in entries if key_of(one) not in found.entries]
        if unknown:
            raise OperatorError(f"{found.unknown(unknown)}: nothing was held back", EXIT_NOT_SO)
        hold = Hold(operator(), round(clock.wall(), 3), reason)
        done = _Done()

        def change(control: Control) -> Control:
            done.already = [one for one in entries if _stays(control.held.get(key_of(one)), reason)]
            done.changed = [one for one in entries if one not in done.already]
            return replace(control, held={**control.held, **{key_of(one): hold for one in done.changed}})

        reader.change_control(change)
        return _say(
            done, "held back", ("is held back: nothing of it is sent", "was held back already"), as_json=as_json
        )

    return _with_schedule(access, root, name, act)


def _stays(held: Hold | None, reason: str | None) -> bool:
    """Whether a hold stays as it is: who began it, and when, is not to be lost, but for another reason."""
    return held is not None and (reason is None or held.reason == reason)


def resume(access: Access, root: str, name: str | None, entries: Sequence[str], *, as_json: bool) -> int:
    """Hold entries back no longer; return the exit code."""

    def act(reader: Reader, found: Schedule) -> int:
        unknown = [one for one in entries if key_of(one) not in found.entries.keys() | found.control.held.keys()]
        if unknown:
            raise OperatorError(f"{found.unknown(unknown)}: nothing was let go", EXIT_NOT_SO)
        done = _Done()

        def change(control: Control) -> Control:
            keys = {key_of(one) for one in entries}
            done.changed = [one for one in entries if key_of(one) in control.held]
            done.already = [one for one in entries if key_of(one) not in control.held]
            return replace(control, held={key: hold for key, hold in control.held.items() if key not in keys})

        reader.change_control(change)
        return _say(done, "let_go", ("is held back no longer", "was not held back"), as_json=as_json)

    return _with_schedule(access, root, name, act)


def _say(done: _Done, what: str, sentences: tuple[str, str], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({what.replace(" ", "_"): done.changed, "already": done.already}))
        return 0
    for names, sentence in zip((done.changed, done.already), sentences, strict=True):
        for one in names:
            print(f"{plain(one, None)} {sentence}")
    return 0
