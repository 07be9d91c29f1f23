"""For workers, opt-in: run a tick once, and do not let two runs of a task overlap.

    from zkbeat.worker import NoOverlap, OncePerTick

    @app.task(base=OncePerTick)
    def report(): ...

    @app.task(base=NoOverlap, on_overlap="postpone")
    def rebuild(): ...

    class Both(OncePerTick, NoOverlap):
        abstract = True

Which file does what: `session` keeps the worker's one session with ZooKeeper, `claims` and `runs` say what is written
there, `strategy` and `request` sit in the two places of celery's worker where a message can be kept from running.
All of it is in the worker's main process; pool processes know nothing of ZooKeeper.

What is not promised: *exactly once*. A claim is for a tick's message, so what a broker delivers twice, or a task that
is retried, runs twice; and while ZooKeeper cannot be asked, messages are run unasked (or held: `zkbeat_fail_closed`).
"""

from __future__ import annotations

from typing import Any

from celery import Task

__all__ = ["NoOverlap", "OncePerTick"]


class OncePerTick(Task):  # type: ignore[misc]
    """A second message for a tick that another message has claimed is acknowledged and dropped.

    Messages without a tick's headers (sent by hand, by another task) run as ever, and so do retries and redeliveries.
    """

    abstract = True
    Strategy = "zkbeat.worker.strategy:strategy"


class NoOverlap(Task):  # type: ignore[misc]
    """At most one run at a time, of all workers; the run that would overlap is dropped, or postponed.

    The same message that comes again (a retry, or a redelivery after its worker was lost) is never dropped but
    postponed: the lock of a lost worker outlives it by the session timeout.
    """

    abstract = True
    Strategy = "zkbeat.worker.strategy:strategy"
    Request = "zkbeat.worker.request:LockedRequest"

    on_overlap = "drop"
    """"drop" or "postpone"."""

    def overlap_key(self, args: Any, kwargs: Any) -> str:  # noqa: ARG002
        """Return what two runs must have in common to be in each other's way; by default any two are.

        Called in the worker's main process, for each message, so it has to be quick.
        """
        return ""
