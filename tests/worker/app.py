"""The app of the workers under test: tasks that write down in Redis when they run, and wait for the test's word.

Configured by WORKER_TEST, a JSON object: `conf` and `store`, the URL of the Redis.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Celery, chain, chord

from zkbeat.worker import NoOverlap, OncePerTick

SETTINGS = json.loads(os.environ.get("WORKER_TEST", "{}"))
app = Celery("worker_test", **SETTINGS.get("main", {}))
app.conf.update(SETTINGS.get("conf", {}))
store = redis.Redis.from_url(SETTINGS.get("store", "redis://"), decode_responses=True)


def note(request: Any, what: str = "ran", **more: Any) -> None:
    line = {"task": request.task.rpartition(".")[2], "id": request.id, "what": what, "at": time.time(), **more}
    store.rpush("runs", json.dumps({**line, "pid": os.getpid(), "worker": request.hostname}))


def wait_for_word(request: Any) -> None:
    """Return when the test says `go`, to this run or to all."""
    while not store.exists("go", f"go:{request.id}"):
        time.sleep(0.02)


class Both(OncePerTick, NoOverlap):
    abstract = True


class BothTheOtherWay(NoOverlap, OncePerTick):
    abstract = True


class PerCustomer(NoOverlap):
    abstract = True

    def overlap_key(self, args: Any, kwargs: Any) -> str:  # noqa: ARG002
        return str(args[0])


@app.task(base=OncePerTick, bind=True)
def tick(self):
    note(self.request)
    return "done"


@app.task(base=OncePerTick, bind=True, acks_late=True)
def slow_tick(self):
    note(self.request, "began")
    wait_for_word(self.request)
    note(self.request)


@app.task(base=OncePerTick, bind=True, max_retries=2)
def retrying(self):
    note(self.request, retries=self.request.retries)
    if self.request.retries < 2:
        raise self.retry(countdown=0)


@app.task(base=OncePerTick, bind=True)
def part(self, *_args):
    note(self.request)
    return 1


@app.task(base=OncePerTick, bind=True)
def spawning(self):
    note(self.request)
    inherited = {key: value for key, value in (self.request.headers or {}).items() if key.startswith("zkbeat-")}
    chain(part.s().set(headers=inherited), part.s().set(headers=inherited)).apply_async()
    chord([part.s(), part.s()], part.s()).apply_async(headers=inherited)


@app.task(bind=True)
def plain(self, *_args):
    note(self.request)


@app.task(base=NoOverlap, bind=True)
def alone(self):
    note(self.request, "began")
    wait_for_word(self.request)
    note(self.request)


@app.task(base=NoOverlap, bind=True)
def quick(self):
    note(self.request)


@app.task(base=NoOverlap, bind=True, on_overlap="postpone")
def patient(self):
    note(self.request, "began")
    wait_for_word(self.request)
    note(self.request)


@app.task(base=NoOverlap, bind=True, max_retries=1)
def alone_retrying(self):
    note(self.request, retries=self.request.retries)
    if self.request.retries < 1:
        raise self.retry(countdown=0)


@app.task(base=NoOverlap, bind=True, on_overlap="postpone", time_limit=1)
def stuck(self):
    note(self.request, "began")
    wait_for_word(self.request)
    note(self.request)


@app.task(base=NoOverlap, bind=True, acks_late=True, reject_on_worker_lost=True)
def lost(self):
    note(self.request, "began")
    wait_for_word(self.request)
    note(self.request)


@app.task(base=NoOverlap, bind=True)
def failing(self):
    note(self.request)
    raise ValueError("on purpose")


@app.task(base=PerCustomer, bind=True)
def per_customer(self, customer):
    note(self.request, "began", customer=customer)
    wait_for_word(self.request)
    note(self.request, customer=customer)


@app.task(base=Both, bind=True)
def both(self):
    note(self.request, "began")
    wait_for_word(self.request)
    note(self.request)


@app.task(base=BothTheOtherWay, bind=True)
def both_the_other_way(self):
    note(self.request, "began")
    wait_for_word(self.request)
    note(self.request)
