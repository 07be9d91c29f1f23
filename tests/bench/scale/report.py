"""The page on scale and its plot, written from what `python -m tests.bench.scale` has kept.

Each figure on the page is one of the JSON, or follows from it.
"""

from __future__ import annotations

import json
import statistics
import textwrap
from typing import TYPE_CHECKING, Any

from tests.bench.scale import timeline
from tests.bench.scale.servers import RECORD
from zkbeat.core.lease import agree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LIMIT_S = 0.05
"""How much later than with three contenders the next leader may be elected."""

WIDTH = 120

ALL_ANSWERED = 0.999

KINDS = {
    "step-down": "orderly: step-down, stop, deploy",
    "removed": "sidecar killed, its guard removes the znode",
    "evicted": "node lost, evicted when its lease has run out",
}

OUTAGES = {
    "restart": "all servers killed and started again at once",
    "long_outage": "the same, but gone for longer than the session timeout",
    "expiry": "every contender stopped for 20 s (SIGSTOP), so that every session expires",
}


def latency_budget_s(session_timeout_s: float) -> float:
    """Return how long a renewal's answer may take before it shortens the lease.

    Two renewals, and what they are late, have to fit into a quarter of the session timeout (`zkbeat.core.lease`).
    """
    return session_timeout_s / 4 - 2 * agree(session_timeout_s, None).renew_every_s


def carried(ramp: Sequence[Mapping[str, float]], session_timeout_s: float) -> tuple[float, bool]:
    """Return the highest rate at which p99 stayed in the budget, and whether a higher one was too much."""
    good = [row["asked_per_s"] for row in ramp if _within_budget(row, session_timeout_s)]
    best = max(good, default=0.0)
    return best, any(row["asked_per_s"] > best for row in ramp)


def _within_budget(row: Mapping[str, float], session_timeout_s: float) -> bool:
    return row["p99_ms"] / 1000 <= latency_budget_s(session_timeout_s) and row["answered"] >= ALL_ANSWERED


def write(path: Path) -> None:
    """Write page and plot beside the JSON."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(page(kept), encoding="utf-8")
    plot(kept, path.with_suffix(".svg"))


def page(kept: Mapping[str, Any]) -> str:
    """Return the page."""
    one, how = kept["one"], kept["how"]
    outages = kept["outages"]
    rate, broke = carried(kept["ramp"], 10.0)
    few, many = one["idle"]
    largest = kept["ramp"][-1]
    text = PAGE.format(
        contenders=many["contenders"],
        elections=max(row["elections"] for row in kept["elections"]),
        how=", ".join(f"{name} {how[name]}" for name in ("Python", "kazoo", "ZooKeeper")),
        cores=how["cores"],
        others_cores=f"{how['others_cores']:.1f}",
        record=len(RECORD),
        system=how["system"],
        carries=_carries(kept),
        hand_overs=_hand_overs(one["hand_overs"]),
        alone_ms=_ms([row["elected_s"] for row in one["alone"]]),
        verdict=_verdict(one["hand_overs"]),
        costs=_costs(one),
        names_kb=_kb(many["each"]["names"]),
        names_kb_per_s=_kb(many["each"]["names"] * many["renewals"] / many["seconds"]),
        others=_others(one),
        join=_join(one["join"]),
        pings=f"{many['per_second']['reads_and_pings'] - few['per_second']['reads_and_pings']:.0f}",
        idle_cores=f"{many['per_second']['server_cores']:.2f}",
        outages=_outages(outages),
        sessions=_sessions(outages[-1]),
        spread=_spread(outages),
        reading=_reading(outages[-1]["restart"]),
        amplified=_amplified(outages),
        many_elections=_many_elections(kept["elections"]),
        ramp=_ramp(kept["ramp"]),
        budget_ms=f"{latency_budget_s(10.0) * 1000:.0f}",
        rate=f"{rate:g}",
        at_least="" if broke else "at least ",
        carried_10=_elections_at(rate, 10.0),
        rate_30=f"{carried(kept['ramp'], 30.0)[0]:g}",
        carried_30=_elections_at(carried(kept["ramp"], 30.0)[0], 30.0),
        budget_30_ms=f"{latency_budget_s(30.0) * 1000:.0f}",
        largest=f"{largest['asked_per_s']:g}",
        fullest=f"{max(row['per_second']['machine_cores'] for row in kept['elections']):.1f}",
        lost=_lost(kept["elections"]),
    )
    return "\n".join(map(_wrapped, text.split("\n")))


def _wrapped(line: str) -> str:
    """Break a line of prose that the figures have made too long; it stays one sentence."""
    if len(line) <= WIDTH or line.startswith("|"):
        return line
    indent = "  " if line.startswith(("- ", "  ")) else ""
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _carries(kept: Mapping[str, Any]) -> str:
    one = kept["one"]
    few, many = (_median(one["hand_overs"], "step-down", few=few) for few in (True, False))
    rate, broke = carried(kept["ramp"], 10.0)
    restart = kept["outages"][-1]["restart"]
    limit = f"a rate of {rate:g} writes/s" if broke else f"beyond {rate:g} writes/s, not reached here"
    rows = [
        (
            "contenders in one election",
            f"{many['contenders']}: a hand-over in {_signed_ms(many['at'] - few['at'])} ms of that with 3",
            f"an answer that lists the line is {_kb(many['contenders'])} kB long",
            "fewer standbys",
        ),
        (
            "sessions on an ensemble",
            f"{restart['expected']}: connected within {restart['last_s']:.1f} s after a restart",
            f"settled after {restart['settled_s']:.1f} s, clients and servers on two cores",
            "observers, which take connections, pings and reads, and no vote",
        ),
        (
            "elections",
            "; ".join(map(_short, filter(_kept_up, kept["elections"]))) or "less than was tried",
            limit,
            "a longer `--session-timeout`; then several ensembles",
        ),
    ]
    return _table(("what", "carried here", "up to", "past it"), rows)


def _kept_up(row: Mapping[str, Any]) -> bool:
    """Whether nearly all of the elections had a leader, and had it renew in time."""
    return bool(row["leading"] >= 0.99 * row["elections"])


def _short(row: Mapping[str, Any]) -> str:
    rate, p99_ms = row["per_second"]["writes"], row["renewal"]["p99_ms"]
    return f"{row['elections']} at {row['session_timeout_s']:g} s: {rate:.0f} writes/s, p99 {p99_ms:.0f} ms"


def _elections_at(rate: float, session_timeout_s: float) -> str:
    return f"{rate * agree(session_timeout_s, None).renew_every_s:.0f}"


# one election


def _of(rows: Sequence[Mapping[str, Any]], kind: str, *, few: bool) -> list[Mapping[str, Any]]:
    counts = sorted({row["contenders"] for row in rows})
    return [row for row in rows if row["kind"] == kind and row["contenders"] == counts[0 if few else -1]]


def _median(rows: Sequence[Mapping[str, Any]], kind: str, *, few: bool) -> dict[str, float]:
    chosen = _of(rows, kind, few=few)
    return {"contenders": chosen[0]["contenders"], "at": statistics.median(row["elected_s"] for row in chosen)}


def _hand_overs(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for kind, what in KINDS.items():
        few, many = _of(rows, kind, few=True), _of(rows, kind, few=False)
        medians = [statistics.median(row["elected_s"] for row in some) for some in (few, many)]
        lines.append(
            (
                what,
                str(len(many)),
                *(_ms([row[figure] for row in some]) for figure in ("elected_s", "started_s") for some in (few, many)),
                _signed_ms(medians[1] - medians[0]),
            )
        )
    count = max(row["contenders"] for row in rows)
    head = ("how the leader goes", "rounds", "elected, 3", f"elected, {count}", "child, 3", f"child, {count}")
    return _table((*head, "difference"), lines)


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    later_s = {kind: _median(rows, kind, few=False)["at"] - _median(rows, kind, few=True)["at"] for kind in KINDS}
    over = [KINDS[kind] for kind, difference_s in later_s.items() if difference_s > LIMIT_S]
    if not over:
        return f"No median is more than {LIMIT_S * 1000:.0f} ms later than that with 3 contenders."
    return f"**Not** within {LIMIT_S * 1000:.0f} ms of 3 contenders: {'; '.join(over)}."


def _costs(one: Mapping[str, Any]) -> str:
    lines = []
    for kind, what in KINDS.items():
        for few in (True, False):
            rows = _of(one["hand_overs"], kind, few=few)
            costs = [row["cost"] for row in rows]
            figures = [_range([cost[key] for cost in costs]) for key in ("writes", "reads", "watches", "names")]
            lines.append((f"hand-over, {what}", str(rows[0]["contenders"]), *figures, _kinds(costs[-1]["kinds"])))
    for idle in one["idle"]:
        figures = [f"{idle['each'][key]:g}" for key in ("writes", "reads", "watches", "names")]
        each = {kind: round(count / idle["renewals"], 1) for kind, count in idle["kinds"].items()}
        lines.append(("renewal", str(idle["contenders"]), *figures, _kinds(each)))
    return _table(("what", "contenders", "writes", "reads", "watches fired", "names read", "requests"), lines)


def _others(one: Mapping[str, Any]) -> str:
    rows = [row for row in one["hand_overs"] if row["contenders"] != one["idle"][0]["contenders"]]
    writes, reads = (sum(row["others"][key] for row in rows) for key in ("writes", "reads"))
    text = (
        f"during the {len(rows)} hand-overs with many contenders all the others together wrote {writes} times and "
        f"read {reads} times"
    )
    return f"{text}, which were their own records (see below)" if writes else text


def _join(join: Mapping[str, Any]) -> str:
    count, requests = join["contenders"], join["requests"]
    return (
        f"All {count} joined within {join['took_s']:g} s, 20 every 0.4 s; each took {requests['writes'] / count:.1f} "
        f"writes and {requests['reads'] / count:.1f} reads, and read {requests['names'] / count:.0f} names, "
        f"{_kb(requests['names'] / count)} kB"
    )


def _outages(outages: Sequence[Mapping[str, Any]]) -> str:
    rows = [(what, some[key]) for key, what in OUTAGES.items() for some in outages]
    lines = [
        (
            what,
            str(found["expected"]),
            f"{found['outage_s']:.0f}",
            str(found["sessions_kept"]),
            "stopped" if found["child_stopped"] else "not touched",
            " / ".join(f"{found[key]:.1f}" for key in ("p50_s", "p95_s", "last_s")),
            str(found["most_in_100_ms"]),
            str(found["connects"]),
            f"{found['started_s']:.1f}" if found["started_s"] is not None else "-",
            f"{found['settled_s']:.1f}" if found["settled_s"] is not None else "-",
            " / ".join(f"{found['requests'][key] / found['expected']:.1f}" for key in ("writes", "reads")),
            f"{_megabytes(found):.1f}",
        )
        for what, found in rows
    ]
    head = ("what", "contenders", "outage s", "sessions kept", "leader's child", "connected: p50 / p95 / last s")
    head += ("most in 100 ms", "connects", "child after s", "settled after s", "writes / reads each", "MB of names")
    return _table(head, lines)


def _megabytes(found: Mapping[str, Any]) -> float:
    return float(found["requests"]["names"] * timeline.BYTES_PER_NAME / 1e6)


def _sessions(of: Mapping[str, Any]) -> str:
    short, long = of["restart"], of["long_outage"]
    return (
        f"Of {long['expected']} sessions {short['sessions_kept']} outlived a restart and {long['sessions_kept']} an "
        f"outage of {long['outage_s']:.0f} s, which is more than the session timeout:\n"
        "while there is no quorum no session expires, and a new quorum's leader starts the time of all of them anew; a "
        "leader that has stopped its child drops its own"
    )


def _amplified(outages: Sequence[Mapping[str, Any]]) -> str:
    expiry = outages[-1]["expiry"]
    count, connects = expiry["expected"], expiry["connects"]
    said = expiry["said"].get("new-session", 0)
    if not said:
        return f"When all {count} sessions had expired at once, none needed more than one new session"
    return (
        f"When all {count} sessions had expired at once, the contenders connected {connects} times: {said} times one\n"
        "had waited for too long to leave the line, and dropped its session for another one, which makes a slow "
        "ensemble slower"
    )


def _spread(outages: Sequence[Mapping[str, Any]]) -> str:
    few, many = (some["restart"] for some in (outages[0], outages[-1]))
    return (
        f"During the outage each of {few['expected']} contenders knocked {few['refused_per_contender_and_s']:g} times "
        f"a second, at one server after the other; at most {few['most_in_100_ms']} of {few['expected']}, and "
        f"{many['most_in_100_ms']} of {many['expected']}, connected within the same tenth of a second"
    )


def _reading(restart: Mapping[str, Any]) -> str:
    count, kinds = restart["expected"], restart["requests"]["kinds"]
    return (
        f"after a restart each one lists the line {kinds.get('GetChildren', 0) / count:.1f} times, and the line has "
        f"{count} names: {_megabytes(restart):.0f} MB in all"
    )


# many elections


def _many_elections(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        (
            f"{row['elections']}",
            f"{row['session_timeout_s']:g} s",
            f"{row['renew_every_s']:.2f} s",
            f"{row['elections'] / row['renew_every_s']:.0f}",
            f"{row['per_second']['writes']:.0f}",
            f"{row['per_second']['server_cores']:.2f}",
            f"{row['per_second']['client_cores']:.2f}",
            _percentiles(row["renewal"]),
            _percentiles(row["probe"]),
            f"{latency_budget_s(row['session_timeout_s']) * 1000:.0f}",
            str(row["leading"]),
            str(row["terms_lost"]),
        )
        for row in rows
    ]
    head = (
        "elections",
        "session timeout",
        "renewal every",
        "renewals/s due",
        "writes/s",
        "server cores",
        "client cores",
    )
    return _table((*head, "renewal ms", "probe's write ms", "p99 may be ms", "leading at the end", "terms lost"), lines)


def _ramp(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        (
            f"{row['asked_per_s']:g}",
            f"{row['answered']:.1%}",
            _percentiles(row),
            f"{row['server_ms_per_write']:.2f}",
            *("yes" if _within_budget(row, session_timeout_s) else "**no**" for session_timeout_s in (10.0, 30.0)),
        )
        for row in rows
    ]
    head = (
        "writes asked for a second",
        "answered",
        "p50 / p99 / worst ms",
        "server CPU ms a write",
        "good for 10 s",
        "for 30 s",
    )
    return _table(head, lines)


def _lost(rows: Sequence[Mapping[str, Any]]) -> str:
    behind = [row for row in rows if not _kept_up(row)]
    if not behind:
        return "Nearly all of them had a leader all the time."
    return "\n".join(
        f"{row['elections']} at {row['session_timeout_s']:g} s were too many for two cores that serve the clients too: "
        f"{row['leading']} led at the end, and {row['terms_lost']} children were stopped meanwhile; each of them costs "
        "an election, which asks for more than the renewals that it replaces."
        for row in behind
    )


# words


def _ms(values: Sequence[float]) -> str:
    return f"{statistics.median(values) * 1000:.0f} ({max(values) * 1000:.0f})"


def _signed_ms(seconds: float) -> str:
    return f"{seconds * 1000:+.0f}"


def _kb(names: float) -> str:
    return f"{names * timeline.BYTES_PER_NAME / 1000:.0f}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _kinds(kinds: Mapping[str, float]) -> str:
    return ", ".join(f"{count:g} {kind}" for kind, count in kinds.items())


def _percentiles(row: Mapping[str, float]) -> str:
    return " / ".join(f"{row[key]:.0f}" for key in ("p50_ms", "p99_ms", "max_ms"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


PAGE = """\
# What an ensemble carries

Written by `python -m tests.bench.scale --json docs/scale.json`; do not edit it, run that again.
`python -m tests.bench.scale report` writes page and plot anew from the JSON.
Its parts were measured one after the other, not all in one run (`--only` repeats one and keeps the rest).

{carries}

![hand-overs, reconnects and write latency](scale.svg)

## How it was measured

Three ZooKeeper servers and all of their clients on one machine with {cores} cores, {system}; {how}.
The contenders are zkbeat's own code, the machine that decides and the edge to ZooKeeper, in four processes; what a
guard and a child would do is answered at once.
So what is shown is the time that ZooKeeper, kazoo and zkbeat take, and not the start of a command.
The clients compete with the servers for the cores, and other work on the machine, {others_cores} cores of it when this
began, with both of them: a real ensemble has its cores and its disk to itself, so take these figures for a lower bound.
The session timeout is 10 s where nothing else is said, tickTime 2 s, a record {record} bytes, and fsync is on.

## One election, {contenders} contenders

From the moment when the old leader's child is dead (orderly, removed), or from its last renewal (evicted), in ms, as
median (worst).
Hand-overs with 3 and with {contenders} contenders were done in turn, on the same servers at the same time; with the 3
alone on the ensemble, an orderly one took {alone_ms} ms.

{hand_overs}

{verdict}

What a hand-over costs is all that the old leader, the new one and the new first in line ask for, up to the third
renewal of the new leader; where the old leader lives on, its joining at the end of the line is part of it.
What a renewal costs is the leader's write, and what the first in line reads because its watch has fired.

{costs}

- A *renewal* is one SetData; it fires one watch, that of the first in line, which lists the line (GetChildren), watches
  the leader's znode anew and reads its record (two GetData).
- An orderly *hand-over* writes: the transaction that certifies the child's death in the ledger and deletes the znode,
  the new leader's first two renewals, its entry in the ledger (a transaction), the two records of the history of terms,
  and the old leader's znode and record as it joins again; kazoo tries to delete the old znode once more.
  Its reads are those of ledger, control and history, and of the line by those whose place has changed.
  That the figures of one kind differ by a wake (one watch, three reads) is chance: the new leader's first two renewals
  come so close that they wake the first in line once or twice.
- Who neither led, leads nor is first in line takes no part: {others}.
- What does grow is not the number of requests but the length of one answer: the first in line lists the whole line for
  each renewal, {names_kb} kB with {contenders} contenders, {names_kb_per_s} kB a second.
- A standby writes its record once in 300 s, which wakes the one behind it; that is a write and three reads for each
  standby in five minutes.
- Its session costs a ping every 3 s: {pings} a second for all of them, and the servers used {idle_cores} cores in all.

{join}.

## When all of them come back at once

Times count from the first connect after the servers were started again, or after the contenders run again.
*Settled*: each of them has its place in the line again, and its record was written.
The contenders' processes had a lower priority meanwhile (nice 10), so as to leave the servers some of the machine; the
length of an outage contains the start of the servers on what was left.

{outages}

{sessions}.
The leader's child is stopped all the same when its lease has run out, as it must be.
{spread}.
The retries are spread by kazoo: they back off to a twelfth of the session timeout, each 40 % more or less.
What grows with the square of their number is what they read: {reading}, sorted by contenders that
share two cores here.
{amplified}.

## Many elections

Each with one contender, which leads all the time, so that renewals are all there is.
A probe of its own wrote every 50 ms beside them, so up to 20 of the writes a second are the probe's.

{many_elections}

{lost}
With {elections} clients beside the servers the machine was busy with {fullest} of its {cores} cores, so this is what
the machine could do and not what the servers could.

The following takes the contenders away: writes of the same size by six clients at a given rate, whether or not the
earlier ones were answered; the best of three rounds.

{ramp}

A renewal that takes longer than {budget_ms} ms to be answered shortens the lease (T/36: two renewals and their delay
have to fit into a quarter of the session timeout, see
[ADR 0005](adr/0005-deadlines-after-irregular-renewals.md)); one that takes several seconds ends the term.
With p99 below that, this ensemble carried {at_least}{rate} renewals a second, which is {carried_10} elections with a
session timeout of 10 s; with one of 30 s, where an answer may take {budget_30_ms} ms, {rate_30} a second and
{carried_30} elections.
The highest rate that was tried is {largest} writes a second.

## What to change past it

- **A longer session timeout.**
  Renewals go out nine times in it, so the writes fall in proportion: `--session-timeout 30` takes a third.
  It costs time where a whole node is lost: the lease is two thirds of the session timeout, 20 s in place of 6.7 s,
  unless `--lease` shortens it; a shorter lease is renewed four times in its length, so it brings the writes back.
- **Several ensembles.**
  Elections know nothing of each other, so any of them can move to another ensemble: another `--hosts` for that name.
  More servers in one ensemble do not help: each write goes to all of them.
- **Observers.**
  They take connections, pings and reads off the voting servers and have no part in the votes, so they help with many
  standbys or sites, and not with many elections: writes stay what they are.
- **Fewer standbys.**
  What protects an election is a second node, then a third; a hundredth adds pings and a longer answer.
  Run zkbeat on as many nodes as you may lose and one more, and not on every worker.
- **A disk of its own for the transaction log** (`dataLogDir`): each renewal waits for its sync.

## What was not measured

- A network: servers and clients were on one loopback, so add the round trips.
- Servers with cores and disks of their own: the figures of many elections are lower bounds.
- Observers, ensembles of five servers, and TLS, which costs CPU for each connection that comes back.
- More than {contenders} contenders, or {elections} elections.
- The nodes' own processes: a thousand real nodes start their commands on a thousand machines.
"""


# the plot


def plot(kept: Mapping[str, Any], path: Path) -> None:
    """Draw hand-overs, reconnects and the latency of writes."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "zkbeat"  # the same picture for the same figures
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    for draw, axis in zip((_draw_hand_overs, _draw_reconnects, _draw_latency), axes, strict=True):
        draw(kept, axis)
        axis.grid(visible=True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


_Axis = Any


def _draw_hand_overs(kept: Mapping[str, Any], axis: _Axis) -> None:
    rows = kept["one"]["hand_overs"]
    counts = sorted({row["contenders"] for row in rows})
    for at, kind in enumerate(("step-down", "removed")):
        for offset, count, colour in zip((-0.15, 0.15), counts, ("tab:blue", "tab:orange"), strict=True):
            taken = [row["elected_s"] * 1000 for row in rows if row["kind"] == kind and row["contenders"] == count]
            label = f"{count} contenders" if at == 0 else None
            axis.plot([at + offset] * len(taken), taken, "o", alpha=0.5, color=colour, label=label)
            axis.plot([at + offset - 0.09, at + offset + 0.09], [statistics.median(taken)] * 2, color=colour)
    axis.set(title="A hand-over, from the child's death", ylabel="ms to the next election", ylim=(0, None))
    axis.set_xticks([0, 1], ["step-down", "znode removed by the guard"])
    axis.set_xlim(-0.5, 1.5)
    axis.legend()


def _draw_reconnects(kept: Mapping[str, Any], axis: _Axis) -> None:
    names = {"restart": "servers restarted", "long_outage": "servers gone for longer", "expiry": "all sessions expired"}
    for key, label in names.items():
        found = kept["outages"][-1][key]
        came = found["came_back_at"]
        share = [100 * (n + 1) / found["expected"] for n in range(len(came))]
        axis.step(came, share, where="post", label=label)
    count = kept["outages"][-1]["restart"]["expected"]
    axis.set(
        title=f"{count} contenders come back", xlabel="s after the first of them", ylabel="% connected", ylim=(0, 101)
    )
    axis.legend(loc="lower right")


def _draw_latency(kept: Mapping[str, Any], axis: _Axis) -> None:
    rows = kept["ramp"]
    rates = [row["asked_per_s"] for row in rows]
    for key, label in (("p50_ms", "p50"), ("p99_ms", "p99")):
        axis.plot(rates, [row[key] for row in rows], "o-", label=f"{label}, clients that only write")
    for row, marker in zip(filter(_kept_up, kept["elections"]), "s^D", strict=False):
        label = f"p99, {row['elections']} elections at {row['session_timeout_s']:g} s"
        axis.plot(row["per_second"]["writes"], row["renewal"]["p99_ms"], marker, color="tab:red", label=label)
    axis.axhline(latency_budget_s(10.0) * 1000, color="grey", linestyle="--", label="what may be, at 10 s")
    axis.set(title="A write, at growing rates", xlabel="writes a second", ylabel="ms", yscale="log")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize="small")
