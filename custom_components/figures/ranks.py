"""Rank points of methods."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from ..files import PathLike
from .style import COLOURS, INK, new_figure, plain_axes, save, shorten


def rank_bars(panels: Mapping[str, Mapping[str, Mapping[str, float]]], path: PathLike) -> None:
    """Draw the rank points of methods, with a panel per scale factor and a colour per metric; fewer points are better.

    Args:
        panels: title -> metric -> method -> points, as `custom_components.compare.statistics.rank_points` gives them.
        path: PNG file.

    Raises:
        ValueError: when there are no panels.
        ScanError: when the file cannot be written.

    Reference:
        K. Thurnhofer-Hemsi et al., Deep learning networks with p-norm loss layers for spatial resolution enhancement of 3D medical
        images, IWINAC 2019, doi:10.1007/978-3-030-19651-6_28: figure 4.
    """
    if not panels:
        raise ValueError("expected a panel of rank points at least, got none")
    metrics = list(dict.fromkeys(m for panel in panels.values() for m in panel))
    methods = list(dict.fromkeys(m for panel in panels.values() for points in panel.values() for m in points))
    rows = -(-len(panels) // 2)
    columns = min(len(panels), 2)
    figure = new_figure(9.1, rows * (0.7 + 0.36 * max(len(methods), 2)) + 0.5)
    all_axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    bar = 0.8 / max(len(metrics), 1)
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=False):
        for i, metric in enumerate(metrics):
            for y, method in enumerate(methods):
                points = panel.get(metric, {}).get(method, float("nan"))
                middle = y - 0.4 + (i + 0.5) * bar
                if isfinite(points):
                    axes.barh(middle, points, 0.9 * bar, color=COLOURS[i % len(COLOURS)])
                text = f" {points:g}" if isfinite(points) else " no common scan"
                at = points if isfinite(points) else 0
                axes.text(at, middle, text, va="center", fontsize=8, color=INK, in_layout=False)
        plain_axes(axes, "x")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("rank points (fewer are better)", fontsize=9)
        largest = max((p for points in panel.values() for p in points.values() if isfinite(p)), default=1)
        axes.set_xlim(0, 1.14 * largest)
        axes.set_yticks(range(len(methods)), [shorten(m, 30) for m in methods])
        axes.tick_params(axis="y", length=0)
    all_axes[0].invert_yaxis()  # the axis is shared
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    handles = [all_axes[0].barh([0], [0], color=COLOURS[i % len(COLOURS)], label=m)[0] for i, m in enumerate(metrics)]
    figure.legend(
        handles=handles, labels=metrics, loc="outside lower center", ncols=len(metrics) or 1, frameon=False, fontsize=9
    )
    save(figure, path)
