"""What the kernel does for us about processes: parent-death signals, the leash, re-parenting, descendants.

Stdlib only, since the guard uses it. Where a platform lacks something, the function says so by what it returns, and
`missing()` names it for the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from zkbeat import clock

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

RELOAD_SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGWINCH)
"""What `zkbeat reload` sends: a signal that means nothing to anybody else. (macOS has none to spare, and no reload.)"""

LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None


def missing() -> list[str]:
    """Name what this platform cannot do for zkbeat's promise, one phrase each."""
    if LINUX:
        return []
    return [
        "a child is not killed by the kernel when its guard is killed (no parent-death signal)",
        "descendants that leave the child's process group are not found (no child subreaper)",
        "a guard that is stopped cannot keep the deadline (no timer that kills)",
    ]


def become_subreaper() -> None:
    """Have descendants whose parent ends re-parented to this process instead of to PID 1."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Leash:
    """Has the kernel kill a whole process group once this process is gone, however it went.

    The parent-death signal reaches only the child itself: a `sh -c` wrapper would die and leave its beat alive. So the
    child's group also inherits the reading end of a pipe that is set up (O_ASYNC, F_SETOWN, F_SETSIG; fcntl(2)) to send
    KILL to the group when the pipe becomes readable, and the only writing end is ours: the kernel closes it when this
    process ends.
    """

    def __init__(self) -> None:
        self.fd, self._ours = os.pipe()
        self._guard = os.getpid()

    def put_on(self, until: float) -> None:
        """Bind the calling process, fresh from fork and the leader of a new group, to this one, its parent.

        Does not return after `until`: this process may have been stopped on the way here for longer than its lease.
        """
        if _libc is None:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        with contextlib.suppress(OSError):  # a sandbox may refuse it; the parent-death signal stands
            fcntl.fcntl(self.fd, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(self.fd, fcntl.F_SETSIG, int(signal.SIGKILL))
            fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_ASYNC)
        if os.getppid() != self._guard or clock.now() >= until:  # it died before the signal was armed
            os._exit(127)

    def hand_over(self) -> None:
        """Close our copy of the group's end, once the child has its own."""
        os.close(self.fd)


def start_with_input(argv: list[str], env: Mapping[str, str]) -> tuple[int, int]:
    """Start a program and return its pid and the writing end of its standard input, without waiting for anything.

    `subprocess.Popen` waits until the program is loaded, which takes as long as the file system does; whoever keeps a
    deadline cannot. For a process with one thread.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(reading, 0)
            os.execve(argv[0], argv, env)  # noqa: S606
        finally:
            os._exit(127)
    os.close(reading)
    return pid, writing


def reap() -> dict[int, int]:
    """Wait for every child that has ended; return their wait statuses by pid."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def exit_code(status: int) -> int:
    """Turn a wait status into what a shell would call the exit code: 128 + n for a death by signal n."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _parents() -> dict[int, int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The command name, in parentheses, may contain anything; the fields follow its last one.
                stat = (entry / "stat").read_bytes()
                parents[int(entry.name)] = int(stat.rpartition(b")")[2].split()[1])
    return parents


def descendants(of: int, spare: Callable[[int], bool] = lambda _pid: False) -> list[int]:
    """Return the pids of all descendants, zombies included, but those that are spared and what is below them.

    Empty where there is no /proc.
    """
    if not LINUX:
        return []
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    todo = [of]
    while todo:
        for pid in children.get(todo.pop(), []):
            if not spare(pid):
                found.append(pid)
                todo.append(pid)
    return found


def kill(pid: int, number: int) -> bool:
    """Send a signal to a process that may have ended already; return False if it runs and we may not."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def kill_group(group: int, number: int) -> bool:
    """Send a signal (0: none, only look) to a process group; say whether there was one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it exists (macOS: or consists of zombies only)
    return True
