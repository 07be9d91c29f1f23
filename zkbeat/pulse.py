"""The pulse of a launched beat: one small file in which it says what it does, and the sidecar reads how it is.

The launcher writes it at each turn of beat's loop and round each publish; the sidecar looks when it renews, or is
asked. A file, and no messages: only the latest matters, nobody is woken, and neither side can hold up the other.
Standard library only, since it is imported in the user's interpreter.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

from zkbeat.core.pulse import Pulse

__all__ = ["Pulse", "Reporter", "read"]

_FORMAT = struct.Struct("=dddddqH")
_SIZE = 512
_NAME_AT_MOST = _SIZE - _FORMAT.size - 4
_READ_TRIES = 5


class Reporter:
    """The beat's side. Never raises: a full disk must not stop a beat."""

    def __init__(self, path: str) -> None:
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            # 0600, and not made anew: the sidecar made the directory, and the file of an earlier term is emptied there.
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def say(self, pulse: Pulse) -> None:
        """Write it down, in one write of one size, with a check sum for whoever reads meanwhile."""
        if self._fd is None:
            return
        name = pulse.name.encode("utf-8", "replace")[:_NAME_AT_MOST]
        said = _FORMAT.pack(
            pulse.at,
            pulse.wake_at,
            pulse.owing_since,
            pulse.published_at,
            pulse.published_wall,
            pulse.count,
            len(name),
        )
        body = (said + name).ljust(_SIZE - 4, b"\0")
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, body + struct.pack("=I", zlib.crc32(body)), 0)


def read(path: Path) -> Pulse | None:
    """Return the last word, or None if there is none yet (or, after a few tries, none that is whole)."""
    for _ in range(_READ_TRIES):
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body, check = data[:-4], data[-4:]
        if len(data) == _SIZE and check == struct.pack("=I", zlib.crc32(body)):
            at, wake_at, owing_since, published_at, published_wall, count, length = _FORMAT.unpack_from(body)
            name = body[_FORMAT.size : _FORMAT.size + length].decode("utf-8", "replace")
            return Pulse(at, wake_at, owing_since, published_at, published_wall, count, name)
    return None
