"""How much the machine's CPUs are wanted by others, from the kernel's pressure stall information."""

from __future__ import annotations

import re
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")


def recent() -> float:
    """Return the share of the last 10 s in which somebody waited for a CPU; 0 where the kernel does not tell."""
    return _some("avg10") / 100


def stalled_s() -> float:
    """Return how long somebody has waited for a CPU since the machine was started."""
    return _some("total") / 1e6


def _some(what: str) -> float:
    try:
        said = PRESSURE.read_text(encoding="ascii")
    except OSError:
        return 0.0
    found = re.search(rf"^some .*{what}=([\d.]+)", said, re.MULTILINE)
    return float(found[1]) if found else 0.0
