"""What the schedule's store promises: on the ZooKeeper in memory that the model runs on, and on a real one."""

from __future__ import annotations

import json

import pytest
from kazoo.client import KazooClient

from tests.schedule.fake import Ensemble, Fate, Session
from tests.support.waiting import wait_until
from zkbeat import client
from zkbeat.access import Access
from zkbeat.core import schedule
from zkbeat.core.record import Term
from zkbeat.core.schedule import Book, Control, Hold, NewerError, Request, State, Tick
from zkbeat.schedule import store as store_module
from zkbeat.schedule.store import ControlChangedError, FencedError, Store, SupersededError, UnavailableError
from zkbeat.settings import Place

NOW = 1_780_000_000_000_000
TICK = Tick("a", NOW)
PATIENCE_S = 15.0
SOON_S = 0.5
TRANSACTION_AT_MOST = 512 * 1024


class InMemory:
    """Stores on the model's ZooKeeper."""

    def __init__(self, monkeypatch):
        self.base = "/zkbeat/e"
        self.ensemble = Ensemble()
        self.sessions = {}
        monkeypatch.setattr(client, "plain_client", lambda access, on_error: access())  # noqa: ARG005
        monkeypatch.setattr(client, "stop_within", lambda session, _within_s: session.stop())

    def store(self, leader=None):
        session = Session(self.ensemble)
        store = Store(Place(lambda: session, self.base), leader)
        self.sessions[store] = session
        return store

    def put(self, path, data):
        full = f"{self.base}/{path}"
        version = self.ensemble.znodes[full][1] + 1 if full in self.ensemble.znodes else 0
        self.ensemble.znodes[full] = data, version

    def get(self, path):
        return self.ensemble.znodes[f"{self.base}/{path}"][0]

    def delete(self, path):
        del self.ensemble.znodes[f"{self.base}/{path}"]

    def hold_up(self, store):
        """Have the next answer not come in time, though the call arrives in the end."""
        self.sessions[store].fates.append(Fate.LATE)

    def go_on(self):
        self.ensemble.deliver_late()


class Real:
    """Stores on one server."""

    def __init__(self, hosts, base, server=None):
        self.hosts, self.base, self.server = hosts, base, server
        self.stores = []
        self.admin = KazooClient(hosts)
        self.admin.start(PATIENCE_S)
        self.admin.ensure_path(base)

    def stop(self):
        if self.server is not None:
            self.server.resume()
        for store in self.stores:
            store.close(PATIENCE_S)
        self.admin.stop()
        self.admin.close()

    def store(self, leader=None):
        store = Store(Place(Access(self.hosts), self.base), leader)
        self.stores.append(store)
        store.wait_connected(PATIENCE_S)
        return store

    def put(self, path, data):
        full = f"{self.base}/{path}"
        if self.admin.exists(full):
            self.admin.set(full, data)
        else:
            self.admin.create(full, data, makepath=True)

    def get(self, path):
        return self.admin.get(f"{self.base}/{path}")[0]

    def delete(self, path):
        self.admin.delete(f"{self.base}/{path}")

    def hold_up(self, _store):
        self.server.suspend()

    def go_on(self):
        self.server.resume()
        wait_until(lambda: self.admin.connected, PATIENCE_S, "the server's answer")
        self.admin.sync(self.base)


class Contract:
    """Each test has a `driver`."""

    def leading(self, driver, epoch=1, book=None):
        """Return a store and its book, as the leader of that epoch has them."""
        znode = f"election/{epoch:010d}"
        driver.put(znode, b"")
        store = driver.store(f"{driver.base}/{znode}")
        book = Book(f"w{epoch}") if book is None else book
        assert store.take_over(book) == []
        return store, book

    def reread(self, driver):
        book = Book("reader")
        driver.store().take_over(book)
        return book

    # take-over

    def test_the_first_writer_finds_nothing_and_makes_what_is_needed(self, driver):
        _store, book = self.leading(driver)
        assert book.states == {}
        assert book.intent.ticks == ()
        assert json.loads(driver.get(schedule.INTENT))["ticks"] == []

    def test_the_next_leader_reads_what_the_last_one_wrote(self, driver):
        store, book = self.leading(driver)
        store.commit(book, book.change({"a": State(NOW), "b\ud800": State(NOW, 3, 1, "f")}, [TICK]))
        _other, found = self.leading(driver, 2)
        assert found.states == book.states
        assert found.intent.ticks == (TICK,)

    def test_after_a_take_over_the_former_writer_gets_nothing_through(self, driver):
        """Whether or not its election znode is still there."""
        store, book = self.leading(driver)
        self.leading(driver, 2)
        with pytest.raises(SupersededError):
            store.commit(book, book.change({"a": State(NOW)}))
        assert self.reread(driver).states == {}

    def test_who_reads_the_schedule_anew_can_write_again(self, driver):
        store, book = self.leading(driver)
        self.leading(driver, 2)
        with pytest.raises(SupersededError):
            store.commit(book, book.change({"a": State(NOW)}))
        book = Book("w3")
        store.take_over(book)
        store.commit(book, book.change({"a": State(NOW)}))
        assert self.reread(driver).states == {"a": State(NOW)}

    # the fence

    def test_a_leader_whose_znode_is_gone_gets_nothing_through(self, driver):
        store, book = self.leading(driver)
        driver.delete("election/0000000001")
        with pytest.raises(FencedError):
            store.commit(book, book.change({"a": State(NOW)}, [TICK]))
        found = self.reread(driver)
        assert (found.states, found.intent.ticks) == ({}, ())

    def test_a_deposed_leader_cannot_take_over(self, driver):
        store = driver.store(f"{driver.base}/election/0000000007")
        with pytest.raises(FencedError):
            store.take_over(Book("w"))

    def test_a_confirm_of_a_deposed_leader_does_not_count_either(self, driver):
        store, book = self.leading(driver)
        store.commit(book, book.change(ticks=[TICK]))
        driver.delete("election/0000000001")
        store.confirm(book.change(ticks=[]))
        with pytest.raises(FencedError):
            store.settle(book)
        assert self.reread(driver).intent.ticks == (TICK,)

    # changes

    def test_a_change_is_carried_out_as_a_whole_or_not_at_all(self, driver):
        store, book = self.leading(driver)
        store.commit(book, book.change({"a": State(NOW)}))
        driver.put(schedule.CONTROL, Control(requests=(Request("r", "a"),)).encode())
        assert store.look(book)
        driver.put(schedule.CONTROL, Control({"a": Hold()}, (Request("r", "a"),)).encode())
        with pytest.raises(ControlChangedError):
            store.commit(book, book.change({"a": State(NOW + 1)}, [TICK], Control()))
        found = self.reread(driver)
        assert found.states == {"a": State(NOW)}
        assert found.intent.ticks == ()
        assert found.control.requests == (Request("r", "a"),)

    def test_a_confirm_is_under_way_until_somebody_asks(self, driver):
        store, book = self.leading(driver)
        store.commit(book, book.change(ticks=[TICK]))
        store.confirm(book.change(ticks=[]))
        assert store.confirming
        store.settle(book)
        assert not store.confirming
        assert book.intent.ticks == ()
        store.poll(book)
        store.commit(book, book.change(ticks=[TICK]))

    def test_what_operators_ask_for_is_seen_once_each_time_it_changes(self, driver):
        store, book = self.leading(driver)
        assert not store.look(book)
        driver.put(schedule.CONTROL, Control({"a": Hold("somebody")}).encode())
        assert store.look(book)
        assert book.control.held == {"a": Hold("somebody")}
        assert not store.look(book)
        driver.put(schedule.CONTROL, b"garbage")
        with pytest.raises(schedule.GarbageError):
            store.look(book)
        assert book.control.held == {"a": Hold("somebody")}, "what cannot be read lets nobody go"
        assert not store.look(book), "it is told once"
        driver.put(schedule.CONTROL, Control().encode())
        assert store.look(book)
        assert book.control == Control()

    # answers that are lost

    def held_up(self, driver, store, book, change):
        driver.hold_up(store)
        with pytest.raises(UnavailableError):
            store.commit(book, change)

    def test_a_lost_answer_is_made_up_for_by_reading(self, driver):
        store, book = self.leading(driver)
        self.held_up(driver, store, book, book.change({"a": State(NOW)}, [TICK]))
        assert book.states == {}
        driver.go_on()
        self.settle(store, book)
        assert book.states == {"a": State(NOW)}
        assert book.intent.ticks == (TICK,)
        store.commit(book, book.change(ticks=[]))
        assert self.reread(driver).states == {"a": State(NOW)}

    def test_a_doubt_ends_when_another_has_written_since(self, driver):
        store, book = self.leading(driver)
        self.held_up(driver, store, book, book.change({"a": State(NOW)}))
        driver.go_on()
        other = driver.store()
        wait_until(lambda: takes_over(other, Book("other")), PATIENCE_S, "a take-over")
        with pytest.raises(SupersededError):
            self.settle(store, book)
        store.settle(book)  # it is known now
        again = Book("again")
        store.take_over(again)
        assert again.states == {"a": State(NOW)}

    def settle(self, store, book):
        """Settle it, as soon as there is an answer."""

        def settled():
            try:
                store.settle(book)
            except UnavailableError:
                return False
            return True

        wait_until(settled, PATIENCE_S, "an answer")

    # much, and garbage

    @pytest.mark.parametrize("letter", ["x", "ж"])
    def test_ten_thousand_entries_are_written_and_read(self, driver, letter):
        store, book = self.leading(driver)
        states = {f"{letter * 60}-{number}": State(NOW, 1, 0, "0123456789ab", NOW) for number in range(10_000)}
        self.write(store, book, states)
        moved = {key: State(NOW + 1, 2, 0, "0123456789ab", NOW) for key in states}
        self.write(store, book, moved)
        assert len(book.numbers) > 100
        assert self.reread(driver).states == moved

    def write(self, store, book, states):
        for portion in book.portions(states):
            change = book.change(portion)
            size = sum(len(write.path) + len(write.data) + 64 for write in change.writes)
            assert size < TRANSACTION_AT_MOST, "ZooKeeper takes 1 MiB at most"
            store.commit(book, change)

    def test_garbage_costs_what_it_stands_for_and_nothing_else(self, driver):
        store, book = self.leading(driver)
        store.commit(book, book.change({"a": State(NOW)}, [TICK]))
        driver.put(schedule.INTENT, b"\xff")
        driver.put(schedule.CONTROL, b'{"v":1,"held":3}')
        driver.put("schedule/state/000001", b"[]")
        driver.put("schedule/state/000002", b'{"v":1,"entries":{"b":["x"]}}')
        driver.put("schedule/state/other", b"")
        found = Book("w2")
        garbage = driver.store().take_over(found)
        assert sorted(garbage) == ["b", schedule.CONTROL, schedule.INTENT, "schedule/state/1"]
        assert found.states == {"a": State(NOW)}
        driver.store().take_over(Book("w3"))

    @pytest.mark.parametrize("path", [schedule.INTENT, "schedule/state/000000"])
    def test_what_a_newer_version_wrote_is_not_taken_over(self, driver, path):
        store, book = self.leading(driver)
        store.commit(book, book.change({"a": State(NOW)}))
        driver.put(path, b'{"v":99}')
        with pytest.raises(NewerError):
            driver.store().take_over(Book("w2"))
        assert driver.get(path) == b'{"v":99}'

    # on the side

    def test_texts_are_kept_beside_the_states(self, driver):
        store, _book = self.leading(driver)
        path = schedule.bucket_path(0, schedule.ABOUT)
        for texts in (b"one", b"two", b"two"):
            store.tell(0, texts)
            assert driver.get(path) == texts

    def test_what_was_missed_is_added_to_the_term_s_record_once_that_is_there(self, driver):
        store, _book = self.leading(driver)
        assert not store.report_missed(3, 5)
        driver.put(f"terms/{3:020d}", Term(epoch=3, id="n").encode())
        assert store.report_missed(3, 5)
        assert store.report_missed(3, 2)
        assert Term.decode(driver.get(f"terms/{3:020d}")).missed == 7


def takes_over(store, book):
    try:
        store.take_over(book)
    except UnavailableError:
        return False
    return True


class TestInMemory(Contract):
    @pytest.fixture
    def driver(self, monkeypatch):
        return InMemory(monkeypatch)

    @pytest.mark.parametrize("fate", [Fate.LOST, Fate.DONE_UNHEARD])
    def test_a_confirm_whose_answer_is_lost_is_settled_either_way(self, driver, fate):
        store, book = self.leading(driver)
        store.commit(book, book.change(ticks=[TICK]))
        driver.sessions[store].fates.append(fate)
        store.confirm(book.change(ticks=[]))
        with pytest.raises(UnavailableError):
            store.settle(book)
        store.settle(book)
        assert book.intent.ticks == ((TICK,) if fate is Fate.LOST else ())
        store.commit(book, book.change(ticks=[]))

    def test_a_change_that_arrives_after_it_was_given_up_supersedes_what_came_after(self, driver):
        """The answer was lost, a server that lags behind says that nothing was written: and then it is."""
        store, book = self.leading(driver)
        self.held_up(driver, store, book, book.change({"a": State(NOW)}, [TICK]))
        store.settle(book)
        assert book.states == {}
        driver.go_on()
        with pytest.raises(SupersededError):
            store.commit(book, book.change({"a": State(NOW)}, [TICK]))
        again = Book("again")
        store.take_over(again)
        assert again.intent.ticks == (TICK,)


class TestReal(Contract):
    @pytest.fixture
    def driver(self, request, monkeypatch):
        if "held_up" in request.function.__code__.co_names:
            server = request.getfixturevalue("fresh_server")  # one that can be suspended
            monkeypatch.setattr(store_module, "CALL_WITHIN_S", SOON_S)
            real = Real(server.hosts, "/zkbeat/e", server)
        else:
            real = Real(request.getfixturevalue("zk_hosts"), request.getfixturevalue("zk_root"))
        yield real
        real.stop()
