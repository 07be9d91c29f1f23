"""The guard: the child's parent, and the keeper of its deadline. A process of its own, stdlib only.

`core.custody` decides; this file carries out. It talks with the sidecar over a stream socket, one JSON object a line:

| from the sidecar | meaning |
|---|---|
| `{"do": "place", "znode", "led", "access", "note"}` | our election znode, and how to reach ZooKeeper to delete it |
| `{"do": "park", "argv", "env"}` | load the child's app in advance, in a process that waits at its gate; or anew |
| `{"do": "begin", "argv", "env", "lease_file", "soft", "hard"}` | start the child, or open the gate |
| `{"do": "extend", "n", "soft", "hard"}` | the lease was renewed |
| `{"do": "stop", "kill_at"}`, `{"do": "kill"}`, `{"do": "signal", "number"}` | end it, or pass a signal on |
| `{"do": "answered"}` | nothing runs, and the sidecar knows: the guard may end |

| to the sidecar | meaning |
|---|---|
| `{"is": "ready"}` | nothing will fail any more but the command itself |
| `{"is": "parked", "pid", "kib"}` | a process waits at the gate; what it takes of the memory |
| `{"is": "unparked", "why"}` | it could not be parked, or is gone: the child will be started plainly |
| `{"is": "started", "pid"}` | the child runs |
| `{"is": "extended", "n"}` | that extension is in force |
| `{"is": "powerless", "pid"}` | a process of the child's may not be killed: it runs as another user |
| `{"is": "dead", "code", "overdue", "error"}` | the child and all it started are dead |

It must never block: not on a sidecar that is stopped (the socket does not block, and what does not fit is dropped), nor
on a child that does not die.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
from typing import Any

from zkbeat import clock, fence, processes, start
from zkbeat.core import custody
from zkbeat.core.custody import Act

RESWEEP_S = 0.02
"""How soon to look again for descendants while they are being killed: one may have forked just then."""

REMOVAL_TAKES_AT_MOST_S = 15.0
"""It ends by itself before that."""

REMOVAL_POLL_S = 0.01

SHRUGGED_OFF = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGALRM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


GATE_FD = "ZKBEAT_GATE_FD"
"""Where a process that is parked finds the gate's descriptor (zkbeat/launcher/gate.py)."""


class Guard:
    """One guard: one child at most."""

    def __init__(self, sidecar: socket.socket, inherited: tuple[int, ...]) -> None:
        self._sidecar: socket.socket | None = sidecar
        self._sidecar_pid = os.getppid()
        self._inherited = inherited
        self._removal: tuple[int, int] | None = None
        self._place: dict[str, Any] | None = None
        self._order: dict[str, Any] = {}
        self._leashes: list[processes.Leash] = []
        self._child: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._parked: subprocess.Popen[bytes] | None = None
        self._gate: socket.socket | None = None
        self._said_at_gate = b""
        self._code: int | None = None
        self._error: str | None = None
        self._lease_fd: int | None = None
        self._received = b""
        self._state = custody.Custody()
        self._alarm = clock.Alarm()
        self._deadman = clock.Deadman()
        self._selector = selectors.DefaultSelector()
        self._ended = False

    def run(self) -> None:
        """Serve until the child is dead and the sidecar knows, or is gone too."""
        woken, wakes = os.pipe()
        for fd in (woken, wakes):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        _shrug_off_signals()
        processes.become_subreaper()
        selector = self._selector
        selector.register(woken, selectors.EVENT_READ)
        if self._alarm.fd is not None:
            selector.register(self._alarm.fd, selectors.EVENT_READ)
        if self._sidecar is not None:
            self._sidecar.setblocking(False)
            selector.register(self._sidecar, selectors.EVENT_READ)
        self._tell({"is": "ready"})
        while not self._ended:
            self._alarm.set(self._wake_at())
            ready = {key.fileobj for key, _ in selector.select(self._alarm.timeout_s())}
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 512)
            if self._gate is not None and self._gate in ready:
                self._hear_parked(self._gate)
            self._reap()
            if self._sidecar is not None and self._sidecar in ready and not self._read():
                selector.unregister(self._sidecar)
                self._sidecar = None
                self._step(custody.SidecarGone())
            self._step(custody.Time())

    def _wake_at(self) -> float | None:
        if self._state.child is custody.Child.KILLED:
            return clock.now() + RESWEEP_S
        return custody.next_deadline(self._state)

    def _step(self, event: custody.Event) -> None:
        self._state, actions = custody.step(self._state, event, clock.now())
        at = custody.kernel_deadline(self._state)
        if at is not None:  # before the child starts
            self._deadman.set(at)
        for action in actions:
            self._carry_out(action)
        if self._deadman.armed and custody.kernel_deadline(self._state) is None:  # after it was killed
            self._deadman.set(None)

    def _carry_out(self, action: custody.Action) -> None:  # noqa: C901, PLR0912
        match action:
            case custody.Publish(soft, hard):
                self._publish(soft, hard)
            case custody.Signal(number) if self._child is not None:
                processes.kill(self._child, number)
            case Act.PARK:
                self._park()
            case Act.UNPARK:
                self._unpark()
            case Act.OPEN:
                self._open()
            case Act.SPAWN:
                self._spawn()
            case Act.TERMINATE if self._child is not None:
                processes.kill_group(self._child, signal.SIGTERM)
            case Act.KILL:
                self._sweep()
            case Act.REPORT_DEAD:
                dead = {"is": "dead", "code": self._code, "overdue": self._state.overdue, "error": self._error}
                self._tell(dead)
            case Act.KILL_SIDECAR:
                # The pid is its own as long as it is our parent.
                if os.getppid() == self._sidecar_pid:
                    processes.kill(self._sidecar_pid, signal.SIGKILL)
            case Act.PREPARE_REMOVAL:
                self._prepare_removal()
            case Act.REMOVE_ZNODE:
                self._remove_znode()
            case Act.END:
                self._ended = True

    # the sidecar

    def _tell(self, message: dict[str, Any]) -> None:
        if self._sidecar is not None:
            # A sidecar that does not read for long is stopped: it finds out from the closed socket, or is killed.
            with contextlib.suppress(OSError):
                self._sidecar.send(json.dumps(message).encode() + b"\n")

    def _read(self) -> bool:
        """Take what the sidecar has sent; return False when it is gone."""
        if self._sidecar is None:
            return False
        try:
            data = self._sidecar.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        return bool(data)

    def _take(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "place":
                self._place = message
            case "park":
                self._order = message
                self._step(custody.Park())
            case "begin":
                self._order = message
                self._step(custody.Begin(message["soft"], message["hard"]))
            case "extend":
                self._step(custody.Extend(message["soft"], message["hard"]))
                self._tell({"is": "extended", "n": message["n"]})
            case "stop":
                self._step(custody.Stop(message["kill_at"]))
            case "kill":
                self._step(custody.Kill())
            case "signal":
                self._step(custody.Forward(message["number"]))
            case "answered":
                self._step(custody.Answered())

    # the child

    def _publish(self, soft: float, hard: float) -> None:
        # Missing or full: whoever reads the lease there sees an old one, and stops. That is the safe side.
        with contextlib.suppress(OSError):
            if self._lease_fd is None:
                self._lease_fd = os.open(self._order["lease_file"], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._lease_fd, fence.pack(soft, hard), 0)

    def _spawn(self) -> None:
        """Start the child."""
        started = self._start(self._order["env"], self._order["hard"], ())
        if isinstance(started, OSError | subprocess.SubprocessError):
            self._code = 127 if isinstance(started, FileNotFoundError) else 126
            self._error = str(started)
            self._step(custody.AllDead())
        else:
            self._is_child(started)

    def _is_child(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen, self._child = popen, popen.pid
        self._tell({"is": "started", "pid": popen.pid})

    def _start(
        self, env: dict[str, str], until: float, more_fds: tuple[int, ...]
    ) -> subprocess.Popen[bytes] | OSError | subprocess.SubprocessError:
        """Start the command on a leash, in a session of its own; return why, if it cannot be."""
        leash = processes.Leash()
        try:
            return subprocess.Popen(
                self._order["argv"],
                env=env,
                start_new_session=True,
                # Safe here: this process has one thread. It runs after setsid.
                preexec_fn=lambda: leash.put_on(until),  # noqa: PLW1509
                pass_fds=(*self._inherited, leash.fd, *more_fds),
            )
        except (OSError, subprocess.SubprocessError) as error:
            return error
        finally:
            leash.hand_over()
            self._leashes.append(leash)

    # the gate

    def _park(self) -> None:
        """Start the command, to load its app and then to wait until it is opened, or we are gone."""
        ours, theirs = socket.socketpair()
        env = {**self._order["env"], GATE_FD: str(theirs.fileno())}
        with theirs:
            started = self._start(env, math.inf, (theirs.fileno(),))
        if isinstance(started, OSError | subprocess.SubprocessError):
            ours.close()
            self._no_longer_parked(str(started))
            return
        ours.setblocking(False)
        self._parked, self._gate, self._said_at_gate = started, ours, b""
        self._selector.register(ours, selectors.EVENT_READ)

    def _unpark(self) -> None:
        if self._parked is not None:
            processes.kill_group(self._parked.pid, signal.SIGKILL)
        self._close_gate()
        self._parked = None

    def _open(self) -> None:
        """Let what is parked be the child; if it is gone just now, start one."""
        parked, gate = self._parked, self._gate
        told = {name: value for name, value in self._order["env"].items() if name.startswith("ZKBEAT_")}
        try:
            if parked is None or gate is None:
                raise BrokenPipeError  # what the socket would say
            gate.send(json.dumps({"env": told}).encode() + b"\n")
        except OSError:
            self._unpark()
            self._spawn()
            return
        self._close_gate()
        self._parked = None
        self._is_child(parked)

    def _hear_parked(self, gate: socket.socket) -> None:
        """Take what was said at the gate: that it is reached, or why it never will be."""
        with contextlib.suppress(BlockingIOError):
            data = b""
            with contextlib.suppress(ConnectionError):
                data = gate.recv(4096)
            self._said_at_gate += data
            if not data:  # its end is told when it is reaped
                self._selector.unregister(gate)
        if self._parked is not None and self._said_at_gate.endswith(b"\n"):
            said = json.loads(self._said_at_gate)
            if said["is"] == "parked":
                self._tell({"is": "parked", "pid": self._parked.pid, "kib": said["kib"]})

    def _no_longer_parked(self, why: str) -> None:
        self._tell({"is": "unparked", "why": why})
        self._step(custody.ParkedEnded())

    def _close_gate(self) -> None:
        if self._gate is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._gate)
            self._gate.close()
            self._gate = None

    def _reap(self) -> None:
        ended = processes.reap()
        if self._parked is not None and self._parked.pid in ended:
            code = processes.exit_code(ended[self._parked.pid])
            self._parked.returncode = code  # its pid may be another's: not to be waited for once more
            self._parked = None
            why = _why(self._said_at_gate) or f"it ended while loading, with exit code {code}"
            self._close_gate()
            self._no_longer_parked(why)
        if self._child in ended:
            self._code = processes.exit_code(ended[self._child])
            if self._popen is not None:
                self._popen.returncode = self._code
            self._step(custody.ChildEnded())
        if self._state.child is custody.Child.KILLED and not self._sweep():
            self._step(custody.AllDead())

    def _sweep(self) -> bool:
        """Kill the child's group and every descendant; return whether any was left."""
        group_left = False
        if self._child is not None and (self._code is None or not processes.LINUX):
            # Not once it is reaped: its pid may be another's, and what is left of its group descends from us.
            group_left = processes.kill_group(self._child, signal.SIGKILL)
        spared = self._removal[0] if self._removal is not None else None
        left = processes.descendants(os.getpid(), lambda pid: pid == spared)
        for pid in left:
            if not processes.kill(pid, signal.SIGKILL):
                self._tell({"is": "powerless", "pid": pid})
        return bool(left) or (group_left and not processes.LINUX)

    # the znode

    def _prepare_removal(self) -> None:
        """Start the process that will delete the znode: its start takes longer than a child's death."""
        if self._place is None:
            return
        with contextlib.suppress(OSError):
            self._removal = processes.start_with_input(start.command("remover"), start.environment(os.environ))
            os.write(self._removal[1], json.dumps(self._place).encode() + b"\n")

    def _remove_znode(self) -> None:
        """Say that everything is dead, and wait for that process to end: with this one the host lock goes."""
        if self._removal is None:
            return
        pid, its_input = self._removal
        with contextlib.suppress(OSError):  # it has ended by itself, and said why
            os.write(its_input, b"remove\n")
            os.close(its_input)
        give_up_at = clock.now() + REMOVAL_TAKES_AT_MOST_S
        with contextlib.suppress(ChildProcessError):  # it was reaped already
            while os.waitpid(pid, os.WNOHANG)[0] == 0:
                if clock.now() >= give_up_at:
                    processes.kill(pid, signal.SIGKILL)
                select.select([], [], [], REMOVAL_POLL_S)


def _why(said: bytes) -> str | None:
    """Return why a process could not be parked, if it has said so."""
    try:
        why: str | None = json.loads(said).get("why")
    except ValueError:
        return None
    return why


def _shrug_off_signals() -> None:
    """Survive what a terminal or a supervisor sends to everything.

    By a handler, since what is ignored would stay ignored in the child; what was ignored already (nohup) stays so.
    """
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    for number in SHRUGGED_OFF:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


def main() -> int:
    """Run a guard: `argv` is the socket's descriptor and those to pass on, comma-separated."""
    sidecar, inherited = sys.argv[1:3]
    Guard(
        socket.socket(fileno=int(sidecar)),
        tuple(int(fd) for fd in inherited.split(",") if fd),
    ).run()
    return 0
