"""An app with one entry, for zkbeat to run; SCHEDULE_S says how often it is due, and TROUBLE what it does at import."""

from __future__ import annotations

import os
import socket
import threading
import time

from celery import Celery

app = Celery("plain", broker=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True
app.conf.beat_schedule = {"entry": {"task": "task", "schedule": float(os.environ["SCHEDULE_S"])}}

TROUBLE = os.environ.get("TROUBLE")
if TROUBLE == "thread":
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if TROUBLE == "socket":
    connected = socket.create_connection(("127.0.0.1", int(os.environ["BROKER"].split(":")[2].split("/")[0])))
