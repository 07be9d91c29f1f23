"""ZooKeeper's own record: the transaction logs of an ensemble, read back.

They hold every znode that was made or deleted, by which session and when (the quorum leader's clock), also in those
moments in which no client could have watched. What at least two of three servers have logged was committed; what only
one has may have been taken back.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CREATE, DELETE, SET_DATA, MULTI, CREATE_2, CLOSE_SESSION = 1, 2, 5, 14, 15, -11

_FILE_HEADER = struct.Struct(">4siq")
_RECORD_HEADER = struct.Struct(">qi")
_TXN_HEADER = struct.Struct(">qiqqi")


@dataclass(frozen=True)
class Txn:
    """One change: by which session, when (wall clock, seconds), of which kind; `path` and `data` where it has them.

    The changes of a multi have its zxid in common. `asked` is 0 where the server itself closes a session.
    """

    session: int
    asked: int
    zxid: int
    at: float
    kind: int
    path: str = ""
    data: bytes = b""


def committed(directories: Iterable[Path], after: int = 0) -> list[Txn]:
    """Return what the servers with these data directories agree on, from one zxid on, in order."""
    logs = [list(_read_server(directory, after)) for directory in directories]
    votes = Counter(zxid for log in logs for zxid in {txn.zxid for txn in log})
    chosen: dict[int, list[Txn]] = {}
    for log in logs:
        own: dict[int, list[Txn]] = {}
        for txn in log:
            own.setdefault(txn.zxid, []).append(txn)
        chosen.update(own)
    quorum = len(logs) // 2 + 1
    return [txn for zxid in sorted(chosen) if votes[zxid] >= quorum for txn in chosen[zxid]]


def _read_server(directory: Path, after: int) -> Iterator[Txn]:
    files = sorted((int(path.name.removeprefix("log."), 16), path) for path in directory.glob("version-2/log.*"))
    for number, (_, path) in enumerate(files):
        # A file ends where the next one begins.
        if number + 1 < len(files) and files[number + 1][0] <= after + 1:
            continue
        # A server that purges may be quicker; a torn end is what it is in the middle of writing.
        with contextlib.suppress(FileNotFoundError, struct.error), path.open("rb") as file:
            for txn in _read_file(file):
                if txn.zxid > after:
                    yield txn


def _read_file(file: io.BufferedReader) -> Iterator[Txn]:
    magic, _version, _ = _FILE_HEADER.unpack(file.read(_FILE_HEADER.size))
    if magic != b"ZKLG":
        raise ValueError(f"not a transaction log: {file.name}")
    while True:
        _crc, length = _RECORD_HEADER.unpack(file.read(_RECORD_HEADER.size))
        if length <= 0:  # the rest was only reserved
            return
        body = file.read(length)
        if file.read(1) != b"B":
            return
        session, asked, zxid, time_ms, kind = _TXN_HEADER.unpack_from(body)
        rest = io.BytesIO(body[_TXN_HEADER.size :])
        for one_kind, path, data in _changes(kind, rest):
            yield Txn(session, asked, zxid, time_ms / 1000, one_kind, path, data)


def _changes(kind: int, rest: io.BytesIO) -> Iterator[tuple[int, str, bytes]]:
    if kind in {CREATE, CREATE_2, SET_DATA}:
        yield kind, _text(rest), _bytes(rest)
    elif kind == DELETE:
        yield kind, _text(rest), b""
    elif kind == CLOSE_SESSION:
        yield kind, "", b""
    elif kind == MULTI:
        for _ in range(_int(rest)):
            yield from _changes(_int(rest), io.BytesIO(_bytes(rest)))


def _int(rest: io.BytesIO) -> int:
    return int(struct.unpack(">i", rest.read(4))[0])


def _bytes(rest: io.BytesIO) -> bytes:
    return rest.read(max(_int(rest), 0))


def _text(rest: io.BytesIO) -> str:
    return _bytes(rest).decode()
