"""What a scan must be to be used, whichever reader reads it; what fails is told in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ScanError, one_line

Array = npt.NDArray[Any]


@contextlib.contextmanager
def reading(path: Path, expected: str, got: str) -> Iterator[None]:
    """Turn whatever a reader raises on a foreign or damaged file into one line of ours."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 becomes infinite and is refused as such
            yield
    except ScanError:
        raise
    except MemoryError as error:
        raise ScanError(f"{path}: expected a scan that fits in memory, got: out of memory") from error
    except PermissionError as error:
        raise ScanError(f"{path}: expected a readable file, got: {one_line(error)}") from error
    except Exception as error:  # readers raise nearly every type on damaged input
        raise ScanError(f"{path}: expected {expected}, got {got}") from error


def check_grid(path: Path, shape: Sequence[int], spacing: Sequence[float], spatial_dims: int) -> tuple[int, ...]:
    """The three spatial axes of a file's shape, when it is one volume (or slice) with a voxel size."""
    size = list(shape)
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) > 3:
        raise ScanError(f"{path}: expected one volume with 3 axes, got shape {tuple(shape)}")
    size += [1] * (3 - len(size))
    if min(size) < 1 or sum(n < 2 for n in size) > 3 - spatial_dims:
        wanted = "at least 2 voxels along each of 3 axes" if spatial_dims == 3 else "a slice or a volume"
        what = "a single slice" if sum(n == 1 for n in size) == 1 and min(size) == 1 else "an image"
        raise ScanError(f"{path}: expected {wanted}, got {what} of shape {tuple(shape)}")
    if not all(np.isfinite(s) and s > 0 for s in spacing[:3]):
        raise ScanError(f"{path}: expected voxel sizes above 0 mm, got {' x '.join(f'{s:g}' for s in spacing[:3])}")
    return tuple(size)


def check_affine(path: Path, affine: Array) -> None:
    """Refuse an affine `(4, 4)` that is not finite or does not span three dimensions."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # the volume of a voxel against that of a box of its sides: 1 where the axes are at right angles, 0 in one plane
    if not np.isfinite(affine).all() or not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
        rows = "; ".join(" ".join(f"{v:g}" for v in row) for row in affine[:3])
        raise ScanError(f"{path}: expected an invertible affine from voxels to mm, got [{rows}]")


def check_kind(path: Path, kind: str, components: int = 1) -> None:
    """Refuse voxels that are not one real value each; `kind` is that of a NumPy dtype."""
    if components != 1 or kind in "Vc":
        what = {"c": "complex values"}.get(kind, f"{components} values per voxel" if components != 1 else "RGB colours")
        raise ScanError(f"{path}: expected one real value per voxel, got {what}")


def as_float32(voxels: Array) -> Array:
    """Return a copy of the voxels as float32 in C order."""
    return np.array(voxels, dtype=np.float32, order="C")


def check_voxels(path: Path, image: torch.Tensor) -> None:
    """Refuse an image with NaN or infinity, or of one value only."""
    low, high = (float(v) for v in torch.aminmax(image))
    if not np.isfinite(low + high):
        count = int(image.numel() - torch.isfinite(image).sum())
        raise ScanError(f"{path}: expected finite values, got NaN or infinity in {count} of {image.numel()} voxels")
    if low == high:
        raise ScanError(f"{path}: expected an image with contrast, got the constant {low:g}")
