"""The edge to ZooKeeper, against a real one: what it reports, and that kazoo still is as it is relied upon."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError
from kazoo.retry import ForceRetryError

from tests.support.events import Posted
from tests.support.waiting import wait_until
from tests.support.zookeeper import delete_all
from zkbeat import clock
from zkbeat.access import Access
from zkbeat.client import plain_client, stop_within
from zkbeat.core import events
from zkbeat.core.record import Control, Ledger, Member, Term
from zkbeat.dev import Server
from zkbeat.ensemble import Ensemble
from zkbeat.retire import LeftBehind, retire

ME = Member(id="me", host="here", pid=1, version="0", digest="d", since=1.0)


@contextlib.contextmanager
def _opened(hosts: str, root: str, left_behind: LeftBehind | None = None, timeout_s: float = 4.0) -> Iterator[tuple]:
    posted = Posted()
    ensemble = Ensemble(Access(hosts, session_timeout_s=timeout_s), root, "e", posted, left_behind)
    ensemble.open()
    try:
        yield ensemble, posted, posted.next(events.Connected)
    finally:
        ensemble.close(5.0)


def _elected(ensemble: Ensemble, posted: Posted, attempt: int = 1) -> events.Elected:
    ensemble.join(attempt, ME)
    return posted.next(events.Elected)


def _wait_for_watch(ensemble: Ensemble, node: str) -> None:
    """Wait until the contender watches that znode: it tells its place a moment before."""
    wait_until(lambda: ensemble._client._data_watchers.get(ensemble.znode(node)), 5.0, f"a watch on {node}")


@pytest.mark.parametrize(
    ("asked_s", "granted_s"),
    [pytest.param(10.0, 10.0, id="as asked"), pytest.param(1.0, 4.0, id="the server's least, two ticks")],
)
def test_the_negotiated_session_timeout_is_reported(zk_hosts, zk_root, asked_s, granted_s):
    before = clock.now()
    with _opened(zk_hosts, zk_root, timeout_s=asked_s) as (_, _, connected):
        assert connected.session_timeout_s == granted_s
        assert before <= connected.sent_at <= clock.now()


def test_the_first_in_line_is_elected_and_its_renewals_carry_owner_and_epoch(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, connected):
        elected = _elected(ensemble, posted)
        sent_at = clock.now()
        ensemble.renew(elected.node, sent_at, ME)
        renewed = posted.next(events.Renewed)
        data, stat = zk_client.get(ensemble.znode(elected.node))
        assert renewed.sent_at == sent_at
        assert renewed.owner == connected.session == stat.ephemeralOwner
        assert renewed.epoch == stat.czxid
        assert abs(renewed.offset_s) < 1.0
        assert Member.decode(data) == ME


def test_epochs_grow_from_term_to_term(zk_hosts, zk_root):
    epochs = []
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        for attempt in (1, 2, 3):
            elected = _elected(ensemble, posted, attempt)
            ensemble.renew(elected.node, clock.now(), ME)
            epochs.append(posted.next(events.Renewed).epoch)
            ensemble.leave(attempt, None)
            assert posted.next(events.ElectionEnded).error is None
    assert epochs == sorted(set(epochs))


def test_a_renewal_of_a_deleted_znode_is_refused(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        elected = _elected(ensemble, posted)
        zk_client.delete(ensemble.znode(elected.node))
        ensemble.renew(elected.node, clock.now(), ME)
        assert posted.next(events.RenewalFailed).refused


def test_a_renewal_without_a_server_fails_without_being_refused(fresh_server: Server, zk_root):
    with _opened(fresh_server.hosts, zk_root) as (ensemble, posted, _):
        elected = _elected(ensemble, posted)
        fresh_server.kill()
        posted.next(events.Suspended)
        ensemble.renew(elected.node, clock.now(), ME)
        fresh_server.start()
        failed_or_renewed = [posted.next((events.RenewalFailed, events.Renewed))]  # type: ignore[arg-type]
        assert not getattr(failed_or_renewed[0], "refused", False)


def test_a_contender_is_told_its_place_and_looks_at_the_leader(zk_hosts, zk_root):
    with _opened(zk_hosts, zk_root) as (first, of_first, _), _opened(zk_hosts, zk_root) as (second, of_second, _):
        leader = _elected(first, of_first)
        second.join(7, ME)
        queued = of_second.next(events.Queued)
        assert (queued.attempt, queued.ahead, queued.head) == (7, 1, leader.node)
        second.look_at(leader.node)
        assert of_second.next(events.MemberSeen).member == ME


def test_each_renewal_of_the_leader_wakes_the_first_in_line_only(zk_hosts, zk_root):
    with (
        _opened(zk_hosts, zk_root) as (first, of_first, _),
        _opened(zk_hosts, zk_root) as (second, of_second, _),
        _opened(zk_hosts, zk_root) as (third, of_third, _),
    ):
        leader = _elected(first, of_first)
        second.join(1, ME)
        of_second.next(events.Queued)
        third.join(1, ME)
        of_third.next(events.Queued)
        for _ in range(3):
            _wait_for_watch(second, leader.node)
            first.renew(leader.node, clock.now(), ME)
            of_first.next(events.Renewed)
            assert of_second.next(events.Queued).ahead == 1
        of_third.none_of(events.Queued, 0.3)


def test_a_renewal_of_the_leader_has_nobody_list_the_line_anew(zk_hosts, zk_root, monkeypatch):
    """With a thousand contenders that would be 54 kB for each renewal."""
    listed = []
    with (
        _opened(zk_hosts, zk_root) as (first, of_first, _),
        _opened(zk_hosts, zk_root) as (second, of_second, _),
    ):
        leader = _elected(first, of_first)
        second.join(1, ME)
        of_second.next(events.Queued)
        _wait_for_watch(second, leader.node)
        listing = second._client.get_children
        monkeypatch.setattr(second._client, "get_children", lambda *a, **k: listed.append(a) or listing(*a, **k))
        for _ in range(3):
            first.renew(leader.node, clock.now(), ME)
            of_first.next(events.Renewed)
            assert of_second.next(events.Queued).ahead == 1
            _wait_for_watch(second, leader.node)
        assert not listed
        first.leave(1, None)
        of_second.next(events.Elected)
        assert listed


@pytest.mark.parametrize("by", ["its first renewal", "looking again"])
def test_who_stands_behind_a_new_leader_is_told_so(zk_hosts, zk_root, by):
    with (
        _opened(zk_hosts, zk_root) as (first, of_first, _),
        _opened(zk_hosts, zk_root) as (second, of_second, _),
        _opened(zk_hosts, zk_root) as (third, of_third, _),
    ):
        leader = _elected(first, of_first)
        second.join(1, ME)
        behind = of_second.next(events.Queued).node
        _wait_for_watch(second, leader.node)
        third.join(1, ME)
        assert of_third.next(events.Queued).ahead == 2
        _wait_for_watch(third, behind)
        first.leave(1, None)
        of_second.next(events.Elected)
        if by == "looking again":
            third.look_again(1)
        else:
            second.renew(behind, clock.now(), ME)
        told = of_third.next(events.Queued)
        assert (told.ahead, told.head) == (1, behind)


def test_an_eviction_at_the_version_seen_makes_the_next_in_line_leader(zk_hosts, zk_root):
    with _opened(zk_hosts, zk_root) as (first, of_first, _), _opened(zk_hosts, zk_root) as (second, of_second, _):
        leader = _elected(first, of_first)
        first.renew(leader.node, clock.now(), ME)
        of_first.next(events.Renewed)
        second.join(1, ME)
        of_second.next(events.Queued)
        second.look_at(leader.node)
        version = of_second.next(events.MemberSeen).version
        second.evict(leader.node, version)
        assert of_second.next(events.EvictionTried).deleted
        of_second.next(events.Elected)
        first.renew(leader.node, clock.now(), ME)
        assert of_first.next(events.RenewalFailed).refused


def test_an_eviction_fails_if_the_leader_has_renewed_meanwhile(zk_hosts, zk_root):
    with _opened(zk_hosts, zk_root) as (first, of_first, _), _opened(zk_hosts, zk_root) as (second, of_second, _):
        leader = _elected(first, of_first)
        second.look_at(leader.node)
        version = of_second.next(events.MemberSeen).version
        first.renew(leader.node, clock.now(), ME)
        of_first.next(events.Renewed)
        second.evict(leader.node, version)
        assert not of_second.next(events.EvictionTried).deleted
        first.renew(leader.node, clock.now(), ME)
        of_first.next(events.Renewed)


def test_leaving_the_line_removes_the_znode_before_it_is_reported(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (first, of_first, _), _opened(zk_hosts, zk_root) as (second, of_second, _):
        leader = _elected(first, of_first)
        second.join(1, ME)
        waiting = of_second.next(events.Queued)
        second.leave(1, None)
        of_second.next(events.ElectionEnded)
        assert zk_client.exists(second.znode(waiting.node)) is None
        first.leave(1, None)
        of_first.next(events.ElectionEnded)
        assert zk_client.exists(first.znode(leader.node)) is None


def test_an_attempt_that_was_left_is_never_elected(zk_hosts, zk_root):
    with _opened(zk_hosts, zk_root) as (first, of_first, _), _opened(zk_hosts, zk_root) as (second, of_second, _):
        _elected(first, of_first)
        second.join(1, ME)
        of_second.next(events.Queued)
        second.leave(1, None)
        first.leave(1, None)
        of_second.next(events.ElectionEnded)
        assert not [event for event in of_second.all if isinstance(event, events.Elected)]


def test_a_deleted_election_path_heals_and_somebody_is_elected(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (first, of_first, _), _opened(zk_hosts, zk_root) as (second, of_second, _):
        _elected(first, of_first)
        second.join(1, ME)
        of_second.next(events.Queued)
        delete_all(zk_client, f"{zk_root}/e")
        # kazoo does not make the parent again (NoNodeError): the attempt ends, and the next one makes it.
        ended = of_second.next((events.ElectionEnded, events.Elected))  # type: ignore[arg-type]
        if isinstance(ended, events.ElectionEnded):
            _elected(second, of_second, 2)


def test_what_an_earlier_life_left_behind_is_deleted_before_joining(zk_hosts, zk_root, zk_client):
    zk_client.ensure_path(f"{zk_root}/e/election")
    ghost = zk_client.create(f"{zk_root}/e/election/x__lock__", sequence=True)
    with _opened(zk_hosts, zk_root, left_behind=LeftBehind(ghost, led=False)) as (ensemble, posted, _):
        _elected(ensemble, posted)
        assert zk_client.exists(ghost) is None


def test_the_ledger_is_entered_at_the_version_read_and_says_when_the_child_is_dead(zk_hosts, zk_root):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        elected = _elected(ensemble, posted)
        ensemble.read_ledger()
        read = posted.next(events.LedgerRead)
        assert read.ledger is None
        ensemble.enter(elected.node, read.version, 2.5)
        assert posted.next(events.Entered).ok
        ensemble.read_ledger()
        assert posted.next(events.LedgerRead).ledger == Ledger(led=elected.node, lease=2.5, left=False)
        ensemble.enter(elected.node, read.version, 2.5)
        assert not posted.next(events.Entered).ok
        ensemble.leave(1, elected.node)
        posted.next(events.ElectionEnded)
        assert events.LedgerTouched() in posted.all
        ensemble.read_ledger()
        assert posted.next(events.LedgerRead).ledger == Ledger(led=elected.node, lease=2.5, left=True)


def test_who_has_lost_the_znode_cannot_enter_the_ledger(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        elected = _elected(ensemble, posted)
        ensemble.read_ledger()
        read = posted.next(events.LedgerRead)
        zk_client.delete(ensemble.znode(elected.node))
        ensemble.enter(elected.node, read.version, 2.5)
        assert not posted.next(events.Entered).ok
        assert zk_client.get(f"{zk_root}/e/ledger")[0] == b""


@pytest.mark.parametrize(
    ("led", "before", "after_left"),
    [
        pytest.param(True, Ledger(led="x__lock__0000000000", lease=1.0), True, id="it led"),
        pytest.param(True, Ledger(led="other", lease=1.0), False, id="somebody else has led since"),
        pytest.param(False, Ledger(led="other", lease=1.0), False, id="it only stood in line"),
        pytest.param(True, None, None, id="it led, and the ledger was wiped: others may have led since"),
        pytest.param(False, None, None, id="it only stood in line, and the ledger was wiped"),
    ],
)
def test_what_is_left_behind_is_certified_only_if_it_led_last(zk_root, zk_client, led, before, after_left):
    node, ledger = "x__lock__0000000000", f"{zk_root}/e/ledger"
    zk_client.ensure_path(f"{zk_root}/e/election")
    zk_client.create(f"{zk_root}/e/election/{node}")
    zk_client.create(ledger, before.encode() if before else b"")
    retire(zk_client, LeftBehind(f"{zk_root}/e/election/{node}", led=led))
    retire(zk_client, LeftBehind(f"{zk_root}/e/election/{node}", led=led))
    after = Ledger.decode(zk_client.get(ledger)[0])
    assert (after.left if after else None) == after_left
    assert zk_client.get_children(f"{zk_root}/e/election") == []


def test_a_deleted_ledger_is_made_again_and_is_then_as_good_as_new(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        elected = _elected(ensemble, posted)
        zk_client.delete(f"{zk_root}/e/ledger")
        ensemble.read_ledger()
        posted.next(events.LedgerTouched)
        ensemble.read_ledger()
        read = posted.next(events.LedgerRead)
        assert read.ledger is None
        ensemble.enter(elected.node, read.version, 2.5)
        assert posted.next(events.Entered).ok


def test_a_note_of_another_election_is_left_alone(zk_hosts, zk_root, zk_client):
    zk_client.ensure_path(f"{zk_root}/other/election")
    theirs = zk_client.create(f"{zk_root}/other/election/x__lock__", sequence=True)
    with _opened(zk_hosts, zk_root, left_behind=LeftBehind(theirs, led=True)) as (ensemble, posted, _):
        _elected(ensemble, posted)
        assert zk_client.exists(theirs) is not None


def test_notes_that_cannot_be_written_do_not_end_the_note_taking(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        _elected(ensemble, posted)
        unreadable = zk_client.create(f"{zk_root}/e/terms/{1:020d}", b'{"v":1,"epoch":1,"id":"\\ud800"}')
        ensemble.term_began(2, "b", None, 0.0)
        ensemble.flush_notes(5.0)
        zk_client.delete(unreadable)
        ensemble.term_began(3, "c", None, 0.0)
        ensemble.flush_notes(5.0)
        assert zk_client.exists(f"{zk_root}/e/terms/{3:020d}") is not None


def test_control_is_read_and_watched(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        _elected(ensemble, posted)
        ensemble.read_control()
        assert posted.next(events.ControlRead).control is None
        paused = Control(paused=True, by="me", reason="because")
        zk_client.set(f"{zk_root}/e/control", paused.encode())
        posted.next(events.ControlTouched)
        ensemble.read_control()
        assert posted.next(events.ControlRead).control == paused


def test_garbage_in_control_is_no_order(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        _elected(ensemble, posted)
        zk_client.set(f"{zk_root}/e/control", b'{"v":1,"paused":"\xff')
        ensemble.read_control()
        assert posted.next(events.ControlRead).control is None


def test_terms_are_written_down_and_the_end_that_a_dead_leader_could_not_write(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        _elected(ensemble, posted)
        ensemble.term_began(1, "a", None, 0.0)
        ensemble.term_ended(1, "stepped down", 0.0)
        ensemble.term_began(2, "b", None, 0.0)
        ensemble.term_began(3, "c", None, 0.0)
        ensemble.flush_notes(5.0)
        names = sorted(zk_client.get_children(f"{zk_root}/e/terms"))
        first, second, third = (Term.decode(zk_client.get(f"{zk_root}/e/terms/{name}")[0]) for name in names)
        assert (first.epoch, first.id, first.why) == (1, "a", "stepped down")
        assert second.why is not None
        assert second.why.startswith("lost")
        assert second.gap is not None
        assert second.gap >= 0
        assert third.end is None


def test_a_lost_session_is_reported_and_the_next_one_too(zk_hosts, zk_root):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, connected):
        _elected(ensemble, posted)
        client = ensemble._client
        thief = KazooClient(hosts=zk_hosts, client_id=client.client_id)
        thief.start()
        thief.stop()
        posted.next(events.Lost)
        assert posted.next(events.Connected).session != connected.session


def test_an_answer_that_kazoo_cannot_place_costs_the_connection_and_not_the_node(zk_hosts, zk_root, monkeypatch):
    """kazoo's thread would end, and the node be lost for good: seen with a server that was just back (chaos)."""
    with _opened(zk_hosts, zk_root) as (ensemble, posted, connected):
        connection = ensemble._client._connection
        read = connection._read_response

        def confused_once(*_args):
            monkeypatch.setattr(connection, "_read_response", read)
            raise RuntimeError("xids do not match, expected 2 received 3")

        monkeypatch.setattr(connection, "_read_response", confused_once)
        ensemble.read_control()
        posted.next(events.Suspended)
        assert posted.next(events.Connected).session == connected.session


def test_a_silent_link_is_noticed_though_requests_go_on(lan, fresh_server_on_lan):
    """Each request resets kazoo's ping timer; TCP_USER_TIMEOUT is what ends the connection."""
    server, host = fresh_server_on_lan
    with _opened(server.hosts, "/silent", timeout_s=6.0) as (ensemble, posted, _):
        elected = _elected(ensemble, posted)
        host.cut_off([lan.ip])
        stop = threading.Event()

        def keep_sending() -> None:
            while not stop.wait(0.25):
                ensemble.look_at(elected.node)

        sender = threading.Thread(target=keep_sending)
        sender.start()
        try:
            cut_at = clock.now()
            posted.next(events.Suspended, 6.0)
            assert clock.now() - cut_at < 4.0
        finally:
            stop.set()
            sender.join()
            host.heal()
        posted.next(events.Connected)


@pytest.fixture
def fresh_server_on_lan(lan, tmp_path):
    host = lan.host("zk")
    with Server(tmp_path / "zk", port=2181, bind=host.ip, prefix=host.exec_prefix) as server:
        yield server, host


def test_a_black_holed_server_first_in_the_list_does_not_hold_up_the_connection(zk_hosts):
    # 192.0.2.0/24 is reserved for documentation (RFC 5737): nobody answers there.
    client = plain_client(Access(f"192.0.2.1:2181,{zk_hosts}", session_timeout_s=6.0))
    client.randomize_hosts = False
    began = clock.now()
    try:
        assert client.start_async().wait(6.0)
        assert clock.now() - began < 3.0
    finally:
        stop_within(client, 2.0)


def test_after_an_outage_the_connection_is_back_within_a_second(fresh_server: Server, zk_root):
    with _opened(fresh_server.hosts, zk_root, timeout_s=30.0) as (_, posted, _):
        fresh_server.kill()
        posted.next(events.Suspended)
        posted.none_of(events.Connected, 4.0)
        fresh_server.start()
        fresh_server.wait_ready()
        served_at = clock.now()
        posted.next(events.Connected)
        assert clock.now() - served_at < 2.0


def test_closing_the_session_takes_the_znode_along(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        elected = _elected(ensemble, posted)
        path = ensemble.znode(elected.node)
    wait_until(lambda: zk_client.exists(path) is None, 1.0, "the znode to go with the session")


def test_kazoo_still_runs_the_leader_function_without_the_leadership_when_interrupted(zk_hosts, zk_root, zk_client):
    """The trap that `_Attempt._lead` looks for: should this fail one day, the check there may go."""
    holder = zk_client.Election(f"{zk_root}/e", "holder")
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        holding.set()
        release.wait(20)

    thread = threading.Thread(target=holder.run, args=(hold,))
    thread.start()
    assert holding.wait(10)
    client = KazooClient(hosts=zk_hosts)
    client.start()
    try:
        election = client.Election(f"{zk_root}/e", "other")
        election.lock._retry.interrupt = lambda: True

        def never_gets_it(**_options: object) -> bool:
            raise ForceRetryError

        election.lock._inner_acquire = never_gets_it
        ran: list[bool] = []
        election.run(lambda: ran.append(election.lock.is_acquired))
        assert ran == [False]
    finally:
        release.set()
        thread.join(10)
        client.stop()
        client.close()


def test_a_leader_function_that_is_called_without_the_leadership_says_nothing(zk_hosts, zk_root, monkeypatch):
    """What the trap above would do, had the attempt not been told to leave."""
    with _opened(zk_hosts, zk_root) as (first, of_first, _), _opened(zk_hosts, zk_root) as (second, of_second, _):
        _elected(first, of_first)
        second.join(1, ME)
        of_second.next(events.Queued)
        attempt = second._attempt
        assert attempt._lock.node is not None
        assert not attempt._lock.is_acquired
        monkeypatch.setattr(attempt._over, "wait", lambda: None)
        attempt._lead()
        second.leave(1, None)
        of_second.next(events.ElectionEnded)
        assert not [event for event in of_second.all if isinstance(event, events.Elected)]


def test_deleting_by_name_does_not_need_the_session(zk_hosts, zk_root, zk_client):
    with _opened(zk_hosts, zk_root) as (ensemble, posted, _):
        elected = _elected(ensemble, posted)
        zk_client.delete(ensemble.znode(elected.node))
        with pytest.raises(NoNodeError):
            zk_client.delete(ensemble.znode(elected.node))
