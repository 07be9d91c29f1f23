"""What an operator does with a schedule in ZooKeeper, from any host: list, show, run, pause, resume, import."""

from __future__ import annotations

import json
import shelve
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from celery.beat import ScheduleEntry

from tests.support.nodes import Node, environment
from tests.support.waiting import wait_until
from zkbeat.access import Access
from zkbeat.core.record import Member, Term
from zkbeat.core.schedule import (
    Book,
    Control,
    Hold,
    Request,
    State,
    Tick,
    bucket_path,
    encode_about,
    key_of,
    to_us,
)
from zkbeat.operate import connected
from zkbeat.schedule import moving_in
from zkbeat.schedule.moving_in import decide
from zkbeat.schedule.operate import Reader
from zkbeat.schedule.store import Store, SupersededError
from zkbeat.settings import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOUR_US = 3_600_000_000
CONTROL = "e/schedule/control"


def now_us() -> int:
    return to_us(datetime.now(timezone.utc))


class Leader:
    """Writes a schedule as beat does, without a beat."""

    def __init__(self, hosts: str, root: str) -> None:
        self.store = Store(Place(Access(hosts), f"{root}/e"), None)
        self.store.wait_connected(10)
        self.book = Book("leader")
        self.store.take_over(self.book)

    def write(self, states: dict[str, State], ticks: list[Tick] = (), *, texts: bool = True) -> None:
        for portion in self.book.portions(states):
            self.store.commit(self.book, self.book.change(portion))
        self.store.commit(self.book, self.book.change(ticks=ticks))
        for number in self.book.numbers if texts else ():
            about = {key: ("proj.tasks." + key, "<freq: 1.00 hour>") for key in self.book.keys_in(number)}
            self.store.tell(number, encode_about(about))

    def send(self) -> Request:
        """Take the requests out, and confirm them, in the two steps that beat has."""
        self.store.look(self.book)
        (request,) = self.book.control.requests
        ticks = [Tick(request.key, request.at, request.id)]
        control = Control(self.book.control.held)
        self.store.commit(self.book, self.book.change(ticks=ticks, control=control))
        time.sleep(0.5)
        self.store.commit(self.book, self.book.change(ticks=[]))
        return request


@pytest.fixture
def leader(zk_hosts, zk_root) -> Iterator[Leader]:
    """Has written three entries: one that is fine, one that owes a tick and has missed some, one that is gone."""
    leader = Leader(zk_hosts, zk_root)
    now = now_us()
    leader.write(
        {
            "report": State(now - HOUR_US // 2, 51, 0, "f1", now + HOUR_US // 2),
            "invoice": State(now - HOUR_US, 7, 3, "f2", now + 2 * HOUR_US),
            "old": State(now - HOUR_US, 1, 0, "", None),
        },
        [Tick("invoice", now - HOUR_US), Tick("report", now, "asked")],
    )
    yield leader
    leader.store.close(1)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zkbeat", *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture
def zkbeat(zk_hosts, zk_root, monkeypatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a subcommand of `zkbeat schedule` on the test's election, in a pipe."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return run("schedule", words[0], "--hosts", zk_hosts, "--root", zk_root, *words[1:])

    return call


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    return {one["entry"]: one for one in json.loads(done.stdout)["entries"]}


@pytest.fixture
def control(zk_client, zk_root) -> Callable[[], Control]:
    """Reads what operators ask for."""
    return lambda: Control.decode(zk_client.get(f"{zk_root}/{CONTROL}")[0])


# looking


@pytest.mark.usefixtures("leader")
def test_list_shows_each_entry_and_hides_those_that_are_gone(zkbeat):
    done = zkbeat("list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "schedule of e, no leader" in lines[0]
    (report,) = (line for line in lines if line.startswith("report"))
    for expected in ("(in 30 min)", "30 min ago", " 51 ", "1 owed", "proj.tasks.report", "every 1.00 hour"):
        assert expected in report, done.stdout
    (invoice,) = (line for line in lines if line.startswith("invoice"))
    assert " 3 " in invoice
    assert not any(line.startswith("old") for line in lines)
    assert "1 more that no app has any more" in lines[-1]
    assert any(line.startswith("old") and "gone" in line for line in zkbeat("list", "--all").stdout.splitlines())


@pytest.mark.usefixtures("leader")
def test_list_as_json_has_all_figures(zkbeat):
    found = listed(zkbeat("list", "--json", "--all"))
    assert found.keys() == {"report", "invoice", "old"}
    assert (found["invoice"]["count"], found["invoice"]["missed"]) == (7, 3)
    assert (found["invoice"]["task"], found["invoice"]["schedule"]) == ("proj.tasks.invoice", "<freq: 1.00 hour>")
    assert [one["request"] for one in found["report"]["pending"]] == ["asked"]
    assert datetime.fromisoformat(found["report"]["next"]) > datetime.now(timezone.utc)
    assert found["old"]["gone"]
    assert "old" not in listed(zkbeat("list", "--json"))


def test_a_list_fits_80_columns(zkbeat, leader, monkeypatch):
    long = "a-name-of-an-entry-that-is-quite-long-" * 3
    leader.write({long: State(now_us(), 123456, 99, "f", now_us() + 400 * 24 * HOUR_US)})
    zkbeat("pause", long, "report", "--reason", "a reason")
    monkeypatch.setenv("COLUMNS", "80")
    done = zkbeat("list")
    assert max(len(line) for line in done.stdout.splitlines()) <= 80, done.stdout
    for figure in ("123456", "99", "7", "51"):
        assert f" {figure} " in done.stdout, "no figure is cut off"


def test_names_of_any_text_neither_break_the_table_nor_the_terminal(zkbeat, leader):
    names = ["[bold]mark[/bold]up", "esc\x1b[31mape", "line\nfeed", "half \udc80 pair", "ünï 漢字"]
    leader.write({name: State(now_us(), 0, 0, None, None) for name in names})
    done = zkbeat("list")
    assert done.returncode == 0, done.stderr
    for expected in (
        "[bold]mark[/bold]up",
        "esc\\x1b[31mape",
        "line\\nfeed",
        "half \\udc80 pair",
        "ünï 漢字",
        "imported",
    ):
        assert expected in done.stdout, done.stdout
    assert listed(zkbeat("list", "--json")).keys() >= set(names)


def test_thousands_of_entries_are_listed_at_once(zkbeat, leader):
    leader.write({f"entry-{number}": State(now_us(), number, 0, "f", now_us()) for number in range(3000)})
    began = time.monotonic()
    found = listed(zkbeat("list", "--json"))
    assert time.monotonic() - began < 5
    assert len(found) == 3002
    assert found["entry-2999"]["count"] == 2999


def test_show_has_everything_about_one_entry(zkbeat, leader, zk_client, zk_root):
    request = Request("r1", "invoice", "somebody@there", now_us())
    hold = Hold("me@here", time.time() - 600, "the month is closed")
    zk_client.create(f"{zk_root}/{CONTROL}", Control({"invoice": hold}, (request,)).encode())
    done = zkbeat("show", "invoice")
    assert done.returncode == 0, done.stderr
    for expected in ("proj.tasks.invoice", "me@here", "10 min", "the month is closed", "somebody@there", "r1", "owed"):
        assert expected in done.stdout, done.stdout
    found = json.loads(zkbeat("show", "invoice", "--json").stdout)
    assert found["held"] == {"by": "me@here", "since": hold.since, "reason": "the month is closed"}
    assert found["waiting"][0]["request"] == "r1"
    assert found["pending"][0]["request"] is None
    assert leader.book.state("invoice").count == found["count"]


def test_a_long_name_is_found_by_all_of_it(zkbeat, leader):
    name = "tasks.add(" + ", ".join(map(str, range(100))) + ")"
    leader.write({key_of(name): State(now_us(), 5, 0, "f", now_us())})
    assert json.loads(zkbeat("show", name, "--json").stdout)["count"] == 5


@pytest.mark.usefixtures("leader")
@pytest.mark.parametrize(
    "words", [("show", "invoise"), ("run", "invoise"), ("pause", "invoise"), ("resume", "invoise")]
)
def test_an_unknown_entry_is_refused_with_the_nearest_name(zkbeat, zk_client, zk_root, words):
    done = zkbeat(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("zkbeat: e has no entry 'invoise'; did you mean 'invoice'?")
    assert done.stderr.count("\n") == 1
    assert not zk_client.exists(f"{zk_root}/{CONTROL}")


def test_where_no_schedule_is_kept_one_line_says_so(zkbeat, zk_client, zk_root):
    zk_client.ensure_path(f"{zk_root}/e/election")
    for words in (("list",), ("show", "x"), ("run", "x"), ("pause", "x"), ("resume", "x")):
        done = zkbeat(*words)
        assert done.returncode == 1
        assert done.stderr == ("zkbeat: no schedule is kept in ZooKeeper for e: has beat run with -S zookeeper?\n")


def test_without_zookeeper_there_is_one_line_and_69(tmp_path, kept_by_celery):
    path = kept_by_celery({"a": (datetime.now(timezone.utc), 1)})
    commands = [("list",), ("show", "x"), ("run", "x"), ("pause", "x"), ("resume", "x"), ("import", "shelve", path)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "zkbeat", "schedule", words[0], "--hosts", "127.0.0.1:1", *words[1:]],
            env=environment(),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in commands
    ]
    for one in running:
        said = one.communicate(timeout=60)[1]
        assert one.returncode == 69
        assert said == "zkbeat: no ZooKeeper: 127.0.0.1:1: nothing listens there; is ZooKeeper running?\n"


def test_a_schedule_behind_credentials_is_refused_with_77(zk_hosts, zk_root, zk_client, zkbeat):
    access = Access(zk_hosts, auth_scheme="digest", auth_user="u", auth_password="p")
    store = Store(Place(access, f"{zk_root}/e"), None)
    store.wait_connected(10)
    store.take_over(Book("leader"))
    store.close(1)
    assert zk_client.exists(zk_root)
    done = zkbeat("list", "--name", "e")
    assert (done.returncode, done.stderr.count("\n")) == (77, 1), done.stderr


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(zkbeat, leader, zk_client, zk_root):
    zk_client.create(f"{zk_root}/e/schedule/state/000099", b"\xff")
    zk_client.create(f"{zk_root}/{CONTROL}", b"nonsense")
    zk_client.set(f"{zk_root}/e/schedule/about/000000", b"nonsense")
    done = zkbeat("list", "--json")
    assert "schedule/state/99" in done.stderr
    assert "schedule/control" in done.stderr
    assert listed(done).keys() == {"report", "invoice"}
    zk_client.set(f"{zk_root}/e/{bucket_path(0)}", b'{"v":99}')
    done = zkbeat("list")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "newer zkbeat" in done.stderr
    assert leader.book.state("report") is not None


# asking


def test_run_asks_the_leader_and_says_that_nobody_leads(zkbeat, leader, control):
    done = zkbeat("run", "report", "--json")
    assert done.returncode == 0
    assert done.stderr == "zkbeat: nobody leads e: it will be sent once somebody leads\n"
    told = json.loads(done.stdout)
    assert (told["entry"], told["leader"], told["sent"]) == ("report", None, False)
    (request,) = control().requests
    assert (request.id, request.key) == (told["request"], "report")
    assert "@" in request.by
    assert abs(request.at - now_us()) < 60_000_000
    assert zkbeat("run", "invoice", "--wait").returncode == 0, "without a leader it does not wait"
    assert [one.key for one in control().requests] == ["report", "invoice"]
    assert leader.store.look(leader.book), "and the leader sees them"


@pytest.mark.usefixtures("leader")
def test_what_no_app_has_any_more_is_not_run(zkbeat, zk_client, zk_root):
    done = zkbeat("run", "old")
    assert done.returncode == 1
    assert done.stderr == "zkbeat: 'old' cannot run: no app has it any more\n"
    assert not zk_client.exists(f"{zk_root}/{CONTROL}")


def test_run_waits_until_the_leader_has_sent_it(tmp_path, zkbeat, leader, zk_hosts, zk_root, control):
    options = ["--root", zk_root, "--session-timeout", "4", "--lease", "1.5"]
    with Node(tmp_path / "n1", hosts=zk_hosts, name="e", options=options) as node:
        node.wait_state("leading")
        ended: list[subprocess.CompletedProcess[str]] = []
        waiting = threading.Thread(target=lambda: ended.append(zkbeat("run", "report", "--wait")))
        waiting.start()
        wait_until(lambda: leader.store.look(leader.book) and leader.book.control.requests, 20, "the request")
        assert not ended, "it waits while nobody has taken it"
        leader.book.control_version = -2
        leader.send()
        assert not ended, "nor is it sent while it is owed"
        waiting.join(20)
        (done,) = ended
        assert (done.returncode, done.stdout, done.stderr) == (0, "report was sent\n", "")
        assert not control().requests
        assert "leader n1 since" in zkbeat("list").stdout


def test_requests_of_many_operators_at_once_are_all_there(leader, control, zk_hosts, zk_root):
    def ask(who: int) -> None:
        with connected(Access(zk_hosts), zk_root, "e") as path:
            reader = Reader(path)
            together.wait(10)
            for number in range(10):
                request = Request(f"{who}-{number}", "report")
                reader.change_control(lambda found: replace(found, requests=(*found.requests, request)))  # noqa: B023

    together = threading.Barrier(4)
    threads = [threading.Thread(target=ask, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.id for one in control().requests}) == 40
    assert leader.store.look(leader.book)


def test_pause_and_resume_are_idempotent(zkbeat, leader, control):
    done = zkbeat("pause", "report", "invoice", "--reason", "why not")
    assert (done.returncode, done.stdout.count("is held back: nothing of it is sent")) == (0, 2)
    first = control().held
    assert first.keys() == {"report", "invoice"}
    assert first["report"].reason == "why not"
    again = zkbeat("pause", "report", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"held_back": [], "already": ["report"]})
    assert control().held == first, "who began it, and when, stays"
    assert zkbeat("pause", "report", "--reason", "another").returncode == 0
    assert control().held["report"].reason == "another"
    assert listed(zkbeat("list", "--json"))["report"]["held"]["reason"] == "another"
    assert json.loads(zkbeat("resume", "report", "--json").stdout) == {"let_go": ["report"], "already": []}
    assert json.loads(zkbeat("resume", "report", "--json").stdout) == {"let_go": [], "already": ["report"]}
    assert control().held.keys() == {"invoice"}
    assert leader.store.look(leader.book)


@pytest.mark.usefixtures("leader")
def test_of_several_names_one_of_which_is_unknown_none_is_held_back(zkbeat, zk_client, zk_root):
    done = zkbeat("pause", "report", "nonsense")
    assert done.returncode == 1
    assert "nothing was held back" in done.stderr
    assert not zk_client.exists(f"{zk_root}/{CONTROL}")


@pytest.mark.usefixtures("leader")
def test_what_is_held_and_known_no_more_can_be_let_go(zkbeat, zk_client, zk_root, control):
    zk_client.create(f"{zk_root}/{CONTROL}", Control({"forgotten": Hold("x")}).encode())
    assert zkbeat("resume", "forgotten").returncode == 0
    assert not control().held


def test_status_shows_how_many_due_times_a_term_has_missed(zk_client, zk_hosts, zk_root):
    where = ("--hosts", zk_hosts, "--root", zk_root)
    zk_client.ensure_path(f"{zk_root}/e/election")
    zk_client.create(f"{zk_root}/e/terms/{1:020d}", Term(1, "n1", 1.0, 2.0).encode(), makepath=True)
    assert "missed" not in run("status", *where).stdout
    zk_client.create(f"{zk_root}/e/terms/{2:020d}", Term(2, "n2", 3.0, 4.0, missed=17).encode())
    shown = run("status", *where).stdout
    assert "missed" in shown
    assert any("n2" in line and " 17 " in line for line in shown.splitlines())


# importing: what it has to do with ZooKeeper; the schedulers themselves are in tests/launcher/test_moving_in.py


@pytest.fixture
def kept_by_celery(tmp_path) -> Callable[..., str]:
    """Writes a celerybeat-schedule: {name: (last run, count)}."""

    def write(entries: dict[str, tuple[datetime, int]]) -> str:
        path = tmp_path / "celerybeat-schedule"
        with shelve.open(str(path)) as store:
            store["entries"] = {
                name: ScheduleEntry(name, "task", last, count, 3600.0) for name, (last, count) in entries.items()
            }
        return str(path)

    return write


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str | None]]:
    assert done.returncode == 0, done.stderr
    return {one["entry"]: (one["what"], one["why"]) for one in json.loads(done.stdout)["entries"]}


def test_an_import_never_moves_an_entry_backwards(zkbeat, leader, kept_by_celery):
    now = datetime.now(timezone.utc).replace(microsecond=250)
    before = dict(leader.book.states)
    path = kept_by_celery(
        {
            "report": (now - timedelta(hours=1), 99),
            "invoice": (now - timedelta(minutes=10), 9),
            "naive": ((now - timedelta(minutes=5)).replace(tzinfo=None), 4),
            "ahead": (now + timedelta(hours=1), 1),
            "old": (now - timedelta(minutes=1), 3),
        }
    )
    rehearsed = outcomes(zkbeat("import", "shelve", path, "--dry-run", "--json"))
    fresh = Book("reader")
    leader.store.commit(leader.book, leader.book.change())  # it wrote nothing, so we have not been superseded
    found = outcomes(zkbeat("import", "shelve", path, "--json"))
    assert found == rehearsed
    assert found["report"] == ("kept", "a later run is in ZooKeeper already")
    assert [found[name][0] for name in ("invoice", "naive", "ahead", "old")] == ["imported"] * 4
    assert found["ahead"][1] == "its last run was 60 min in the future: taken as now"
    with pytest.raises(SupersededError):
        leader.store.commit(leader.book, leader.book.change())
    leader.store.take_over(fresh)
    assert fresh.state("report") == before["report"]
    assert fresh.state("invoice") == State(to_us(now - timedelta(minutes=10)), 9, 3, None, None)
    assert fresh.state("naive") == State(to_us(now - timedelta(minutes=5)), 4, 0, None, None)
    assert abs(fresh.state("ahead").last - now_us()) < 60_000_000
    assert fresh.state("old").fingerprint is None
    assert [tick.key for tick in fresh.intent.ticks] == ["invoice", "report"], "what is owed stays owed"
    assert {what for what, _ in outcomes(zkbeat("import", "shelve", path, "--json")).values()} <= {"kept", "imported"}


def test_an_import_into_an_election_that_is_not_there_yet_needs_its_name(zkbeat, zk_client, zk_root, kept_by_celery):
    path = kept_by_celery({"a": (datetime.now(timezone.utc), 1)})
    done = zkbeat("import", "shelve", path)
    assert (done.returncode, done.stderr) == (2, "zkbeat: which election? Say with --name\n")
    assert not zk_client.exists(zk_root)
    done = zkbeat("import", "shelve", path, "--name", "new")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("zkbeat: no zkbeat has run as new yet")
    assert "new: 1 imported, 0 kept, 0 skipped" in done.stdout
    assert listed(zkbeat("list", "--json"))["a"]["imported"]


def test_an_import_begins_anew_when_a_leader_writes_in_between(leader, zk_hosts, zk_root, monkeypatch):
    times = 0

    def decide_late(*arguments: Any) -> list[moving_in.Outcome]:
        nonlocal times
        times += 1
        if times < 3:
            leader.book = Book("leader")
            leader.store.take_over(leader.book)
            leader.write({"busy": State(now_us(), times, 0, "f", None)})
        return decide(*arguments)

    monkeypatch.setattr(moving_in, "decide", decide_late)
    at = datetime.now(timezone.utc)
    found = [moving_in.Found(f"entry-{number}", at, number) for number in range(500)]
    outcomes = moving_in._write(Place(Access(zk_hosts), f"{zk_root}/e"), found, None)
    assert times == 3
    assert {one.what for one in outcomes} == {"imported"}
    book = Book("reader")
    leader.store.take_over(book)
    assert book.state("entry-499") == State(to_us(at), 499, 0, None, None)
    assert book.state("busy").count == 2, "nor is anything of the leader's lost"


def test_an_import_beside_a_beat_that_still_runs_is_warned_of(zkbeat, zk_client, zk_root, kept_by_celery):
    member = Member("n1", state="leading").encode()
    zk_client.create(f"{zk_root}/e/election/x__lock__0000000001", member, makepath=True)
    path = kept_by_celery({"a": (datetime.now(timezone.utc), 1)})
    assert "n1 runs beat now" in zkbeat("import", "shelve", path).stderr
    assert zkbeat("import", "shelve", path).stderr == "", "now the schedule is in ZooKeeper"


def test_an_import_says_which_entries_the_app_has_not(zkbeat, zk_root, tmp_path, kept_by_celery, monkeypatch):
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\nprint('noise')\napp = Celery('proj')\n"
        "app.conf.beat_schedule = {'a': {'task': 't', 'schedule': 1.0}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    last = datetime.now(timezone.utc)
    path = kept_by_celery({"a": (last, 1), "b": (last, 1), "celery.backend_cleanup": (last, 0)})
    found = outcomes(zkbeat("import", "shelve", path, "-A", "proj", "--json"))
    assert found == {
        "a": ("imported", None),
        "b": ("imported", "the app has no such entry"),
        "celery.backend_cleanup": ("imported", None),
    }
    assert listed(zkbeat("list", "--json", "--name", "proj")).keys() == found.keys(), f"named after the app: {zk_root}"


def test_a_file_that_is_none_of_celerys_is_one_line_and_66(zkbeat, tmp_path):
    text = tmp_path / "text"
    text.write_text("hello")
    with shelve.open(str(tmp_path / "another")) as store:
        store["x"] = 1
    for path in (text, tmp_path / "another", tmp_path / "none", tmp_path):
        done = zkbeat("import", "shelve", str(path), "--name", "e")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (66, "", 1), done.stderr
        assert str(path) in done.stderr
    assert text.read_text() == "hello"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("carrier-pigeon",), 2, "say shelve, django, redbeat"),
        (("shelve",), 2, "needs the FILE"),
        (("shelve", "x", "--definitions"), 2, "in the app already"),
        (("redbeat",), 2, "-A APP"),
        (("redbeat", "-A", "no_such_module"), 2, "cannot load the app 'no_such_module'"),
        (("django",), 2, "DJANGO_SETTINGS_MODULE"),
    ],
)
def test_what_an_import_lacks_is_one_line(words, code, says):
    done = run("schedule", "import", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert says in done.stderr
