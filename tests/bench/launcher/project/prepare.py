"""Writes down, in the working directory, that every entry ran long ago: whoever starts there is due at once."""

from __future__ import annotations

import os
from datetime import datetime, timezone

from app import app

LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)


def _file() -> None:
    from celery.beat import PersistentScheduler

    scheduler = PersistentScheduler(app, schedule_filename="celerybeat-schedule")
    for entry in scheduler.schedule.values():
        entry.last_run_at = LONG_AGO
    scheduler.close()


def _table() -> None:
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    every_us = int(float(os.environ["BENCH_EVERY_S"]) * 1_000_000)
    every = IntervalSchedule.objects.create(every=every_us, period=IntervalSchedule.MICROSECONDS)
    for number in range(int(os.environ["BENCH_ENTRIES"])):
        PeriodicTask.objects.create(name=f"tick{number}", task=f"tick{number}", interval=every, last_run_at=LONG_AGO)


if __name__ == "__main__":
    app.finalize()
    if "DJANGO_SETTINGS_MODULE" in os.environ:
        import django

        django.setup()
        _table()
    else:
        _file()
