"""Loss curves of training runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ScanError, one_line
from ..files import PathLike
from .style import look, new_figure, plain_axes, save, shorten

Array = npt.NDArray[np.float64]
PART = 0.02  # of a run, the window of the smoothing where none is given


def smooth(values: npt.ArrayLike, window: int) -> Array:
    """Mean over a window of an odd number of values around each; nearer to the ends it shrinks on both sides alike.

    The curve is not shifted: a step stays where it is, and a straight line is not changed.

    Raises:
        ValueError: when the window is not an odd number >= 1.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and >= 1, got {window}")
    x = np.asarray(values, np.float64)
    sums = np.concatenate([[0.0], np.cumsum(x)])
    places = np.arange(len(x))
    half = np.minimum(np.minimum(places, places[::-1]), window // 2)
    smoothed: Array = (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)
    return smoothed


def read_losses(path: PathLike) -> tuple[Array, Array]:
    """Iterations and losses in a `losses.csv` of `custom_components.handlers.LossCurve`.

    Raises:
        ScanError: when the file cannot be read or is no such table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = [(float(row["iteration"]), float(row["loss"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        got = f"no column {error}" if isinstance(error, KeyError) else one_line(error)
        raise ScanError(f"{path}: expected a table with the columns iteration and loss, got: {got}") from error
    table = np.array(rows, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def loss_curves(curves: Mapping[str, PathLike], path: PathLike, window: int | None = None) -> None:
    """Draw the training loss of runs over their iterations, on a logarithmic axis unless a loss is not positive.

    A run whose loss becomes NaN or infinite ends there with a cross, and the legend says that it diverged. A file that cannot
    be read is named in the legend and has no curve.

    Args:
        curves: name of the run -> its `losses.csv`.
        path: PNG file.
        window: odd number of rows of the table that are averaged; None takes 2 % of each run. The measured values stay
            visible behind the curve.

    Raises:
        ValueError: when there are no curves, or on a bad window.
        ScanError: when the picture cannot be written.

    Reference:
        K. Thurnhofer-Hemsi et al., Deep learning networks with p-norm loss layers for spatial resolution enhancement of 3D medical
        images, IWINAC 2019, doi:10.1007/978-3-030-19651-6_28: figure 1.
    """
    if not curves:
        raise ValueError("expected a loss curve at least, got none")
    figure = new_figure(9.1, 4.6)
    axes = figure.subplots()
    lowest = np.inf
    for i, (name, file) in enumerate(curves.items()):
        style = look(i)
        colours = {"color": style.colour, "linestyle": style.line}
        try:
            iterations, losses = read_losses(file)
        except ScanError:
            axes.plot([], [], label=f"{shorten(name, 30)} (no curve)", **colours)
            continue
        bad = np.flatnonzero(~np.isfinite(losses))
        end = int(bad[0]) if len(bad) else len(losses)
        x, y = iterations[:end], losses[:end]
        width = window or 2 * int(PART * len(y) / 2) + 1
        note = f" (diverged at {iterations[end]:g})" if len(bad) else ""
        if width > 1:
            axes.plot(x, y, color=style.colour, alpha=0.25, linewidth=0.8)
        axes.plot(x, smooth(y, width), label=shorten(name, 30) + note, linewidth=1.6, **colours)
        if len(bad):
            at = (x[-1], y[-1]) if end else (iterations[0], np.nan)
            axes.plot(*at, "X", color=style.colour, markersize=10, markeredgecolor="white", zorder=5)
        lowest = min(lowest, float(y.min(initial=np.inf)))
    plain_axes(axes, "both")
    axes.set(xlabel="iteration", ylabel="training loss", yscale="log" if 0 < lowest < np.inf else "linear")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)
