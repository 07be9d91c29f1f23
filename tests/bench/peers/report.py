"""What the page says of a result: the tables between its markers, from the JSON alone; the plot is `plot`'s.

A figure is the median of the rounds, with the worst in brackets where it differs.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from tests.bench.peers.contestants import DEFAULT, MATCHED
from tests.bench.peers.figures import Figures, figures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

BEGIN = "<!-- Written by `python -m tests.bench.peers report`: do not edit from here -->"
END = "<!-- to here. -->"

IN_PROCESS = "in-process"
NOT_MEASURED = "-"

TOO_BUSY = 5.0
"""A load average a core, at the moment of the fault: above it, a trial tells of the machine."""

VERSIONS = ("Python", "celery", "kazoo", "ZooKeeper", "redis", "etcd")


class Result:
    """A result, for whoever shows it."""

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self.how: Mapping[str, Any] = kept["how"]
        self.contestants: Sequence[Mapping[str, Any]] = kept["contestants"]
        self.faults: Sequence[Mapping[str, Any]] = kept["faults"]
        measured: Sequence[Mapping[str, Any]] = kept["trials"]
        limit = TOO_BUSY * self.how["cores"]
        self._trials = [one for one in measured if one.get("load", 0.0) <= limit]
        self.left_out = len(measured) - len(self._trials)

    def with_settings(self, setting: str) -> list[Mapping[str, Any]]:
        """Return the contestants that were measured with these settings."""
        there = {trial["contestant"] for trial in self._trials if trial["setting"] == setting}
        return [one for one in self.contestants if one["name"] in there]

    def rounds(self, contestant: str, setting: str, fault: str) -> list[Figures]:
        """Return the figures of all the rounds that could be carried out."""
        return [figures(trial) for trial in self._of(contestant, setting, fault) if "error" not in trial]

    def failures(self, contestant: str, setting: str, fault: str) -> int:
        return sum("error" in trial for trial in self._of(contestant, setting, fault))

    def counts(self, setting: str) -> list[int]:
        """Return how often each fault was done to each of those to whom it was done at all, in order and once each."""
        counts = {
            len(self._of(one["name"], setting, fault["name"])) for one in self.contestants for fault in self.faults
        }
        return sorted(counts - {0}) or [0]

    def pressures(self) -> list[float]:
        """Return, for each trial with a takeover, the share of the time till then in which a CPU was waited for."""
        return [trial["pressure"] for trial in self._trials if "pressure" in trial]

    def standby_mb(self, contestant: str) -> float | None:
        """Return the memory of a standby: the median of the larger one of each trial."""
        seen = [one["standby_mb"] for one in self._trials if one["contestant"] == contestant and "error" not in one]
        return statistics.median(seen) if seen else None

    def _of(self, contestant: str, setting: str, fault: str) -> list[Mapping[str, Any]]:
        wanted = contestant, setting, fault
        return [trial for trial in self._trials if (trial["contestant"], trial["setting"], trial["fault"]) == wanted]


def line(record: Mapping[str, Any]) -> str:
    """Return what a run says of a trial."""
    head = f"{record['setting']} {record['fault']} {record['contestant']}"
    if "error" in record:
        return f"{head}: failed: {record['error']}"
    busy = f"load {record['load']}, pressure {record.get('pressure', 0):.0%}"
    return f"{head}: {', '.join(_seen([figures(record)], hands_over=True))} ({busy})"


def cell(result: Result, contestant: Mapping[str, Any], setting: str, fault: Mapping[str, Any]) -> str:
    """Return what is said of one contestant under one fault."""
    if contestant["in_process"] and fault["of_a_sidecar"]:
        return IN_PROCESS
    where = contestant["name"], setting, fault["name"]
    seen, failures = result.rounds(*where), result.failures(*where)
    failed = [f"failed {failures} of {len(seen) + failures}"] if failures else []
    parts = [*(_seen(seen, hands_over=fault["hands_over"]) if seen else []), *failed]
    return ", ".join(parts) or NOT_MEASURED


def _seen(rounds: Sequence[Figures], *, hands_over: bool) -> Iterator[str]:
    takeovers = [one.takeover_s for one in rounds if one.takeover_s is not None]
    two_beats = [one for one in rounds if one.two_beats]
    if two_beats:
        yield f"**two beats**{_part(two_beats, rounds)} from {_spread(takeovers)}, dup {_spread(_dups(rounds), 'g')}"
        return
    if takeovers:
        yield _spread(takeovers) if hands_over else f"**hand-over** after {_spread(takeovers)}"
    yield from _without_takeover(rounds, hands_over=hands_over)
    yield f"gap {_spread([one.gap_s for one in rounds])}"
    if any(_dups(rounds)):
        yield f"dup {_spread(_dups(rounds), 'g')}"


def _without_takeover(rounds: Sequence[Figures], *, hands_over: bool) -> Iterator[str]:
    goes_on = [one for one in rounds if one.goes_on]
    if goes_on and hands_over:
        yield f"goes on{_part(goes_on, rounds)}"
    nobody = [one for one in rounds if one.takeover_s is None and not one.goes_on]
    if nobody:
        yield f"nobody in {max(one.watched_s for one in nobody):.0f} s{_part(nobody, rounds)}"


def _part(some: Sequence[Figures], rounds: Sequence[Figures]) -> str:
    return "" if len(some) == len(rounds) else f" in {len(some)} of {len(rounds)}"


def _dups(rounds: Sequence[Figures]) -> list[float]:
    return [one.dup for one in rounds]


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    middle, worst = format(statistics.median(values), form), format(max(values), form)
    return middle if worst == middle else f"{middle} ({worst})"


def tables(result: Result) -> str:
    """Return what stands between the markers."""
    rounds = " and ".join(
        f"{_times(result.counts(setting))} {how}"
        for setting, how in ((MATCHED, "with matched timeouts"), (DEFAULT, "with defaults"))
    )
    machine = ", ".join(f"{name} {result.how[name]}" for name in VERSIONS)
    return "\n".join(
        [
            f"Measured on {result.how['date']}, {rounds}, {result.how['beside']} at a time.",
            f"One machine with {result.how['cores']} cores, {result.how['system']}; {machine}.",
            *_busy(result),
            "",
            "### Who takes part",
            "",
            _table(
                ["who", "version", "store", "its defaults", "matched", "a standby's memory"],
                [_who(one, result.standby_mb(one["name"])) for one in result.contestants],
            ),
            "",
            "### With matched timeouts",
            "",
            _faults(result, MATCHED),
            "",
            "### With their defaults",
            "",
            _faults(result, DEFAULT),
        ]
    )


def _busy(result: Result) -> Iterator[str]:
    pressures = result.pressures()
    if pressures:
        yield (
            f"Between a fault and the takeover, somebody waited for a CPU for {statistics.median(pressures):.0%} of the"
            f" time (the median of all trials; at most {max(pressures):.0%})."
        )
    if result.left_out:
        yield (
            f"Another {result.left_out} trials, whose faults met a load average above {TOO_BUSY:g} a core, are in the"
            " JSON and not here."
        )


def _times(counts: Sequence[int]) -> str:
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} times"
    return {1: "once", 2: "twice"}.get(counts[0], f"{counts[0]} times")


def _who(one: Mapping[str, Any], standby_mb: float | None) -> list[str]:
    default, matched = one["settings"][DEFAULT], one["settings"][MATCHED]
    memory = NOT_MEASURED if standby_mb is None else f"{standby_mb:.0f} MB"
    return [one["label"], one["version"], one["store"], default, "the same" if matched == default else matched, memory]


def _faults(result: Result, setting: str) -> str:
    there = result.with_settings(setting)
    head = ["fault", *(one["label"] for one in there)]
    rows = [[fault["what"], *(cell(result, one, setting, fault) for one in there)] for fault in result.faults]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def page(before: str, between: str) -> str:
    """Return a page with something else between its markers."""
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks a marker: {BEGIN} or {END}")
    return f"{head}{BEGIN}\n\n{between}\n\n{END}{tail}"


def dumped(kept: Mapping[str, Any]) -> str:
    """Return the JSON of a result, a trial a line."""
    trials = ",\n  ".join(json.dumps(trial) for trial in kept["trials"])
    rest = json.dumps({key: value for key, value in kept.items() if key != "trials"}, indent=1)
    return f'{rest[:-2]},\n "trials": [\n  {trials}\n ]\n}}\n'


def write(path: Path) -> None:
    """Write anew what the page beside the JSON says, and its plot."""
    # Imported here: the rest is of use without matplotlib.
    from tests.bench.peers import plot

    result = Result(json.loads(path.read_text(encoding="utf-8")))
    document = path.with_suffix(".md")
    before = document.read_text(encoding="utf-8") if document.exists() else f"{BEGIN}\n{END}\n"
    document.write_text(page(before, tables(result)), encoding="utf-8")
    plot.draw(result, path.with_suffix(".svg"))
