"""What the page says of a result: the tables between its markers, from the JSON alone."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BEGIN = "<!-- Written by `python -m tests.bench.schedule report`: do not edit from here -->"
END = "<!-- to here. -->"

KIND_NAMES = {
    "zookeeper": "`-S zookeeper`",
    "zookeeper-supervised": "`-S zookeeper`, launched by zkbeat",
    "persistent-0": "PersistentScheduler, `beat_sync_every=0`",
    "persistent-1": "PersistentScheduler, `beat_sync_every=1`",
    "redbeat": "RedBeatScheduler",
}
STEPS = {
    "define_s": "definitions",
    "take_over_s": "reading ZooKeeper, adopting",
    "set_up_s": "scheduler made",
    "ready_s": "ready to tick: first turn over",
}
"""Of a start: the first two are parts of the third, and all of the last."""
OF_PERSISTENT_AT_LEAST = 0.8
READY_AT_MOST_S = 2.0

CLOCK_SET_S = 1.0
"""From where on beat's clock guard may see a jump, and intervals leave the phase that was reckoned with."""


def all_ok(kept: dict[str, Any]) -> bool:
    """Say whether all that was measured shows what it must."""
    verdict = kept.get("handovers", {}).get("verdict")
    clean = verdict is None or not (verdict["missing"] or verdict["twice"] or verdict["never_due"])
    return clean and all(ok for *_, ok in _speed_claims(kept.get("speed")))


def tables(kept: dict[str, Any]) -> str:
    """Return everything between the markers."""
    parts = [_handovers(kept.get("handovers")), _beside(kept.get("beside")), _speed(kept.get("speed"))]
    return "\n\n".join(part for part in parts if part)


def write(kept: dict[str, Any], page: Path) -> None:
    """Put the tables into the page, between its markers."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables(kept)}\n\n{END}{after}")


def _how(part: dict[str, Any]) -> str:
    how = part["how"]
    versions = ", ".join(f"{name} {how[name]}" for name in how if name not in {"date", "cores", "system"})
    load = " to ".join(f"{one:g}" for one in part["load"])
    return f"{how['cores']} cores, {how['system']}; {versions}; load average {load}; {how['date']}."


def _handovers(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    rounds = sum(part["rounds"].values())
    lines = [
        f"### {rounds} hand-overs in a row",
        "",
        f"{part['entries']} entries, {part['seconds'] / 60:.0f} minutes, seed {part['seed']}; {_how(part)}",
        "",
    ]
    rows = []
    kinds = [(f"of them: {name}", verdict) for name, verdict in part.get("kinds", {}).items()]
    for name, verdict in [
        ("all entries", part["verdict"]),
        *kinds,
        ("those that catch up with all", part["sends_all"]),
    ]:
        latest_s = verdict.get("latest_s")
        rows.append(
            [
                name,
                verdict["due"],
                verdict["ran"],
                verdict["told"],
                f"**{len(verdict['missing'])}**",
                f"**{len(verdict['twice'])}**",
                f"**{len(verdict['never_due'])}**",
                "-" if latest_s is None else f"{latest_s:.1f}",
            ]
        )
    heads = [
        "",
        "due times",
        "ran",
        "missed by policy, and told",
        "missing",
        "run twice",
        "run, and not due",
        "latest s",
    ]
    lines += [_table(heads, rows), "", f"Second messages that workers dropped: {part['dropped']}.", ""]
    set_by_s = part.get("clock_set_by_s", 0.0)
    if abs(set_by_s) > CLOCK_SET_S:
        lines += [f"**The machine's clock was set by {set_by_s:+.1f} s meanwhile: intervals went along.**", ""]
    rows = []
    for kind, silences in part["silent_s"].items():
        known = [one for one in silences if one is not None and not math.isnan(one)]
        worst = f"{max(known):.1f}" if known else "-"
        rows.append([kind, part["rounds"][kind], f"{statistics.median(known):.1f}" if known else "-", worst])
    lines.append(_table(["hand-over", "rounds", "from run to run, median s", "worst s"], rows))
    return "\n".join(lines)


def _beside(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    rows = []
    for name, kept in part["kept"].items():
        never, twice, late = (f"**{kept[key]}**" if kept[key] else "0" for key in ("never", "twice", "late"))
        of = part.get("intervals", {}).get(name, {})
        gaps = [f"**{of[key]}**" if of.get(key) else of.get(key, "-") for key in ("never", "twice")]
        latest = f"{max(kept['late_s'], default=0.0):.1f}"
        rows.append([name, kept["due"], never, twice, late, latest, of.get("due", "-"), *gaps])
    heads = ["scheduler", "due minutes", "never", "twice", "later than 5 s", "latest s"]
    heads += ["intervals due", "never", "twice"]
    return "\n".join(
        [
            "### Beside the others",
            "",
            f"{part['rounds']} hand-overs, {part['entries']} entries each; {_how(part)}",
            "",
            _table(heads, rows),
        ]
    )


def _speed_claims(part: dict[str, Any] | None) -> list[tuple[str, str, str, bool]]:
    """Return what is claimed: what, measured, what it must be, whether it is."""
    if part is None:
        return []
    claims = []
    for count, kinds in part["ticks"].items():
        ours = kinds["zookeeper"]["ticks_a_second"]
        of_persistent = ours / kinds["persistent-0"]["ticks_a_second"]
        of_redbeat = ours / kinds["redbeat"]["ticks_a_second"]
        what = f"{count} entries due together"
        claims.append(
            (
                f"{what}, beside PersistentScheduler",
                f"{of_persistent:.2f}x",
                f"{OF_PERSISTENT_AT_LEAST}x",
                of_persistent >= OF_PERSISTENT_AT_LEAST,
            )
        )
        claims.append((f"{what}, beside RedBeat", f"{of_redbeat:.2f}x", "more than 1x", of_redbeat > 1))
    for what, start in part["start"].items():
        ready = start["again"]["ready_s"]
        claims.append(
            (
                f"10,000 {what} entries, ready to tick",
                f"{ready:.2f} s",
                f"{READY_AT_MOST_S:g} s",
                ready <= READY_AT_MOST_S,
            )
        )
    return claims


def _speed(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    lines = ["### Speed", "", f"Medians of {part['rounds']} rounds, in turns; {_how(part)}", ""]
    counts = list(part["ticks"])
    rows = [
        [name, *(f"{part['ticks'][count][kind]['ticks_a_second']:.0f}" for count in counts)]
        for kind, name in KIND_NAMES.items()
    ]
    lines += [_table(["ticks a second", *(f"{count} due together" for count in counts)], rows), ""]
    claims = [[what, value, must, "yes" if ok else "**no**"] for what, value, must, ok in _speed_claims(part)]
    lines += [_table(["what", "measured", "must be", "so"], claims), ""]
    rows = []
    for count in counts:
        found = part["ticks"][count]["zookeeper"]
        (commits, median, slow), (_n, publish, slow_publish) = found["commit_ms"], found["publish_ms"]
        each = commits * median / float(count)
        of_publish = f"{publish:.2f} ({slow_publish:.2f})"
        rows.append([count, f"{commits:.0f}", f"{median:.1f} ({slow:.1f})", f"{each:.2f}", of_publish])
    heads = ["due together", "commits", "one commit, median (p99) ms", "of it for each tick, ms"]
    heads.append("one publish, median (p99) ms")
    lines += [_table(heads, rows), ""]
    rows = [
        [
            f"10,000 {what} entries, {when}",
            *(f"{start[key][step]:.2f}" if step in start[key] else "-" for step in STEPS),
        ]
        for what, start in part["start"].items()
        for key, when in (("first", "the very first"), ("again", "with the state there"))
    ]
    lines.append(_table(["start, s", *STEPS.values()], rows))
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    rule = f"|{'---|' * len(heads)}"
    return "\n".join([_row(heads), rule, *(_row(row) for row in rows)])


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"
