"""What is loaded in advance: it becomes the child when the gate opens, and never outlives who holds it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.process.driving import stop
from tests.support.nodes import alive, wait_dead
from tests.support.waiting import wait_until

_PROGRAM = str(Path(__file__).with_name("parked.py"))


class App:
    """The app that is to be parked, and what it has noted."""

    def __init__(self, sidecar, file, *words):
        self.sidecar, self._file = sidecar, file
        self.argv = [sys.executable, "-I", "-S", _PROGRAM, str(file), *words]

    def park(self):
        self.sidecar.order("tell", {"do": "park", "argv": self.argv, "env": self.sidecar.env})

    def begin(self, **more):
        env = {**self.sidecar.env, "ZKBEAT_EPOCH": "7", "SECRET": "unchanged since it was parked"}
        return self.sidecar.begin(self.argv, env=env, **more)

    def noted(self, what, count=1):
        def found():
            lines = self._file.read_text().splitlines() if self._file.exists() else []
            notes = [note for note in map(json.loads, lines) if note["what"] == what]
            return notes if len(notes) >= count else None

        return wait_until(found, 10, f"{what} noted", self.sidecar.report)[count - 1]


@pytest.fixture
def app(sidecar, tmp_path):
    return lambda *words: App(sidecar, tmp_path / "noted", *words)


def test_what_is_parked_is_the_child_once_the_gate_opens(app, sidecar):
    waits = app()
    waits.park()
    parked = sidecar.event("Parked")
    assert parked["kib"] == 12345
    waits.begin()
    opened = waits.noted("opened")
    assert opened["pid"] == parked["pid"] == sidecar.child()
    assert opened["epoch"] == "7"
    assert not opened["secret"], "only what is zkbeat's own is new since it was parked"
    sidecar.order("tell", {"do": "kill"})
    sidecar.event("ChildDead")
    assert not alive(parked["pid"])


def test_a_gate_that_opens_before_it_is_reached_is_passed(app, sidecar):
    waits = app("slow")
    waits.park()
    waits.begin()
    assert waits.noted("opened")["pid"] == sidecar.child()
    assert not sidecar.events("Parked")


@pytest.mark.parametrize(("word", "says"), [("refuse", "for a test"), ("die", "exit code 3")])
def test_what_cannot_be_parked_says_why_and_is_started_plainly(app, sidecar, word, says):
    waits = app(word)
    waits.park()
    assert says in sidecar.event("Unparked")["why"]
    waits.begin()
    assert waits.noted("plain")["pid"] == sidecar.child()


def test_what_was_killed_while_it_was_parked_is_started_plainly(app, sidecar):
    waits = app()
    waits.park()
    os.kill(sidecar.event("Parked")["pid"], signal.SIGKILL)
    sidecar.event("Unparked")
    waits.begin()
    assert waits.noted("plain")["pid"] == sidecar.child()


def test_to_park_anew_replaces_the_one_that_waits(app, sidecar):
    waits = app()
    waits.park()
    first = sidecar.event("Parked")["pid"]
    waits.park()
    second = waits.noted("reached", 2)["pid"]
    wait_dead([first], 2)
    wait_until(lambda: len(sidecar.events("Parked")) == 2, 10, "the second one parked", sidecar.report)
    assert not sidecar.events("Unparked"), "the one that was replaced is no news"
    waits.begin()
    assert waits.noted("opened")["pid"] == second


@pytest.mark.parametrize("who", ["guard", "sidecar", "both"])
def test_what_is_parked_does_not_outlive_who_holds_it(app, sidecar, who):
    waits = app()
    waits.park()
    parked = sidecar.event("Parked")["pid"]
    pids = {"guard": [sidecar.guard], "sidecar": [sidecar.pid], "both": [sidecar.guard, sidecar.pid]}[who]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_dead([parked, sidecar.guard], 3)
    wait_until(sidecar.lock_is_free, 2, "the host lock free") if who != "guard" else None


def test_a_lease_that_runs_out_while_the_opened_process_is_stopped_kills_it(app, sidecar):
    waits = app()
    waits.park()
    parked = sidecar.event("Parked")["pid"]
    stop(parked)
    waits.begin(soft_in_s=0.3, hard_in_s=0.5)
    wait_dead([parked], 2)
    assert sidecar.event("ChildDead")["overdue"] is True


def test_an_answer_ends_guard_and_parked(app, sidecar):
    waits = app()
    waits.park()
    parked = sidecar.event("Parked")["pid"]
    sidecar.order("answer")
    wait_dead([parked, sidecar.guard], 2)
