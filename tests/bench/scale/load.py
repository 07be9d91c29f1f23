"""Renewals without contenders: writes of their size at a given rate, each on its way whether or not the last is back.

A contender costs more CPU than its renewal costs a server, so where both share a machine a thousand of them say little
of what the servers could take. This takes the clients out of it as far as that is possible.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import TYPE_CHECKING, Any

from kazoo.client import KazooClient

from tests.bench.scale.servers import RECORD
from zkbeat import clock

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CLIENTS = 6
"""In one process: their only work is to send and to take the time."""

WAITS_AT_MOST_S = 30.0

BURST_EVERY_S = 0.005


def writes(hosts: str, rate: float, for_s: float) -> tuple[list[float], int]:
    """Return what each write took, in seconds, and how many were sent; some may have failed or never come back."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(hosts, rate, for_s, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(for_s + 3 * WAITS_AT_MOST_S):
            raise TimeoutError(f"{rate:g} writes a second have not ended")
        took_s, sent = ours.recv()
        return took_s, sent
    finally:
        process.kill()
        process.join(10)


def _serve(hosts: str, rate: float, for_s: float, answer: Connection) -> None:
    clients = [KazooClient(hosts=hosts, timeout=30.0) for _ in range(CLIENTS)]
    for number, client in enumerate(clients):
        client.start(timeout=WAITS_AT_MOST_S)
        client.ensure_path(f"/load/{number}")
    took_s: list[float] = []
    back = threading.Semaphore(0)
    begun_at = clock.now()
    sent = 0
    while (now := clock.now()) < begun_at + for_s:
        for _ in range(int((now - begun_at) * rate) - sent):
            _send(clients[sent % CLIENTS], f"/load/{sent % CLIENTS}", took_s, back)
            sent += 1
        time.sleep(BURST_EVERY_S)
    give_up_at = clock.now() + WAITS_AT_MOST_S
    for _ in range(sent):
        if not back.acquire(timeout=max(give_up_at - clock.now(), 0.0)):
            break
    answer.send((took_s, sent))


def _send(client: KazooClient, path: str, took_s: list[float], back: threading.Semaphore) -> None:
    sent_at = clock.now()

    def done(result: Any) -> None:
        if result.exception is None:
            took_s.append(clock.now() - sent_at)
        back.release()

    client.set_async(path, RECORD).rawlink(done)
