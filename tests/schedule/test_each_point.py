"""One due time, and everything that can happen to who sends it, at each point of a turn: few cases, but all of them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from celery.schedules import schedule as celery_schedule

from tests.schedule.fake import Fate
from tests.schedule.model import SECOND, Crash, Entry, World
from tests.schedule.oracle import Cron, Interval, Relative, instant
from zkbeat.core import schedule

START = instant(datetime(2026, 3, 1, 12, 0, 30, tzinfo=timezone.utc))
POINTS = range(1, 24)
ENTRIES = {
    "once": Entry(Interval(10 * SECOND), "once"),
    "each": Entry(Interval(7 * SECOND), "all"),
    "none": Entry(Interval(20 * SECOND), "skip"),
    "cron": Entry(Cron()),
}


@pytest.fixture
def make_world():
    worlds = []

    def make(entries=ENTRIES, *, fenced=True):
        worlds.append(World(START, "Europe/Berlin", entries, fenced=fenced))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def at_rest(world):
    assert world.settle_down(400), "it does not come to rest"
    world.check_all_is_done()


def sent_twice(world):
    return [tick for tick, times in world.sent.items() if times > 1]


@pytest.mark.parametrize("point", POINTS)
def test_it_crashes_there_and_another_goes_on(make_world, point):
    world = make_world()
    leader = world.elect()
    world.turns(leader, 5)
    world.pass_time(45 * SECOND)
    world.trouble = True

    def crash():
        raise Crash

    owed = world.intent()
    world.trap = point, crash
    world.turns(leader, 2)
    world.trap = None
    leader.alive = False
    owed += world.intent()
    at_rest(world)
    assert set(sent_twice(world)) <= set(owed), "what was confirmed was sent again"


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "unfenced"])
def test_it_freezes_there_while_another_leads_and_then_goes_on(make_world, point, fenced):
    world = make_world(fenced=fenced)
    frozen = world.elect()
    world.trouble = True

    def meanwhile():
        world.pass_time(15 * SECOND)
        world.turns(world.elect(), 6)

    world.pass_time(45 * SECOND)
    world.trap = point, meanwhile
    world.turns(frozen, 4)
    world.trap = None
    world.turns(frozen, 4)
    if fenced and frozen is not world.leader:
        world.pass_time(60 * SECOND)
        world.turns(frozen, 4)
        assert not frozen.alive, "a leader that was deposed goes on"
    at_rest(world)


@pytest.mark.parametrize("call", range(16))
@pytest.mark.parametrize("fate", [Fate.LOST, Fate.DONE_UNHEARD, Fate.LATE, Fate.SLOW])
def test_the_answer_to_that_call_is_lost(make_world, call, fate):
    world = make_world()
    leader = world.elect()
    world.pass_time(45 * SECOND)
    leader.session.fates.extend([Fate.OK] * call + [fate])
    world.trouble = fate is Fate.LATE
    world.turns(leader, 8)
    world.ensemble.deliver_late()
    world.turns(leader, 8)
    assert leader.alive
    at_rest(world)
    if not world.trouble:
        assert sent_twice(world) == []


@pytest.mark.parametrize("call", range(16))
def test_the_answer_to_that_call_is_lost_and_the_app_has_another_entry_since(make_world, call):
    """The schedule is read anew, with ticks owed that this very process has sent."""
    world = make_world()
    leader = world.elect()
    world.pass_time(45 * SECOND)
    leader.session.fates.extend([Fate.OK] * call + [Fate.LOST])
    for _ in range(8):
        world.turns(leader, 1)
        if not leader.session.fates:
            break
    world.entries["more"] = Entry(Interval(10 * SECOND))
    world.define(leader)
    world.pass_time(2 * SECOND)
    world.turns(leader, 8)
    at_rest(world)
    assert sent_twice(world) == []


@pytest.mark.parametrize("delivers", [False, True], ids=["not delivered", "delivered"])
def test_the_broker_refuses_for_a_while(make_world, delivers):
    world = make_world()
    leader = world.elect()
    world.broker.down_until, world.broker.delivers = world.boot + 30 * SECOND, delivers
    world.turns(leader, 300, until=world.now + 60 * SECOND)
    at_rest(world)
    times = {tick: number for tick, number in world.sent.items() if tick[0] == "each"}
    assert all(numbers == 1 for numbers in times.values()) or delivers


def test_what_was_sent_is_not_sent_again_by_who_leads_next(make_world):
    """A deploy: each leader stops as celery stops it, in the middle of its work."""
    world = make_world()
    for _ in range(12):
        leader = world.elect()
        world.turns(leader, 9)
        world.pass_time(11 * SECOND)
        world.turns(leader, 1)
        leader.stop()
        assert world.intent() == []
    at_rest(world)
    assert sent_twice(world) == []


def test_a_signal_between_two_messages_has_what_went_out_written_down(make_world):
    """celery's handler closes the scheduler and raises; then the loop has ended, and it is closed again."""
    world = make_world({name: Entry(Interval(10 * SECOND)) for name in "abcd"})
    leader = world.elect()
    world.turns(leader, 2)
    world.pass_time(10 * SECOND)
    publish = world.publish

    def publish_until_the_signal(node, entry):
        if len(world.sent) == 3:
            leader.beat.close()
            raise Crash
        publish(node, entry)

    world.publish = publish_until_the_signal
    world.turns(leader, 1)
    leader.beat.close()
    assert len(world.sent) == 3
    assert [world.sent[tick] for tick in world.intent()] == [0]
    world.publish = publish
    at_rest(world)
    assert sent_twice(world) == []


def test_an_entry_that_is_held_back_is_not_sent_until_it_is_let_go(make_world):
    world = make_world({"a": Entry(Interval(10 * SECOND), "all"), "b": Entry(Interval(10 * SECOND))})
    leader = world.elect()
    world.turns(leader, 5)
    world.control(lambda said: said["held"].update({"a": ["somebody", 1.0, None]}))
    world.turns(leader, 200, until=world.now + 35 * SECOND)
    assert len(world.names_of("a")) == 0
    assert len(world.names_of("b")) == 4
    world.control(lambda said: said["held"].clear())
    at_rest(world)
    assert len(world.names_of("a")) >= 3


def test_while_the_broker_refuses_the_latest_is_owed_and_no_heap_of_them(make_world):
    world = make_world({"a": Entry(Interval(SECOND), "once"), "b": Entry(Interval(SECOND), "all")})
    leader = world.elect()
    world.broker.down_until = world.boot + 40 * SECOND
    while world.boot < world.broker.down_until:
        world.turns(leader, 1)
        assert len(world.intent()) <= 2
    at_rest(world)
    assert all(world.sent[tick] == 1 for tick in world.names_of("b"))
    assert len(world.names_of("b")) >= 40
    assert len([tick for tick in world.names_of("a") if world.sent[tick]]) < 15  # a retry is up to 10 s away


def test_an_operator_writes_in_the_moment_between_the_take_over_and_the_first_turn(make_world):
    world = make_world()
    leader = world.elect()
    world.control(lambda said: said["held"].update({"once": ["somebody", 1.0, None]}))
    world.control(lambda said: said["requests"].append(["r1", "each", "somebody", world.now]))
    world.turns(leader, 5)
    assert world.sent["each", world.names_of("each")[0][1], "r1"] == 1
    at_rest(world)


def test_a_relative_entry_that_nobody_had_sent_for_days_is_sent_once(make_world):
    """There are too many to go through in one turn."""
    world = make_world({"a": Entry(Relative(30 * SECOND), "once"), "b": Entry(Relative(30 * SECOND), "all", 60.0)})
    leader = world.elect()
    world.turns(leader, 2)
    world.sent.clear()
    world.pass_time(8 * 86400 * SECOND)
    at_rest(world)
    assert [tick[0] for tick in world.sent].count("a") <= 2  # the latest, and the one that came due meanwhile
    assert all(tick[1] > world.now - 120 * SECOND for tick in world.sent)


# what a review found


def attempts(world):
    """Count the publishes that are tried, whatever becomes of them."""
    counted = []
    publish = world.publish
    world.publish = lambda by, entry: (counted.append(world.boot), publish(by, entry))
    return counted


def test_an_outage_of_the_broker_is_waited_out_and_not_tried_with_every_entry(make_world):
    world = make_world({f"entry {number}": Entry(Interval(10 * SECOND)) for number in range(150)})
    leader = world.elect()
    tried = attempts(world)
    world.broker.down_until = world.boot + 120 * SECOND
    world.turns(leader, 3000, until=world.now + 110 * SECOND)
    assert 5 < len(tried) < 60
    assert len(world.intent()) <= 2 * schedule.GROUP_AT_MOST, "what is due waits, rather than heap up"
    world.pass_time(30 * SECOND)
    at_rest(world)


def test_a_clock_that_is_set_back_does_not_put_off_what_is_owed(make_world):
    world = make_world()
    leader = world.elect()
    world.turns(leader, 9)
    world.broker.down_until = world.boot + 20 * SECOND
    world.turns(leader, 200, until=world.now + 15 * SECOND)
    assert world.intent()
    leader.offset -= 3600 * SECOND
    tried = attempts(world)
    world.turns(leader, 200, until=world.now + 40 * SECOND)
    assert tried, "it is tried again by what has passed, whatever the clock says"


def test_a_schedule_whose_next_due_time_is_not_after_its_last_does_not_spin(make_world):
    world = make_world({})
    leader = world.elect()
    world.turns(leader, 3)
    leader.beat.add(name="behind", task="tasks.run", schedule=celery_schedule(0.5, relative=True))
    world.turns(leader, 5)
    turns = 0
    until = world.now + 30 * SECOND
    while world.now < until:
        slept = leader.turn()
        world.pass_time(int(slept * SECOND))
        turns += 1
        assert turns < 200, "it turns and turns"
