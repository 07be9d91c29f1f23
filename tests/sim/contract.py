"""What zkbeat relies on of ZooKeeper: one class of tests, for the simulated one and for a real one.

A driver does what clients do; where a test measures, the driver says what time it is.
"""

from __future__ import annotations

from typing import Any, Protocol

OK, DELETED, NO_NODE, BAD_VERSION, EXPIRED = "ok", "deleted", "no node", "bad version", "session expired"


class Driver(Protocol):
    """A ZooKeeper with one election path and a ledger, and sessions of `timeout_s` that ping while they are connected.

    A session is whatever `open` returns.
    """

    timeout_s: float
    tick_s: float
    slack_s: float
    """How exactly the driver sees when something happens."""

    def now(self) -> float: ...
    def wait(self, for_s: float) -> None: ...
    def open(self) -> Any: ...
    def number(self, session: Any) -> int: ...
    def sever(self, session: Any) -> None: ...
    def reconnect(self, session: Any) -> None: ...
    def close(self, session: Any) -> None: ...
    def create(self, session: Any) -> str: ...
    def set(self, session: Any, name: str) -> str: ...
    def delete(self, session: Any, name: str, version: int | None = None) -> str: ...
    def stat(self, name: str) -> tuple[int, int, int] | None: ...
    def race(self, renewing: Any, evicting: Any, name: str, version: int) -> tuple[str, str]: ...
    def enter(self, session: Any, name: str, version: int) -> bool: ...
    def ledger_version(self) -> int: ...
    def change_quorum_leader(self) -> None: ...


def gone_at(driver: Driver, name: str, limit_s: float) -> float:
    """Wait until a znode is gone, and return when that was seen."""
    until = driver.now() + limit_s
    while driver.stat(name) is not None:
        assert driver.now() < until, f"{name} is still there after {limit_s:g} s"
        driver.wait(0.01)
    return driver.now()


class Contract:
    """The tests; a subclass has a fixture `driver`."""

    def test_a_session_expires_within_a_tick_after_its_timeout(self, driver):
        session = driver.open()
        name = driver.create(session)
        driver.sever(session)
        before = driver.now()
        driver.reconnect(session)  # the last that is heard of it
        touched = driver.now()
        driver.sever(session)
        expired = gone_at(driver, name, driver.timeout_s + 2 * driver.tick_s)
        assert expired > before + driver.timeout_s
        assert expired <= touched + driver.timeout_s + driver.tick_s + driver.slack_s

    def test_a_reconnect_touches(self, driver):
        session = driver.open()
        name = driver.create(session)
        driver.sever(session)
        driver.wait(driver.timeout_s * 0.8)
        driver.reconnect(session)
        touched = driver.now()
        driver.sever(session)
        assert gone_at(driver, name, driver.timeout_s + 2 * driver.tick_s) > touched + driver.timeout_s * 0.99

    def test_a_session_that_pings_lives(self, driver):
        name = driver.create(driver.open())
        driver.wait(driver.timeout_s + 1.5 * driver.tick_s)
        assert driver.stat(name) is not None

    def test_a_session_that_is_closed_takes_its_znodes_along_at_once(self, driver):
        session = driver.open()
        name = driver.create(session)
        driver.close(session)
        gone_at(driver, name, driver.timeout_s / 2)

    def test_the_owner_of_a_znode_is_its_session(self, driver):
        session = driver.open()
        owner, _, version = driver.stat(driver.create(session))
        assert (owner, version) == (driver.number(session), 0)

    def test_names_never_come_back_and_czxids_grow(self, driver):
        session, seen = driver.open(), []
        for _ in range(5):
            name = driver.create(session)
            seen.append((int(name[-10:]), driver.stat(name)[1]))
            assert driver.delete(session, name) == DELETED
        assert sorted(set(seen)) == seen
        assert len({number for number, _ in seen}) == len({czxid for _, czxid in seen}) == len(seen)

    def test_a_write_counts_up_the_version_and_keeps_the_czxid(self, driver):
        session = driver.open()
        name = driver.create(session)
        _, czxid, version = driver.stat(name)
        assert driver.set(session, name) == OK
        assert driver.stat(name)[1:] == (czxid, version + 1)

    def test_a_delete_at_an_old_version_does_nothing(self, driver):
        leader, other = driver.open(), driver.open()
        name = driver.create(leader)
        seen = driver.stat(name)[2]
        driver.set(leader, name)
        assert driver.delete(other, name, seen) == BAD_VERSION
        assert driver.delete(other, name, seen + 1) == DELETED
        assert driver.delete(other, name, seen + 1) == NO_NODE

    def test_what_another_has_deleted_is_not_there_to_be_written(self, driver):
        leader, other = driver.open(), driver.open()
        name = driver.create(leader)
        assert driver.delete(other, name) == DELETED
        assert driver.set(leader, name) == NO_NODE

    def test_of_a_renewal_and_an_eviction_exactly_one_wins(self, driver):
        leader, other = driver.open(), driver.open()
        for _ in range(20):
            name = driver.create(leader)
            outcome = driver.race(leader, other, name, driver.stat(name)[2])
            assert outcome in {(OK, BAD_VERSION), (NO_NODE, DELETED)}
            driver.delete(leader, name)

    def test_a_multi_is_all_or_nothing(self, driver):
        session = driver.open()
        name = driver.create(session)
        version = driver.ledger_version()
        assert not driver.enter(session, name, version + 1)
        assert driver.enter(session, name, version)
        assert driver.ledger_version() == version + 1
        driver.delete(session, name)
        assert not driver.enter(session, name, version + 1)
        assert driver.ledger_version() == version + 1

    def test_an_expired_session_is_told_so(self, driver):
        session = driver.open()
        name = driver.create(session)
        driver.sever(session)
        gone_at(driver, name, driver.timeout_s + 2 * driver.tick_s)
        assert driver.set(session, name) == EXPIRED


class QuorumContract:
    """What takes more than one server."""

    def test_a_session_outlives_a_change_of_the_quorum_leader_and_its_time_begins_anew(self, driver):
        kept, silent = driver.open(), driver.open()
        names = [driver.create(kept), driver.create(silent)]
        czxid = driver.stat(names[0])[1]
        driver.sever(silent)
        driver.wait(driver.timeout_s / 2)
        before = driver.now()
        driver.change_quorum_leader()
        assert gone_at(driver, names[1], 3 * driver.timeout_s + 15) > before + driver.timeout_s
        assert driver.set(kept, names[0]) == OK
        assert driver.stat(names[0])[1] == czxid
        assert driver.stat(driver.create(kept))[1] > czxid
