"""The expected error in colours, and the bar that says what they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..figures.style import new_figure, save
from ..files import PathLike

COLOURS = "magma"  # black at 0, as the background of the pictures, and brighter with each step
BRIGHTEST = 99.5  # percentile of the voxels above 0


def colour_limit(values: npt.NDArray[np.float32]) -> float:
    """The expected error that is shown brightest: a percentile of those above 0, 1 where there is none."""
    above = values[values > 0]
    return float(np.percentile(above, BRIGHTEST)) if len(above) else 1.0


def coloured(values: npt.NDArray[np.float32], limit: float) -> npt.NDArray[np.uint8]:
    """Colours `(rows, columns, 3)` of expected errors `(rows, columns)` from 0 to `limit`; what is larger is shown as that."""
    import matplotlib

    shades: npt.NDArray[np.uint8] = matplotlib.colormaps[COLOURS](np.clip(values / limit, 0, 1), bytes=True)
    return shades[..., :3]


def draw_colour_bar(limit: float, path: PathLike) -> None:
    """Draw the bar of `coloured` to a PNG.

    Raises:
        ScanError: when it cannot be written.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure: Any = new_figure(6, 0.75)
    shades = ScalarMappable(Normalize(0, limit), COLOURS)
    bar = figure.colorbar(shades, cax=figure.add_subplot(), orientation="horizontal", extend="max")
    bar.set_label("expected error: standard deviation in the scan's units", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save(figure, path)
