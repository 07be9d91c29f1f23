"""What happened last, made readable: only when a seed has failed is anything formatted."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ZNODE = re.compile(r"\b([A-C])\d{6}__lock__0*(\d+)\b")
_FLOAT = re.compile(r"\d+\.\d{4,}")
_DEFAULTS = re.compile(
    r", (?:host='', pid=0, version='', digest='', since=0\.0|\w+=None|tick=None|parked=None|offset(?:_s)?=0\.0)"
)


def written(records: Iterable[tuple[float, tuple[object, ...]]]) -> str:
    """Write the records one a line, the time first; `A/3` is the znode number 3 of the line, and it is A's."""
    return "\n".join(f"{at:9.4f} {_words(words)}" for at, words in records)


def _words(words: Iterable[object]) -> str:
    said = _ZNODE.sub(r"\1/\2", " ".join(map(str, words)))
    return _FLOAT.sub(lambda number: f"{float(number[0]):.3f}", _DEFAULTS.sub("", said))
