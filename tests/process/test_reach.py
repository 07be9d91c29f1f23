"""What is out of the guard's reach, and what is never let out of it."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from zkbeat import clock, processes
from zkbeat.command import check_command
from zkbeat.core import events
from zkbeat.errors import ConfigError
from zkbeat.link import Link


def test_a_command_that_changes_its_user_is_refused_unless_we_may_kill_it(tmp_path, monkeypatch):
    program = shutil.copy("/bin/true", tmp_path / "changes-user")
    os.chmod(program, 0o4755)  # noqa: PTH101
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="changes its user"):
        check_command([str(program)])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_command([str(program)])


@pytest.mark.parametrize(("from_now_s", "code"), [(60.0, 0), (-0.001, 127)])
def test_a_child_whose_deadline_has_passed_is_not_executed(from_now_s, code):
    """The guard may have been stopped between its decision and the exec."""
    leash = processes.Leash()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        leash.put_on(clock.now() + from_now_s)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code


def test_a_program_is_started_with_an_input_and_waits_for_it(tmp_path):
    said = tmp_path / "said"
    code = f"import sys; open({str(said)!r}, 'w').write(sys.stdin.readline())"
    pid, its_input = processes.start_with_input([sys.executable, "-c", code], os.environ)
    os.write(its_input, b"remove\n")
    os.close(its_input)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert said.read_text() == "remove\n"


def test_a_process_that_the_guard_may_not_kill_is_told():
    posted: list[events.Event] = []
    Link(-1, posted.append, lambda _pid: False)._take(b'{"is": "powerless", "pid": 7}')
    assert posted == [events.Powerless(7)]
