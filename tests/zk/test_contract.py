"""The contract, kept by a real ZooKeeper: one server, and an ensemble of three."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import BadVersionError, NoNodeError, SessionExpiredError

from tests.sim import contract
from tests.support.waiting import wait_until

TIMEOUT_S = 4.0
TICK_S = 2.0
NOWHERE = "127.0.0.1:1"
PATIENCE_S = 15.0


class Real:
    """Sessions of kazoo clients. One that is severed keeps its session and is pointed to where nobody listens."""

    timeout_s, tick_s, slack_s = TIMEOUT_S, TICK_S, 0.3

    def __init__(self, hosts, root, ensemble=None):
        self.hosts, self.root, self.ensemble = hosts, root, ensemble
        self.clients, self.severed, self.numbers = [], set(), {}
        self.observer = self.open()
        self.observer.create(f"{root}/e", makepath=True)
        self.observer.create(f"{root}/ledger")

    def stop(self):
        for client in self.clients:
            client.stop()
            client.close()

    def now(self):
        return time.monotonic()

    def wait(self, for_s):
        time.sleep(for_s)

    def open(self):
        client = KazooClient(self.hosts, timeout=TIMEOUT_S, connection_retry={"max_tries": -1, "max_delay": 0.1})
        client.start(PATIENCE_S)
        self.clients.append(client)
        self.numbers[client] = client.client_id[0]  # which kazoo does not tell while it is cut off
        return client

    def number(self, session):
        return self.numbers[session]

    def sever(self, session):
        self.severed.add(session)
        session.set_hosts(NOWHERE)
        wait_until(lambda: self._cut_off(session), PATIENCE_S, "a connection that stays lost")

    def _cut_off(self, session):
        """Break the connection; kazoo may know other servers still, from the pass over its list that it is in."""
        with contextlib.suppress(OSError, AttributeError):
            session._connection._socket.shutdown(socket.SHUT_RDWR)
        for _ in range(20):
            time.sleep(0.005)
            if not session.connected:
                break
        time.sleep(0.03 if self.ensemble else 0.0)
        return not session.connected

    def reconnect(self, session):
        self.severed.discard(session)
        session.set_hosts(self.hosts)
        wait_until(lambda: session.connected, PATIENCE_S, "a connection", every_s=0.001)

    def close(self, session):
        session.stop()

    def _path(self, name):
        return f"{self.root}/e/{name}"

    def create(self, session):
        path = session.retry(session.create, self._path("x__lock__"), b"", ephemeral=True, sequence=True)
        return path.rsplit("/", 1)[1]

    def set(self, session, name):
        if session in self.severed:
            return self._told_of_expiry(session)
        return _outcome(session.retry, session.set, self._path(name), b"x")

    def _told_of_expiry(self, session):
        """Return what the session is told when it comes back; kazoo goes on with a new one."""
        told = []
        session.add_listener(told.append)
        session.set_hosts(self.hosts)
        wait_until(lambda: "LOST" in told or session.connected, PATIENCE_S, "an answer to the reconnect")
        wait_until(lambda: session.connected, PATIENCE_S, "another session")
        return contract.EXPIRED if "LOST" in told and session.client_id[0] != self.number(session) else contract.OK

    def delete(self, session, name, version=None):
        return _outcome(session.retry, session.delete, self._path(name), -1 if version is None else version)

    def stat(self, name):
        stat = self.observer.retry(self.observer.exists, self._path(name))
        return (stat.ephemeralOwner, stat.czxid, stat.version) if stat is not None else None

    def race(self, renewing, evicting, name, version):
        path = self._path(name)
        renewal, eviction = renewing.set_async(path, b"x"), evicting.delete_async(path, version)
        return _outcome(renewal.get, True, PATIENCE_S), _outcome(eviction.get, True, PATIENCE_S)

    def enter(self, session, name, version):
        transaction = session.transaction()
        transaction.check(self._path(name), -1)
        transaction.set_data(f"{self.root}/ledger", b"x", version)
        return not any(isinstance(result, Exception) for result in transaction.commit())

    def ledger_version(self):
        return self.observer.exists(f"{self.root}/ledger").version

    def change_quorum_leader(self):
        self.ensemble.kill(self.ensemble.leader())
        self.ensemble.wait_quorum()


def _outcome(call, *args):
    try:
        done = call(*args)
    except NoNodeError:
        return contract.NO_NODE
    except BadVersionError:
        return contract.BAD_VERSION
    except SessionExpiredError:
        return contract.EXPIRED
    return contract.DELETED if done is True else contract.OK


class TestReal(contract.Contract):
    @pytest.fixture
    def driver(self, zk_hosts, zk_root):
        real = Real(zk_hosts, zk_root)
        yield real
        real.stop()


class TestRealQuorum(contract.QuorumContract):
    @pytest.fixture
    def driver(self, ensemble):
        real = Real(ensemble.hosts, "/contract", ensemble)
        yield real
        real.stop()
