"""What a method gains for the time it takes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from ..files import PathLike
from .style import INK, look, new_figure, plain_axes, save, shorten


def speed_scatter(panels: Mapping[str, Mapping[str, tuple[float, float]]], path: PathLike, label: str) -> None:
    """Draw a marker per method: seconds per scan on a logarithmic axis, and the gain; a panel per title.

    Args:
        panels: title -> method -> seconds and gain; a method with a value that is not finite, or no time, is left out.
        path: PNG file.
        label: of the axis of gains.

    Raises:
        ValueError: when there are no panels.
        ScanError: when the file cannot be written.
    """
    if not panels:
        raise ValueError("expected a panel of times and gains at least, got none")
    methods = list(dict.fromkeys(m for panel in panels.values() for m in panel))
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(9.1, 3.4 * rows + 0.5 + 0.25 * -(-len(methods) // 5))
    all_axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=False):
        for i, method in enumerate(methods):
            seconds, gain = panel.get(method, (float("nan"),) * 2)
            if isfinite(gain) and isfinite(seconds) and seconds > 0:
                style = look(i)
                axes.plot(
                    seconds,
                    gain,
                    style.marker,
                    color=style.colour,
                    markersize=9,
                    markeredgecolor=INK,
                    markeredgewidth=0.6,
                )
        plain_axes(axes, "both")
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
        axes.set(xscale="log", title=title, xlabel="seconds per scan", ylabel=label)
        axes.title.set_fontsize(10)
        axes.margins(x=0.15, y=0.1)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    for axes in all_axes:
        axes.label_outer()
    handles = [
        all_axes[0].plot([], [], s.marker, color=s.colour, markersize=8, markeredgecolor=INK, markeredgewidth=0.6)[0]
        for s in (look(i) for i in range(len(methods)))
    ]
    names = [shorten(m, 30) for m in methods]
    figure.legend(
        handles=handles,
        labels=names,
        loc="outside lower center",
        ncols=-(-len(methods) // -(-len(methods) // 5)),
        frameon=False,
        fontsize=9,
    )
    save(figure, path)
