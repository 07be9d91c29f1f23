"""The child: stands in for celery beat. Publishes numbered messages to a real broker, five a second, until TERM.

`publisher.py DIRECTORY BROKER_HOST BROKER_PORT STREAM`, standard library only, so that its start costs little.

Each message has its node, epoch and number, and the lease's hard deadline as this process could read it right before.
Two things make its life known beyond what it says itself, and need nothing of it any more once it runs:

- it holds an flock on DIRECTORY/alone, so the next child to start knows for certain whether this one was dead by then;
- it holds a connection to DIRECTORY/lives, which the kernel closes when it is dead, with all that it may have forked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time

EVERY_S = 0.2
ANSWERS_WITHIN_S = 1.0

_stopped = False


def _stop(_number: int, _frame: object) -> None:
    global _stopped  # noqa: PLW0603
    _stopped = True


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Alone:
    """The lock that one child at a time can have."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.set_inheritable(self._fd, True)
        self.held = False

    def take(self) -> bool:
        """Take it if nobody has it; to be tried again by one that should not run at all, so that the next one knows."""
        if not self.held:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.held = True
        return self.held


class Broker:
    """As much of a client of Redis as one command takes."""

    def __init__(self, host: str, port: int, stream: str) -> None:
        self._address = (host, port)
        self._stream = stream
        self._connection: socket.socket | None = None

    def publish(self, text: str) -> None:
        """Add a message; raises OSError."""
        words = ["XADD", self._stream, "*", "m", text]
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        try:
            if self._connection is None:
                self._connection = socket.create_connection(self._address, ANSWERS_WITHIN_S)
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.sendall(request.encode())
            if not self._connection.recv(4096):
                raise ConnectionResetError("the broker has closed the connection")
        except OSError:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise


def hard_deadline() -> float:
    try:
        with open(os.environ["ZKBEAT_LEASE_FILE"], "rb") as file:  # noqa: PTH123
            return struct.unpack("=qq", file.read(16))[1] / 1e9
    except (OSError, struct.error):
        return 0.0


def main() -> None:
    directory, host, port, stream = sys.argv[1:5]
    signal.signal(signal.SIGTERM, _stop)
    alone = Alone(f"{directory}/alone")
    before = now()
    # With the lock, the last one was dead before it was taken; without, it still lived then.
    began = now() if alone.take() else before
    me = {"node": os.environ["ZKBEAT_ID"], "epoch": int(os.environ["ZKBEAT_EPOCH"]), "pid": os.getpid()}
    life = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    life.connect(f"{directory}/lives")
    os.set_inheritable(life.fileno(), True)
    life.sendall(json.dumps({**me, "at": began, "alone": alone.held, "hard": hard_deadline()}).encode() + b"\n")
    broker = Broker(host, int(port), stream)
    tick = 0
    while not _stopped:
        tick += 1
        with contextlib.suppress(OSError):
            broker.publish(json.dumps({**me, "tick": tick, "hard": hard_deadline(), "at": now()}))
        alone.take()
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
