"""The sidecar's end of the guard: starts it, talks to it, and buries what it leaves behind when it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from zkbeat import processes, start
from zkbeat.core import events
from zkbeat.core.lease import Deadlines

BURY_AGAIN_S = 0.02
"""How soon to look again for what a killed guard left behind."""


class Link:
    """One guard after another. Events are posted by `read` and `bury`, in the caller's thread."""

    def __init__(self, lock_fd: int, post: Callable[[events.Event], None], spare: Callable[[int], bool]) -> None:
        self._lock_fd = lock_fd
        self._post = post
        self._spare = spare
        self._socket: socket.socket | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._child: int | None = None
        self._received = b""
        self._sent = 0
        self.burying = False

    def reap(self) -> None:
        """Wait for all children of this process that have ended, the guard and what was re-parented to us."""
        ended = processes.reap()
        if self._guard is not None and self._guard.pid in ended:
            self._guard.returncode = ended[self._guard.pid]
            self._guard = None  # its pid may be another's from now on

    @property
    def socket(self) -> socket.socket | None:
        """What becomes readable when the guard has something to say, or is gone."""
        return self._socket

    def spawn(self) -> None:
        """Start a guard; `GuardReady` or `GuardGone` follows."""
        ours, theirs = socket.socketpair()
        inherited = (theirs.fileno(), self._lock_fd)
        try:
            self._guard = subprocess.Popen(
                start.command("guard", str(theirs.fileno()), str(self._lock_fd)),
                env=start.environment(os.environ),
                pass_fds=inherited,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            self._post(events.GuardGone())
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket, self._received, self._child = ours, b"", None

    def tell(self, **message: Any) -> None:
        """Send an order. A guard that cannot take it is dead or stopped, which is noticed elsewhere."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            # Orders to start the child hold its environment and may exceed what the socket takes at once.
            self._socket.setblocking(True)
            self._socket.settimeout(1.0)
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        self._socket.setblocking(False)

    def extend(self, deadlines: Deadlines) -> None:
        """Move the guard's deadlines; `GuardConfirmed` follows."""
        self._sent += 1
        self.tell(do="extend", n=self._sent, soft=deadlines.soft, hard=deadlines.hard)

    def answer(self) -> None:
        """Tell the guard that it may end, and forget it."""
        self.tell(do="answered")
        self._close()
        self._guard = self._child = None

    def kill(self) -> None:
        """Kill the guard; the kernel kills its child, and `bury` follows."""
        if self._guard is not None:
            processes.kill(self._guard.pid, signal.SIGKILL)

    def read(self) -> None:
        """Take what the guard has sent."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._take(line)
        if not data:
            self._close()
            self.burying = True
            self.kill()
            self.bury()

    def _take(self, line: bytes) -> None:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            return  # half a line, from a guard that could not send more
        match message.get("is"):
            case "ready":
                self._post(events.GuardReady())
            case "parked":
                self._post(events.Parked(message["pid"], message["kib"]))
            case "unparked":
                self._post(events.Unparked(message["why"]))
            case "started":
                self._child = message["pid"]
                self._post(events.ChildStarted(message["pid"]))
            case "extended" if message["n"] == self._sent:
                self._post(events.GuardConfirmed())
            case "powerless":
                self._post(events.Powerless(message["pid"]))
            case "dead":
                self._post(events.ChildDead(message["code"], message["overdue"], message["error"]))

    def bury(self) -> None:
        """Make sure that nothing which the guard held is alive; then `GuardGone`. To be called until it is."""
        if not self.burying:
            return
        self.kill()
        self.reap()
        left = self._guard is not None
        if not processes.LINUX and self._child is not None:
            left |= processes.kill_group(self._child, signal.SIGKILL)
        for pid in processes.descendants(os.getpid(), self._spare):
            processes.kill(pid, signal.SIGKILL)
            left = True
        if not left:
            self.burying = False
            self._child = None
            self._post(events.GuardGone())

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
