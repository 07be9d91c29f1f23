"""The only file that reads a clock or sets an alarm.

Deadlines are on CLOCK_BOOTTIME: it never jumps, and unlike CLOCK_MONOTONIC it goes on while the machine is suspended,
as the ZooKeeper ensemble does. The wall clock is for people and for offsets, never for a deadline.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS' CLOCK_MONOTONIC goes on while asleep


def now() -> float:
    """Return the instant that deadlines are compared with, in seconds."""
    return time.clock_gettime(_BOOTTIME)


def wall() -> float:
    """Return the time of day, in seconds since the epoch."""
    return time.time()


class _TimeSpec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """A file descriptor that becomes readable at an instant of `now()`, at once after a suspend that passed over it.

    The timeout of `select` and `poll` counts CLOCK_MONOTONIC, so a machine that slept through a deadline would serve
    the rest of the wait after it woke up. Linux' timerfd does not have that fault; where there is none (macOS),
    `timeout_s` is all there is. (`os.timerfd_create` exists from Python 3.13 on.)
    """

    _ABSOLUTE = 1

    def __init__(self) -> None:
        self.fd: int | None = None
        self._at: float | None = None
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "timerfd_create"):
            fd = libc.timerfd_create(_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
            if fd >= 0:
                self.fd = fd
                self._settime = libc.timerfd_settime

    def set(self, at: float | None) -> None:
        """Ring at this instant (at once, if it has passed), or not at all."""
        self._at = at
        if self.fd is None:
            return
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)
        self._settime(self.fd, self._ABSOLUTE, ctypes.byref(_timer_spec(at)), None)

    def timeout_s(self) -> float | None:
        """How long a wait may take at most: None (no limit) where the descriptor takes care of it."""
        if self._at is None or self.fd is not None:
            return None
        return max(self._at - now(), 0.0)


class _SignalEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),  # sizeof(struct sigevent) is 64
    )


class Deadman:
    """Has the kernel kill this process at an instant of `now()`, unless that is moved in time.

    A timer (timer_create(2)) whose signal is KILL. It does not need this process to run: one that is stopped dies where
    it stands, and one that slept through the instant, with its machine or in the cgroup freezer, does not run again.
    """

    _ABSOLUTE = 1
    _BY_SIGNAL = 0

    def __init__(self) -> None:
        self.armed = False
        self._timer = ctypes.c_void_p()
        self._settime = None
        libc = _library_with("timer_create")
        if libc is not None:
            event = _SignalEvent(signal=int(signal.SIGKILL), notify=self._BY_SIGNAL)
            if libc.timer_create(_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)) == 0:
                self._settime = libc.timer_settime

    @property
    def works(self) -> bool:
        """Whether this platform has such timers; macOS has not."""
        return self._settime is not None

    def set(self, at: float | None) -> None:
        """Kill at this instant, or not at all."""
        if self._settime is not None:
            self.armed = self._settime(self._timer, self._ABSOLUTE, ctypes.byref(_timer_spec(at)), None) == 0
            self.armed &= at is not None


def _library_with(function: str) -> ctypes.CDLL | None:
    """Return the library that has a function of POSIX timers: glibc before 2.34 keeps them in one of its own."""
    for name in (None, "librt.so.1"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name, use_errno=True)
            if hasattr(library, function):
                return library
    return None


def _timer_spec(at: float | None) -> _TimerSpec:
    """Return the instant as the kernel takes it; None is never."""
    spec = _TimerSpec()
    if at is not None:
        whole = max(at, 1e-9)  # all zero would switch the timer off
        spec.value = _TimeSpec(int(whole), max(int(whole % 1 * 1e9), 1))
    return spec
