"""What the page says of a result: the tables between its markers, from the JSON alone.

A figure is the median of the rounds, with the worst in brackets.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from tests.bench.launcher.figures import STEPS, stretches

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

BEGIN = "<!-- Written by `python -m tests.bench.launcher report`: do not edit from here -->"
END = "<!-- to here. -->"

WAYS = {"no-launcher": "`--no-launcher`", "launcher": "launcher", "preload": "`--preload`"}
APPS = {"trivial": "trivial", "django": "Django"}

PRELOADED_AT_MOST_S = {"trivial": 0.15, "django": 0.3}
KILLED_AT_MOST_S = 0.5
"""To the first due tick with `--preload`; for the trivial app."""

STEP_NAMES = {
    "dead_s": "old beat dead",
    "znode_gone_s": "znode gone",
    "elected_s": "elected",
    "started_s": "beat begins",
    "first_s": "first message",
}

Record = dict[str, Any]


def merged(kept: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], *, more: bool) -> dict[str, Any]:
    """Return what is to be kept: a part that was measured now in place of what was before, or beside it."""
    before = {part: kept.get(part, {}).get("rounds", []) if more else [] for part in found}
    return {**kept, **{part: {**about, "rounds": [*before[part], *about["rounds"]]} for part, about in found.items()}}


def _good(rounds: Iterable[Record], **wanted: str) -> list[Record]:
    """Return the rounds that could be carried out, of those wanted."""
    return [one for one in rounds if "error" not in one and all(one[key] == value for key, value in wanted.items())]


def _failed(rounds: Iterable[Record], **wanted: str) -> int:
    return sum("error" in one and all(one[key] == value for key, value in wanted.items()) for one in rounds)


def _median(rounds: Sequence[Record], figure: str) -> float:
    return statistics.median(one[figure] for one in rounds)


def _spread(values: Sequence[float], form: str = ".2f") -> str:
    if not values:
        return "-"
    middle, worst = format(statistics.median(values), form), format(max(values), form)
    return middle if worst == middle else f"{middle} ({worst})"


def _loads(rounds: Sequence[Record]) -> str:
    loads = [one["load"] for one in rounds if "load" in one]
    return f"{statistics.median(loads):.1f} ({min(loads):.1f} to {max(loads):.1f})" if loads else "unknown"


def _verdict(*, ok: bool) -> str:
    return "yes" if ok else "**no**"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


# the fence


def _fence_row(variant: Mapping[str, Any], rounds: Sequence[Record]) -> list[str]:
    mine = _good(rounds, variant=variant["name"])
    if not mine:
        return [variant["what"], variant["how"], variant["why_not"] or "not measured", *["-"] * 5]
    some = [one for one in mine if one["late"]]
    failed = _failed(rounds, variant=variant["name"])
    return [
        variant["what"],
        variant["how"],
        f"{len(mine)}" + (f" (and {failed} that could not be carried out)" if failed else ""),
        f"**{len(some)}**" if some else "0",
        f"{sum(one['late'] for one in mine)}, at most {max(one['late'] for one in mine)}" if some else "0",
        f"{sum(one['dead_before_thaw'] for one in mine)}",
        _dead_after(mine),
        _spread([one["new_s"] for one in mine]),
    ]


def _dead_after(rounds: Sequence[Record]) -> str:
    dead = [max(one["dead_after_thaw_s"], 0.0) for one in rounds if one["dead_after_thaw_s"] is not None]
    alive = len(rounds) - len(dead)
    return _spread(dead) + (f", {alive} still alive after 6 s" if alive else "")


def fence_table(part: Mapping[str, Any]) -> str:
    """Return the table of whole nodes, frozen and thawed."""
    head = [
        "what",
        "frozen with",
        "rounds",
        "rounds with a late message",
        "late messages",
        "beat dead before the thaw",
        "after it, dead in s",
        "new leader's first message, s",
    ]
    return table(head, [_fence_row(variant, part["rounds"]) for variant in part["variants"]])


def alone_table(part: Mapping[str, Any]) -> str:
    """Return the table of beats without a guard."""
    rows = []
    for variant, what in (("launcher", "launcher"), ("no-launcher", "stock celery beat")):
        mine = _good(part["rounds"], variant=variant)
        if not mine:
            continue
        sent = [one["after_thaw"] for one in mine]
        within = [one for one in mine if one["publishing"]]
        dead = [one["dead_after_thaw_s"] for one in mine if "dead_after_thaw_s" in one]
        rows.append(
            [
                what,
                str(len(mine)),
                str(len(within)) if variant == "launcher" else "unknown",
                str(sum(count > 0 for count in sent)),
                f"{sum(sent)}, {_spread(sent, 'g')} a round",
                _spread(dead, ".3f") if dead else "goes on",
            ]
        )
    head = ["what", "rounds", "frozen within a publish", "rounds with a message after the thaw", "messages", "dead, s"]
    return table(head, rows)


# the start


def start_table(part: Mapping[str, Any]) -> str:
    """Return the table of elections."""
    rows = []
    for app in APPS:
        for way, name in WAYS.items():
            mine = _good(part["rounds"], app=app, way=way)
            if not mine:
                continue
            limit, ok = _start_limit(app, way, mine)
            rows.append(
                [
                    part["apps"][app],
                    name,
                    str(len(mine)),
                    _spread([one["gone_to_elected_s"] for one in mine], ".3f"),
                    _spread([one["elected_to_started_s"] for one in mine], ".3f"),
                    _spread([one["elected_to_first_s"] for one in mine], ".3f"),
                    _spread([one["beat_ran_s"] for one in mine], ".3f"),
                    _spread([one["beat_waited_s"] for one in mine], ".3f"),
                    _ratio(part, app, mine),
                    limit,
                    ok,
                ]
            )
    head = [
        "app",
        "started",
        "rounds",
        "znode gone to elected",
        "elected to beat begins",
        "elected to first message",
        "beat's CPU time in it",
        "its wait for a CPU",
        "share of the plain launcher",
        "must be",
        "ok",
    ]
    return table(head, rows)


def _start_limit(app: str, way: str, mine: Sequence[Record]) -> tuple[str, str]:
    if way != "preload":
        return "-", "-"
    limit_s = PRELOADED_AT_MOST_S[app]
    return f"<= {limit_s:g}", _verdict(ok=_median(mine, "elected_to_first_s") <= limit_s)


def _ratio(part: Mapping[str, Any], app: str, mine: Sequence[Record]) -> str:
    plain = _good(part["rounds"], app=app, way="launcher")
    if not plain:
        return "-"
    return f"{_median(mine, 'elected_to_first_s') / _median(plain, 'elected_to_first_s'):.2f}"


# a kill


def kill_table(part: Mapping[str, Any]) -> str:
    """Return the table of instants, from the kill."""
    rows = []
    for app in APPS:
        for way in ("launcher", "preload"):
            mine = _good(part["rounds"], app=app, way=way)
            if mine:
                limited = (app, way) == ("trivial", "preload")
                ok = _median(mine, "first_s") <= KILLED_AT_MOST_S
                limit = [f"<= {KILLED_AT_MOST_S:g}", _verdict(ok=ok)] if limited else ["-", "-"]
                cells = [_spread([one[step] for one in mine], ".3f") for step in STEPS]
                rows.append([part["apps"][app], WAYS[way], str(len(mine)), *cells, *limit])
    return table(["app", "started", "rounds", *STEP_NAMES.values(), "first message must be", "ok"], rows)


def stretch_table(part: Mapping[str, Any]) -> str:
    """Return the table of what each step takes."""
    rows = []
    for app in APPS:
        for way in ("launcher", "preload"):
            mine = [stretches(one) for one in _good(part["rounds"], app=app, way=way)]
            if mine:
                rows.append([part["apps"][app], WAYS[way], *(_spread([one[s] for one in mine], ".3f") for s in STEPS)])
    head = ["kill to beat dead", "to znode gone", "to elected", "to beat begins", "to first message"]
    return table(["app", "started", *head], rows)


# memory


def memory_table(rounds: Sequence[Record], apps: Mapping[str, str]) -> str:
    """Return the table of a standby's processes."""
    rows = []
    for app in APPS:
        for way in ("launcher", "preload"):
            mine = [one for one in rounds if (one["app"], one["way"]) == (app, way)]
            kinds = dict.fromkeys(one["process"] for one in mine)
            if not mine:
                continue
            figures = ("rss_mb", "pss_mb", "private_mb")
            by_kind = {
                kind: [_median([o for o in mine if o["process"] == kind], figure) for figure in figures]
                for kind in kinds
            }
            rows += [[apps[app], WAYS[way], kind, *(f"{x:.1f}" for x in values)] for kind, values in by_kind.items()]
            sums = [sum(values) for values in zip(*by_kind.values(), strict=True)]
            rows.append([apps[app], WAYS[way], "all", *(f"{x:.1f}" for x in sums)])
    return table(["app", "standby", "process", "resident, MB", "proportional, MB", "private, MB"], rows)


# the page


def tables(kept: Mapping[str, Any]) -> str:
    """Return what stands between the markers."""
    how = kept["how"]
    versions = ", ".join(f"{name} {what}" for name, what in how.items() if name not in {"date", "cores", "system"})
    lines = [f"One machine with {how['cores']} cores, {how['system']}; {versions}; {how['date']}.", ""]
    if "fence" in kept:
        part = kept["fence"]
        lines += ["### A whole node, frozen and thawed", "", _said_of_fence(part), "", fence_table(part), ""]
    if "alone" in kept:
        part = kept["alone"]
        lines += ["### The fence by itself", "", _said_of_alone(part), "", alone_table(part), ""]
    if "preload" in kept:
        part = kept["preload"]
        lines += ["### From the election to the first message", "", _said_load(part), "", start_table(part), ""]
    if "kill" in kept:
        part = kept["kill"]
        lines += ["### From `kill -9` of the sidecar to the next node's first message", "", _said_load(part), ""]
        lines += ["In seconds from the kill:", "", kill_table(part), ""]
        lines += ["What each step takes, from the one before it:", "", stretch_table(part), ""]
    if "memory" in kept and "preload" in kept:
        lines += ["### What a standby costs", "", memory_table(kept["memory"]["rounds"], kept["preload"]["apps"]), ""]
    return "\n".join(lines).rstrip()


def _said_of_fence(part: Mapping[str, Any]) -> str:
    return (
        f"Session timeout {part['session_timeout_s']:g} s; "
        f"{part['entries']} tasks, each due every {part['every_s'] * 1000:g} ms; "
        f"load average {_loads(part['rounds'])}."
    )


def _said_of_alone(part: Mapping[str, Any]) -> str:
    return (
        f"Lease {part['lease_s']:g} s; "
        f"{part['entries']} tasks, each due every {part['every_s'] * 1000:g} ms, which is as often as beat can; "
        f"stock beat's messages are counted for {part['watched_s']:g} s; "
        f"load average {_loads(part['rounds'])}."
    )


def _said_load(part: Mapping[str, Any]) -> str:
    return f"The load average was {_loads(part['rounds'])}."


def all_ok(kept: Mapping[str, Any]) -> bool:
    """Say whether all that was measured shows what it must."""
    fence = kept.get("fence", {"variants": [], "rounds": []})
    strict = {variant["name"] for variant in fence["variants"] if variant["must_be_none"]}
    none_late = not any(one.get("late", 1) for one in fence["rounds"] if one["variant"] in strict)
    starts = kept.get("preload", {"rounds": []})["rounds"]
    quick = all(
        _median(mine, "elected_to_first_s") <= limit_s
        for app, limit_s in PRELOADED_AT_MOST_S.items()
        if (mine := _good(starts, app=app, way="preload"))
    )
    kills = _good(kept.get("kill", {"rounds": []})["rounds"], app="trivial", way="preload")
    return none_late and quick and (not kills or _median(kills, "first_s") <= KILLED_AT_MOST_S)


def page(before: str, between: str) -> str:
    """Return a page with something else between its markers."""
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks a marker: {BEGIN} or {END}")
    return f"{head}{BEGIN}\n\n{between}\n\n{END}{tail}"


def dumped(kept: Mapping[str, Any]) -> str:
    """Return the JSON of a result, a round a line."""
    parts = []
    for name, value in kept.items():
        if isinstance(value, dict) and "rounds" in value:
            rest = {key: about for key, about in value.items() if key != "rounds"}
            rounds = ",\n   ".join(json.dumps(one) for one in value["rounds"])
            body = json.dumps(rest)[:-1] + (", " if rest else "") + f'"rounds": [\n   {rounds}\n  ]}}'
        else:
            body = json.dumps(value)
        parts.append(f" {json.dumps(name)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(path: Path, document: Path) -> None:
    """Write anew what the page says."""
    before = document.read_text(encoding="utf-8") if document.exists() else f"{BEGIN}\n{END}\n"
    document.write_text(page(before, tables(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
