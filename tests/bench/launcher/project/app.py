"""The app whose beat is measured: some tasks at an interval; with Django in the environment, those of its table."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("app", broker=os.environ["BENCH_BROKER"])
if "DJANGO_SETTINGS_MODULE" in os.environ:  # celery sets Django up by itself
    app.conf.beat_scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
else:
    app.conf.beat_schedule = {
        f"tick{number}": {"task": f"tick{number}", "schedule": float(os.environ["BENCH_EVERY_S"])}
        for number in range(int(os.environ["BENCH_ENTRIES"]))
    }
