"""The look that the charts share: colours that the colour-blind tell apart, and files of a bounded size."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from ..files import PathLike, atomic_write

# M. Okabe, K. Ito, Color Universal Design (2008): black left out, as it marks text and intervals
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
HATCHES = ("", "////", "xxx", "...")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")
INK, FAINT = "#222222", "#d9d9d9"
LARGEST = 400_000  # bytes of a PNG
DPI = 110


class Look(NamedTuple):
    """How one method is drawn in all charts."""

    colour: str
    hatch: str
    marker: str
    line: str


def look(index: int) -> Look:
    """The look of the method at a place of the list: eight colours, then the same with another hatch, marker and line."""
    again, place = divmod(index, len(COLOURS))
    return Look(
        COLOURS[place],
        HATCHES[again % len(HATCHES)],
        MARKERS[(place + again) % len(MARKERS)],
        LINES[again % len(LINES)],
    )


def shorten(text: str, length: int = 22) -> str:
    """A name that fits a chart: on one line, the middle left out where it is too long; `$` is no mark of a formula."""
    text = " ".join(text.split())
    half = (length - 1) // 2
    return (text if len(text) <= length else f"{text[: length - 1 - half]}\u2026{text[-half:]}").replace("$", r"\$")


def plain_axes(axes: Any, grid: str = "y") -> None:
    """Leave the frame away but for the lines of the axes, and draw a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=FAINT, linewidth=0.7)


def new_figure(width: float, height: float) -> Any:
    """An empty figure on white, in inches; no pyplot, so no global state and no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save(figure: Any, path: PathLike, grey: bool = False, largest: int = LARGEST) -> None:
    """Write a figure as PNG, whole or not at all, with fewer dots per inch where the file would be larger than `largest` bytes.

    Args:
        figure: matplotlib figure.
        path: PNG file.
        grey: store levels of grey, a quarter of the colours' data.
        largest: size of the file in bytes that is aimed at; 50 dots per inch are the least.

    Raises:
        ScanError: when the file cannot be written.
    """
    from PIL import Image

    dpi: float = DPI
    while True:
        buffer, stored = io.BytesIO(), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor())
        with Image.open(buffer) as picture:
            picture.convert("L" if grey else "RGB").save(stored, format="png", optimize=True)
        size = stored.tell()
        if size <= largest or dpi <= 50:
            break
        dpi = max(50, min(0.95 * dpi, dpi * (largest / size) ** 0.5))
    with atomic_write(path) as partial:
        partial.write_bytes(stored.getvalue())
