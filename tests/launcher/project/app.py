"""The app whose beat is under test; the test writes its settings as JSON into LAUNCHER_TEST.

`shift` names a file that holds by how many seconds this process's wall clock is off: `app.now()` and what
django-celery-beat reads instead. (libfaketime will not do: with it, Python's `time.sleep` fails.)
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import types
from datetime import datetime, timedelta
from pathlib import Path

from celery import Celery
from celery.schedules import crontab

CONF = json.loads(os.environ["LAUNCHER_TEST"])


def shift() -> timedelta:
    return timedelta(seconds=float(Path(CONF["shift"]).read_text()))


class App(Celery):
    def now(self):
        return super().now() + shift()


class Shifted(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + shift()

    @classmethod
    def utcnow(cls):
        return datetime.utcnow() + shift()  # noqa: DTZ003  # as the original does


def _shift_django() -> None:
    from django.utils import timezone

    now = timezone.now
    timezone.now = lambda: now() + shift()

    from django_celery_beat import schedulers, tzcrontab

    module = types.ModuleType("datetime")
    module.__dict__.update(vars(schedulers.datetime))
    module.datetime = Shifted
    schedulers.datetime = module
    tzcrontab.datetime = Shifted


def _schedule(spec):
    return crontab(**spec) if isinstance(spec, dict) else float(spec)


def _stuck(_number: int, _frame: object) -> None:
    time.sleep(1000)


if CONF["django"]:
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    import django

    django.setup()
    _shift_django()

app = App("app", broker=CONF["broker"])
app.conf.update(result_expires=None, broker_connection_retry_on_startup=True, **CONF["conf"])
app.conf.beat_schedule = {
    name: {**entry, "schedule": _schedule(entry["schedule"])} for name, entry in CONF["schedule"].items()
}
signal.signal(signal.SIGUSR2, _stuck)
faulthandler.register(signal.SIGUSR1, all_threads=True)  # where it hangs, for the log of a test that fails


class _Meta(type):
    def __call__(cls, *args, **kwargs):
        return super().__call__(*args, **kwargs)

    def __new__(cls, name, bases, body):
        if len(bases) > 1:
            raise TypeError("one base is enough")
        return super().__new__(cls, name, bases, body)


def _stubborn():
    from celery.beat import Scheduler

    return _Meta("StubbornScheduler", (Scheduler,), {})


StubbornScheduler = _stubborn()
sys.modules.setdefault("app", sys.modules[__name__])
