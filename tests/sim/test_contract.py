"""The contract, kept by the simulated ZooKeeper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim import contract
from tests.sim.world import Shape, World
from tests.sim.zookeeper import NO_NODE, Znode
from zkbeat.core.record import Member

SHAPE = Shape(timeout_s=4.0, tick_s=2.0, rounds_up=1, lease_s=None, stop_timeout_s=0.0, nodes=0)


class Simulated:
    """Sessions of a simulated ZooKeeper, each as one follower's client."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self.world = World(seed, shape=shape)
        self.zk = self.world.zk
        self.timeout_s, self.tick_s, self.slack_s = shape.timeout_s, shape.tick_s, 0.011
        self.connected = set()
        self.wait(self.world.rng.uniform(0, 5))

    def now(self):
        return self.world.now

    def wait(self, for_s):
        self.world.run(self.world.now + for_s)

    def open(self):
        session = self.zk.open(self.world.rng.choice(self.zk.followers))
        self.connected.add(session)
        self._ping(session)
        return session

    def _ping(self, session):
        if session in self.connected and session in self.zk.sessions:
            self.zk.active(self.zk.sessions[session])
        self.world.after(self.timeout_s / 3, lambda: self._ping(session))

    def number(self, session):
        return session

    def sever(self, session):
        self.connected.discard(session)

    def reconnect(self, session):
        assert self.zk.touch(session, self.world.rng.choice(self.zk.followers))
        self.connected.add(session)

    def close(self, session):
        self.zk.close(session, "close")

    def _acts(self, session):
        if session in self.zk.sessions:
            self.zk.active(self.zk.sessions[session])
        self.wait(self.world.rng.uniform(0.0003, 0.003))

    def create(self, session):
        self._acts(session)
        return self.zk.create(session, "A", Member(id="A"))

    def set(self, session, name):
        self._acts(session)
        done = self.zk.write(session, name, Member(id="A"))
        return contract.OK if isinstance(done, Znode) else done

    def delete(self, session, name, version=None):
        self._acts(session)
        return self.zk.delete(name, "release", version)

    def stat(self, name):
        znode = self.zk.znodes.get(name)
        return (znode.session, znode.epoch, znode.version) if znode is not None else None

    def race(self, renewing, evicting, name, version):
        done = {}
        acts = [
            lambda: done.update(set=self.set(renewing, name)),
            lambda: done.update(delete=self.delete(evicting, name, version)),
        ]
        for act in self.world.rng.sample(acts, 2):
            act()
        return done["set"], done["delete"]

    def enter(self, session, name, version):
        self._acts(session)
        return self.zk.enter(session, name, version, 1.0)

    def ledger_version(self):
        return self.zk.ledger_version

    def change_quorum_leader(self):
        self.zk.up = False
        self.wait(self.world.rng.uniform(0.1, 2))
        self.zk.reelect()


@pytest.fixture(params=range(12))
def driver(request):
    shape = replace(SHAPE, tick_s=(0.4, 1.0, 2.0)[request.param % 3], rounds_up=request.param % 2)
    return Simulated(request.param, shape)


class TestSimulated(contract.Contract):
    pass


class TestSimulatedQuorum(contract.QuorumContract):
    pass


def test_both_name_what_is_not_there_alike():
    assert contract.NO_NODE == NO_NODE
