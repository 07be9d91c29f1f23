"""The Celery app of `zkbeat demo`: a task a second, which says what it was sent by."""

from __future__ import annotations

import json
import os

from celery import Celery

app = Celery("zkbeat.demo_app", broker=os.environ.get("ZKBEAT_DEMO_BROKER"))

app.conf.update(
    beat_schedule={
        "tick": {
            "task": "tick",
            "schedule": 1.0,
            # Read by the beat that publishes, so each tick carries the node and the epoch of its own publisher.
            "args": (os.environ.get("ZKBEAT_ID"), os.environ.get("ZKBEAT_EPOCH")),
        }
    },
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_redirect_stdouts=False,
    worker_hijack_root_logger=False,
)


def _say(node: str | None, epoch: str | None) -> None:
    """Tell the demo, which reads the worker's output, that a tick has arrived."""
    print(json.dumps({"tick": node, "epoch": epoch}), flush=True)


tick = app.task(name="tick")(_say)
