from __future__ import annotations

from pathlib import Path

import pytest

from zkbeat import health


@pytest.mark.parametrize(
    ("snapshot", "asked", "yes", "sentence"),
    [
        ({"state": "standby", "connected": True}, None, True, "standby"),
        ({"state": "leading", "epoch": 7, "child": 12}, "leader", True, "leading (epoch 7, child 12)"),
        ({"state": "standby", "connected": False}, "ready", False, "not ready: standby (no connection to ZooKeeper)"),
        ({"state": "backing off", "why": "it ended"}, "leader", False, "not leader: backing off (it ended)"),
        ({}, None, True, "unknown"),
        ({"state": "paused", "epoch": None, "child": None, "why": None}, "ready", True, "paused"),
    ],
)
def test_the_sentence_says_the_state_and_what_is_asked_for(snapshot, asked, yes, sentence):
    assert health._sentence(snapshot, asked, yes=yes) == sentence


@pytest.mark.parametrize("argv", [["--redy"], ["--name"], ["--ready=1"], ["check"], ["--json", "x"]])
def test_what_is_not_understood_is_a_usage_error(argv, capsys):
    assert health.main(argv) == 2
    assert "cannot understand" in capsys.readouterr().err


def test_help_is_no_error(capsys):
    assert health.main(["--help"]) == 0
    assert capsys.readouterr().out == health.USAGE


def test_a_runtime_directory_that_is_given_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("ZKBEAT_RUNTIME_DIR", raising=False)
    assert Path(health.find_directory(None, str(tmp_path))) == tmp_path
    monkeypatch.setenv("ZKBEAT_RUNTIME_DIR", str(tmp_path / "env"))
    assert Path(health.find_directory(None, None)) == tmp_path / "env"
    assert Path(health.find_directory(None, str(tmp_path))) == tmp_path


def test_the_only_zkbeat_here_needs_no_name(tmp_path, monkeypatch):
    monkeypatch.delenv("ZKBEAT_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("ZKBEAT_NAME", raising=False)
    monkeypatch.setattr("zkbeat.runtime.default_base", lambda: tmp_path)
    with pytest.raises(LookupError, match="no zkbeat runs here"):
        health.find_directory(None, None)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "health.sock").touch()
        if name == "a":
            assert Path(health.find_directory(None, None)) == tmp_path / "a"
    with pytest.raises(LookupError, match=r"several zkbeat run here \(a, b\)"):
        health.find_directory(None, None)
    assert Path(health.find_directory("b", None)) == tmp_path / "b"


def test_nobody_there_is_a_plain_no(tmp_path, capsys):
    assert health.main(["--runtime-dir", str(tmp_path)]) == 1
    assert "no zkbeat runs here" in capsys.readouterr().err
    assert health.main(["--runtime-dir", str(tmp_path), "--json"]) == 1
    assert '"state": "unreachable"' in capsys.readouterr().out
