"""The figure that compares volumes: axial, coronal and sagittal planes side by side, with residuals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from monai.data import MetaTensor

from ..files import PathLike
from .panels import Column, draw
from .planes import PICTURE, Slice, affine_of, detail, finest_plane, head_position, plane_slice, shown_planes


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
        zoom: add a row with the square of the most detail enlarged, marked by a frame: an axial one, unless another
            plane gains more voxels from the coarsest volume to the finest, as with thick slices.
        window: values shown black and white; None takes percentiles 0.5 and 99.8 of the planes of the first volume on
            the finest grid. Residuals are in units of the window, so that with (0, 1) they are the plain difference.
        residual_range: width of the grey window of the residuals around 0.5; the paper's is 1, from 0 to 1.

    Raises:
        ValueError: when there are no volumes, the reference is none of them, or a shape does not fit.
        ScanError: when the file cannot be written.

    Reference:
        K. Thurnhofer-Hemsi et al., Deep learning networks with p-norm loss layers for spatial resolution enhancement of 3D medical
        images, IWINAC 2019, doi:10.1007/978-3-030-19651-6_28: equation 8, figures 5 and 6.
    """
    if not volumes or (residual_to is not None and residual_to not in volumes):
        raise ValueError(f"expected volumes, {residual_to!r} among them, got {list(volumes)}")
    finest = max(volumes, key=lambda name: volumes[name].numel())
    position = head_position(volumes[finest])
    planes = shown_planes(volumes[finest])
    slices = {
        name: [plane_slice(img, affine_of(img), plane, position) for plane in planes] for name, img in volumes.items()
    }
    if window is None:
        shown = np.concatenate([s.pixels.ravel() for s in slices[finest]])
        dark, bright = (float(np.percentile(shown, q)) for q in (0.5, 99.8))
        window = (0.0 if abs(dark) < 0.01 * bright else dark, bright)
    low, width = window[0], max(window[1] - window[0], 1e-12)
    scaled = {name: [Slice((s.pixels - low) / width, s.size) for s in images] for name, images in slices.items()}
    columns = [Column(_title(name, volumes[name]), images, 1.0) for name, images in scaled.items()]
    if residual_to is not None:
        for name, images in scaled.items():
            if name != residual_to and volumes[name].shape == volumes[residual_to].shape:
                pairs = zip(scaled[residual_to], images, strict=True)
                rest = [Slice(t.pixels - i.pixels + 0.5, t.size) for t, i in pairs]
                columns.append(Column(f"{residual_to} \u2212 {name} + 0.5\n", rest, residual_range, "#808080"))
    note = "" if planes == [PICTURE] else "radiological view: R is the patient's right    "
    note += f"grey window {window[0]:.3g} to {window[1]:.3g}"
    if residual_to is not None:
        note += f"    residuals in units of it, {0.5 - residual_range / 2:.3g} to {0.5 + residual_range / 2:.3g}"
    row = finest_plane(list(slices.values())) if zoom else 0
    draw(columns, planes, (row, *detail(slices[finest][row])) if zoom else None, note, path)


def _title(name: str, img: torch.Tensor) -> str:
    if not isinstance(img, MetaTensor):
        return f"{name}\n"
    return f"{name}\n{' x '.join(f'{float(v):.3g}' for v in img.pixdim)} mm"
