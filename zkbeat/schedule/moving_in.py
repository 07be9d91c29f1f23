"""Takes over what another scheduler of celery's knows, so that the change to ZooKeeper neither skips nor repeats.

Reads last runs and counts where celery, django-celery-beat or RedBeat keep them, and changes nothing there. They go
into the schedule's state in ZooKeeper by the names of the entries, through the same transactions as the schedule's
writer uses. Where definitions are kept in such a store too, they can be had as Python, since with `-S zookeeper` they
come from the app.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shelve
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from zkbeat import clock
from zkbeat.access import Access
from zkbeat.config import EXIT_CONFIG, election_name
from zkbeat.core import schedule
from zkbeat.core.schedule import Book, State, key_of
from zkbeat.core.term import EXIT_NO_ENSEMBLE, EXIT_NO_PERMISSION
from zkbeat.launcher.clocks import as_utc
from zkbeat.operate import EXIT_USAGE, ElectionPath, OperatorError, ago, connected, console, fail
from zkbeat.schedule.operate import EXIT_NOT_SO, Reader, dim, plain, when
from zkbeat.schedule.store import RefusedError, Store, SupersededError, UnavailableError
from zkbeat.settings import Place

EXIT_NO_INPUT = 66
"""The file cannot be read, or is none of celery's."""

EXIT_UNAVAILABLE = EXIT_NO_ENSEMBLE
"""Nor do Redis and a database answer."""

SOURCES = ("shelve", "django", "redbeat")

READ_WITHIN_S = 15.0
"""How long Redis, or a database, may take; their own timeouts may be endless."""

CONNECT_WITHIN_S = 5.0
TRIES = 8
"""How often to begin anew when a leader writes at the same time; each try takes some milliseconds."""

AHEAD_US = 1_000_000
"""How far ahead a last run may lie: clocks of machines that are kept in step differ by less."""

SUFFIXES = ("", ".db", ".dat", ".bak", ".dir", "-wal")
"""What the backends of dbm add to a file's name (celery.beat.PersistentScheduler), and SQLite, which is one of them."""

OF_CELERY = ("celery.backend_cleanup",)
"""Entries that celery's schedulers add by themselves."""


@dataclass(frozen=True)
class Found:
    """An entry, as its scheduler keeps it."""

    name: str
    last: datetime | None = None
    count: int = 0
    task: str = ""
    schedule: Any = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    skip: str | None = None
    """Why its state is not to be taken over."""
    notes: tuple[str, ...] = ()
    """What its definition would lose as one of celery's own."""
    inexpressible: str | None = None
    """Why it has no such definition."""


@dataclass(frozen=True)
class Outcome:
    """What becomes of one entry's state."""

    name: str
    what: str
    """imported, kept or skipped."""
    why: str = ""
    state: State | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for machines; the instant is in ISO 8601 and UTC."""
        at = self.state
        return {
            "entry": self.name,
            "what": self.what,
            "why": self.why or None,
            "last": schedule.to_datetime(at.last).isoformat() if at is not None else None,
            "count": at.count if at is not None else None,
        }


# what becomes of each (pure)


def decide(
    found: Iterable[Found], states: Mapping[str, State], now: int, defined: Iterable[str] | None = None
) -> list[Outcome]:
    """Return what becomes of each entry. `states`: what is in ZooKeeper. `defined`: which entries the app has."""
    known = None if defined is None else {*defined, *OF_CELERY}
    return [_decide(one, states.get(key_of(one.name)), now, known) for one in found]


def _decide(one: Found, there: State | None, now: int, defined: set[str] | None) -> Outcome:
    if one.skip is not None or one.last is None:
        return Outcome(one.name, "skipped", one.skip or "has never run")
    why = []
    last = schedule.to_us(as_utc(one.last))
    if last > now + AHEAD_US:
        why.append(f"its last run was {ago((last - now) / 1e6)} in the future: taken as now")
        last = now
    if there is not None and there.last >= last:
        later = "the same" if there.last == last else "a later"
        return Outcome(one.name, "kept", f"{later} run is in ZooKeeper already", there)
    if defined is not None and one.name not in defined:
        why.append("the app has no such entry")
    before = there or State(last)
    # Without a fingerprint the next leader takes whatever definition it has as the one that the last run is of.
    state = State(last, max(one.count, before.count), before.missed, None, None)
    return Outcome(one.name, "imported", "; ".join(why), state)


# their definitions, as Python (pure)


def definitions(found: Iterable[Found], zone: str) -> str:
    """Return Python that defines these entries. `zone`: the app's; a crontab in another one cannot be said.

    What has no such definition is a comment.
    """
    lines: list[str] = []
    for one in sorted(found, key=lambda one: one.name):
        entry, why = _definition(one, zone)
        lines += [f"# {_one_line(note)}" for note in one.notes]
        lines += [f"# not defined: {_one_line(why)}", *(f"# {line}" for line in entry)] if why is not None else entry
    code = "\n".join(line for line in lines if not line.startswith("#"))
    imports = [
        *["import datetime"] * ("datetime." in code),
        *["from celery import schedules"] * ("schedules." in code),
    ]
    return "\n".join([*imports, *[""] * bool(imports), "beat_schedule = {", *(f"    {line}" for line in lines), "}"])


def _definition(one: Found, zone: str) -> tuple[list[str], str | None]:
    """Return the lines of an entry, and why they can only be a comment, if so."""
    said, why = _schedule_text(one.schedule, zone)
    items = {"task": repr(one.task), "schedule": said}
    for name, value in (("args", tuple(one.args)), ("kwargs", dict(one.kwargs)), ("options", dict(one.options))):
        if value:
            try:
                items[name] = _literal(value)
            except ValueError as error:
                items[name], why = _one_line(repr(value)), why or f"its {name}: {error}"
    lines = [f"{one.name!r}: {{", *(f"    {key!r}: {text}," for key, text in items.items()), "},"]
    return lines, one.inexpressible or why


def _schedule_text(of: Any, zone: str) -> tuple[str, str | None]:
    from celery import schedules

    kind = type(of)
    if kind is schedules.schedule:
        seconds = _literal(of.run_every.total_seconds())
        return (f"schedules.schedule({seconds}, relative=True)" if of.relative else seconds), None
    if kind is schedules.solar:
        return f"schedules.solar({_literal(of.event)}, {float(of.lat)!r}, {float(of.lon)!r})", None
    if isinstance(of, schedules.crontab) and kind.__name__ in {"crontab", "TzAwareCrontab"}:
        fields = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
        given = {name: getattr(of, f"_orig_{name}") for name in fields}
        said = ", ".join(f"{name}={_literal(value)}" for name, value in given.items() if value != "*")
        # Celery's own crontab is in the app's time zone, and is told of no other.
        elsewhere = kind is not schedules.crontab and str(of.tz) != zone
        why = f"its time zone is {of.tz}, and the app's is {zone}" if elsewhere else None
        return f"schedules.crontab({said})", why
    return _one_line(repr(of)), f"celery has no such schedule ({kind.__module__}.{kind.__qualname__})"


def _literal(value: Any) -> str:
    """Return Python that makes this value. Raises ValueError for one that is not of Python's own kinds."""
    if value is None or type(value) in {bool, int, str, bytes} or (type(value) is float and math.isfinite(value)):
        return repr(value)
    if type(value) in {datetime, timedelta}:
        return repr(as_utc(value) if isinstance(value, datetime) else value)
    if type(value) in {list, tuple, set} and value:
        inner = ", ".join(_literal(one) for one in (sorted(value, key=repr) if isinstance(value, set) else value))
        left, right = ("[", "]") if type(value) is list else ("(", ")") if type(value) is tuple else ("{", "}")
        return f"{left}{inner}{',' * (type(value) is tuple and len(value) == 1)}{right}"
    if type(value) in {list, tuple, set}:
        return repr(value)
    if type(value) is dict:
        return f"{{{', '.join(f'{_literal(key)}: {_literal(one)}' for key, one in value.items())}}}"
    raise ValueError(f"{type(value).__name__} cannot be written as Python")


def _one_line(text: str) -> str:
    return " ".join(text.split())


# the sources


def load_app(name: str) -> Any:
    """Return the Celery app that `celery -A NAME` would use. Raises OperatorError."""
    from celery import Celery
    from celery.app.utils import find_app

    try:
        with _loading():
            app = find_app(name)
            if not isinstance(app, Celery):
                raise TypeError("that is no Celery app")  # noqa: TRY301
            app.loader.import_default_modules()
            app.finalize()
            app.conf.beat_schedule.items()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # an app may do anything at import
        raise OperatorError(f"cannot load the app {name!r}: {_describe(error)}", EXIT_USAGE) from None
    return app


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Have the app found where the command is run, and what it prints kept out of what we print."""
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    for name in ("celery", "kombu", "django_celery_beat"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    with contextlib.redirect_stdout(sys.stderr):
        yield


def read_shelve(path: Path) -> list[Found]:
    """Return what celery's PersistentScheduler keeps in a file; only a copy is opened. Raises OperatorError."""
    tries = [path, *[path.with_suffix("")] * (path.suffix in SUFFIXES[1:])]
    error: OperatorError | None = None
    for one in tries:
        try:
            return _read_shelve(one)
        except OperatorError as failed:
            error = error or failed
    raise error or OperatorError(f"cannot read {path}", EXIT_NO_INPUT)


def _read_shelve(path: Path) -> list[Found]:
    parts = [suffix for suffix in SUFFIXES if path.with_name(path.name + suffix).is_file()]
    if not parts:
        raise OperatorError(f"cannot read {path}: there is no such file", EXIT_NO_INPUT)
    with tempfile.TemporaryDirectory(prefix="zkbeat-") as directory, _loading():
        copy = Path(directory, "schedule")
        try:
            for suffix in parts:
                shutil.copyfile(path.with_name(path.name + suffix), f"{copy}{suffix}")
            # What is in it is pickled, as celery does: to read it is to trust it.
            with shelve.open(str(copy), flag="r") as store:  # noqa: S301
                entries = [entry for _name, entry in sorted(store["entries"].items())]
                return [
                    Found(str(entry.name), as_utc(entry.last_run_at), int(entry.total_run_count)) for entry in entries
                ]
        except OSError as error:
            raise OperatorError(f"cannot read {path}: {error.strerror or error}", EXIT_NO_INPUT) from None
        except ImportError as error:
            raise OperatorError(
                f"cannot read {path}: {error}; run this where the app is, with -A", EXIT_NO_INPUT
            ) from None
        except Exception as error:  # noqa: BLE001  # dbm's backends and pickle have a dozen kinds
            raise OperatorError(
                f"{path} is no schedule of celery's PersistentScheduler: {_describe(error)}", EXIT_NO_INPUT
            ) from None


def read_django() -> list[Found]:
    """Return what django-celery-beat has in its database; Django is set up by DJANGO_SETTINGS_MODULE."""
    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        raise OperatorError("which Django project? Set DJANGO_SETTINGS_MODULE, or give -A", EXIT_USAGE)
    try:
        with _loading():
            import django  # type: ignore[import-untyped]

            django.setup()
            from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]
            from django.db import DatabaseError, InterfaceError, OperationalError  # type: ignore[import-untyped]
            from django_celery_beat.models import PeriodicTask  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise _not_here(error, {"django": "django", "django_celery_beat": "django-celery-beat"}) from None
    except Exception as error:  # noqa: BLE001  # settings are a module of the user's
        raise OperatorError(f"cannot set up Django: {_describe(error)}", EXIT_CONFIG) from None
    related = ("interval", "crontab", "solar", "clocked")
    try:
        return [_of_django(row) for row in PeriodicTask.objects.select_related(*related).order_by("name")]
    except ImproperlyConfigured as error:
        raise OperatorError(f"cannot set up Django: {_describe(error)}", EXIT_CONFIG) from None
    except (OperationalError, InterfaceError) as error:
        raise OperatorError(f"the database does not answer: {_describe(error)}", EXIT_UNAVAILABLE) from None
    except DatabaseError as error:
        raise OperatorError(f"cannot read django-celery-beat's tables: {_describe(error)}", EXIT_CONFIG) from None


def _of_django(row: Any) -> Found:
    from kombu.utils import json as kombu_json

    loads: Any = kombu_json.loads
    said = [row.args or "[]", row.kwargs or "{}", row.headers or "{}"]
    inexpressible = None
    try:
        args, kwargs, headers = (loads(text) for text in said)
    except ValueError:
        args, kwargs, headers = [], {}, {}
        inexpressible = "its arguments are not JSON"
    options = {name: getattr(row, name) for name in ("queue", "exchange", "routing_key", "priority")}
    options |= {"expires": row.expires or row.expire_seconds, "headers": headers or None}
    now = schedule.to_datetime(int(clock.wall() * 1e6))
    scheduler = row.interval or row.crontab or row.solar or row.clocked
    if row.clocked is not None:
        inexpressible = "it is clocked, and -S zookeeper has no such schedule"
    elif scheduler is None:
        inexpressible = "it has no schedule"
    elif row.one_off:
        inexpressible = "it is one-off, and -S zookeeper has no such entries"
    elif not row.enabled:
        inexpressible = "it is disabled"
    elif row.start_time is not None and as_utc(row.start_time) > now:
        inexpressible = f"it starts at {as_utc(row.start_time).isoformat()} only"
    skip = None
    if not row.enabled:
        skip = "is disabled"
    elif row.clocked is not None or row.one_off:
        skip = "is clocked or one-off, which -S zookeeper has not"
    elif row.last_run_at is None:
        skip = "has never run, or that was not saved yet: it counts from when a leader first sees it"
    return Found(
        row.name,
        row.last_run_at and as_utc(row.last_run_at),
        row.total_run_count,
        row.task,
        scheduler.schedule if scheduler is not None else None,
        args,
        kwargs,
        {name: value for name, value in options.items() if value is not None},
        skip,
        ("django-celery-beat disables it at its expiry; here its messages expire",) if row.expires else (),
        inexpressible,
    )


def read_redbeat(app: Any) -> list[Found]:
    """Return what RedBeat has in Redis. Raises OperatorError."""
    try:
        with _loading():
            from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis  # type: ignore[import-untyped]
            from redis.exceptions import RedisError
    except ModuleNotFoundError as error:
        raise _not_here(error, {"redbeat": "celery-redbeat", "redis": "redis"}) from None
    try:
        with _loading():
            ensure_conf(app)
            keys = get_redis(app).zrange(app.redbeat_conf.schedule_key, 0, -1)
            entries = []
            for key in keys:
                with contextlib.suppress(KeyError):  # deleted meanwhile
                    entries.append(RedBeatSchedulerEntry.from_key(key, app=app))
    except (RedisError, OSError) as error:
        raise OperatorError(f"Redis does not answer: {_describe(error)}", EXIT_UNAVAILABLE) from None
    except Exception as error:  # noqa: BLE001  # JSON that a class of the user's may have written
        raise OperatorError(f"cannot read RedBeat's schedule: {_describe(error)}", EXIT_CONFIG) from None
    return [_of_redbeat(entry) for entry in sorted(entries, key=lambda one: str(one.name))]


def _of_redbeat(entry: Any) -> Found:
    skip = None
    if not entry.enabled:
        skip = "is disabled"
    elif entry.last_run_at is None:
        skip = "has never run: it counts from when a leader first sees it"
    return Found(
        str(entry.name),
        entry.last_run_at and as_utc(entry.last_run_at),
        entry.total_run_count or 0,
        entry.task,
        entry.schedule,
        entry.args or (),
        entry.kwargs or {},
        entry.options or {},
        skip,
        (),
        None if entry.enabled else "it is disabled",
    )


def _not_here(error: ModuleNotFoundError, packages: Mapping[str, str]) -> OperatorError:
    package = packages.get((error.name or "").partition(".")[0])
    if package is None:
        return OperatorError(f"cannot be loaded: {_describe(error)}", EXIT_CONFIG)
    return OperatorError(f"{package} is not installed here: run this where the app is", EXIT_CONFIG)


def _describe(error: BaseException) -> str:
    """Return an exception as one line."""
    text = _one_line(str(error))
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}{f': {text}' * bool(text)}"


def _within(read: Callable[[], list[Found]], what: str) -> list[Found]:
    """Read, but not for longer than is reasonable: what is abandoned ends with the process."""
    answer: list[list[Found] | OperatorError] = []

    def attempt() -> None:
        try:
            answer.append(read())
        except OperatorError as error:
            answer.append(error)
        except Exception as error:  # noqa: BLE001  # must not end as a traceback of a thread
            answer.append(OperatorError(f"cannot read {what}: {_describe(error)}", EXIT_CONFIG))

    reader = threading.Thread(target=attempt, daemon=True)
    reader.start()
    reader.join(READ_WITHIN_S)
    if not answer:
        raise OperatorError(f"no answer from {what} within {READ_WITHIN_S:g} s", EXIT_UNAVAILABLE)
    if isinstance(answer[0], OperatorError):
        raise answer[0]
    return answer[0]


# doing it


@dataclass(frozen=True)
class Order:
    """What is to be taken over, and from where."""

    source: str
    file: Path | None = None
    app: str | None = None
    definitions: bool = False
    dry_run: bool = False
    as_json: bool = False


def move_in(access: Access, root: str, name: str | None, order: Order) -> int:
    """Take over a schedule's state, or print its definitions; return the exit code."""
    try:
        _check(order)
        app = load_app(order.app) if order.app is not None else None
        found = _read(order, app)
        if order.definitions:
            from celery import current_app

            print(definitions(found, str((app or current_app).timezone)))
            return 0
        defined = list(app.conf.beat_schedule) if app is not None else None
        with connected(access, root, name, lambda names: _choose(names, name, order.app)) as path:
            _warn_of_another(path)
            if order.dry_run:
                outcomes = decide(found, _states(path), int(clock.wall() * 1e6), defined)
            else:
                outcomes = _write(Place(access, path.base), found, defined)
            _tell(path.name, outcomes, order)
    except OperatorError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _check(order: Order) -> None:
    if order.source not in SOURCES:
        raise OperatorError(f"{order.source!r} cannot be imported: say {', '.join(SOURCES)}", EXIT_USAGE)
    if (order.source == "shelve") != (order.file is not None):
        says = "needs the FILE that celery's beat was run with (-s; by default: celerybeat-schedule)"
        raise OperatorError(f"shelve {says}" if order.file is None else f"{order.source} takes no FILE", EXIT_USAGE)
    if order.source == "redbeat" and order.app is None:
        raise OperatorError("redbeat needs the app, whose settings say where its Redis is: -A APP", EXIT_USAGE)
    if order.source == "shelve" and order.definitions:
        raise OperatorError("with a shelve the definitions are in the app already", EXIT_USAGE)


def _read(order: Order, app: Any) -> list[Found]:
    if order.file is not None:
        return read_shelve(order.file)
    if order.source == "django":
        return _within(read_django, "the database")
    return _within(lambda: read_redbeat(app), "Redis")


def _choose(names: list[str], name: str | None, app: str | None) -> str:
    """Return the election's name; it need not be there yet."""
    own = election_name(None, ["celery", "-A", app]) if app is not None else None
    if name is None and own is not None and (own in names or not names):
        name = own
    elif name is None and len(names) == 1:
        name = names[0]
    if name is None:
        there = f" ({', '.join(names)})" if names else ""
        raise OperatorError(f"which election? Say with --name{there}", EXIT_USAGE)
    if name not in names:
        _warn(f"no zkbeat has run as {name} yet: it must run with that --name to find what is imported")
    return name


def _warn_of_another(path: ElectionPath) -> None:
    """Warn of a beat that runs now with its old scheduler: what it sends after our look would be sent again."""
    leader = path.look().leader
    member = leader.member if leader is not None else None
    if member is not None and member.state == "leading" and not path.children(f"{path.base}/{schedule.STATE}"):
        _warn(
            f"{member.id} runs beat now: what it sends after this is not taken over; "
            "stop it first (`zkbeat pause`), and import then"
        )


def _warn(line: str) -> None:
    print(f"zkbeat: {line}", file=sys.stderr)


def _states(path: ElectionPath) -> Mapping[str, State]:
    if not path.children(f"{path.base}/{schedule.STATE}"):
        return {}
    return {key: entry.state for key, entry in Reader(path).look(texts=False).entries.items()}


def _write(place: Place, found: Sequence[Found], defined: Sequence[str] | None) -> list[Outcome]:
    """Write the state as the schedule's writer does; a leader that writes too sees that, and reads it anew."""
    store = Store(place, None)
    try:
        store.wait_connected(CONNECT_WITHIN_S)
        done: dict[str, Outcome] = {}
        for _try in range(TRIES):
            with contextlib.suppress(SupersededError):
                _try_to_write(store, found, defined, done)
                return [done[one.name] for one in found]
        raise OperatorError("somebody else writes the schedule all the time: try again", EXIT_NOT_SO)
    except UnavailableError as error:
        raise OperatorError(f"ZooKeeper does not answer ({error}): try again", EXIT_NO_ENSEMBLE) from None
    except RefusedError as error:
        raise OperatorError(str(error), EXIT_NO_PERMISSION) from None
    except schedule.NewerError as error:
        raise OperatorError(str(error), EXIT_CONFIG) from None
    finally:
        store.close(1.0)


def _try_to_write(
    store: Store, found: Sequence[Found], defined: Sequence[str] | None, done: dict[str, Outcome]
) -> None:
    """Write what is not done yet, and note what is. Raises SupersededError."""
    book = Book(os.urandom(4).hex())
    garbage = store.take_over(book)
    if garbage:
        _warn(f"cannot read {', '.join(garbage)} in ZooKeeper")
    left = [one for one in found if one.name not in done or done[one.name].what != "imported"]
    outcomes = decide(left, book.states, int(clock.wall() * 1e6), defined)
    done.update({one.name: one for one in outcomes if one.what != "imported"})
    wanted = {key_of(one.name): one for one in outcomes if one.what == "imported"}
    for portion in book.portions({key: one.state for key, one in wanted.items()}):
        store.commit(book, book.change(portion))
        done.update({wanted[key].name: wanted[key] for key in portion})


def _tell(name: str, outcomes: Sequence[Outcome], order: Order) -> None:
    if order.as_json:
        told = {"name": name, "dry_run": order.dry_run, "entries": [one.to_json() for one in outcomes]}
        print(json.dumps(told))
        return
    screen = console()
    if outcomes:
        screen.print(_table(outcomes))
    counts = {what: sum(one.what == what for one in outcomes) for what in ("imported", "kept", "skipped")}
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    if order.dry_run:
        screen.print(dim(f"{name}: {said}; nothing was written (--dry-run)"))
    else:
        screen.print(dim(f"{name}: {said}; the next leader with -S zookeeper goes on from there"))


def _table(outcomes: Sequence[Outcome]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    whys = any(one.why for one in outcomes)
    table.add_column("entry", overflow="fold")
    table.add_column("is", no_wrap=True)
    table.add_column("last run", no_wrap=True)
    table.add_column("runs", no_wrap=True, justify="right")
    if whys:
        table.add_column("why", overflow="fold")
    for one in outcomes:
        state = one.state
        cells = [
            plain(one.name, None),
            one.what,
            when(state.last) if state else "-",
            str(state.count) if state else "-",
        ]
        table.add_row(
            *(Text(cell) for cell in [*cells, *[one.why] * whys]), style="" if one.what == "imported" else "yellow"
        )
    return table
