"""Removes what a dead leader or contender has left behind in the line. Carries out; that it is dead, others know.

By itself, so that a guard's remover, which a hand-over waits for, need not load the whole election.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError

from zkbeat import clock
from zkbeat.client import describe
from zkbeat.core.record import Ledger


@dataclass(frozen=True)
class LeftBehind:
    """An election znode whose owner is certainly dead; `led`: it stood, or may stand, in the ledger."""

    znode: str
    led: bool


def retire(client: KazooClient, left_behind: LeftBehind) -> None:
    """Delete a dead leader's or contender's znode, and have the ledger say that the leader's child is dead.

    May raise what kazoo raises; can be repeated.
    """
    election, _, node = left_behind.znode.rpartition("/")
    ledger_path = f"{election.rpartition('/')[0]}/ledger"
    if left_behind.led:
        with contextlib.suppress(zk.NoNodeError, zk.BadVersionError):
            data, stat = client.get(ledger_path)
            ledger = Ledger.decode(data)
            # Somebody else's name there: that one entered only after it had waited for our lease to run out. None,
            # since the ledger was deleted as well: somebody else may have led since, and their child may be alive.
            if ledger is not None and ledger.led == node and not ledger.left:
                last = Ledger(led=node, lease=ledger.lease, left=True)
                client.set(ledger_path, last.encode(), stat.version)
    with contextlib.suppress(zk.NoNodeError):
        client.delete(left_behind.znode)


def retire_within(client: KazooClient, live: threading.Event, left_behind: LeftBehind, within_s: float) -> str | None:
    """`retire`, through connection losses; return None once it is done, else what is in the way.

    `live` is what `start_async` returned: a second call while the first one still connects would hang.
    The calls have no bound of their own: for a process that has one.
    """
    give_up_at = clock.now() + within_s
    error = "no connection"
    while (left_s := give_up_at - clock.now()) > 0 and live.wait(left_s):
        try:
            retire(client, left_behind)
        except (zk.NoAuthError, zk.AuthFailedError):
            return "no permission"
        except (zk.KazooException, KazooTimeoutError) as failure:
            error = describe(failure)
            threading.Event().wait(0.05)
        else:
            return None
    return error
