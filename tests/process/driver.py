"""Stands in for the sidecar: takes orders from standard input, and passes them to a guard through zkbeat's own Link.

`driver.py RUNTIME_DIR EVENTS_FILE`. An order is a line of JSON: `["spawn"]`, `["answer"]`, `["extend", SOFT, HARD]`, or
`["tell", {...}]` with a message to the guard. What the link posts goes to the file, a line each, with the pids of all
that was `left` below the guard when it was posted.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from zkbeat import clock, processes
from zkbeat.core import events
from zkbeat.core.lease import Deadlines
from zkbeat.link import BURY_AGAIN_S, Link
from zkbeat.runtime import RuntimeDirectory


def main() -> None:  # noqa: C901
    directory = RuntimeDirectory(Path(sys.argv[1]))
    directory.prepare()
    directory.acquire()
    noted = Path(sys.argv[2])

    def note(event: str, **fields: object) -> None:
        with noted.open("a") as lines:
            lines.write(json.dumps({"event": event, "at": clock.now(), **fields}) + "\n")

    def post(event: events.Event) -> None:
        # At this very moment: a little later, what was reported dead too early would be dead as well.
        guard = link._guard.pid if link._guard is not None else None
        left = [pid for pid in processes.descendants(os.getpid()) if pid != guard]
        note(type(event).__name__, **asdict(event), left=left)

    link = Link(directory.lock_fd, post, lambda _pid: False)
    processes.become_subreaper()
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin.buffer, selectors.EVENT_READ)
    watched = None
    note("DriverReady")
    while True:
        if link.socket is not watched:
            if watched is not None:
                selector.unregister(watched)
            watched = link.socket
            if watched is not None:
                selector.register(watched, selectors.EVENT_READ)
        ready = {key.fileobj for key, _ in selector.select(BURY_AGAIN_S if link.burying else None)}
        if watched in ready:
            link.read()
        link.bury()
        if sys.stdin.buffer in ready:
            line = sys.stdin.buffer.raw.readline()  # unbuffered: else lines would wait unseen by the selector
            if not line:
                return
            what, *rest = json.loads(line)
            if what == "spawn":
                link.spawn()
                note("Spawned", pid=link._guard.pid)
            elif what == "answer":
                link.answer()
            elif what == "extend":
                link.extend(Deadlines(*rest))
            else:
                link.tell(**rest[0])


main()
