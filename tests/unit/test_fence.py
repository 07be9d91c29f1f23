"""The lease file, read in the process that publishes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkbeat import clock, fence


@given(soft=st.floats(0, 1e9), ahead=st.floats(0, 1e4))
def test_what_was_packed_is_read(soft, ahead, tmp_path_factory):
    path = tmp_path_factory.mktemp("fence") / "lease"
    path.write_bytes(fence.pack(soft, soft + ahead))
    assert fence.Fence(str(path)).hard_deadline() == pytest.approx(soft + ahead, abs=1e-6)


def test_it_has_passed_from_the_hard_deadline_on(tmp_path, monkeypatch):
    path = tmp_path / "lease"
    path.write_bytes(fence.pack(9.0, 10.0))
    lease = fence.Fence(str(path))
    for now, passed in ((9.5, False), (9.999, False), (10.0, True), (11.0, True)):
        monkeypatch.setattr(clock, "now", lambda now=now: now)
        assert lease.passed() is passed, now


def test_a_renewal_is_seen_by_who_has_the_file_open(tmp_path):
    path = tmp_path / "lease"
    path.write_bytes(fence.pack(0.0, 0.0))
    lease = fence.Fence(str(path))
    assert lease.passed()
    with path.open("r+b") as file:
        file.write(fence.pack(clock.now() + 9, clock.now() + 10))
    assert not lease.passed()


@pytest.mark.parametrize("content", [b"", b"\1" * 15])
def test_what_is_not_to_be_understood_has_passed(content, tmp_path):
    path = tmp_path / "lease"
    path.write_bytes(content)
    assert fence.Fence(str(path)).passed()


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        fence.Fence(str(tmp_path / "none"))
