"""Figures of volumes: axial, coronal and sagittal planes side by side, with residuals and an enlarged detail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor

from .scans import PathLike, atomic_write

Image = npt.NDArray[np.float32]

# name: world axes (0 right, 1 anterior, 2 superior) of the columns, of the rows and of the normal
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
SAMPLES = 64  # voxels per axis that are looked at to find the middle of the head
DETAIL = 0.3  # side of the enlarged square, as a part of the panel's width
COLUMN, LABEL, HEAD, FOOT, GAP = 2.5, 0.3, 0.55, 0.32, 0.04  # inches
MARK = "#d0b060"


class _Slice(NamedTuple):
    pixels: Image  # rows from A or S downwards, columns from R or A: radiological
    size: tuple[float, float]  # width, height in mm


class _Column(NamedTuple):
    title: str
    images: list[_Slice]
    span: float  # of the grey window around 0.5
    colour: str = "black"  # beside the images


def _volume(img: torch.Tensor) -> torch.Tensor:
    """A plain `(X, Y, Z)` view of `(1, *spatial)`; an image in 2D becomes one slice."""
    if img.ndim not in (3, 4) or img.shape[0] != 1:
        raise ValueError(f"expected an image (1, X, Y) or a volume (1, X, Y, Z), got {tuple(img.shape)}")
    x = (img.as_tensor() if isinstance(img, MetaTensor) else img).detach()[0]
    return x[..., None] if x.ndim == 2 else x


def _axes(affine: npt.NDArray[Any]) -> dict[int, tuple[int, bool]]:
    """World axis -> the array axis closest to it, and whether its index grows to right, anterior or superior."""
    orientation = nib.orientations.io_orientation(affine)  # type: ignore[no-untyped-call]
    return {int(world): (axis, sign > 0) for axis, (world, sign) in enumerate(orientation)}


def plane_slice(
    img: torch.Tensor, affine: npt.NDArray[Any], plane: str, position: tuple[float, float, float]
) -> _Slice:
    """One plane of a volume as it is shown, in radiological view; only this slice is copied.

    Args:
        img: `(1, X, Y, Z)`.
        affine: `(4, 4)` of its grid, to RAS+ mm.
        plane: `axial`, `coronal` or `sagittal`: the array plane closest to it.
        position: place of the slice along each array axis as a part of its extent, in [0, 1].
    """
    x, axes = _volume(img), _axes(affine)
    across, down, normal = (axes[world] for world in PLANES[plane])
    n = x.shape[normal[0]]
    pixels = x.select(normal[0], min(int(position[normal[0]] * n), n - 1)).to("cpu", torch.float32).numpy()
    pixels = pixels.T if across[0] < down[0] else pixels
    pixels = pixels[:: -1 if down[1] else 1, :: -1 if across[1] else 1]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    width, height = (float(spacing[a] * x.shape[a]) for a, _ in (across, down))
    return _Slice(pixels, (width, height))


def head_position(img: torch.Tensor) -> tuple[float, float, float]:
    """Centre of the voxels above the mean along each array axis, as a part of the extent; seen on a coarse subset."""
    x = _volume(img)
    coarse = x[tuple(slice(None, None, -(-n // SAMPLES)) for n in x.shape)].to("cpu", torch.float32)
    bright = (coarse > coarse.mean()).nonzero().float()
    if not len(bright):
        return (0.5, 0.5, 0.5)
    centre = (bright.mean(0) + 0.5) / torch.tensor(coarse.shape)
    return (float(centre[0]), float(centre[1]), float(centre[2]))


def _detail(shown: _Slice) -> tuple[float, float, float]:
    """Left and upper corner and side in mm of the square with the most edges in the middle part of a slice."""
    side = DETAIL * max(shown.size)
    rows, columns = np.gradient(shown.pixels) if min(shown.pixels.shape) > 1 else (shown.pixels, shown.pixels)
    edges = np.hypot(rows, columns)
    edges = np.minimum(edges, np.percentile(edges, 90))  # many edges count, not the one strong edge of the head
    per_mm = [n / mm for n, mm in zip(edges.shape, shown.size[::-1], strict=True)]
    box = [max(min(round(side * k), n), 1) for k, n in zip(per_mm, edges.shape, strict=True)]
    total = edges
    for axis, n in enumerate(box):  # a box mean, one axis after the other
        total = np.lib.stride_tricks.sliding_window_view(total, n, axis).mean(-1)
    middle = [slice(n // 4, max(n - n // 4, n // 4 + 1)) for n in total.shape]
    row, column = np.unravel_index(int(total[tuple(middle)].argmax()), total[tuple(middle)].shape)
    return float(column + middle[1].start) / per_mm[1], float(row + middle[0].start) / per_mm[0], side


def _affine(img: torch.Tensor) -> npt.NDArray[Any]:
    """Affine `(4, 4)` of an image; that of a plain tensor, or of one in 2D, has voxels of 1 mm along the world axes."""
    if isinstance(img, MetaTensor) and img.affine.shape[-1] == 4:
        return np.asarray(img.affine.cpu().numpy(), dtype=np.float64)
    return np.eye(4)


def three_planes(
    volumes: Mapping[str, torch.Tensor],
    path: PathLike,
    residual_to: str | None = None,
    zoom: bool = False,
    window: tuple[float, float] | None = None,
    residual_range: float = 1.0,
) -> None:
    """Draw volumes of one field of view in the axial, coronal and sagittal plane through the middle of the head.

    A row per plane, a column per volume, then columns of residuals `reference - image + 0.5`: grey is no error. All
    images have one grey window. The view is radiological: the patient's right is on the left. Voxels keep their
    proportions in mm; a volume on a coarser grid shows its voxels.

    Args:
        volumes: title -> volume `(1, X, Y, Z)`, or image `(1, X, Y)` in 2D, in one unit. Grids may differ, not the
            field of view or the order of the array axes. A `MetaTensor` brings its affine; others have voxels of 1 mm.
        path: PNG file, written whole or not at all.
        residual_to: title of the reference; each other volume on its grid gets a column of residuals.
        zoom: add a row with the axial square of the most detail enlarged, marked by a frame in the row above.
        window: values shown black and white; None takes percentiles 0.5 and 99.8 of the planes of the first volume on
            the finest grid. Residuals are in units of the window, so that with (0, 1) they are the plain difference.
        residual_range: width of the grey window of the residuals around 0.5; the paper's is 1, from 0 to 1.

    Raises:
        ValueError: when there are no volumes, the reference is none of them, or a shape does not fit.
        ScanError: when the file cannot be written.

    Reference:
        K. Thurnhofer-Hemsi et al., Super-resolution of 3D magnetic resonance images by convolutional neural networks
        with p-norm losses: equation 8 and figures 5 and 6.
    """
    if not volumes or (residual_to is not None and residual_to not in volumes):
        raise ValueError(f"expected volumes, {residual_to!r} among them, got {list(volumes)}")
    finest = max(volumes, key=lambda name: volumes[name].numel())
    position = head_position(volumes[finest])
    shape = _volume(volumes[finest]).shape
    normals = {plane: _axes(_affine(volumes[finest]))[PLANES[plane][2]][0] for plane in PLANES}
    planes = [p for p in PLANES if all(n > 1 for axis, n in enumerate(shape) if axis != normals[p])]
    slices = {
        name: [plane_slice(img, _affine(img), plane, position) for plane in planes] for name, img in volumes.items()
    }
    if window is None:
        shown = np.concatenate([s.pixels.ravel() for s in slices[finest]])
        dark, bright = (float(np.percentile(shown, q)) for q in (0.5, 99.8))
        window = (0.0 if abs(dark) < 0.01 * bright else dark, bright)
    low, width = window[0], max(window[1] - window[0], 1e-12)
    scaled = {name: [_Slice((s.pixels - low) / width, s.size) for s in images] for name, images in slices.items()}
    columns = [_Column(_title(name, volumes[name]), images, 1.0) for name, images in scaled.items()]
    if residual_to is not None:
        for name, images in scaled.items():
            if name != residual_to and volumes[name].shape == volumes[residual_to].shape:
                pairs = zip(scaled[residual_to], images, strict=True)
                rest = [_Slice(t.pixels - i.pixels + 0.5, t.size) for t, i in pairs]
                columns.append(_Column(f"{residual_to} \u2212 {name} + 0.5\n", rest, residual_range, "#808080"))
    note = f"radiological view: R is the patient's right    grey window {window[0]:.3g} to {window[1]:.3g}"
    if residual_to is not None:
        note += f"    residuals in units of it, {0.5 - residual_range / 2:.3g} to {0.5 + residual_range / 2:.3g}"
    box = _detail(slices[finest][0]) if zoom else None
    _draw(columns, planes, box, note, path)


def _title(name: str, img: torch.Tensor) -> str:
    if not isinstance(img, MetaTensor):
        return f"{name}\n"
    return f"{name}\n{' x '.join(f'{float(v):.3g}' for v in img.pixdim)} mm"


def _draw(
    columns: list[_Column],
    planes: list[str],
    box: tuple[float, float, float] | None,
    note: str,
    path: PathLike,
) -> None:
    """Lay the panels out in inches on black and write the PNG."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display
    from matplotlib.patches import Rectangle

    first = columns[0].images
    inch = COLUMN / max(s.size[0] for s in first)  # per mm: one scale for all panels
    heights = [s.size[1] * inch for s in first] + ([COLUMN] if box else [])
    total = (LABEL + len(columns) * (COLUMN + GAP), HEAD + sum(heights) + GAP * len(heights) + FOOT)
    figure = Figure(figsize=total, facecolor="black")
    voxels = [sum(s.pixels.size for s in column.images) for column in columns]

    def panel(c: int, r: int, shown: _Slice) -> Any:
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
            if r == 0 and box:
                axes.add_patch(Rectangle(box[:2], box[2], box[2], fill=False, edgecolor=MARK, linewidth=0.8))
            if c == 0:
                left, top = (LETTERS[world][0] for world in PLANES[plane][:2])
                marks: dict[str, Any] = {"transform": axes.transAxes, "color": MARK, "fontsize": 8}
                marks["bbox"] = {"color": "black", "alpha": 0.5, "pad": 1}
                axes.text(0.02, 0.5, left, ha="left", va="center", **marks)
                axes.text(0.5, 0.98, top, ha="center", va="top", **marks)
                _label(figure, axes, plane)
        if box:
            axes = panel(c, len(planes), column.images[0])
            axes.set(xlim=(box[0], box[0] + box[2]), ylim=(box[1] + box[2], box[1]))
            if c == 0:
                _label(figure, axes, "detail")
    figure.text(LABEL / total[0], 0.35 * FOOT / total[1], note, color="#a0a0a0", fontsize=8)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130, facecolor="black")


def _label(figure: Any, axes: Any, text: str) -> None:
    """Name of a row, upright in the left margin."""
    place = axes.get_position()
    middle = (place.y0 + place.y1) / 2
    figure.text(0.4 * LABEL / figure.get_figwidth(), middle, text, color="white", fontsize=10, rotation=90, va="center")
