"""The app whose beat is measured: a task a second, nothing else."""

from __future__ import annotations

import json
import os

from celery import Celery

app = Celery("app", broker=os.environ["BENCH_BROKER"])
app.conf.beat_schedule = {"tick": {"task": "tick", "schedule": 1.0}}
# What a scheduler other than celery's own wants to be told.
app.conf.update(json.loads(os.environ.get("BENCH_SETTINGS", "{}")))
