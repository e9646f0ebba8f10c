"""What a figure shows of a volume: slices through the middle of the head, and where on them the most detail is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor

from ..tensors import plain

Image = npt.NDArray[np.float32]

# name: world axes (0 right, 1 anterior, 2 superior) of the columns, of the rows and of the normal
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
PICTURE = "picture"  # the one plane of a slice that came as a picture: as the file shows it, its sides unknown
SAMPLES = 64  # voxels per axis that are looked at to find the middle of the head
DETAIL = 0.3  # side of the enlarged square, as a part of the panel's width


class Slice(NamedTuple):
    """One plane of a volume as it is shown."""

    pixels: Image  # rows from A or S downwards, columns from R or A: radiological
    size: tuple[float, float]  # width, height in mm


def _volume(img: torch.Tensor) -> torch.Tensor:
    """A plain `(X, Y, Z)` view of `(1, *spatial)`; an image in 2D becomes one slice."""
    if img.ndim not in (3, 4) or img.shape[0] != 1:
        raise ValueError(f"expected an image (1, X, Y) or a volume (1, X, Y, Z), got {tuple(img.shape)}")
    x = plain(img).detach()[0]
    return x[..., None] if x.ndim == 2 else x


def affine_of(img: torch.Tensor) -> npt.NDArray[Any]:
    """Affine `(4, 4)` of an image; that of a plain tensor, or of one in 2D, has voxels of 1 mm along the world axes."""
    if isinstance(img, MetaTensor) and img.affine.shape[-1] == 4:
        return np.asarray(img.affine.cpu().numpy(), dtype=np.float64)
    return np.eye(4)


def _axes(affine: npt.NDArray[Any]) -> dict[int, tuple[int, bool]]:
    """World axis -> the array axis closest to it, and whether its index grows to right, anterior or superior."""
    orientation = nib.orientations.io_orientation(affine)
    return {int(world): (axis, sign > 0) for axis, (world, sign) in enumerate(orientation)}


def plane_slice(img: torch.Tensor, affine: npt.NDArray[Any], plane: str, position: tuple[float, float, float]) -> Slice:
    """One plane of a volume as it is shown, in radiological view; only this slice is copied.

    Args:
        img: `(1, X, Y, Z)`.
        affine: `(4, 4)` of its grid, to RAS+ mm.
        plane: `axial`, `coronal` or `sagittal`: the array plane closest to it; a `picture` was loaded as an axial one.
        position: place of the slice along each array axis as a part of its extent, in [0, 1].
    """
    x, axes = _volume(img), _axes(affine)
    across, down, normal = (axes[world] for world in PLANES["axial" if plane == PICTURE else plane])
    n = x.shape[normal[0]]
    pixels = x.select(normal[0], min(int(position[normal[0]] * n), n - 1)).to("cpu", torch.float32).numpy()
    pixels = pixels.T if across[0] < down[0] else pixels
    pixels = pixels[:: -1 if down[1] else 1, :: -1 if across[1] else 1]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    width, height = (float(spacing[a] * x.shape[a]) for a, _ in (across, down))
    return Slice(pixels, (width, height))


def head_position(img: torch.Tensor) -> tuple[float, float, float]:
    """Centre of the voxels above the mean along each array axis, as a part of the extent; seen on a coarse subset."""
    x = _volume(img)
    coarse = x[tuple(slice(None, None, -(-n // SAMPLES)) for n in x.shape)].to("cpu", torch.float32)
    bright = (coarse > coarse.mean()).nonzero().float()
    if not len(bright):
        return (0.5, 0.5, 0.5)
    centre = (bright.mean(0) + 0.5) / torch.tensor(coarse.shape)
    return (float(centre[0]), float(centre[1]), float(centre[2]))


def shown_planes(img: torch.Tensor) -> list[str]:
    """Planes of a volume that have more than one voxel both ways; of a slice or an image in 2D one alone."""
    if isinstance(img, MetaTensor) and img.meta.get("picture"):
        return [PICTURE]
    shape, axes = _volume(img).shape, _axes(affine_of(img))
    return [p for p, (across, down, _) in PLANES.items() if min(shape[axes[across][0]], shape[axes[down][0]]) > 1]


def finest_plane(images: Sequence[Sequence[Slice]]) -> int:
    """The plane whose slices, one per image and plane, gain most voxels from the coarsest to the finest; else the first."""
    sizes = [[shown.pixels.size for shown in planes] for planes in images]
    gains = [max(plane) / min(plane) for plane in zip(*sizes, strict=True)]
    return gains.index(max(gains)) if max(gains) > 1.2 * gains[0] else 0  # 1.2: sizes are rounded


def detail(shown: Slice) -> tuple[float, float, float]:
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
