"""Deletes one election znode and ends: what a guard runs when its sidecar is gone.

It is started while the child is still being stopped, imports and connects, and waits on its standard input for the word
that everything is dead: only then may the znode go (S3). If the word does not come, because the guard was killed too,
it deletes nothing.

Only the znode's name is needed, since the name of a sequential znode never comes back: this cannot hit another term.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path

from zkbeat import client
from zkbeat.access import Access
from zkbeat.retire import LeftBehind, retire_within

ALIVE_AT_MOST_S = 10

WITHIN_S = 3.0
"""The guard, and so the host lock, waits for us: a start meanwhile waits too, but not for long (runtime.LOCK_WAIT_S).
That start finds the znode noted, and deletes it itself."""


def main() -> int:
    """Serve one removal; return the exit code: 0 if the znode is gone."""
    # Whatever may hang in here: the guard, and with it the host lock, waits for us.
    signal.alarm(ALIVE_AT_MOST_S)
    order = json.loads(sys.stdin.readline())
    access = Access.from_json(order["access"])
    session = client.plain_client(access)
    live = session.start_async()
    try:
        if sys.stdin.readline() != "remove\n":
            return 1
        left_behind = LeftBehind(order["znode"], order["led"])
        error = retire_within(session, live, left_behind, WITHIN_S)
        if error is not None:
            print(f"zkbeat: could not delete {order['znode']}: {error}", file=sys.stderr)
            return 1
        with contextlib.suppress(OSError):
            Path(order["note"]).unlink(missing_ok=True)
        return 0
    finally:
        client.stop_within(session, 1.0)
