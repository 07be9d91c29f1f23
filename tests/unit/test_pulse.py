"""The file in which a launched beat says how it is."""

from __future__ import annotations

import math
import threading

from hypothesis import given
from hypothesis import strategies as st

from zkbeat import pulse
from zkbeat.pulse import Pulse

INSTANTS = st.floats(0, 1e9)
PULSES = st.builds(Pulse, INSTANTS, INSTANTS, INSTANTS, INSTANTS, INSTANTS, st.integers(0, 2**62), st.text(max_size=80))


@given(said=st.lists(PULSES, min_size=1, max_size=3))
def test_the_last_word_is_read(said, tmp_path_factory):
    path = tmp_path_factory.mktemp("pulse") / "pulse"
    reporter = pulse.Reporter(str(path))
    for one in said:
        reporter.say(one)
    assert pulse.read(path) == said[-1]


def test_a_name_that_is_too_long_is_cut(tmp_path):
    path = tmp_path / "pulse"
    pulse.Reporter(str(path)).say(Pulse(name="ä" * 1000))
    read = pulse.read(path)
    assert read is not None
    assert read.name.startswith("ä" * 100)


def test_what_is_not_whole_is_not_read(tmp_path):
    path = tmp_path / "pulse"
    assert pulse.read(path) is None
    path.write_bytes(b"")
    assert pulse.read(path) is None
    pulse.Reporter(str(path)).say(Pulse(at=1.0))
    path.write_bytes(path.read_bytes().replace(b"\0\0\1", b"\0\0\2") + b"\0")
    assert pulse.read(path) is None


def test_who_cannot_write_says_nothing(tmp_path):
    pulse.Reporter(str(tmp_path / "none" / "pulse")).say(Pulse(at=1.0))
    assert not (tmp_path / "none").exists()


def test_who_reads_meanwhile_reads_what_was_said_at_once(tmp_path):
    path = tmp_path / "pulse"
    reporter, over = pulse.Reporter(str(path)), threading.Event()
    reporter.say(Pulse())

    def write():
        count = 0
        while not over.is_set():
            count += 1
            reporter.say(Pulse(at=count, wake_at=count, published_at=count, count=count, name=str(count)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            read = pulse.read(path)
            assert read is None or read.at == read.wake_at == read.published_at == read.count
    finally:
        over.set()
        writer.join()


def test_since_when_something_is_due():
    assert Pulse().due_since == math.inf
    assert Pulse(wake_at=5.0).due_since == 5.0
    assert Pulse(wake_at=5.0, owing_since=3.0).due_since == 3.0
