"""Sees children start and die, and leases. A process of its own, in real time where it may: it must not see late.

`witness.py SOCKET`: listens there for what each child says as it starts, and writes that, with the child's pid as it is
here, as a line; and another one when the kernel has closed the child's connection: it is dead, with all that has it.
Lines `NODE PATH` on its standard input name lease files: what they hold is written as a line when it has changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time

PRIORITY = 10
LOOK_AT_LEASES_EVERY_S = 0.05


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def peer(connection: socket.socket) -> int:
    """Return the pid of who connected, as it is in our PID namespace, whatever theirs is."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def hear(connection: socket.socket, pid: int) -> bool:
    """Take what a child says; return False when it is dead."""
    try:
        data = connection.recv(65536)  # a few hundred bytes, sent at once
    except ConnectionResetError:
        data = b""
    at = now()
    if data:
        say(born=pid, said=json.loads(data))
    else:
        say(dead=pid, at=at)
    return bool(data)


def look(leases: dict[str, str], seen: dict[str, bytes]) -> None:
    """Write down each lease that has changed."""
    for node, path in leases.items():
        at = now()
        data = b""
        with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123  # pathlib takes long to import
            data = file.read()
        if len(data) == struct.calcsize("=qq") and data != seen.get(node):
            seen[node] = data
            say(lease=node, at=at, hard=struct.unpack("=qq", data)[1] / 1e9)


def main() -> None:
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o777)  # noqa: PTH101  # in a container the child is another user
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    say(ready=True)
    leases: dict[str, str] = {}
    seen: dict[str, bytes] = {}
    while True:
        look(leases, seen)
        for key, _ in selector.select(LOOK_AT_LEASES_EVERY_S):
            if key.fileobj is sys.stdin:
                line = sys.stdin.readline()
                if not line:  # whoever started us is gone
                    return
                leases.update([line.rstrip("\n").split(" ", 1)])
            elif key.fileobj is listener:
                connection, _ = listener.accept()
                selector.register(connection, selectors.EVENT_READ, peer(connection))
            elif not hear(key.fileobj, key.data):  # type: ignore[arg-type]
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
