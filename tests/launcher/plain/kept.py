"""An app whose schedule is kept in ZooKeeper: ENTRIES are its entries and CONF its settings, both JSON.

IDLE says how many entries it has beside them that are not due today.
"""

from __future__ import annotations

import json
import os

from celery import Celery
from celery.schedules import crontab

app = Celery("kept", broker=os.environ["BROKER"])
app.conf.update(result_expires=None, broker_connection_retry_on_startup=True)
app.conf.update(json.loads(os.environ.get("CONF", "{}")))
app.conf.beat_schedule = {
    name: {"task": "task", "schedule": crontab(**when) if isinstance(when, dict) else when}
    for name, when in json.loads(os.environ["ENTRIES"]).items()
}
idle = crontab(minute="5", hour="4", day_of_month="29", month_of_year="2")
app.conf.beat_schedule |= {
    f"idle-{number}": {"task": "task", "schedule": idle} for number in range(int(os.environ.get("IDLE", "0")))
}
