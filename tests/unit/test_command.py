"""The wrapped command: refused where it could escape, and a beat found where it is one."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import zkbeat
from zkbeat import __version__
from zkbeat.command import Launch, celery_app, check_command, launch
from zkbeat.errors import ConfigError


def refused(code, says, function, *arguments):
    with pytest.raises(ConfigError, match=says) as caught:
        function(*arguments)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "app"),
    [
        (["celery", "-A", "proj", "beat"], "proj"),
        (["/venv/bin/celery", "--app", "proj", "beat"], "proj"),
        (["celery", "--app=proj.celery:app", "beat"], "proj.celery:app"),
        (["celery", "-Aproj", "beat"], "proj"),
        ([sys.executable, "-m", "celery", "-A", "proj", "beat"], "proj"),
        (["python3.11", "-u", "-m", "celery", "-A", "proj", "beat"], "proj"),
        (["celery", "beat"], None),
        (["celery", "-A"], None),
        (["sleep", "-A", "proj"], None),
        (["python", "celery.py", "-A", "proj"], None),
        ([], None),
    ],
)
def test_the_app_of_a_celery_command(command, app):
    assert celery_app(command) == app


@pytest.mark.parametrize(
    ("code", "says", "command"),
    [
        (2, "no command", []),
        (2, "NUL", ["a\0b"]),
        (127, "is not found", ["no-such-command-anywhere"]),
        (127, "is not found", ["/no/such/command"]),
        (126, "is not executable", ["/etc/passwd"]),
        (126, "is not executable", ["/tmp"]),
    ],
)
def test_a_command_that_cannot_be_run(code, says, command):
    refused(code, says, check_command, command)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("drop --detach", "-A proj beat --detach"),
        ("drop --detach", "-A proj beat --detach=1"),
        ("without -B", "-A proj worker -B"),
        ("without -B", "-A proj worker --beat"),
        ("without -B", "-A proj worker -EB"),
        ("celery multi", "multi start w1"),
    ],
)
def test_celery_commands_that_would_escape(says, words, tmp_path):
    celery = tmp_path / "celery"
    celery.touch(mode=0o755)
    refused(2, says, check_command, [str(celery), *words.split()])


@pytest.mark.parametrize("words", ["-A proj beat", "-A proj beat -s /B/x", "-A proj worker -l INFO", "-A Beat beat"])
def test_celery_commands_that_do_not(words, tmp_path):
    celery = tmp_path / "celery"
    celery.touch(mode=0o755)
    check_command([str(celery), *words.split()])


def test_a_command_is_looked_for_where_it_will_be(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "tool").touch(mode=0o644)
    if os.geteuid() != 0:
        refused(127, "not found", check_command, ["tool"])
    (tmp_path / "tool").chmod(0o755)
    check_command(["tool"])


# the launcher


LAUNCHER = str(Path(zkbeat.__file__).parent / "launcher" / "__main__.py")


@pytest.fixture
def celery(tmp_path):
    """A script like that which pip writes for this interpreter's environment."""
    script = tmp_path / "celery"
    script.write_text(f"#!{sys.executable}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    "words",
    [
        "-A proj beat",
        "-A proj beat -l INFO",
        "--app=proj -b redis://beat beat -S x",
        "--workdir worker -A proj -q beat",
    ],
)
def test_a_beat_is_started_through_the_launcher(words, celery):
    assert launch([celery, *words.split()]) == Launch([sys.executable, LAUNCHER, celery, *words.split()], launched=True)


def test_a_beat_that_is_started_as_a_module_keeps_its_interpreters_options():
    words = [sys.executable, "-u", "-X", "utf8", "-m", "celery", "-A", "proj", "beat"]
    expected = [sys.executable, "-u", "-X", "utf8", LAUNCHER, "-m", "-A", "proj", "beat"]
    assert launch(words) == Launch(expected, launched=True)


@pytest.mark.parametrize("words", ["-A proj worker", "-A proj", "-A beat", "-A proj inspect ping -d beat", "--version"])
def test_what_is_no_beat_is_just_executed(words, celery):
    assert launch([celery, *words.split()]) == Launch([celery, *words.split()])


def test_another_program_is_just_executed():
    assert launch(["sh", "-c", "celery beat"]) == Launch(["sh", "-c", "celery beat"])


def _script(directory, first_line, name="celery"):
    script = directory / name
    script.write_text(f"{first_line}\n")
    script.chmod(0o755)
    return str(script)


def _interpreter(directory, says, code=0):
    """Another Python, as far as the launcher can tell: one that answers this when it is asked."""
    return _script(directory, f"#!/bin/sh\nprintf '%b' '{says}' >&{2 if code else 1}\nexit {code}", "python3")


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ("Traceback\\nModuleNotFoundError: No module named zkbeat\\n", 1, "No module named zkbeat.*pip install zkbeat"),
        ("", 1, "it said nothing"),
        ("0.0.1\\n/there\\n", 0, "has zkbeat 0.0.1, and this is"),
    ],
)
def test_a_beat_of_an_interpreter_without_zkbeat_is_started_plainly(tmp_path, answer, code, says):
    celery = _script(tmp_path, f"#!{_interpreter(tmp_path, answer, code)}")
    found = launch([celery, "-A", "proj", "beat"])
    assert (found.argv, found.launched) == ([celery, "-A", "proj", "beat"], False)
    assert re.search(says, found.why_not or "")


def test_a_beat_of_an_interpreter_with_zkbeat_is_started_through_the_launcher_over_there(tmp_path):
    python = _interpreter(tmp_path, f"{__version__}\\n/there/zkbeat/launcher\\n")
    celery = _script(tmp_path, f"#!{python} -s")
    found = launch([celery, "-A", "proj", "beat"])
    assert found.argv == [python, "-s", "/there/zkbeat/launcher/__main__.py", celery, "-A", "proj", "beat"]


@pytest.mark.parametrize("first_line", ["#!/bin/sh", "", "\x7fELF", "#!"])
def test_a_celery_that_is_no_python_script_is_started_plainly(tmp_path, first_line):
    found = launch([_script(tmp_path, first_line), "-A", "proj", "beat"])
    assert not found.launched
    assert "no Python script" in (found.why_not or "")


def test_env_in_the_first_line_is_looked_up_as_env_would(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    found = launch([_script(tmp_path, "#!/usr/bin/env python3"), "beat"])
    assert found.launched
    assert Path(found.argv[0]).name == "python3"
