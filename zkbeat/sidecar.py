"""The sidecar's loop: one wait for everything, one decision for each thing that happens, and its carrying out.

Whatever kazoo's threads, the guard, a signal or the clock report becomes an event of `core.term`; what that decides is
done here at once. Nothing else changes the state, and nothing here blocks: an answer that takes time comes as an event.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zkbeat import clock, health, processes, pulse
from zkbeat.command import Launch
from zkbeat.config import Config
from zkbeat.core import actions, events, record, term
from zkbeat.ensemble import Ensemble
from zkbeat.link import BURY_AGAIN_S, Link
from zkbeat.log import Log
from zkbeat.notify import Notifier
from zkbeat.processes import RELOAD_SIGNAL
from zkbeat.retire import LeftBehind
from zkbeat.runtime import RuntimeDirectory, RuntimeDirectoryError
from zkbeat.settings import Place

EVENTS_AT_MOST = 10_000
"""More than this waiting means that the loop hangs; then the guard's deadline is the way out."""

CLOSE_WITHIN_S = 2.0

EXIT_BUG = 70

FLUSH_WITHIN_S = 1.0

_CHANGING_USER = ("sudo", "su", "runuser", "doas")
"""What starts a session of its own, or closes descriptors, as it changes the user: see docs/adr/0002-leash.md."""

_FORWARDED = (signal.SIGUSR2, signal.SIGWINCH, signal.SIGALRM, signal.SIGCONT)
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD, RELOAD_SIGNAL)


class Sidecar:
    """One zkbeat, from start to exit."""

    def __init__(
        self,
        config: Config,
        command: Sequence[str],
        directory: RuntimeDirectory,
        log: Log,
        launch: Launch | None = None,
        spare: Callable[[int], bool] = lambda _pid: False,
    ) -> None:
        self._config = config
        self._command = list(command)
        self._launch = launch or Launch(self._command)
        self._directory = directory
        self._log = log
        self._events: queue.Queue[events.Event] = queue.Queue(EVENTS_AT_MOST)
        self._woken, self._wake = os.pipe()
        self._signalled, self._signals = os.pipe()
        for fd in (self._woken, self._wake, self._signalled, self._signals):
            os.set_blocking(fd, False)
        self._notifier = Notifier()
        self._watchdog_at = 0.0
        self._health = health.Server(directory.socket)
        self._link = Link(directory.lock_fd, self._post, spare)
        note = directory.read_note()
        left_behind = LeftBehind(*note) if note is not None else None
        self._ensemble = Ensemble(config.access, config.root, config.name, self._post, left_behind)
        self._alarm = clock.Alarm()
        self._selector = selectors.DefaultSelector()
        self._watched: object = None
        self._parent_fd: int | None = None
        self._interrupts = 0
        self._exit_code: int | None = None
        self._identity = record.Member(
            id=config.id,
            host=config.host,
            pid=os.getpid(),
            version=config.version,
            digest=record.digest(self._command),
            since=round(clock.wall(), 3),
        )
        self._state = term.State(
            settings=term.Settings(
                session_timeout_s=config.access.session_timeout_s,
                lease_s=config.lease_s,
                stop_timeout_s=config.stop_timeout_s,
                connect_timeout_s=config.connect_timeout_s,
                rejoin=config.on_exit == "rejoin",
                strict=config.strict,
                max_clock_offset_s=config.max_clock_offset_s,
                digest=self._identity.digest,
                launched=self._launch.launched,
                preload=config.preload and self._launch.launched,
                max_silence_s=config.max_silence_s,
                restart_stuck=config.restart_stuck,
            ),
        )

    def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        self._watch_signals()
        self._watch_parent()
        processes.become_subreaper()
        if Path(self._command[0]).name in _CHANGING_USER:
            self._log.say(
                "warning",
                "changes-user",
                f"{self._command[0]} may take its child out of the kernel's reach, should guard and sidecar be killed "
                "at once: rather run zkbeat as that user, or use setpriv",
            )
        for lack in processes.missing():
            self._log.say("warning", "platform", f"on this platform {lack}")
        if self._config.access.auth_scheme is None:
            self._log.say(
                "warning", "open-acl", "no credentials: whoever reaches ZooKeeper can stop or take over this election"
            )
        self._say_what_the_launcher_lacks()
        for fd in (self._woken, self._signalled, self._health.socket, self._alarm.fd):
            if fd is not None:
                self._selector.register(fd, selectors.EVENT_READ)
        self._ensemble.open()
        self._step(events.Began())
        while self._exit_code is None:
            self._turn()
        return self._exit_code

    def _turn(self) -> None:
        self._watch_guard()
        self._alarm.set(self._wake_at())
        ready = {key.fileobj for key, _ in self._selector.select(self._alarm.timeout_s())}
        _drain(self._woken)
        if self._signalled in ready:
            for number in os.read(self._signalled, 512):
                self._take_signal(number)
        if self._watched in ready:
            self._link.read()
        if self._parent_fd in ready and self._parent_fd is not None:
            self._selector.unregister(self._parent_fd)
            self._parent_fd = None
            self._post(events.StopRequested("the process that started zkbeat is gone"))
        self._link.bury()
        with contextlib.suppress(queue.Empty):
            while self._exit_code is None:
                self._step(self._events.get_nowait())
        self._feel_pulse()
        self._step(events.Time())
        if self._health.socket in ready:
            self._health.answer(self._snapshot())
        self._tell_systemd()

    def _wake_at(self) -> float | None:
        due = [term.next_deadline(self._state)]
        if self._link.burying:
            due.append(clock.now() + BURY_AGAIN_S)
        if self._notifier.watchdog_every_s is not None:
            due.append(self._watchdog_at)
        return min((at for at in due if at is not None), default=None)

    # what comes in

    def _post(self, event: events.Event) -> None:
        """Queue an event; may be called from any thread."""
        self._events.put_nowait(event)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"\0")

    def _watch_signals(self) -> None:
        signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        for number in (*_HANDLED, *_FORWARDED):
            signal.signal(number, _only_wake)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _only_wake)

    def _watch_parent(self) -> None:
        """Stop when the process that started us is gone, unless we were told to outlive it.

        A supervisor or an ssh session that is killed must not leave a beat behind that nobody knows of. Told to
        outlive: by nohup (HUP is ignored), by setsid (we lead a session), or by being started by PID 1.
        """
        outlive = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN or os.getsid(0) == os.getpid()
        if outlive or os.getppid() <= 1 or not hasattr(os, "pidfd_open"):
            return
        with contextlib.suppress(OSError):
            self._parent_fd = os.pidfd_open(os.getppid())
            self._selector.register(self._parent_fd, selectors.EVENT_READ)

    def _watch_guard(self) -> None:
        socket = self._link.socket
        if socket is self._watched:
            return
        if self._watched is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._watched)  # type: ignore[arg-type]
        if socket is not None:
            self._selector.register(socket, selectors.EVENT_READ)
        self._watched = socket

    def _take_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGCHLD:
            self._link.reap()
        elif number == signal.SIGTERM:
            self._step(events.StopRequested(f"received {name}"))
        elif number == signal.SIGINT:
            self._interrupts += 1
            self._step(events.StopRequested(f"received {name}", hurry=self._interrupts > 1))
        elif number == signal.SIGQUIT:
            self._step(events.StopRequested(f"received {name}", hurry=True))
        elif number == RELOAD_SIGNAL:
            self._step(events.ReloadRequested())
        elif number == signal.SIGUSR1:
            self._step(events.StepDownRequested(f"received {name}"))
        elif number == signal.SIGHUP and sys.stdin is not None and sys.stdin.isatty():
            self._step(events.StopRequested("the terminal is gone"))
        else:
            self._link.tell(do="signal", number=number)

    # what goes out

    def _step(self, event: events.Event) -> None:
        self._state, todo = term.step(self._state, event, clock.now())
        for action in todo:
            self._carry_out(action)

    def _carry_out(self, action: actions.Action) -> None:  # noqa: C901, PLR0912
        ensemble, link = self._ensemble, self._link
        match action:
            case actions.Say(level, event, message, fields):
                self._log.say(level, event, message, **fields)
            case actions.Renew(node, sent_at):
                ensemble.renew(node, sent_at, self._member())
            case actions.ExtendLease(deadlines):
                link.extend(deadlines)
            case actions.Park():
                link.tell(do="park", argv=self._launch.argv, env=self._child_environment())
            case actions.StartChild():
                self._start_child(action)
            case actions.StopChild(kill_at):
                link.tell(do="stop", kill_at=kill_at)
            case actions.KillChild():
                link.tell(do="kill")
            case actions.SpawnGuard():
                link.spawn()
            case actions.AnswerGuard():
                link.answer()
            case actions.KillGuard():
                link.kill()
            case actions.Place(node, led):
                self._place(node, led=led)
            case actions.Join(attempt):
                ensemble.join(attempt, self._member())
            case actions.Leave(attempt, led_with):
                ensemble.leave(attempt, led_with)
            case actions.ReadLedger():
                ensemble.read_ledger()
            case actions.Enter(node, version, lease_s):
                ensemble.enter(node, version, lease_s)
            case actions.LookAgain(attempt):
                ensemble.look_again(attempt)
            case actions.LookAt(node):
                ensemble.look_at(node)
            case actions.Evict(node, version):
                ensemble.evict(node, version)
            case actions.ReadControl():
                ensemble.read_control()
            case actions.TermBegan(epoch, after):
                ensemble.term_began(epoch, self._config.id, after, self._state.offset_s or 0.0)
            case actions.TermEnded(epoch, why):
                ensemble.term_ended(epoch, why, self._state.offset_s or 0.0)
            case actions.NewSession():
                ensemble.renew_session()
            case actions.Close(code):
                self._close(code)

    def _member(self) -> record.Member:
        return term.member(self._state, self._identity, clock.now(), clock.wall())

    def _snapshot(self) -> dict[str, Any]:
        about = {"id": self._config.id, "name": self._config.name, "pid": os.getpid(), "version": self._config.version}
        return about | term.snapshot(self._state, clock.now()) | {"last_error": self._ensemble.last_error}

    def _child_environment(self) -> dict[str, str]:
        """Return what the child is started with, as far as it is known before the term."""
        secret = {f"ZKBEAT_{name}" for name in ("AUTH_PASSWORD", "TLS_KEY_PASSWORD")}
        environment = {key: value for key, value in os.environ.items() if key not in secret} | {
            "ZKBEAT_NAME": self._config.name,
            "ZKBEAT_ID": self._config.id,
            "ZKBEAT_LEASE_FILE": str(self._directory.lease),
            "ZKBEAT_PULSE_FILE": str(self._directory.pulse),
        }
        # The credentials are for a beat that keeps its schedule there; what any command gets is without them.
        return environment | ({"ZKBEAT_PLACE_FILE": str(self._directory.place)} if self._launch.launched else {})

    def _start_child(self, action: actions.StartChild) -> None:
        with contextlib.suppress(OSError):
            self._directory.pulse.unlink()  # an earlier beat's
        environment = self._child_environment() | {
            "ZKBEAT_EPOCH": str(action.epoch),
            "ZKBEAT_LEADER_ZNODE": self._ensemble.znode(action.node),
        }
        self._link.tell(
            do="begin",
            argv=self._launch.argv,
            env=environment,
            lease_file=str(self._directory.lease),
            soft=action.deadlines.soft,
            hard=action.deadlines.hard,
        )

    def _feel_pulse(self) -> None:
        """Read what a launched beat has said since we last looked: with each renewal, and whenever somebody asks."""
        if not self._launch.launched or self._state.child is not term.Child.RUNNING:
            return
        found = pulse.read(self._directory.pulse)
        if found is not None and found != self._state.beat.pulse:
            self._step(events.Pulsed(found))

    def _say_what_the_launcher_lacks(self) -> None:
        """Say once why a beat is started plainly, or what was asked for that only a beat can do."""
        config, launch = self._config, self._launch
        if launch.launched:
            return
        wanted = [name for name, on in (("--preload", config.preload), ("--restart-stuck", config.restart_stuck)) if on]
        if launch.why_not is not None:
            lost = "its ticks are not watched, and nothing is preloaded"
            self._log.say("warning", "no-launcher", f"started without the launcher, so {lost}: {launch.why_not}")
        elif wanted:
            message = f"{' and '.join(wanted)} can do nothing here: {self._command[0]} is no `celery beat`"
            self._log.say("warning", "no-launcher", message)

    def _place(self, node: str, *, led: bool) -> None:
        znode = self._ensemble.znode(node)
        error = self._directory.write_note(znode, led=led)
        if error is not None:
            self._log.say("warning", "note", f"cannot note the znode in the runtime directory: {error}")
        note = str(self._directory.note)
        self._link.tell(do="place", znode=znode, led=led, access=self._config.access.to_json(), note=note)

    def _tell_systemd(self) -> None:
        phase = self._state.phase
        status = f"{phase.value}, epoch {self._state.term.epoch}" if self._state.term is not None else phase.value
        news = {"STATUS": status}
        in_line = self._state.node is not None
        if in_line and phase in {term.Phase.STANDBY, term.Phase.LEADING, term.Phase.PAUSED}:
            news["READY"] = "1"
        if self._state.exit_code is not None:  # also while the child is still being stopped
            news["STOPPING"] = "1"
        self._notifier.tell(**news)
        if self._notifier.watchdog_every_s is not None and clock.now() >= self._watchdog_at:
            self._watchdog_at = clock.now() + self._notifier.watchdog_every_s
            self._notifier.alive()

    def _close(self, code: int) -> None:
        self._ensemble.flush_notes(CLOSE_WITHIN_S / 2)
        if not self._ensemble.close(CLOSE_WITHIN_S) and self._state.ever_connected:
            self._log.say("warning", "not-closed", "could not close the session: it ends with its timeout")
        with contextlib.suppress(OSError):
            self._directory.socket.unlink()
        self._log.say("info", "stopped", f"stopped, exit code {code}", exit_code=code)
        self._exit_code = code


def _only_wake(_number: int, _frame: object) -> None:
    """Nothing: the descriptor of `signal.set_wakeup_fd` has the number, and the loop takes it from there."""


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while len(os.read(fd, 4096)) == 4096:  # noqa: PLR2004
            pass


def main() -> int:
    """Run the sidecar that the command line has handed over to; `argv[1]` is the descriptor to read it from."""
    with open(int(sys.argv[1]), "rb") as handed_over:  # noqa: PTH123  # a descriptor
        order = json.loads(handed_over.read())
    config = Config.from_json(order["config"])
    launch = Launch(**order["launch"])
    directory = RuntimeDirectory(config.runtime_dir)
    try:
        directory.prepare()
        directory.acquire()
        if launch.launched:
            directory.write_place(Place(config.access, config.base).encode())
    except RuntimeDirectoryError as error:
        print(f"zkbeat: {error}", file=sys.stderr)
        return error.exit_code
    log = Log(config.id, config.log_format, config.log_level)
    dev_pid = order["dev_pid"]
    code = EXIT_BUG
    try:
        if dev_pid is not None:
            text = (
                f"started a ZooKeeper for development, pid {dev_pid}: not for production; it stays until it is killed"
            )
            log.say("warning", "dev", text)
        code = Sidecar(config, order["command"], directory, log, launch, lambda pid: pid == dev_pid).run()
    except Exception:  # noqa: BLE001  # the guard ends the child when we are gone
        log.bug("a bug in zkbeat: please report it with these lines")
    if not log.flush(FLUSH_WITHIN_S):
        os._exit(code)  # the thread that is stuck in its write holds a lock that Python's exit waits for
    return code
