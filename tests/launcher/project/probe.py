"""Makes a scheduler, lets its lease run out, and tries each way in which beat could still send or write.

Each is tried in a process of its own, and the exit code of that is printed: `tick 75`.
"""

import os
import sys

from app import app
from celery.beat import Service

from zkbeat import clock, fence


def _attempt(door) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            door()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    words = sys.argv
    service = Service(app, scheduler_cls=words[words.index("-S") + 1], schedule_filename=words[words.index("-s") + 1])
    scheduler = service.scheduler
    entry = next(iter(scheduler.schedule.values()))
    producer = scheduler.producer
    send = {"routing_key": "celery", "serializer": "json"}
    doors = {
        "tick": scheduler.tick,
        "reserve": lambda: scheduler.reserve(entry),
        "apply_async": lambda: scheduler.apply_async(entry, producer=producer, advance=False),
        "publish": lambda: producer.publish({}, **send),
        "sync": scheduler.sync,
        "_do_sync": scheduler._do_sync,
        "close": scheduler.close,
    }
    with open(os.environ["ZKBEAT_LEASE_FILE"], "r+b") as file:  # noqa: PTH123  # in place: the scheduler has it open
        file.write(fence.pack(clock.now() - 1, clock.now()))
    entry.last_run_at = scheduler.app.now()  # something to write
    if hasattr(scheduler, "_dirty"):
        scheduler._dirty.add(entry.name)
    for name, door in doors.items():
        print(name, _attempt(door), flush=True)
    os._exit(0)
