"""One guard: what its edges do with the real machine of the custody; its child, what is parked, the kernel's timer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.sim.invariants import LeaseExtended
from zkbeat.core import custody, events
from zkbeat.core.custody import Act
from zkbeat.core.lease import KILL_MARGIN_S
from zkbeat.core.pulse import Pulse

if TYPE_CHECKING:
    from tests.sim.node import Node

IGNORES_TERM = 0.4
CANNOT_BE_RUN = 0.02
CANNOT_BE_PARKED = 0.1
PULSE_S = 1.0


@dataclass
class Child:
    node: Node
    znode: str
    epoch: int
    started_at: float
    number: int
    alive: bool = True
    stuck: bool = False
    """It runs, and sends nothing."""
    pulses: int = 0


class Guard:
    """One guard process, and its child."""

    def __init__(self, node: Node) -> None:
        self.node, self.world, self.life = node, node.world, node.life
        self.state = custody.Custody()
        self.alive, self.stopped, self.forgotten = True, False, False
        self.backlog: list[Any] = []
        self.place: tuple[str, bool] | None = None
        self.order = ("", 0)
        self.child: Child | None = None
        self.parked = 0
        """Which process is parked: each has a number of its own; 0: none."""
        self.parkings = 0
        self.soft = 0.0
        self.hard: float | None = None
        self.next_at = 0.0
        self.wake_at: float | None = None
        self.watching = self.armed = self.asked = False
        self.woke_at = 0.0
        self.overdue_error: str | None = None
        self.world.after(self.world.rng.uniform(0.01, 0.1), lambda: self._report(events.GuardReady()))

    def lives(self) -> bool:
        return self.child is not None and self.child.alive

    def _report(self, event: events.Event) -> None:
        if self.node.life == self.life and not self.forgotten:
            self.node.inside(lambda: self.forgotten or self.node.post(event))

    def tell(self, message: Any) -> None:
        """Over the socket: in order, and not at once."""
        self.next_at = max(self.next_at, self.world.now + self.world.rng.uniform(0.0001, 0.002))
        self.world.at(self.next_at, lambda: self._take(message))

    def _take(self, message: Any) -> None:
        if self.alive and self.stopped:
            self.backlog.append(message)
        elif self.alive and isinstance(message, tuple):
            self.place = message
        elif self.alive:
            self.step(message)
            if isinstance(message, custody.Extend) and not self.backlog:
                self._report(events.GuardConfirmed())

    def step(self, event: custody.Event) -> None:
        if not self.alive or self.stopped:
            return
        now = self.node.clock()
        self.state, todo = custody.step(self.state, event, now)
        for action in todo:
            self.carry_out(action, now)
        if not self.alive:
            return
        if self.world.strict:
            self.world.check_progress(custody, self.state, custody.Time(), now)
        due = custody.next_deadline(self.state)
        if due is not None and (self.wake_at is None or due < self.wake_at):
            self._set_alarm(due)

    def _set_alarm(self, due: float) -> None:
        self.wake_at = due
        self.node.at(due, lambda: due == self.wake_at and self._woken())

    def _woken(self) -> None:
        self.wake_at = None
        due = custody.next_deadline(self.state)
        if due is not None and due > self.node.clock():
            self._set_alarm(due)
        else:
            self.step(custody.Time())

    def carry_out(self, action: custody.Action, now: float) -> None:  # noqa: C901, PLR0912
        rng, world = self.world.rng, self.world
        if action is not Act.END:
            world.say(self.node.name, "guard:", action)
        match action:
            case custody.Publish(soft, hard):
                kept = self.hard is None or now < self.hard
                world.require(kept, "S1", "a deadline was moved after it had passed")
                self._lease(soft, hard)
            case Act.SPAWN:
                self._spawn()
            case Act.PARK:
                self._park()
            case Act.UNPARK:
                self.parked = 0
            case Act.OPEN:
                self._open()
            case Act.TERMINATE if self.lives():
                self.asked = True
                if rng.random() > IGNORES_TERM:
                    world.after(rng.uniform(0.01, 0.5), self._end_by_itself)
            case Act.KILL:
                self.asked = True
                if self.state.overdue:
                    world.count("guard kills at a deadline")
                world.after(rng.uniform(0.001, 0.02), lambda: self._die(custody.AllDead()))
            case Act.REPORT_DEAD:
                self._report(events.ChildDead(0, self.state.overdue, self.overdue_error))
            case Act.KILL_SIDECAR:
                if self.node.life == self.life:
                    world.count("hung sidecar killed")
                    self.node.kill()
            case Act.REMOVE_ZNODE if self.place is not None:
                world.after(rng.uniform(0.05, 0.3), lambda place=self.place: self._remove(place, world.now + 10))
            case Act.END:
                self.alive, self.parked = False, 0

    # the lease

    def _lease(self, soft: float, hard: float) -> None:
        """A lease is in force: the kernel is told, and so is whoever looks whether it is kept."""
        self.soft, self.hard = soft, hard
        node, epoch = self.node, self.order[1]
        until = (hard - 1000.0) / node.rate
        self.world.see(LeaseExtended(self.world.now, node.name, epoch, until))
        if not self.watching:
            self.watching = True
            self.world.at(until + KILL_MARGIN_S + 1e-5, lambda: self._watch(until))
            node.at(soft + KILL_MARGIN_S, lambda: self._watch_soft(soft))
        if not self.armed:
            self._arm()

    def _watch(self, until: float) -> None:
        """Whether the child is dead by then; a lease that was extended is looked at when it ends."""
        if not self.lives():
            return
        now_until = ((self.hard or 0.0) - 1000.0) / self.node.rate
        if now_until > until:
            self.world.at(now_until + KILL_MARGIN_S + 1e-5, lambda: self._watch(now_until))
        else:
            self.world.look()

    def _watch_soft(self, soft: float) -> None:
        """Whether the child was asked to stop at the soft deadline, by a guard that could."""
        if not self.lives() or not self.alive or self.asked:
            return
        if self.soft > soft:
            later = self.soft
            self.node.at(later + KILL_MARGIN_S, lambda: self._watch_soft(later))
            return
        asleep = self.stopped or self.woke_at > soft - KILL_MARGIN_S
        self.world.require(asleep, "S1", f"the child of {self.node.name} was not asked to stop at the soft deadline")

    def _arm(self) -> None:
        at = custody.kernel_deadline(self.state)
        self.armed = at is not None
        if at is not None:
            self.node.at(at, self._kernel)

    def _kernel(self) -> None:
        """The kernel's timer: it does not matter what runs.

        On a machine that is suspended it fires before anything else at the resume. Neither guard nor child executes one
        more instruction, so here they are dead from the deadline on.
        """
        self.armed = False
        at = custody.kernel_deadline(self.state)
        if not self.alive or at is None:
            return
        if at > self.node.clock():
            self._arm()
        else:
            self.world.count("kernel kills at a deadline")
            self.world.say(self.node.name, "the kernel's timer fires")
            self.kill()

    # the child

    def _spawn(self) -> None:
        if self.world.rng.random() < CANNOT_BE_RUN:
            self.overdue_error = "cannot be run"
            self.world.after(0, lambda: self.step(custody.AllDead()))
        else:
            self._is_child()

    def _is_child(self) -> None:
        world = self.world
        self.child = child = Child(self.node, *self.order, world.now, world.counts["child started"])
        world.started(child)
        self._report(events.ChildStarted(1))
        if world.settings.launched:
            world.after(world.rng.uniform(0.1, 0.5), lambda: self._pulse(child))

    def _pulse(self, child: Child) -> None:
        if not child.alive:
            return
        if not child.stuck and not self.node.frozen:
            child.pulses += 1
            now = self.node.clock()
            self._report(events.Pulsed(Pulse(now, now + PULSE_S, 0.0, now, 1.0, child.pulses, "tick")))
        self.world.after(PULSE_S, lambda: self._pulse(child))

    def _end_by_itself(self) -> None:
        if self.node.frozen:
            self.world.after(0.1, self._end_by_itself)
        else:
            self._die(custody.ChildEnded())

    def _die(self, event: custody.Event) -> None:
        if self.child is not None and self.child.alive:
            self.child.alive = False
            self.world.died(self.child)
        if self.stopped:
            self.backlog.append(event)
        else:
            self.step(event)
            if self.alive and self.state.child is custody.Child.KILLED and event != custody.AllDead():
                self.world.after(0.01, lambda: self._die(custody.AllDead()))

    # the gate

    def _park(self) -> None:
        self.world.require(not self.lives(), "gate", "an app is loaded in advance beside a running child")
        self.parkings += 1
        self.parked = number = self.parkings
        load_s = self.world.rng.uniform(0.1, 0.6)
        if self.world.rng.random() < CANNOT_BE_PARKED:
            self.world.after(load_s, lambda: self.end_parked(number))
        else:
            self.world.after(load_s, lambda: self._at_gate(number))

    def _at_gate(self, number: int) -> None:
        if self.parked == number and self.alive and not self.lives():
            self._report(events.Parked(1, 1))

    def end_parked(self, number: int | None = None) -> None:
        """The parked process ends; the guard is told when it reaps it, which may be after it was opened."""
        if self.parked and number in {None, self.parked}:
            self.parked = 0
            self.world.count("parked process ended")
            self.world.after(self.world.rng.uniform(0.0, 0.05), self._no_longer_parked)

    def _no_longer_parked(self) -> None:
        if self.alive and self.stopped:
            self.world.after(0.1, self._no_longer_parked)
        elif self.alive and self.child is None and not self.parked:
            self._report(events.Unparked("it ended"))
            self.step(custody.ParkedEnded())

    def _open(self) -> None:
        parked, self.parked = self.parked, 0
        self.world.count("gate opened" if parked else "gate opened, and nobody there")
        self._is_child() if parked else self._spawn()

    # its end

    def _remove(self, place: tuple[str, bool], until: float) -> None:
        if self.node.linked and self.world.zk.up and not self.node.frozen:
            self.world.count("guard removes the znode")
            self.world.zk.leave(place[0], "guard", led=place[1])
        elif self.world.now < until:
            self.world.after(0.1, lambda: self._remove(place, until))

    def kill(self) -> None:
        """kill -9: the kernel kills the child, and the sidecar buries what is left."""
        if self.alive:
            self.alive, self.parked = False, 0
            self.world.say(self.node.name, "guard is dead")
            self.world.after(self.world.rng.uniform(0.0005, 0.01), self._buried)

    def _buried(self) -> None:
        self._die(custody.AllDead())
        self._report(events.GuardGone())

    def go_on(self) -> None:
        self.woke_at = self.node.clock() if self.stopped else self.woke_at
        self.stopped = False
        if self.world.rng.random() < 0.5:  # its alarm rings first
            self.step(custody.Time())
        backlog, self.backlog = self.backlog, []
        for message in backlog:
            if isinstance(message, (custody.AllDead, custody.ChildEnded)):
                self.step(message)
            else:
                self._take(message)
        self.step(custody.Time())
