"""What long runs have shown: docs/chaos.json from their histories, and from that the picture and docs/chaos.md's table.

The page's text is written by people; what stands between its two marks is written here.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos import facts, history
from tests.chaos.cluster import LEASE, SESSION_TIMEOUT_S, TICK_MS
from tests.chaos.faults import FAULTS
from zkbeat.core.lease import evict_after_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BEGIN, END = "<!-- written by python -m tests.chaos report -->", "<!-- up to here -->"
OTHERS = {
    "several at once": "two or three random faults that overlap",
    "on a standby": "any one of these, on a node that stands by",
}
COUNTED = {"two at once": "overlaps", "late": "late_messages", "after a thaw": "leaks", "in flight": "in_flight"}
"""How the page calls what is counted in each round."""

TOP = Path(__file__).resolve().parents[2]


def package_version(package: Path | None) -> str:
    """Return what tells one state of the code from another: a commit, and a digest of what really ran.

    A copy of the package says in a file COMMIT what it is a copy of.
    """
    root = (package or TOP) / "zkbeat"
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    noted = root.parent / "COMMIT"
    if noted.exists():
        commit = noted.read_text().strip()
    else:
        git = ["git", "-C", TOP, "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return f"{commit or 'unknown'}, files {digest.hexdigest()[:12]}"


def summarize(histories: Iterable[Path], target: Path) -> None:
    """Write the JSON."""
    clusters = [(name, records) for path in histories for name, records in history.read(path).items()]
    rounds: dict[str, list[Mapping[str, Any]]] = {}
    violations: list[dict[str, Any]] = []
    runs: Counter[tuple[str, str, str, int]] = Counter()
    struck: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for name, records in clusters:
        about = next((record for record in records if record["is"] == "about"), {})
        where = f"{about.get('where')}, ZooKeeper {about.get('ZooKeeper')}"
        done = _measured_again(records)
        for record in records:
            counted[record["is"]] += 1
            if record["is"] == "round":
                rounds.setdefault(record["of"], []).append({**record, **done[record["number"]], "where": where})
                runs[where, about.get("package", ""), about.get("Python", ""), about.get("seed", 0)] += 1
            elif record["is"] == "fault":
                struck[record["what"]] += 1
            elif record["is"] == "violation" and record["name"] != "broken":
                violations.append({key: record[key] for key in ("round", "of", "name", "message")} | {"cluster": name})
        violations += _again(name, records)
    everything = [one for group in rounds.values() for one in group]
    loads = [one["load"] for one in everything]
    result = {
        "how": {
            "session_timeout_s": SESSION_TIMEOUT_S,
            "lease_s": round(LEASE.length_s, 3),
            "evict_after_s": round(evict_after_s(LEASE.length_s), 3),
            "tick_s": TICK_MS / 1000,
            "cores": os.cpu_count(),
            "system": platform.release(),
            "Python": platform.python_version(),
            "kazoo": version("kazoo"),
            "load": {"median": statistics.median(loads), "worst": max(loads)} if loads else {},
        },
        "runs": [
            {"where": where, "zkbeat": package, "seed": seed, "rounds": count}
            for (where, package, _, seed), count in sorted(runs.items())
        ],
        "rounds": len(everything),
        "faults": sum(struck.values()),
        "seen": {"children": counted["started"], "messages": counted["message"], "leases": counted["lease"]},
        **{what: sum(one[what] for one in everything) for what in COUNTED.values()},
        "dead_after_lease_s": max((one["dead_after_lease_s"] for one in everything), default=0.0),
        "violations": violations,
        "kinds": [_kind(name, rounds[name], struck[name]) for name in [*FAULTS, *OTHERS] if name in rounds],
    }
    target.write_text(json.dumps(result, indent=1) + "\n")


def _measured_again(records: Sequence[history.Record]) -> dict[int, dict[str, Any]]:
    """Return, by round, what can be counted anew from all that was recorded."""
    rounds = [record for record in records if record["is"] == "round"]
    ends = [*(one["at"] for one in rounds[1:]), float("inf")]
    amiss = facts.amiss(records)
    again = {}
    for one, end in zip(rounds, ends, strict=False):
        counted = {what: sum(one["at"] <= at < end for at in times) for what, times in amiss.items()}
        again[one["number"]] = {**counted, "hand_over_s": facts.hand_over_s(records, one["at"], end)}
    return again


def _again(name: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the checkers find in a whole history now, if they did not find it in the run."""
    if any(record["is"] == "violation" for record in records):
        return []
    try:
        facts.check(list(records))  # type: ignore[arg-type]
    except facts.Violation as violation:
        return [{"round": None, "of": None, "name": violation.name, "message": str(violation), "cluster": name}]
    return []


def _kind(name: str, rounds: Sequence[Mapping[str, Any]], struck: int) -> dict[str, Any]:
    def all_of(what: str, where: str = "") -> list[float]:
        return [round(one[what], 2) for one in rounds if one[what] is not None and one["where"].startswith(where)]

    return {
        "name": name,
        "what": FAULTS[name].what if name in FAULTS else OTHERS[name],
        "rounds": len(rounds),
        "faults": struck,
        "touched": sum(one["touched"] for one in rounds),
        "not_as_expected": sum(one["expected"] not in {None, one["touched"]} for one in rounds),
        **{what: sum(one[what] for one in rounds) for what in COUNTED.values()},
        "hand_over_s": {"local": all_of("hand_over_s", "local"), "containers": all_of("hand_over_s", "containers")},
        "gap_s": all_of("gap_s"),
        "recovered_s": all_of("recovered_s"),
    }


def write(source: Path) -> None:
    """Draw the picture beside the JSON, and put the table into the page beside it."""
    result = json.loads(source.read_text())
    draw(result, source.with_suffix(".svg"))
    page = source.with_suffix(".md")
    if page.exists():
        before, _, rest = page.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n\n{table(result)}\n\n{END}{after}")


# the table


def table(result: Mapping[str, Any]) -> str:
    """Return what the page has from the JSON."""
    columns = ("fault", "rounds", "hand-over, s", "longest gap, s", "not touched", *COUNTED)
    lines = [_line(kind) for kind in result["kinds"]]
    how, seen, load = result["how"], result["seen"], result["how"]["load"]
    wrong = sum(kind["not_as_expected"] for kind in result["kinds"])
    runs = "; ".join(f"{run['rounds']} {run['where']}, seed {run['seed']}" for run in result["runs"])
    facts_read = f"{seen['children']} children's lives, {seen['messages']} messages and {seen['leases']} leases"
    limits = f"session timeout {how['session_timeout_s']:g} s, lease {how['lease_s']:.2f} s, tick {how['tick_s']:g} s"
    machine = f"{how['cores']} cores, Linux {how['system']}, Python {how['Python']}, kazoo {how['kazoo']}"
    return "\n".join(
        [
            f"{result['rounds']} rounds with {result['faults']} faults.",
            f"Two children at once: {result['overlaps']} times.",
            f"Messages of an old publisher after the first one of its successor: {result['late_messages']}.",
            f"Messages of a child that was frozen past its lease, between its thaw and its death: {result['leaks']}.",
            f"Messages that were sent in time, and arrived when their sender was dead: {result['in_flight']}.",
            f"The longest that a child lived after its lease had run out: {_outlived(result['dead_after_lease_s'])}.",
            f"Violations of any invariant, and nodes that did not come back: {len(result['violations'])}.",
            f"Rounds in which the leader's child was stopped and must not be, or the other way round: {wrong}.",
            f"Recorded and checked: {facts_read}.",
            f"Rounds by place: {runs}.",
            f"Everywhere: {limits}; {machine}; load {load['median']:g}, at worst {load['worst']:g}.",
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
            *lines,
        ]
    )


def _outlived(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds > 0 else "none did"


def _line(kind: Mapping[str, Any]) -> str:
    hand_over = [*kind["hand_over_s"]["local"], *kind["hand_over_s"]["containers"]]
    untouched = kind["rounds"] - kind["touched"]
    cells = [
        kind["what"],
        kind["rounds"],
        _median_and_worst(hand_over) if hand_over else "-",
        _median_and_worst(kind["gap_s"]),
        untouched or "",
        *(kind[what] for what in COUNTED.values()),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _median_and_worst(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({max(values):.2f})"


# the picture


def draw(result: Mapping[str, Any], target: Path) -> None:
    """Draw each hand-over as a point, one row a fault."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "zkbeat"  # the same figures give the same file
    from matplotlib import pyplot as plt

    kinds = [kind for kind in result["kinds"] if _all_hand_overs(kind)]
    kinds.sort(key=lambda kind: statistics.median(_all_hand_overs(kind)), reverse=True)
    figure, axes = plt.subplots(figsize=(10, 1.6 + 0.27 * len(kinds)), layout="constrained")
    _draw_rows(axes, kinds)
    _draw_limits(axes, result["how"])
    axes.set_xscale("log")
    axes.set_xlim(left=0.04)
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("from the fault to the next child's first message, seconds")
    title = f"{result['faults']} faults in {result['rounds']} rounds: how long a hand-over takes"
    axes.set_title(title, loc="left", pad=24)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


def _all_hand_overs(kind: Mapping[str, Any]) -> list[float]:
    return [*kind["hand_over_s"]["local"], *kind["hand_over_s"]["containers"]]


def _draw_rows(axes: Any, kinds: Sequence[Mapping[str, Any]]) -> None:
    colours = {"local": "#1f6fb4", "containers": "#d9730d"}
    for row, kind in enumerate(kinds):
        for where, colour in colours.items():
            values = kind["hand_over_s"][where]
            # Spread over the row's height in a fixed pattern, so that equal ones stay visible.
            heights = [row + ((number * 0.618) % 1 - 0.5) * 0.5 for number in range(len(values))]
            label = {"local": "as processes", "containers": "in containers"}[where] if row == 0 else None
            axes.scatter(values, heights, s=13, color=colour, alpha=0.65, linewidths=0, label=label, zorder=3)
        middle = statistics.median(_all_hand_overs(kind))
        axes.plot([middle, middle], [row - 0.36, row + 0.36], color="black", linewidth=1.6, zorder=4)
    axes.set_yticks(
        range(len(kinds)), [f"{kind['name']}  ({len(_all_hand_overs(kind))})" for kind in kinds], fontsize=8
    )
    axes.set_ylim(-0.7, len(kinds) - 0.3)
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.6, zorder=0)
    axes.legend(loc="lower left", fontsize=8)


def _draw_limits(axes: Any, how: Mapping[str, Any]) -> None:
    marks = {"lease": how["lease_s"], "eviction": how["evict_after_s"], "session": how["session_timeout_s"]}
    for number, (name, at) in enumerate(marks.items()):
        axes.axvline(at, color="#888888", linestyle=":", linewidth=1, zorder=1)
        # They are close to each other: names to the left, in the middle and higher, and to the right.
        align, height = (("right", 2), ("center", 10), ("left", 2))[number]
        above = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "xytext": (0, height)}
        axes.annotate(f" {name} ", (at, 1), fontsize=7, color="#555555", ha=align, **above)
