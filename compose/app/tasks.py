"""The example app of compose.yaml: one task, due every second."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("tasks", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))

app.conf.update(
    beat_schedule={"tick": {"task": "tasks.tick", "schedule": 1.0}},
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


@app.task
def tick() -> str:
    """Do what this app is for."""
    return "tock"
