"""Errors of results against the errors that were expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..files import PathLike
from .style import INK, look, new_figure, plain_axes, save

Curve = tuple[Sequence[float], Sequence[float]]  # expected and true error per bin
MOST = 3  # panels side by side


def calibration_curves(
    panels: Mapping[str, Sequence[Curve]], means: Mapping[str, Curve], path: PathLike, label: str = "error"
) -> None:
    """Draw the root mean square error over the expected one, with the diagonal on which a curve lies that tells the truth.

    Above the diagonal errors are larger than expected. There is a panel per title with a thin line per scan and their mean, a thick
    one. The axes are logarithmic, unless a value is not positive, and the same in all panels.

    Args:
        panels: title -> curves of the scans.
        means: title -> their mean; a title that is missing has none.
        path: PNG file.
        label: of the errors.

    Raises:
        ValueError: when there are no panels, or one without a curve.
        ScanError: when the file cannot be written.
    """
    from matplotlib.ticker import LogLocator

    counts = {title: len(curves) for title, curves in panels.items()}
    if not counts or not all(counts.values()):
        raise ValueError(f"expected panels with a curve at least, got {counts}")
    shown = [*(c for curves in panels.values() for c in curves), *means.values()]
    values = [float(v) for curve in shown for part in curve for v in part]
    columns = min(len(panels), MOST)
    rows = -(-len(panels) // columns)
    figure = new_figure(max(3.1 * columns, 4.4), 3.1 * rows + 0.6)
    all_axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    scale = "log" if min(values) > 0 else "linear"
    ends = (min(values) / 1.2, max(values) * 1.2)
    style = look(0)
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=False):
        plain_axes(axes, "both")
        axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":", label="as expected")
        for i, (expected, true) in enumerate(curves):
            axes.plot(expected, true, color=style.colour, alpha=0.4, linewidth=0.8, label="" if i else "a scan")
        if title in means:
            mean = f"mean of {len(curves)}"
            axes.plot(*means[title], f"-{style.marker}", color=style.colour, linewidth=2.4, markersize=4.5, label=mean)
        axes.set(xscale=scale, yscale=scale, xlim=ends, ylim=ends, aspect="equal")
        if scale == "log":
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"expected {label}", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        axes.legend(frameon=False, fontsize=8, loc="best")
        axes.label_outer()
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    save(figure, path)
