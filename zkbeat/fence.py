"""The fence: the lease's deadline, read in the very process that publishes.

The guard writes the deadlines of each renewed lease into a file; what runs as its child can ask there whether it may
still act. It is the second line: the first are the guard and the kernel, which kill (docs/adr/0009-kernel-timer.md).
Standard library only, since it is imported in the user's interpreter.
"""

from __future__ import annotations

import os
import select
import struct
from typing import NoReturn

from zkbeat import clock

LEASE_FORMAT = "=qq"
"""The lease file: the soft and the hard deadline, CLOCK_BOOTTIME nanoseconds."""

EXIT_FENCED = 75
"""The lease had run out. As with sysexits' EX_TEMPFAIL: another time, or on another node, it will go."""


def pack(soft: float, hard: float) -> bytes:
    """Return what the lease file holds for these deadlines, in seconds."""
    return struct.pack(LEASE_FORMAT, int(soft * 1e9), int(hard * 1e9))


class Fence:
    """Whether this process may still act as the leader. Opened once; to ask costs one read of 16 bytes."""

    def __init__(self, path: str) -> None:
        """`path`: ZKBEAT_LEASE_FILE. Raises OSError if it is not there."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def hard_deadline(self) -> float:
        """Return the instant from which nothing may be done any more; 0 if the file is not to be understood."""
        data = os.pread(self._fd, struct.calcsize(LEASE_FORMAT), 0)
        if len(data) != struct.calcsize(LEASE_FORMAT):
            return 0.0
        hard: int = struct.unpack(LEASE_FORMAT, data)[1]
        return hard / 1e9

    def passed(self) -> bool:
        """Return whether the lease has run out: whoever asks must not act, and should end."""
        return clock.now() >= self.hard_deadline()


def end(why: str) -> NoReturn:
    """End this process at once, without a write of any kind.

    Not with an exception: kombu and celery swallow some, and `Service.start` syncs in a `finally`, as do finalizers at
    Python's own exit. That would overwrite what the next leader has written.
    """
    _last_words(f"zkbeat: {why}: nothing more is sent or written, beat ends with {EXIT_FENCED}\n".encode())
    os._exit(EXIT_FENCED)


def _last_words(line: bytes) -> None:
    """Write to standard error if that takes it at once: whoever should read there may be stopped."""
    try:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            os.write(2, line)
    except OSError:
        pass
