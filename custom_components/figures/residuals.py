"""One plane of a scan as each method restored it, a detail of it, and what is left to the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ScanError
from ..files import PathLike
from ..transforms import LoadScan
from .panels import MARK
from .planes import PLANES, Image, Slice, affine_of, detail, finest_plane, head_position, plane_slice, shown_planes
from .style import save, shorten

WIDTH, WIDEST, LABEL, HEAD, FOOT, GAP = 9.1, 2.4, 0.28, 0.42, 0.3, 0.03  # inches
LETTERS = 13  # of a title per inch
DIM = "#a0a0a0"
ROWS = ("image", "detail", "residual")
RANGES = (0.1, 0.2, 0.4, 0.6, 0.8)
BRIGHT = 99.8  # percentile of the truth that is shown white


class _Shown(NamedTuple):
    """A column: the image and the residual, None where there is none, and why."""

    name: str
    image: Slice | None = None
    residual: Slice | None = None
    caption: str = ""
    why: str = ""


def _slices(
    path: PathLike, planes: Sequence[str] | None, position: tuple[float, float, float] | None
) -> dict[str, Any]:
    """Slices of a scan by their planes, with the position that they lie at; the volume is let go."""
    img = LoadScan()(path)
    at = head_position(img) if position is None else position
    cut = {p: plane_slice(img, affine_of(img), p, at) for p in planes or shown_planes(img)}
    return {"position": at, **{p: Slice(np.array(s.pixels), s.size) for p, s in cut.items()}}


def residual_pictures(
    truth: PathLike,
    lowres: PathLike,
    results: Mapping[str, PathLike],
    path: PathLike,
    captions: Mapping[str, str] | None = None,
    plane: str | None = None,
    residual_range: float | None = None,
    columns: int = 6,
) -> None:
    """Draw HR, LR and what each method made of it through the middle of the head: image, detail, and residual `HR - SR + 0.5`.

    All images have one grey window, from 0 to percentile 99.8 of the HR plane; all residuals have another around 0.5, where grey is
    no error and dark is too bright a result. The view is radiological. Volumes are loaded one by one and only the plane is kept.
    A result that is missing, cannot be read, or lies on another grid leaves a gap.

    Args:
        truth: the HR scan, in [0, 1].
        lowres: the LR scan.
        results: name of the method -> its result.
        path: PNG file.
        captions: name of the method -> a second line of its title.
        plane: `axial`, `coronal` or `sagittal`; None takes the axial one, unless another gains more voxels from LR to HR, as with
            thick slices.
        residual_range: width of the residuals' window; the paper's is 1, in which errors of a few percent can hardly be seen. None
            takes the first of 0.1, 0.2, 0.4, 0.6, 0.8 and 1 that holds 99 % of the residuals.
        columns: most columns side by side; more methods go on below.

    Raises:
        ValueError: on an unknown plane, or fewer than 2 columns.
        ScanError: when the truth cannot be read or the picture not be written.

    Reference:
        K. Thurnhofer-Hemsi et al., Deep learning networks with p-norm loss layers for spatial resolution enhancement of 3D medical
        images, IWINAC 2019, doi:10.1007/978-3-030-19651-6_28: equation 8, figures 5 and 6.
    """
    if plane is not None and plane not in PLANES:
        raise ValueError(f"plane must be one of {tuple(PLANES)}, got {plane!r}")
    if columns < 2:
        raise ValueError(f"columns must be >= 2, got {columns}")
    planes = None if plane is None else [plane]
    high = _slices(truth, planes, None)
    position = high.pop("position")
    try:
        low = _slices(lowres, list(high), position)
    except ScanError:
        low = {}
    if plane is None:
        both = [[s[p] for p in high] for s in (high, low) if s]
        plane = list(high)[finest_plane(both)]
    reference: Slice = high[plane]
    shown = [_Shown("HR", reference), _Shown("LR", low.get(plane), why="" if low else "no LR scan")]
    for name, file in results.items():
        caption = (captions or {}).get(name, "")
        try:
            image: Slice = _slices(file, [plane], position)[plane]
        except ScanError:
            shown.append(_Shown(name, caption=caption, why="no result"))
            continue
        if image.pixels.shape != reference.pixels.shape:
            shown.append(_Shown(name, image, caption=caption, why="on another grid"))
            continue
        shown.append(_Shown(name, image, Slice(reference.pixels - image.pixels, reference.size), caption))
    span = residual_range or _residual_range([s.residual.pixels for s in shown if s.residual])
    white = float(np.percentile(reference.pixels, BRIGHT)) or 1.0
    note = f"{plane} plane, radiological view    grey window of the images 0 to {white:.3g}    residuals HR \u2212 SR + 0.5 in "
    note += f"{0.5 - span / 2:.3g} to {0.5 + span / 2:.3g}"
    _draw(shown, reference, (0.0, white), (-span / 2, span / 2), note, columns, path)


def _residual_range(residuals: Sequence[Image]) -> float:
    largest = 2 * max((float(np.percentile(np.abs(r), 99)) for r in residuals), default=0.0)
    return next((width for width in RANGES if width >= largest), 1.0)


def _draw(
    shown: Sequence[_Shown],
    reference: Slice,
    window: tuple[float, float],
    residual_window: tuple[float, float],
    note: str,
    columns: int,
    path: PathLike,
) -> None:
    """Lay the bands of columns out in inches on black, each with the rows image, detail and residual."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    across = -(-len(shown) // -(-len(shown) // columns))  # bands of one length
    width = min((WIDTH - LABEL) / across - GAP, WIDEST)
    tall = width * max(s.image.size[1] / s.image.size[0] for s in shown if s.image)
    heights = (tall, width, tall)
    band = HEAD + sum(heights) + len(heights) * GAP
    bands = -(-len(shown) // across)
    total = (LABEL + across * (width + GAP), bands * band + FOOT)
    figure = Figure(figsize=total, facecolor="black")
    left, top, side = detail(reference)
    text: dict[str, Any] = {"fontsize": 9, "ha": "center", "va": "center"}

    def panel(column: int, row: int) -> Any:
        x = LABEL + column % across * (width + GAP)
        y = total[1] - column // across * band - HEAD - sum(heights[: row + 1]) - row * GAP
        place = (x / total[0], y / total[1], width / total[0], heights[row] / total[1])
        if column % across == 0:
            middle = (y + heights[row] / 2) / total[1]
            figure.text(0.5 * LABEL / total[0], middle, ROWS[row], color="white", rotation=90, **text)
        axes = figure.add_axes(place, facecolor="black", xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    for c, column in enumerate(shown):
        all_axes = [panel(c, row) for row in range(len(ROWS))]
        title = f"{shorten(column.name, int(LETTERS * width))}\n{column.caption}"
        all_axes[0].set_title(title, color="white", fontsize=9, pad=3)
        pictures = (column.image, column.image, column.residual)
        for axes, picture, grey in zip(all_axes, pictures, (window, window, residual_window), strict=True):
            if picture is None:
                axes.text(0.5, 0.5, column.why, color=DIM, transform=axes.transAxes, **text)
                continue
            extent = (0, picture.size[0], picture.size[1], 0)
            small = picture.pixels.shape != reference.pixels.shape or axes is all_axes[1]
            way = "nearest" if small else "antialiased"
            axes.imshow(picture.pixels, cmap="gray", vmin=grey[0], vmax=grey[1], extent=extent, interpolation=way)
        if column.image:
            all_axes[0].add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=MARK, linewidth=0.8))
            all_axes[1].set(xlim=(left, left + side), ylim=(top + side, top))
    figure.text(LABEL / total[0], 0.35 * FOOT / total[1], note, color=DIM, fontsize=8)
    save(figure, path, grey=True)
