"""Stands in for celery beat: writes down when it lived, until TERM.

`python beat.py FILE`: appends `start`, `alive` and `stop` with its node, its pid and CLOCK_BOOTTIME; `start` also has
the environment, for tests to look at.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

EVERY_S = 0.02

_stopped = False


def _stop(_number: int, _frame: object) -> None:
    global _stopped  # noqa: PLW0603
    _stopped = True


def main() -> None:
    signal.signal(signal.SIGTERM, _stop)
    # Appended with one write each: several may write at once, which is what the tests look for.
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    node = os.environ.get("ZKBEAT_ID")

    def note(what: str, **more: object) -> None:
        line = {"what": what, "node": node, "pid": os.getpid(), "at": time.clock_gettime(time.CLOCK_BOOTTIME), **more}
        os.write(file, json.dumps(line).encode() + b"\n")

    note("start", env=dict(os.environ))
    while not _stopped:
        time.sleep(EVERY_S)
        note("alive")
    note("stop")


if __name__ == "__main__":
    main()
