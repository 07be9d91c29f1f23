"""Stands in for a preloaded app: says at its gate what it is told to, waits there, and then notes what it was given.

`parked.py FILE [refuse|die|slow]`: FILE gets a line of JSON for each thing that happens.
"""

import json
import os
import socket
import sys
import time

noted, *words = sys.argv[1:]


def note(what, **more):
    line = json.dumps({"what": what, "pid": os.getpid(), **more})
    fd = os.open(noted, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


fd = os.environ.get("ZKBEAT_GATE_FD")
if fd is None:
    note("plain", epoch=os.environ.get("ZKBEAT_EPOCH"))
else:
    gate = socket.socket(fileno=int(fd))
    note("reached")
    if "die" in words:
        sys.exit(3)
    if "refuse" in words:
        gate.sendall(b'{"is": "unparkable", "why": "for a test"}\n')
        sys.exit(0)
    if "slow" not in words:
        gate.sendall(b'{"is": "parked", "kib": 12345}\n')
    order = gate.recv(65536)
    if not order:
        note("closed")
        sys.exit(0)
    note("opened", epoch=json.loads(order)["env"].get("ZKBEAT_EPOCH"), secret=b"SECRET" in order)
time.sleep(1000)
