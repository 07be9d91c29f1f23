"""The app whose beat is measured: a task a second, nothing else."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("app", broker=os.environ["BENCH_BROKER"])
app.conf.beat_schedule = {"tick": {"task": "tick", "schedule": 1.0}}
