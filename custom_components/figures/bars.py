"""Bars of a score per scan and method."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from ..files import PathLike
from .style import FAINT, INK, look, new_figure, plain_axes, save, shorten

GROUP = 0.84  # width of a scan's bars, of 1 between scans
ROOM = 0.15  # of the spread of the scores, below the lowest bar


def score_bars(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    path: PathLike,
    title: str = "",
    methods: tuple[str, ...] = (),
) -> None:
    """Draw a panel per metric with a group of bars per scan and a colour per method.

    The axis is cut below the lowest score where all of them are positive, as scores differ little for their size; it says where it
    begins. A score that is missing or not finite leaves a gap, marked by a small cross.

    Args:
        panels: label of the metric -> method -> scan -> score.
        path: PNG file.
        title: over the panels.
        methods: all the methods of a comparison in order, to which the colours belong; empty takes those of the first panel.

    Raises:
        ValueError: when there are no panels.
        ScanError: when the file cannot be written.

    Reference:
        K. Thurnhofer-Hemsi et al., Deep learning networks with p-norm loss layers for spatial resolution enhancement of 3D medical
        images, IWINAC 2019, doi:10.1007/978-3-030-19651-6_28: figures 2 and 3.
    """
    if not panels:
        raise ValueError("expected a panel of scores at least, got none")
    shown = list(dict.fromkeys(m for scores in panels.values() for m in scores))
    scans = list(dict.fromkeys(s for scores in panels.values() for one in scores.values() for s in one))
    place = {m: i for i, m in enumerate(dict.fromkeys((*methods, *shown)))}
    width = min(max(9.1, 0.09 * len(scans) * (len(shown) + 1.5)), 20)
    legend_rows = -(-len(shown) // 6)
    figure = new_figure(width, 2.4 * len(panels) + 0.9 + 0.25 * legend_rows)
    all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    bar = GROUP / max(len(shown), 1)
    for axes, (label, scores) in zip(all_axes, panels.items(), strict=True):
        finite = [v for one in scores.values() for v in one.values() if isfinite(v)]
        bottom = axis_begin(finite)
        for i, method in enumerate(shown):
            style = look(place[method])
            for x, scan in enumerate(scans):
                left = x - GROUP / 2 + (i + 0.5) * bar
                value = scores.get(method, {}).get(scan, float("nan"))
                if isfinite(value):
                    axes.bar(
                        left,
                        value - bottom,
                        0.92 * bar,
                        bottom,
                        color=style.colour,
                        hatch=style.hatch,
                        edgecolor="white",
                        linewidth=0,
                    )
                else:
                    axes.plot(left, 0.02, "x", color=INK, markersize=4, transform=axes.get_xaxis_transform())
        plain_axes(axes)
        top = max(finite, default=1.0)
        axes.set(xlim=(-0.5, max(len(scans), 1) - 0.5), ylim=(bottom, top + 0.05 * ((top - bottom) or 1)), ylabel=label)
        if bottom:
            axes.text(
                1,
                1.0,
                f"axis begins at {bottom:g}",
                transform=axes.transAxes,
                ha="right",
                va="bottom",
                fontsize=8,
                color="#666666",
            )
        for x in range(1, len(scans)):
            axes.axvline(x - 0.5, color=FAINT, linewidth=0.7)
        turned = len(scans) * max((len(s) for s in scans), default=0) > 10 * width
        names = [shorten(s) for s in scans]
        axes.set_xticks(
            range(len(scans)),
            names,
            rotation=30 if turned else 0,
            ha="right" if turned else "center",
            rotation_mode="anchor",
        )
        axes.tick_params(axis="x", length=0)
        if axes is not all_axes[-1]:
            axes.set_xticklabels([])
    _legend(figure, shown, place)
    if title:
        figure.suptitle(title, fontsize=11)
    save(figure, path)


def axis_begin(values: list[float]) -> float:
    """A round number a little below the lowest score; 0 where scores are few, alike zero or negative."""
    if not values or min(values) <= 0:
        return min(0.0, min(values, default=0.0))
    low, high = min(values), max(values)
    below = low - ROOM * ((high - low) or 0.05 * low)
    for digits in range(-3, 8):
        begin = int(below * 10**digits) / 10**digits
        if begin > 0 and low - begin <= 0.5 * ((high - low) or low):
            return float(begin)
    return 0.0


def _legend(figure: Any, shown: list[str], place: Mapping[str, int]) -> None:
    from matplotlib.patches import Patch

    styles = [look(place[m]) for m in shown]
    handles = [
        Patch(facecolor=s.colour, hatch=s.hatch, edgecolor="white", linewidth=0, label=shorten(m, 30))
        for m, s in zip(shown, styles, strict=True)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 6) or 1, frameon=False, fontsize=9
    )
