"""The drawing of a figure: panels on black, with names, letters for the patient's sides, and an enlarged detail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..files import PathLike, atomic_write
from .planes import PLANES, Slice

LETTERS = ("R", "A", "S")  # where the world axes begin on a panel
COLUMN, LABEL, HEAD, FOOT, GAP = 2.5, 0.3, 0.55, 0.32, 0.04  # inches
MARK = "#d0b060"


class Column(NamedTuple):
    """A slice per plane."""

    title: str
    images: list[Slice]
    span: float  # of the grey window around 0.5
    colour: str = "black"  # beside the images


def draw(
    columns: Sequence[Column],
    planes: Sequence[str],
    detail: tuple[int, float, float, float] | None,
    note: str,
    path: PathLike,
) -> None:
    """Lay the panels out in inches on black and write the PNG.

    Args:
        columns: from left to right.
        planes: names of the rows; those of no plane of the body get no letters.
        detail: row, left and upper corner and side in mm of the square that is enlarged in a last row; None for none.
        note: the line at the foot.
        path: PNG file.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display
    from matplotlib.patches import Rectangle

    first = columns[0].images
    inch = COLUMN / max(s.size[0] for s in first)  # per mm: one scale for all panels
    heights = [s.size[1] * inch for s in first] + ([COLUMN] if detail else [])
    total = (LABEL + len(columns) * (COLUMN + GAP), HEAD + sum(heights) + GAP * len(heights) + FOOT)
    figure = Figure(figsize=total, facecolor="black")
    voxels = [sum(s.pixels.size for s in column.images) for column in columns]

    def panel(c: int, r: int, shown: Slice) -> Any:
        left, bottom = LABEL + c * (COLUMN + GAP), total[1] - HEAD - sum(heights[: r + 1]) - GAP * r
        place = (left / total[0], bottom / total[1], COLUMN / total[0], heights[r] / total[1])
        axes = figure.add_axes(place, facecolor=columns[c].colour, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.imshow(
            shown.pixels,
            cmap="gray",
            vmin=0.5 - columns[c].span / 2,
            vmax=0.5 + columns[c].span / 2,
            extent=(0, shown.size[0], shown.size[1], 0),
            interpolation="nearest" if voxels[c] < max(voxels) else "antialiased",
        )
        return axes

    for c, column in enumerate(columns):
        for r, (plane, shown) in enumerate(zip(planes, column.images, strict=True)):
            axes = panel(c, r, shown)
            spare = (COLUMN / inch - shown.size[0]) / 2
            axes.set(xlim=(-spare, shown.size[0] + spare), ylim=(shown.size[1], 0))
            if r == 0:
                axes.set_title(column.title, color="white", fontsize=10, pad=4)
            if detail and r == detail[0]:
                axes.add_patch(Rectangle(detail[1:3], *detail[3:] * 2, fill=False, edgecolor=MARK, linewidth=0.8))
            if c == 0:
                _label(figure, axes, plane)
            if c == 0 and plane in PLANES:
                across, down = (LETTERS[world] for world in PLANES[plane][:2])
                marks: dict[str, Any] = {"transform": axes.transAxes, "color": MARK, "fontsize": 8}
                marks["bbox"] = {"color": "black", "alpha": 0.5, "pad": 1}
                axes.text(0.02, 0.5, across, ha="left", va="center", **marks)
                axes.text(0.5, 0.98, down, ha="center", va="top", **marks)
        if detail:
            row, left, top, side = detail
            axes = panel(c, len(planes), column.images[row])
            axes.set(xlim=(left, left + side), ylim=(top + side, top))
            if c == 0:
                _label(figure, axes, f"{planes[row]} detail")
    figure.text(LABEL / total[0], 0.35 * FOOT / total[1], note, color="#a0a0a0", fontsize=8)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130, facecolor="black")


def _label(figure: Any, axes: Any, text: str) -> None:
    """Name of a row, upright in the left margin."""
    place = axes.get_position()
    middle = (place.y0 + place.y1) / 2
    figure.text(0.4 * LABEL / figure.get_figwidth(), middle, text, color="white", fontsize=10, rotation=90, va="center")
