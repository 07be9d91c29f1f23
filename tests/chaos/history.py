"""What happened, as it was seen: one JSON object a line, `is` says of which kind, `at` when.

All instants are CLOCK_BOOTTIME seconds of the machine that everything ran on, whatever clock the witness has.

| kind | from | what |
|---|---|---|
| `started`, `died` | the child's lock and connection | a child's life; `alone`: no other child lived when it began |
| `lease` | the node's lease file, or the child (and each message has one) | a hard deadline that the guard was given |
| `message` | the broker | what a child has published, when the broker had it, in its order |
| `elected` | ZooKeeper's logs | a leader entered itself in the ledger, the last step before it starts its child |
| `made`, `gone` | ZooKeeper's logs | an election znode; `why`: left, removed, evicted, expired, closed, deleted |
| `fault`, `healed` | the one who did it | a fault's begin and end, and on which node |
| `frozen`, `thawed` | the one who did it | no process of a node can run, not even to die |
| `round`, `about`, `violation` | the runner | what was measured, on what, and what was wrong |
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Record = dict[str, Any]


class History:
    """The file, to which several clusters may write at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        with self._lock:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> dict[str, list[Record]]:
    """Return the records of each cluster."""
    clusters: dict[str, list[Record]] = {}
    for record in _lines(path):
        clusters.setdefault(record.get("cluster", ""), []).append(record)
    return clusters


def _lines(path: Path) -> Iterator[Record]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
