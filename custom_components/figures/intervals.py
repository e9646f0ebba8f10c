"""Means of methods with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from ..files import PathLike
from .style import look, new_figure, plain_axes, save, shorten

Interval = tuple[float, float, float]  # mean, lower and upper end


def mean_intervals(panels: Mapping[str, Mapping[str, Interval]], path: PathLike, label: str, note: str = "") -> None:
    """Draw a dot with a line per method and a panel per title.

    Args:
        panels: title -> method -> mean, lower and upper end; a mean that is not finite has no dot, an end that is not has no line.
        path: PNG file.
        label: of the axis of values.
        note: one line below, which says what the intervals are.

    Raises:
        ValueError: when there are no panels.
        ScanError: when the file cannot be written.

    Reference:
        V. Cherukuri et al., Deep MR brain image super-resolution using spatio-structural priors, IEEE Transactions on
        Image Processing 2020, doi:10.1109/TIP.2019.2942510: figure 10.
    """
    if not panels:
        raise ValueError("expected a panel of means at least, got none")
    methods = list(dict.fromkeys(m for panel in panels.values() for m in panel))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(9.1, rows * (0.7 + 0.3 * max(len(methods), 3)) + 0.4)
    all_axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=False):
        for y, method in enumerate(methods):
            mean, low, high = panel.get(method, (float("nan"),) * 3)
            style = look(y)
            if isfinite(mean):
                axes.plot(mean, y, style.marker, color=style.colour, markersize=6, markeredgecolor="white")
            if isfinite(mean) and isfinite(low) and isfinite(high):
                axes.plot([low, high], [y, y], "-|", color=style.colour, linewidth=1.8, markersize=9)
        plain_axes(axes, "both")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label, fontsize=9)
        axes.set_yticks(range(len(methods)), [shorten(m, 30) for m in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    if note:
        figure.supxlabel(note, fontsize=8, color="#666666")
    save(figure, path)
