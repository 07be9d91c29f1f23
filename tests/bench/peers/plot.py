"""The plot of a result: for each fault, how long nobody ticked, and who ended up with two beats."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tests.bench.peers.contestants import DEFAULT, MATCHED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from tests.bench.peers.figures import Figures
    from tests.bench.peers.report import Result

SHOWN_S = 20.0
"""Where the axis ends: what is longer, with defaults only, is written at the edge."""

LABELS_UNTIL_S = 14.0
"""A bar that is longer has its label inside, where it does not run into what is said of the defaults."""

COLUMNS = 2
OURS, THEIRS, BAD, FAINT = "#1b6ca8", "#9db4c0", "#c0392b", "#8a8a8a"


def draw(result: Result, path: Path) -> None:
    """Draw it."""
    # Neither a date nor random names: the same JSON gives the same file.
    mpl.rcParams.update({"svg.hashsalt": "peers", "font.size": 9})
    rows = -(-len(result.faults) // COLUMNS)
    there = result.with_settings(MATCHED) or result.with_settings(DEFAULT)
    figure = Figure(figsize=(11, rows * (0.9 + 0.27 * len(there))), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flat
    for fault, axes in zip(result.faults, panels, strict=False):
        _panel(axes, result, fault, there)
    for axes in list(panels)[len(result.faults) :]:
        axes.set_visible(False)
    figure.supxlabel("longest time without a tick, seconds", fontsize=10)
    figure.legend(handles=_legend(), loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _legend() -> list[Any]:
    return [
        Patch(color=OURS, label="zkbeat"),
        Patch(color=THEIRS, label="the others, matched timeouts"),
        Line2D([], [], color="black", marker="|", linestyle="", label="a round"),
        Line2D([], [], color=FAINT, marker="D", markerfacecolor="white", linestyle="", label="with their defaults"),
        Patch(facecolor="white", edgecolor=BAD, hatch="////", label="two beats that go on"),
    ]


def _panel(axes: Axes, result: Result, fault: Mapping[str, Any], there: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title(fault["what"].replace("`", ""), fontsize=10, loc="left")
    axes.set_xlim(0, SHOWN_S)
    axes.set_xticks(range(0, int(SHOWN_S) + 1, 5))
    axes.set_ylim(len(there) - 0.4, -0.6)
    axes.set_yticks(range(len(there)), [one["label"].replace("`", "") for one in there])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for at, one in enumerate(there):
        if one["in_process"] and fault["of_a_sidecar"]:
            _say(axes, 0.15, at, "in-process: no sidecar", FAINT)
            continue
        _bar(axes, at, one, fault, result.rounds(one["name"], MATCHED, fault["name"]))
        _defaults(axes, at, result.rounds(one["name"], DEFAULT, fault["name"]))


def _bar(axes: Axes, at: int, one: Mapping[str, Any], fault: Mapping[str, Any], rounds: Sequence[Figures]) -> None:
    if not rounds:
        return
    two = sum(figures.two_beats for figures in rounds)
    if two:
        axes.barh(at, SHOWN_S, height=0.62, facecolor="white", edgecolor=BAD, hatch="////", linewidth=0.8)
        part = "" if two == len(rounds) else f" in {two} of {len(rounds)}"
        axes.text(SHOWN_S / 2, at, f"two beats{part}", va="center", ha="center", color=BAD, fontsize=9, **_on_white())
        return
    gaps = [figures.gap_s for figures in rounds]
    axes.barh(at, statistics.median(gaps), height=0.62, color=OURS if one["name"].startswith("zkbeat") else THEIRS)
    axes.plot(gaps, [at] * len(gaps), "|", color="black", markersize=6)
    said = ", ".join([f"{statistics.median(gaps):.1f}", *_remarks(rounds, hands_over=fault["hands_over"])])
    if max(gaps) < LABELS_UNTIL_S:
        _say(axes, max(gaps) + 0.25, at, said, "black")
    else:
        _say(axes, 0.25, at, said, "white" if one["name"].startswith("zkbeat") else "black")


def _remarks(rounds: Sequence[Figures], *, hands_over: bool) -> list[str]:
    dup = max(figures.dup for figures in rounds)
    goes_on = hands_over and all(figures.goes_on for figures in rounds)
    return [*([f"dup {dup:g}"] if dup else []), *(["the old one goes on"] if goes_on else [])]


def _defaults(axes: Axes, at: int, rounds: Sequence[Figures]) -> None:
    for figures in rounds:
        if figures.two_beats:
            continue
        if figures.gap_s < SHOWN_S - 1:
            axes.plot(figures.gap_s, at, "D", color=FAINT, markerfacecolor="white", markersize=4.5, zorder=3)
            continue
        unfinished = figures.takeover_s is None and not figures.goes_on
        said = f"{'> ' if unfinished else ''}{figures.gap_s:.0f} s"
        axes.plot(SHOWN_S - 0.2, at, "D", color=FAINT, markerfacecolor="white", markersize=4.5, zorder=3, clip_on=False)
        axes.text(SHOWN_S - 0.6, at, said, va="center", ha="right", fontsize=8, color=FAINT, **_on_white())


def _say(axes: Axes, x: float, y: float, what: str, color: str) -> None:
    axes.text(x, y, what, va="center", fontsize=8, color=color)


def _on_white() -> dict[str, Any]:
    return {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.2}}
