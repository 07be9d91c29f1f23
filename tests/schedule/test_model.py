"""Whatever befalls several nodes with one schedule, each due time is intended once, sent, and accounted for.

`ZKBEAT_MODEL_EXAMPLES=20000 pytest tests/schedule/test_model.py` runs longer than `make test` does, and
`ZKBEAT_MODEL_STEPS` makes each of the runs longer.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.schedule.fake import Fate
from tests.schedule.model import SECOND, Crash, Entry, World
from tests.schedule.oracle import Cron, Grid, Interval, Relative, Solar, instant

EXAMPLES = int(os.environ.get("ZKBEAT_MODEL_EXAMPLES", "150"))
STEPS = int(os.environ.get("ZKBEAT_MODEL_STEPS", "30"))
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
SOON = 1000

STARTS = st.sampled_from(
    [
        datetime(2026, 3, 28, 21, 17, 3, 250_000, tzinfo=timezone.utc),  # the night that has no 02:30 in Berlin
        datetime(2026, 3, 29, 0, 58, 59, 999_999, tzinfo=timezone.utc),
        datetime(2026, 10, 24, 22, 59, 1, tzinfo=timezone.utc),  # the night that has it twice
        datetime(2026, 10, 25, 0, 20, tzinfo=timezone.utc),
        datetime(2028, 2, 28, 12, 0, 0, 1, tzinfo=timezone.utc),
        datetime(2026, 12, 31, 23, 59, 30, tzinfo=timezone.utc),
    ]
).map(instant)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"])

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
NAMES = st.one_of(
    st.sampled_from(["a", "b", "c", "d"]),
    ANY_TEXT,
    st.builds(lambda text, times: text * times, ANY_TEXT, st.sampled_from([30, 300])),
)

INTERVALS = st.builds(
    Interval,
    st.one_of(
        st.sampled_from([50_000, 333_333, SECOND, 10 * SECOND, MINUTE, HOUR]),
        st.integers(50_000, 6 * HOUR),
    ),
)
RELATIVES = st.builds(
    Relative, st.sampled_from([30 * SECOND, MINUTE, 90 * SECOND, 10 * MINUTE, HOUR, 2 * HOUR, DAY, 2 * DAY])
)
CRONS = st.builds(
    Cron,
    minute=st.sampled_from(["*", "*/5", "0", "30", "0,30", "59", "15-45/10", "7"]),
    hour=st.sampled_from(["*", "*", "2", "1,2,3", "*/6", "0", "23"]),
    day_of_week=st.sampled_from(["*", "*", "*", "0", "1-5", "6"]),
    day_of_month=st.sampled_from(["*", "*", "*", "1", "29,31", "*/2"]),
    month_of_year=st.sampled_from(["*", "*", "*", "3,10", "2"]),
)
SOLARS = st.builds(
    Solar,
    st.sampled_from(["sunrise", "sunset", "solar_noon"]),
    st.sampled_from([52.5, -33.9, 0.0]),
    st.sampled_from([13.4, -74.0, 151.2]),
)
KINDS = st.one_of(INTERVALS, CRONS, RELATIVES, SOLARS, st.just(Grid()))


@st.composite
def entries(draw):
    kind = draw(KINDS)
    catch_up = draw(st.sampled_from([None, "once", "skip", "all"]))
    within_s = None if catch_up is None else draw(st.sampled_from([None, 0, 0.5, 60, 3600.0, 86400]))
    often = isinstance(kind, (Interval, Relative)) and kind.every < 10 * MINUTE
    often |= isinstance(kind, Cron) and kind.minute in {"*", "*/5", "15-45/10"}
    if catch_up == "all" and often:
        within_s = min(60 if isinstance(kind, Interval) and kind.every < SECOND else 3600, within_s or 3600)
    return Entry(kind, catch_up, within_s)


TIMES = st.one_of(
    st.integers(SOON, SECOND),
    st.integers(SECOND, 5 * MINUTE),
    st.integers(MINUTE, 6 * HOUR),
    st.integers(HOUR, 3 * DAY),
)
SMALL = st.integers(-400_000, 400_000)
TURNS = st.integers(1, 12)
POINTS = st.integers(1, 14)
SOME_FATES = st.lists(st.sampled_from(Fate), min_size=1, max_size=6)


class Schedule(RuleBasedStateMachine):
    """One world, and everything that may happen to it."""

    world = None
    settled = True

    @initialize(
        start=STARTS,
        zone=ZONES,
        named=st.dictionaries(NAMES, entries(), min_size=1, max_size=5),
        fenced=st.sampled_from([True, True, True, False]),
    )
    def begin(self, start, zone, named, fenced):
        self.world = World(start, zone, named, fenced=fenced)
        self.gone = {}
        self.requests = 0
        self.world.elect()

    def teardown(self):
        if self.world is not None:
            try:
                self.come_to_rest()
            finally:
                self.world.close()

    @property
    def leader(self):
        return self.world.leader

    def name(self, data, names):
        return data.draw(st.sampled_from(sorted(names)), label="entry")

    # time

    @rule(us=TIMES)
    def nobody_turns_for_a_while(self, us):
        self.world.pass_time(us)

    @precondition(lambda self: self.leader)
    @rule(turns=TURNS)
    def the_loop_turns(self, turns):
        self.world.turns(self.leader, turns)

    @precondition(lambda self: self.leader)
    @rule(us=TIMES, turns=TURNS)
    def time_passes_and_the_loop_turns(self, us, turns):
        self.world.pass_time(us)
        self.world.turns(self.leader, turns)

    @precondition(lambda self: self.leader)
    @rule(us=SMALL)
    def a_clock_is_set(self, us):
        self.leader.offset = us

    # leaders

    @precondition(lambda self: self.leader)
    @rule(points=POINTS, us=TIMES, turns=TURNS)
    def the_leader_crashes_in_the_middle(self, points, us, turns):
        self.world.pass_time(us)
        self.world.trouble = True

        def crash():
            raise Crash

        self.world.trap = points, crash
        leader = self.leader
        self.world.turns(leader, turns)
        self.world.trap = None
        leader.alive = False

    @precondition(lambda self: not self.leader)
    @rule(offset=SMALL)
    def another_leads(self, offset):
        self.world.elect(offset)

    @precondition(lambda self: self.leader)
    @rule(offset=SMALL, us=TIMES)
    def it_stops_and_another_leads(self, offset, us):
        leader, world = self.leader, self.world
        calm = not world.trouble and world.boot >= world.unreachable_until and not leader.session.fates
        leader.stop()
        if calm and world.fenced:
            assert not [tick for tick in world.intent() if world.sent[tick]], "what was sent is to be sent again"
        world.pass_time(us)
        world.elect(offset)

    @precondition(lambda self: self.leader)
    @rule(points=POINTS, us=TIMES, gap=TIMES, turns=TURNS, offset=SMALL)
    def the_leader_is_frozen_while_another_leads_and_goes_on(self, points, us, gap, turns, offset):
        world, frozen = self.world, self.leader
        world.trouble = True
        world.pass_time(us)

        def meanwhile():
            world.pass_time(gap)
            successor = world.elect(offset)
            world.turns(successor, turns)

        world.trap = points, meanwhile
        world.turns(frozen, turns)
        world.trap = None
        if world.fenced and frozen is not self.leader:
            world.turns(frozen, 3)
            frozen.alive = False

    @precondition(lambda self: not self.world.fenced and self.leader)
    @rule(data=st.data(), turns=TURNS)
    def two_that_nothing_fences_take_turns(self, data, turns):
        world = self.world
        world.trouble = True
        living = [node for node in world.nodes if node.alive]
        if len(living) < 2:
            living.append(world.elect())
        for _ in range(turns):
            world.turns(data.draw(st.sampled_from(living)), 1)

    # trouble

    @precondition(lambda self: self.leader)
    @rule(planned=SOME_FATES, turns=TURNS)
    def answers_are_lost(self, planned, turns):
        self.world.trouble = True
        self.leader.session.fates.extend(planned)
        self.world.turns(self.leader, turns)

    @rule(at_most=st.integers(1, 3))
    def what_was_late_arrives(self, at_most):
        self.world.ensemble.deliver_late(at_most)

    @rule(us=st.integers(SOON, 10 * MINUTE))
    def there_is_no_zookeeper(self, us):
        self.world.unreachable_until = self.world.boot + us

    @rule(us=st.integers(SOON, HOUR), delivers=st.booleans())
    def the_broker_refuses(self, us, delivers):
        self.world.broker.down_until = self.world.boot + us
        self.world.broker.delivers = delivers

    # people

    @precondition(lambda self: self.leader)
    @rule(data=st.data(), kind=KINDS)
    def an_entry_is_changed(self, data, kind):
        if not self.world.entries:
            return
        name = self.name(data, self.world.entries)
        entry = self.world.entries[name]
        if type(kind) in {Interval, Relative} and type(entry.kind) in {Interval, Relative} - {type(kind)}:
            return  # celery takes the two for one if they are equally long
        if entry.catch_up == "all" and entry.within_s is None:
            return
        self.world.entries[name] = Entry(kind, entry.catch_up, entry.within_s)
        self._deploy()

    @precondition(lambda self: self.leader and self.world.entries)
    @rule(data=st.data())
    def an_entry_is_removed(self, data):
        name = self.name(data, self.world.entries)
        self.gone[name] = self.world.entries.pop(name)
        self._deploy()

    @precondition(lambda self: self.leader and self.gone)
    @rule(data=st.data())
    def an_entry_comes_back(self, data):
        name = self.name(data, self.gone)
        self.world.entries[name] = self.gone.pop(name)
        self.leader.added.pop(name, None)
        self._deploy()

    @precondition(lambda self: self.leader)
    @rule(name=NAMES, entry=entries())
    def an_entry_is_added(self, name, entry):
        if name not in self.world.entries and name not in self.gone and name not in self.leader.added:
            self.world.entries[name] = Entry(entry.kind)
            self._deploy()

    @precondition(lambda self: self.leader and self.leader.beat)
    @rule(name=NAMES, entry=entries())
    def an_entry_is_added_by_hand(self, name, entry):
        if name not in self.world.entries and name not in self.gone and name not in self.leader.added:
            self.world.add(self.leader, name, Entry(entry.kind))

    def _deploy(self):
        """Have the running leader's app say so."""
        self.world.define(self.leader)

    @precondition(lambda self: self.world.states())
    @rule(data=st.data())
    def an_operator_holds_an_entry_back(self, data):
        key = self.name(data, self.world.states())
        self.world.control(lambda said: said["held"].update({key: ["somebody", 1.0, None]}))

    @precondition(lambda self: self.world.held)
    @rule(data=st.data())
    def an_operator_lets_it_go(self, data):
        key = self.name(data, self.world.held)
        self.world.control(lambda said: said["held"].pop(key))

    @precondition(lambda self: self.world.states())
    @rule(data=st.data())
    def an_operator_has_an_entry_run(self, data):
        self.requests += 1
        request = f"r{self.requests}"
        key = self.name(data, self.world.states())
        self.world.control(lambda said: said["requests"].append([request, key, "somebody", self.world.now]))

    # what is always true is checked as it is written and sent; this is what is true in the end

    @rule()
    def all_comes_to_rest(self):
        self.come_to_rest()

    def come_to_rest(self):
        if self.world.settle_down(400):
            self.world.check_all_is_done()
        else:
            event("not at rest after 400 turns")

    @invariant()
    def somebody_acts_or_nobody(self):
        assert self.world is None or self.world.acting is None


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
