"""The runtime directory's note: what may be acted upon at the next start."""

from __future__ import annotations

import json

import pytest

from zkbeat.runtime import RuntimeDirectory

ZNODE = "/zkbeat/proj/election/x__lock__0000000001"


@pytest.fixture
def directory(tmp_path) -> RuntimeDirectory:
    return RuntimeDirectory(tmp_path)


@pytest.mark.parametrize("led", [True, False])
def test_a_note_of_this_boot_is_read_back(directory, led):
    assert directory.write_note(ZNODE, led=led) is None
    assert directory.read_note() == (ZNODE, led)


def test_a_note_of_another_boot_or_host_is_not_acted_upon(directory):
    """The directory may be on storage that hosts share, where the lock proves nothing about the other host."""
    directory.write_note(ZNODE, led=True)
    note = json.loads(directory.note.read_text())
    directory.note.write_text(json.dumps({**note, "boot": "another"}))
    assert directory.read_note() is None


@pytest.mark.parametrize("garbage", ["", "{", "[]", "3", '{"znode": 3, "led": true, "boot": ""}', "\0"])
def test_garbage_in_a_note_is_no_note(directory, garbage):
    directory.note.write_text(garbage)
    assert directory.read_note() is None
