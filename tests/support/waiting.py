"""Bounded waiting: the tests never sleep for luck."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T],
    timeout_s: float,
    what: str,
    detail: Callable[[], object] | None = None,
    *,
    every_s: float = 0.02,
) -> T:
    """Return the predicate's first true value; on timeout fail, naming `what` and what `detail` returns."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            # Only now: the detail (a log, a process list) may be costly, and only the last one is of use.
            more = "" if detail is None else f"\n{detail()}"
            raise AssertionError(f"not within {timeout_s:g} s: {what} (last value: {value!r}){more}")
        time.sleep(every_s)
